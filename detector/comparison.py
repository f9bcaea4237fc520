"""From what is expected to scores: windows compared with every view, views combined, scores smoothed.

Owns what lies between the network and `WindowScores`. Knows neither network nor noise. All tensors of a comparison hold
the newest n slots of the windows only, the ones that the wanted scores rest on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detector.companions import PREFIX, Companions
from detector.entity_table import INPUT_LIMIT, EntityTable
from detector.manifest import Manifest
from detector.scoring import combine_views, smooth, smoothing_weights, top_channels
from stream.contracts import Stage

# Mean plus standard deviation of |e| for normal e of standard deviation 1: sqrt(2 / pi) + sqrt(1 - 2 / pi).
_SCALE_PER_SIGMA = 1.4007


@dataclass(frozen=True, eq=False)
class Inputs:
    """Windows in the network's terms: x, valid (B, C, L), commands (B, K, L), entity (B,), starts (S,).

    noise: (S, B, C, L). ends: the windows' end slots.
    """

    x: Tensor
    valid: Tensor
    commands: Tensor
    row: Tensor
    entity: Tensor
    starts: Tensor
    noise: Tensor
    ends: Sequence[int]

    def x_in(self) -> Tensor:
        """Return what the network may see of x."""
        return self.x.clamp(-INPUT_LIMIT, INPUT_LIMIT)


class Views(NamedTuple):
    """What every start and companion says of windows: |x - expected| and expected, (V, B, C, n), scaled units."""

    valid: Tensor
    row: Tensor
    residual: Tensor
    expected: Tensor


class _Groups(NamedTuple):
    """Views on their own scale, those of all starts as one: (G, B, C, n)."""

    residual: Tensor
    expected: Tensor


class Comparison:
    """Compares windows with what the reconstruction and the companions expect of them."""

    def __init__(
        self, manifest: Manifest, weights: dict[str, Tensor], table: EntityTable, device: torch.device
    ) -> None:
        """Load the companions' fitted tensors. Raises RuntimeError if they don't fit the manifest."""
        self._scoring, self._table = manifest.scoring, table
        self._starts = len(manifest.scoring.starts)
        self._companions = _companions(manifest, weights, device)
        scoring, length, delay = manifest.scoring, manifest.geometry.length, manifest.geometry.final_delay
        self._smoothing: dict[Stage, Tensor] = {
            "provisional": smoothing_weights(scoring, length, 0, scoring.provisional_size).to(device),
            "final": smoothing_weights(scoring, length, delay).to(device),
        }
        self._reach = max(scoring.smoothing_size, scoring.provisional_size or 0) // 2

    def slots_for(self, recent: int) -> int:
        """Return how many of a window's newest slots the scores of the `recent` newest ones rest on."""
        return min(recent + self._reach, len(self._smoothing["final"]))

    def views(self, inputs: Inputs, expected: Tensor, slots: int, own_slots: Tensor | None = None) -> Views:
        """Compare the newest slots with what every start (S, B, C, L) and every companion expects of them."""
        first = inputs.x.shape[-1] - slots
        expected = expected[..., first:]
        residual = (inputs.x[..., first:] - expected).abs()
        if self._companions is not None:
            distance, elsewhere = self._companions(
                inputs.x, inputs.valid, inputs.row, own_slots, first=first, ends=inputs.ends
            )
            residual, expected = torch.cat([residual, distance]), torch.cat([expected, elsewhere])
        return Views(inputs.valid[..., first:], inputs.row, residual, expected)

    def group_scores(self, views: Views) -> dict[Stage, Tensor]:
        """Return smoothed scores by group before they are put on their levels, (G, B, n)."""
        return self._smoothed(views, self._groups(views).residual, views.residual.shape[-1])

    def scores(self, views: Views, recent: int) -> tuple[Tensor, ...]:
        """Return the fields of `WindowScores` for the `recent` newest slots."""
        groups, table, row = self._groups(views), self._table, views.row
        score = {
            stage: combine_views(smoothed, table.levels(stage, row)[..., None])  # (B, recent)
            for stage, smoothed in self._smoothed(views, groups.residual, recent).items()
        }
        relative = groups.residual[..., -recent:] / table.levels("final", row)[..., None, None]
        residual, oddest = relative.max(0, keepdim=True)
        width = self._widths(views, recent)
        expected, width = (each.gather(0, oddest)[0] for each in (groups.expected[..., -recent:], width))
        return (
            score["provisional"],
            score["final"],
            residual[0],
            table.raw(expected, row),
            table.raw_width(width, row),
        )

    def _groups(self, views: Views) -> _Groups:
        """Put every view on its own scale and average those of the starts: G is 1 and the number of companions."""
        scale = self._table.residual_scale[:, views.row]  # (V, B, C)
        relative = views.residual / scale[..., None] * views.valid
        return _Groups(_mean_of_first(relative, self._starts), _mean_of_first(views.expected, self._starts))

    def _widths(self, views: Views, recent: int) -> Tensor:
        """Return half-widths of the normal bands of the newest slots, (G, B, C, recent)."""
        usual = self._table.residual_scale[:, views.row][..., None] / _SCALE_PER_SIGMA  # (V, B, C, 1)
        by_start = views.expected[: self._starts, ..., -recent:]
        spread = (by_start - by_start.mean(0)).square().mean(0)  # torch's own variance takes ten times as long
        width = (usual[: self._starts].mean(0).square() + spread).sqrt()[None]
        others = usual[self._starts :]
        return self._scoring.sigmas * torch.cat([width, others.expand(-1, *spread.shape)])

    def _smoothed(self, views: Views, residual: Tensor, recent: int) -> dict[Stage, Tensor]:
        """Combine channels and smooth (eq. 5): one score a group, (G, B, recent)."""
        scoring, present = self._scoring, views.valid.any(1)
        combined = top_channels(residual, views.valid, scoring.top_channels)  # (G, B, n)
        slots = residual.shape[-1]
        return {
            stage: smooth(combined, present, weights[-slots:, -recent:], scoring.smoothing_power)
            for stage, weights in self._smoothing.items()
        }


def _mean_of_first(views: Tensor, count: int) -> Tensor:
    """Average the first views (V, ...) into one and leave the others: (V - count + 1, ...)."""
    return torch.cat([views[:count].mean(0, keepdim=True), views[count:]])


def _companions(manifest: Manifest, weights: dict[str, Tensor], device: torch.device) -> Companions | None:
    if manifest.companions is None:
        return None
    companions = Companions(manifest.companions, manifest.denoiser.numeric, manifest.denoiser.entities)
    companions.load_state_dict({name.removeprefix(PREFIX): w for name, w in weights.items() if name.startswith(PREFIX)})
    return companions.to(device)
