"""From a trained network to a manifest: the scale of residuals and what normal scores look like, on training rows.

Scores are those of the live path: windows end at the live boundaries, a provisional score is taken over the last hop
of its window, a final one `final_delay` slots behind it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from detector.checkpoint import Golden
from detector.engine import Detector, WindowBatch
from detector.manifest import COMPANION_VIEWS, EntityCalibration, Manifest, Moments, Tail
from detector.scoring import combine_views
from stream.frames import frame
from stream.sketch import Sketch
from training.datasets import Dataset, Series, window_ends
from training.sampling import split_row
from training.sketch import sketch_of
from training.threshold import decision_rule
from training.trainer import TrainedModel

# Added to every residual scale, in scaled units: a channel that training shows as constant may still have some noise.
SCALE_FLOOR = 0.01
# Deviation that normal scores have at least, in units of the score, for the same reason.
DEVIATION_FLOOR = 0.01
# A view's smoothed score is 1 where so large a share of its scores on training rows are lower; the floor is added.
LEVEL_QUANTILE = 0.99
LEVEL_FLOOR = 0.02
TAIL_LEVELS = [0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.9975, 0.999, 0.9995, 0.9999]
# No real entity can have this name.
UNSEEN = ""
GOLDEN_WINDOWS = 4

_BATCH = 64
# Windows of short hops are many and alike: one in so many rows is enough.
_ROWS_PER_WINDOW = 32
# An entity's windows are thinned to no fewer than this: scales and levels are known by then.
_ENOUGH_WINDOWS = 160
_UNSEEN_WINDOWS = 512
# Scores are smoothed; moments want at least so many smoothing kernels' worth of held-out rows.
_KERNELS = 10


class _Scores(NamedTuple):
    """One stage's live scores of some rows, (G, n) by group or (n,), and the rows' slots, NaN dropped."""

    scores: NDArray[np.float64]
    slots: NDArray[np.int64]


class _Live(NamedTuple):
    """Both stages' live scores of one entity."""

    provisional: _Scores
    final: _Scores


def calibrate(
    trained: TrainedModel,
    *,
    device: str = "cpu",
    alarms_per_week: float | None = None,
    on_entity: Callable[[str], None] = lambda entity: None,
) -> Manifest:
    """Return the manifest of a trained model; version, creation time and files are left to the checkpoint's writer.

    Residual scales come from all training rows. Moments of scores come from held-out rows where they are many enough
    for the smoothing size, else from all rows. What an unseen entity may expect is measured by showing windows of all
    entities under no entity's name. alarms_per_week: budget of false alarms an entity, see `detector.floor`;
    without it, thresholds are the default numbers of sigmas.
    """
    draft = _draft(trained)
    entries = [draft.unseen, *draft.entities]
    shown = [_unseen_windows(trained), *(_own_windows(trained, series) for series in trained.dataset.series)]
    detector = Detector(draft, trained.weights, device)
    entries = [
        msgspec.structs.replace(entry, residual_scale=_residual_scale(detector, windows).tolist())
        for entry, windows in zip(entries, shown, strict=True)
    ]
    detector = Detector(
        msgspec.structs.replace(draft, unseen=entries[0], entities=entries[1:]), trained.weights, device
    )
    scores = []
    for index, windows in enumerate(shown):
        first = _first_held_out(trained, trained.dataset.series[index - 1] if index else None)
        entries[index], live = _measure_scores(entries[index], _live_scores(detector, windows), first)
        scores.append(live)
        on_entity(entries[index].name)
    entries[1:] = [
        msgspec.structs.replace(entry, sketch=_sketch(trained, series, live.final))
        for entry, series, live in zip(entries[1:], trained.dataset.series, scores[1:], strict=True)
    ]
    known = list(zip(scores[1:], entries[1:], strict=True))
    provisional = [_z(live.provisional, entry.provisional) for live, entry in known]
    final = [_z(live.final, entry.final) for live, entry in known]
    rule = decision_rule(trained.geometry.length, alarms_per_week, provisional, final)
    return msgspec.structs.replace(
        detector.manifest,
        unseen=entries[0],
        entities=entries[1:],
        decision=rule,
        provisional_tail=_tail(provisional),
        final_tail=_tail(final),
    )


def golden_windows(detector: Detector, dataset: Dataset) -> Golden:
    """Cut a few training windows, one with a gap and one of an entity never seen, and record their scores."""
    geometry, chosen = detector.manifest.geometry, dataset.series[:GOLDEN_WINDOWS]
    ends = np.array([window_ends(series, geometry.hop)[-2:][0] for series in chosen])
    values = np.concatenate(
        [frame(series.slots, series.values, ends[i : i + 1], geometry.length) for i, series in enumerate(chosen)]
    )
    entities = [series.entity for series in chosen]
    gap = np.zeros_like(values[:1], dtype=bool)
    gap[..., geometry.length // 3 : geometry.length // 2] = True
    values = np.concatenate([values, np.where(gap, np.float32(np.nan), values[:1])])
    entities, ends = [*entities, UNSEEN], np.append(ends, ends[0])
    scores = detector.score(WindowBatch(entities, ends, values))
    return Golden(entities, ends, values, scores.provisional, scores.final)


def _draft(trained: TrainedModel) -> Manifest:
    """Return a manifest that scales values but not yet residuals."""
    scaling, starts = trained.scaling, len(trained.scoring.starts)
    companions = COMPANION_VIEWS if trained.companions else 0
    unknown = Moments(0.0, 0.0, 0.0)

    def entry(name: str, index: int, minimum: NDArray[np.float64], maximum: NDArray[np.float64]) -> EntityCalibration:
        return EntityCalibration(
            name=name,
            index=index,
            minimum=minimum.tolist(),
            maximum=maximum.tolist(),
            residual_scale=[[1.0] * len(minimum)] * (starts + companions),
            provisional_levels=(1.0,) * (1 + companions),
            final_levels=(1.0,) * (1 + companions),
            provisional=unknown,
            final=unknown,
        )

    return Manifest(
        name=trained.name,
        version="unpublished",
        created_ms=0,
        interval_ms=trained.dataset.interval_ms,
        geometry=trained.geometry,
        channels=trained.dataset.channels,
        denoiser=trained.denoiser,
        scoring=trained.scoring,
        companions=trained.companions,
        entities=[
            entry(series.entity, index + 1, scaling.minimum[index], scaling.maximum[index])
            for index, series in enumerate(trained.dataset.series)
        ],
        unseen=entry(UNSEEN, 0, scaling.pooled_minimum, scaling.pooled_maximum),
        provisional_tail=Tail([], []),
        final_tail=Tail([], []),
        training=trained.training,
    )


@dataclass(frozen=True, eq=False)
class _Shown:
    """Windows to calibrate on, by series and end; scored under `name`."""

    name: str
    cuts: Sequence[tuple[Series, NDArray[np.int64]]]
    length: int

    def batches(self) -> Iterator[WindowBatch]:
        for series, ends in self.cuts:
            for start in range(0, len(ends), _BATCH):
                part = ends[start : start + _BATCH]
                values = frame(series.slots, series.values, part, self.length)
                yield WindowBatch([self.name] * len(part), part, values)


def _own_windows(trained: TrainedModel, series: Series) -> _Shown:
    return _Shown(series.entity, [(series, _thinned_ends(trained, series))], trained.geometry.length)


def _unseen_windows(trained: TrainedModel) -> _Shown:
    cuts = [(series, _thinned_ends(trained, series)) for series in trained.dataset.series]
    every = max(1, sum(len(ends) for _, ends in cuts) // _UNSEEN_WINDOWS)
    return _Shown(UNSEEN, [(series, ends[::every]) for series, ends in cuts], trained.geometry.length)


def _thinned_ends(trained: TrainedModel, series: Series) -> NDArray[np.int64]:
    hop = trained.geometry.hop
    ends = window_ends(series, hop)
    return ends[:: max(1, _ROWS_PER_WINDOW // hop, len(ends) // _ENOUGH_WINDOWS)]


def _residual_scale(detector: Detector, shown: _Shown) -> NDArray[np.float64]:
    """Return mean + standard deviation + floor of residuals, (V, C), where live scores use them; 1 without data."""
    geometry = detector.manifest.geometry
    count, total, squares = 0.0, 0.0, 0.0
    for windows in shown.batches():
        recent = slice(-(geometry.hop + geometry.final_delay), None)
        residual = detector.training_residuals(windows)[..., recent].astype(np.float64)  # (V, B, C, recent)
        count = count + (~np.isnan(residual)).sum((1, 3))
        total = total + np.nansum(residual, (1, 3))
        squares = squares + np.nansum(residual**2, (1, 3))
    mean = total / np.maximum(count, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    scale: NDArray[np.float64] = np.where(count > 0, mean + deviation + SCALE_FLOOR, 1.0)
    return scale


def _live_scores(detector: Detector, shown: _Shown) -> _Live:
    delay = detector.manifest.geometry.final_delay
    provisional, final = list[_Scores](), list[_Scores]()
    for windows in shown.batches():
        scores = detector.training_scores(windows)
        provisional.append(_new_scores(detector, windows, scores[0], 0))
        final.append(_new_scores(detector, windows, scores[1], delay))
    return _Live(*(_joined(parts) for parts in (provisional, final)))


def _joined(parts: list[_Scores]) -> _Scores:
    return _Scores(np.concatenate([part.scores for part in parts], -1), np.concatenate([part.slots for part in parts]))


def _new_scores(detector: Detector, windows: WindowBatch, series: NDArray[np.float32], lag: int) -> _Scores:
    """Select the last hop of scores (G, B, L) that ends `lag` slots before the windows do."""
    hop, length = detector.manifest.geometry.hop, series.shape[-1]
    new = series[..., length - lag - hop : length - lag]
    slots = windows.end_slots[:, None] + np.arange(1 - lag - hop, 1 - lag)
    present = ~np.isnan(new[0])
    return _Scores(new[:, present].astype(np.float64), slots[present])


def _measure_scores(entry: EntityCalibration, live: _Live, first_held_out: int) -> tuple[EntityCalibration, _Live]:
    """Return the entry with what live scores are by group and together, and the scores together."""
    levels = [_levels(stage.scores) for stage in live]
    together = _Live(*(_combined(stage, level) for stage, level in zip(live, levels, strict=True)))
    moments = [_moments(stage.scores[stage.slots >= first_held_out]) for stage in together]
    changed = msgspec.structs.replace(
        entry,
        provisional_levels=levels[0],
        final_levels=levels[1],
        provisional=moments[0],
        final=moments[1],
    )
    return changed, together


def _sketch(trained: TrainedModel, series: Series, final: _Scores) -> Sketch:
    """Sketch an entity's rows of the numeric channels and its final scores together."""
    values = series.values[:, trained.dataset.numeric]
    return sketch_of(series.slots, values, final.slots, final.scores, trained.geometry.length)


def _levels(groups: NDArray[np.float64]) -> tuple[float, ...]:
    """Return what counts as 1 in each group's scores (G, n): what one in a hundred normal ones exceeds.

    A detector without companions has one group and needs no level: its score stays eq. 5.
    """
    if len(groups) == 1 or not groups.shape[1]:
        return (1.0,) * len(groups)
    return tuple((np.quantile(groups, LEVEL_QUANTILE, axis=1) + LEVEL_FLOOR).tolist())


def _combined(stage: _Scores, levels: tuple[float, ...]) -> _Scores:
    together = combine_views(torch.from_numpy(stage.scores), torch.tensor(levels)[:, None])
    return _Scores(together.numpy(), stage.slots)


def _first_held_out(trained: TrainedModel, series: Series | None) -> int:
    everything = int(np.iinfo(np.int64).min)
    if series is None:
        return everything
    row, rows = split_row(series), len(series.slots)
    enough = rows - row >= _KERNELS * trained.scoring.smoothing_size
    return int(series.slots[row]) if enough else everything


def _moments(scores: NDArray[np.float64]) -> Moments:
    if not len(scores):
        return Moments(0.0, 1.0, 1.0)
    return Moments(float(len(scores)), float(scores.mean()), float(max(scores.var(), DEVIATION_FLOOR**2)))


def _z(stage: _Scores, moments: Moments) -> NDArray[np.float64]:
    z: NDArray[np.float64] = (stage.scores - moments.mean) / np.sqrt(moments.variance)
    return z


def _tail(z: Sequence[NDArray[np.float64]]) -> Tail:
    pooled = np.concatenate(z)
    return Tail(TAIL_LEVELS, np.quantile(pooled, TAIL_LEVELS).tolist() if len(pooled) else [0.0] * len(TAIL_LEVELS))
