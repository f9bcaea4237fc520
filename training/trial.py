"""Measures a new model and the champion on the same recent rows, which the new one never saw. Judges nothing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.engine import WindowBatch
from detector.models import Model
from stream.errors import UsageError
from stream.frames import frame
from training.datasets import Dataset, Series
from training.gates import Figures
from training.knobs import Behind, alarm_figures, half_range

# Of a channel that hardly moves in the rows that are judged, so much of half its range counts as its deviation: else
# the little noise that a reconstruction always has would be all of the error.
_LEAST_MOVEMENT = 0.25


def split(dataset: Dataset, held_out: float, minimum_rows: int) -> tuple[Dataset, list[Series]]:
    """Return rows to train on, and the newest share of each of these entities' rows in the same order.

    Entities with fewer than `minimum_rows` rows are left out; raises UsageError where none is left.
    """
    series = [one for one in dataset.series if len(one.slots) >= minimum_rows]
    if not series:
        most = max((len(one.slots) for one in dataset.series), default=0)
        raise UsageError(f"too little data: an entity wants {minimum_rows} rows, the most that one has is {most}")
    cuts = [max(1, round(len(one.slots) * (1 - held_out))) for one in series]
    old = [_part(one, slice(None, cut)) for one, cut in zip(series, cuts, strict=True)]
    new = [_part(one, slice(cut, None)) for one, cut in zip(series, cuts, strict=True)]
    return Dataset(dataset.channels, dataset.interval_ms, old), new


def measure(
    model: Model,
    before: Sequence[Series],
    rows: Sequence[Series],
    half_ranges: Sequence[NDArray[np.float64]],
    seed: int,
) -> Figures:
    """Judge `rows`, as they are and with anomalies put in; `before` are the rows before them, of the same entities.

    half_ranges: (C,) of each entity, what the sizes of anomalies are measured in; equal for models to be compared.
    """
    # Beyond a window, so that nobody is still learned about when judging begins.
    context = max(model.manifest.geometry.length, model.manifest.decision.learning)
    behind = [Behind(*pair, context) for pair in zip(before, rows, strict=True)]
    alarms = alarm_figures(model, behind, half_ranges, seed)
    errors = [reconstruction_error(model, *pair) for pair in zip(behind, half_ranges, strict=True)]
    return Figures(alarms.nominal_in_alarm, float(np.mean(errors)), alarms.corrected_event_f05)


def reconstruction_error(model: Model, behind: Behind, movement: NDArray[np.float64]) -> float:
    """Return the mean of |x - x_hat| over starts and judged rows, in deviations of each channel in these rows.

    The reconstruction alone: companions don't count. movement: (C,) half the range of each channel in training.
    """
    series, first = behind.joined()
    length, first_slot = model.manifest.geometry.length, series.slots[first]
    ends = np.arange(series.slots[-1], first_slot - 1, -length)
    windows = WindowBatch([series.entity] * len(ends), ends, frame(series.slots, series.values, ends, length))
    x, expected = model.detector.reconstruct(windows)  # (B, C, L), (S, B, C, L)
    x[np.broadcast_to((ends[:, None] - np.arange(length)[::-1] < first_slot)[:, None], x.shape)] = np.nan
    half = half_range(model.calibration(series.entity))
    least = np.maximum(_LEAST_MOVEMENT * movement, np.finfo(np.float32).tiny)
    scale = np.maximum(_deviation(x) * half, least) / half
    errors = (np.abs(x - expected).mean(0) / scale[:, None])[~np.isnan(x)]
    return float(errors.mean()) if len(errors) else 0.0


def _deviation(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each channel's standard deviation over present values (B, C, L), 0 where there is none: (C,)."""
    columns = x.astype(np.float64).swapaxes(0, 1).reshape(x.shape[1], -1)
    present = (column[~np.isnan(column)] for column in columns)
    return np.array([column.std() if len(column) else 0.0 for column in present])


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


def _part(series: Series, rows: slice) -> Series:
    return Series(series.entity, series.slots[rows], series.values[rows], None)
