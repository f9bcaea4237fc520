"""The entities' calibrations as tensors, looked up by name. Knows no network and no score."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detector.manifest import EntityCalibration, Manifest
from stream.contracts import Stage

# The network sees at most this many scaled units; training data lies within 1. What it is compared with is the true
# value, so a larger deviation always gives a larger residual.
INPUT_LIMIT = 3.0
# Far beyond any sensor, yet its residual stays finite in float32 when it is divided by scale and summed over a window.
VALUE_LIMIT = 1e9


class EntityTable:
    """The entities' calibrations as tensors, row 0 for entities that training never saw."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        """Stack the calibrations of the manifest."""
        entries = [manifest.unseen, *manifest.entities]
        self._row_of = {entry.name: row for row, entry in enumerate(entries) if row}
        self._device = device
        self.index = torch.tensor([entry.index for entry in entries], device=device)  # (E + 1,)
        self.residual_scale = _stack(entries, lambda entry: entry.residual_scale, device).transpose(
            0, 1
        )  # (V, E + 1, C)
        self._levels = {
            "provisional": _stack(entries, lambda entry: entry.provisional_levels, device).T,
            "final": _stack(entries, lambda entry: entry.final_levels, device).T,
        }
        self.minimum = _stack(entries, lambda entry: entry.minimum, device)[..., None]  # (E + 1, C, 1)
        self.half_range = (_stack(entries, lambda entry: entry.maximum, device)[..., None] - self.minimum) / 2

    def rows(self, entities: Sequence[str]) -> Tensor:
        """Look the entities up, (B,)."""
        return torch.tensor(
            [self._row_of.get(entity, 0) for entity in entities], dtype=torch.int64, device=self._device
        )

    def levels(self, stage: Stage, row: Tensor) -> Tensor:
        """Return what counts as 1 in each view's smoothed score, (G, B)."""
        return self._levels[stage][:, row]

    def scale_values(self, values: Tensor, row: Tensor) -> Tensor:
        """Map raw values (B, C, L) so that the training range becomes [-1, 1]; infinities become VALUE_LIMIT."""
        scaled = (values - self.minimum[row]) / self.half_range[row] - 1
        return scaled.clamp(-VALUE_LIMIT, VALUE_LIMIT)

    def raw(self, scaled: Tensor, row: Tensor) -> Tensor:
        """Undo `scale_values`."""
        return (scaled + 1) * self.half_range[row] + self.minimum[row]

    def raw_width(self, scaled: Tensor, row: Tensor) -> Tensor:
        """Map a difference of scaled values to raw units."""
        return scaled * self.half_range[row]


def _stack(
    entries: Sequence[EntityCalibration], field: Callable[[EntityCalibration], object], device: torch.device
) -> Tensor:
    return torch.tensor([field(entry) for entry in entries], dtype=torch.float32, device=device)
