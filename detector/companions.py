"""Views beside the reconstruction, fitted once an entity: one-step prediction, nearest training window, activity.

Each fails where the others do not: the network carries through what it has not learned to doubt, a regression on the
last values tells a jump from a drift, a stretch that no training window resembles is odd however well it is predicted,
and a channel that stands still, or shakes, is odd while every single value is normal. Knows no diffusion and no
threshold; `training.companions` fits it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from detector.entity_table import INPUT_LIMIT
from detector.manifest import CompanionConfig

# Added to a channel's deviation before its logarithm, in scaled units: below, nothing counts as movement.
STILL = 0.02
# At most so many rows make a group in the search for the largest.
_GROUPED_ROWS = 32
# Slots that are searched for at once: few enough for what is found of all windows to stay in a core's cache.
_QUERIES = 384
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

    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        row: Tensor,
        own_slots: Tensor | None = None,
        *,
        first: int = 0,
        ends: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return residuals and expected values of the views from position `first` on, each (3, B, C, L - first).

        In scaled units. The activity's residual is a difference of logarithms, and it expects the mean around a slot.

        x: (B, C, L), 0 where missing. valid: boolean, same shape. row: (B,) of the entities. own_slots: (B, L), given
        for training data: windows that overlap a slot's own don't count as its neighbours. ends: slots that the windows
        end at, where known: what two of them share that follow each other is searched for once.
        """
        filled = fill_gaps(x, valid)
        predicted = self._predict(filled, row, first)
        distance, nearest = self._nearest(filled, row, own_slots, first, ends)
        log_deviation, mean = activity(x, valid, self._activity, first)
        unusual = (log_deviation - self.usual_activity[row][..., None]).abs()
        off = (x[..., first:] - predicted).abs()
        return torch.stack([off, distance, unusual]), torch.stack([predicted, nearest, mean])

    def _predict(self, filled: Tensor, row: Tensor, first: int) -> Tensor:
        """Predict every slot from the `lags` slots before it; the first value stands for those before the window."""
        past = _reach_back(filled, self.coefficients.shape[-1], first)[..., :-1]  # (B, C, L - first + lags - 1)
        kernel = self.coefficients[row].flatten(0, 1)[:, None]  # (B C, 1, lags)
        predicted = F.conv1d(past.flatten(0, 1)[None], kernel, groups=len(kernel))
        return predicted.view(*filled.shape[:2], -1) + self.intercept[row][..., None]

    def _nearest(
        self, filled: Tensor, row: Tensor, own_slots: Tensor | None, first: int, ends: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the root mean square distance to the nearest training window by channel, and its middle value."""
        size = self.windows.shape[-1]
        padded = F.pad(_reach_back(filled, size // 2, first), (0, size - 1 - size // 2), mode="replicate")
        around = padded.unfold(-1, size, 1).transpose(1, 2)  # (B, n, C, W)
        place = torch.empty(around.shape[:2], dtype=torch.int64, device=filled.device)
        repeated = _repeated(around, row.tolist(), ends)
        for entity in set(row.tolist()):  # one search for all windows of an entity
            new = (row == entity)[:, None].expand_as(place).clone()
            for index, (_, same) in repeated.items():
                new[index, : len(same)] &= ~same
            slots = None if own_slots is None else own_slots[:, first:][new]
            place[new] = self._search(around[new].flatten(1), entity, slots)
        for index, (shift, same) in repeated.items():
            known = place[index, : len(same)]
            known.copy_(place[index - 1, shift:].where(same, known))
        nearest = self.windows[row[:, None], place]  # (B, n, C, W)
        distance = (around - nearest).square().mean(-1).sqrt()  # (B, n, C)
        return distance.transpose(1, 2), nearest[..., size // 2].transpose(1, 2)

    def _search(self, queries: Tensor, row: int, own_slots: Tensor | None) -> Tensor:
        """Return which training window is nearest to each query (Q, C W), (Q,)."""
        known = self.windows[row].flatten(1)  # (M, C W)
        half_norm = known.square().sum(1, keepdim=True) / 2
        found = []
        for start in range(0, len(queries), _QUERIES):
            closeness = torch.addmm(half_norm, known, queries[start : start + _QUERIES].T, beta=-1)  # (M, Q)
            if own_slots is not None:
                apart = (self.window_slots[row][:, None] - own_slots[start : start + _QUERIES]).abs()
                closeness = closeness.masked_fill(apart < self.windows.shape[-1], -torch.inf)
            found.append(largest_of_each_column(closeness))
        return torch.cat(found)


def _repeated(around: Tensor, row: Sequence[int], ends: Sequence[int]) -> dict[int, tuple[int, Tensor]]:
    """Find windows that begin inside the one before them: how far behind it they end, and which queries they share.

    around: (B, n, C, W). A shared query stands `shift` places later in the window before; n - shift of them may. Near
    the windows' ends and behind gaps they can differ, so the values decide.
    """
    found, size = dict[int, tuple[int, Tensor]](), around.shape[1]
    for index in range(1, len(ends)):
        shift = ends[index] - ends[index - 1]
        if row[index] == row[index - 1] and 0 < shift < size:
            same = (around[index, : size - shift] == around[index - 1, shift:]).flatten(1).all(1)
            found[index] = shift, same
    return found


def largest_of_each_column(values: Tensor) -> Tensor:
    """Return the row of the largest value of each column of (M, Q), (Q,).

    First the largest of each group of rows, which processors find many columns at a time, then where in its group: a
    plain argmax takes five times as long.
    """
    rows, columns = values.shape
    size = next(size for size in range(_GROUPED_ROWS, 0, -1) if rows % size == 0)
    groups = values.view(size, -1, columns)  # row = place in the group * number of groups + group
    group = groups.amax(0).max(0).indices  # (Q,)
    members = groups.gather(1, group.expand(size, 1, -1))[:, 0]  # (size, Q)
    return members.max(0).indices * groups.shape[1] + group


def _reach_back(values: Tensor, count: int, first: int) -> Tensor:
    """Return values (B, C, L) from `count` positions before `first` on; before a window stands its first value."""
    missing = max(0, count - first)
    return F.pad(values[..., first - count + missing :], (missing, 0), mode="replicate")


def activity(x: Tensor, valid: Tensor, size: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the deviation of present values within `size` slots around each, and their mean.

    From position `first` on, each (B, C, L - first). x: (B, C, L), 0 where missing, taken within INPUT_LIMIT. Slots
    beyond the window's ends don't count.
    """
    reach, dtype = size // 2, x.dtype
    start = max(0, first - reach)
    present = valid[..., start:].double()
    x = x[..., start:].clamp(-INPUT_LIMIT, INPUT_LIMIT) * present
    sums = F.pad(torch.stack([present, x, x.square()]).cumsum(-1), (1, 0))  # (3, B, C, L - start + 1)
    position = torch.arange(first - start, x.shape[-1], device=x.device)
    end, begin = (position + reach + 1).clamp(max=x.shape[-1]), (position - reach).clamp(min=0)
    count, total, squares = sums[..., end] - sums[..., begin]
    count = count.clamp(min=1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return (variance.sqrt() + STILL).log().to(dtype), mean.to(dtype)


def fill_gaps(x: Tensor, valid: Tensor) -> Tensor:
    """Carry the last present value of (B, C, L) forward, the first one back; 0 where a channel is never present."""
    position = torch.arange(x.shape[-1], device=x.device)
    last = torch.where(valid, position, -1).cummax(-1).values
    first = valid.int().argmax(-1, keepdim=True)
    return x.gather(-1, torch.where(last < 0, first, last))
