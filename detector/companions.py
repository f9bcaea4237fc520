"""Views beside the reconstruction, fitted once an entity: one-step prediction, nearest training window, activity.

Each fails where the others do not: the network carries through what it has not learned to doubt, a regression on the
last values tells a jump from a drift, a stretch that no training window resembles is odd however well it is predicted,
and a channel that stands still, or shakes, is odd while every single value is normal. Knows no diffusion and no
threshold; `training.companions` fits it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from detector.entity_table import INPUT_LIMIT
from detector.manifest import CompanionConfig

# Added to a channel's deviation before its logarithm, in scaled units: below, nothing counts as movement.
STILL = 0.02
# Where the fitted tensors stand among a checkpoint's weights.
PREFIX = "companions."


class Companions(nn.Module):
    """Fitted views of E known entities, row 0 for those that training never saw. Holds buffers, nothing is learned.

    coefficients: (E + 1, C, lags), oldest lag first, and intercept (E + 1, C), in scaled units.
    windows: (E + 1, M, C, W) training windows. window_slots: (E + 1, M) int64, the slot in the middle of each.
    usual_activity: (E + 1, C), the middle of what training shows.
    """

    coefficients: Tensor
    intercept: Tensor
    windows: Tensor
    window_slots: Tensor
    usual_activity: Tensor

    def __init__(self, config: CompanionConfig, numeric: int, entities: int) -> None:
        """Make room for the fitted tensors."""
        super().__init__()
        rows = entities + 1
        self.register_buffer("coefficients", torch.zeros(rows, numeric, config.lags))
        self.register_buffer("intercept", torch.zeros(rows, numeric))
        self.register_buffer("windows", torch.zeros(rows, config.windows, numeric, config.window))
        self.register_buffer("window_slots", torch.zeros(rows, config.windows, dtype=torch.int64))
        self.register_buffer("usual_activity", torch.zeros(rows, numeric))
        self._activity = config.activity

    def forward(self, x: Tensor, valid: Tensor, row: Tensor, own_slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return residuals and expected values of the views, each (3, B, C, L) in scaled units.

        The activity's residual is a difference of logarithms, and it expects the mean around a slot.

        x: (B, C, L), 0 where missing. valid: boolean, same shape. row: (B,) of the entities. own_slots: (B, L), given
        for training data: windows that overlap a slot's own don't count as its neighbours.
        """
        filled = fill_gaps(x, valid)
        predicted = self._predict(filled, row)
        distance, nearest = self._nearest(filled, row, own_slots)
        log_deviation, mean = activity(x, valid, self._activity)
        unusual = (log_deviation - self.usual_activity[row][..., None]).abs()
        return torch.stack([(x - predicted).abs(), distance, unusual]), torch.stack([predicted, nearest, mean])

    def _predict(self, filled: Tensor, row: Tensor) -> Tensor:
        """Predict every slot from the `lags` slots before it; the first value stands for those before the window."""
        lags = self.coefficients.shape[-1]
        past = F.pad(filled, (lags, 0), mode="replicate")[..., :-1]  # (B, C, L + lags - 1)
        kernel = self.coefficients[row].flatten(0, 1)[:, None]  # (B C, 1, lags)
        predicted = F.conv1d(past.flatten(0, 1)[None], kernel, groups=len(kernel))
        return predicted.view(filled.shape) + self.intercept[row][..., None]

    def _nearest(self, filled: Tensor, row: Tensor, own_slots: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the root mean square distance to the nearest training window by channel, and its middle value."""
        size = self.windows.shape[-1]
        padded = F.pad(filled, (size // 2, size - 1 - size // 2), mode="replicate")
        around = padded.unfold(-1, size, 1).transpose(1, 2)  # (B, L, C, W)
        found = [
            self._nearest_of_one(queries, int(entity), None if own_slots is None else own_slots[index])
            for index, (queries, entity) in enumerate(zip(around, row, strict=True))
        ]
        nearest = torch.stack(found)  # (B, L, C, W)
        distance = (around - nearest).square().mean(-1).sqrt()  # (B, L, C)
        return distance.transpose(1, 2), nearest[..., size // 2].transpose(1, 2)

    def _nearest_of_one(self, queries: Tensor, row: int, own_slots: Tensor | None) -> Tensor:
        known = self.windows[row].flatten(1)  # (M, C W)
        closeness = queries.flatten(1) @ known.T - known.square().sum(1) / 2  # (L, M)
        if own_slots is not None:
            apart = (own_slots[:, None] - self.window_slots[row]).abs()
            closeness = closeness.masked_fill(apart < self.windows.shape[-1], -torch.inf)
        return self.windows[row, closeness.argmax(1)]


def activity(x: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the deviation of present values within `size` slots around each, and their mean.

    x: (B, C, L), 0 where missing, taken within INPUT_LIMIT. Slots beyond the window's ends don't count.
    """
    x, present, length = x.clamp(-INPUT_LIMIT, INPUT_LIMIT), valid.double(), x.shape[-1]
    sums = torch.stack([present, x * present, x.square() * present]).cumsum(-1)  # (3, B, C, L)
    sums = F.pad(sums, (1, 0))
    position, reach = torch.arange(length, device=x.device), size // 2
    end, begin = (position + reach + 1).clamp(max=length), (position - reach).clamp(min=0)
    count, total, squares = sums[..., end] - sums[..., begin]
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return (variance.sqrt() + STILL).log().to(x.dtype), mean.to(x.dtype)


def fill_gaps(x: Tensor, valid: Tensor) -> Tensor:
    """Carry the last present value of (B, C, L) forward, the first one back; 0 where a channel is never present."""
    position = torch.arange(x.shape[-1], device=x.device)
    last = torch.where(valid, position, -1).cummax(-1).values
    first = valid.int().argmax(-1, keepdim=True)
    return x.gather(-1, torch.where(last < 0, first, last))
