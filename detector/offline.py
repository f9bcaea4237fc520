"""Scores of recorded telemetry by the live path's own code: the same cuts, the same network, the same judgement.

Owns the walk over recorded series; knows no file and no broker.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from detector.blocks import P_VALUE_DIGITS, SCORE_DIGITS, Judged, WindowView
from detector.cuts import cut_series
from detector.decision import initial_moments, judge, tail_of, tail_probability
from detector.engine import WindowBatch
from detector.models import Model
from detector.rounding import rounded
from detector.threads import mapped
from stream.contracts import SourceRange, WindowNotice
from stream.frames import frame
from stream.grid import Geometry
from stream.heads import Cut

_BATCH_WINDOWS = 64


class Series(Protocol):
    """Recorded rows of one entity. slots: (n,) ascending, each once. values: (n, C_all), channels in manifest order."""

    @property
    def entity(self) -> str:
        """The entity's name."""

    @property
    def slots(self) -> NDArray[np.int64]:
        """Slots of the rows."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The rows, NaN where missing."""


class SeriesScores(NamedTuple):
    """Scores of the rows of one entity, (n,) each; score and p_value are NaN for a row that can't be scored.

    threshold: what `score` was judged by, NaN where it is. provisional: the score known at once. final: whether `score`
    had all the later slots it waits for; the last rows of a series have the score of what there is. residual, expected:
    (n, C) of the numeric channels, of the window that gave `score`, None unless asked for; residual is over scale, NaN
    where a value is missing, expected in raw units.
    """

    entity: str
    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    pred: NDArray[np.bool_]
    threshold: NDArray[np.float64]
    provisional: NDArray[np.float64]
    provisional_pred: NDArray[np.bool_]
    final: NDArray[np.bool_]
    residual: NDArray[np.float32] | None = None
    expected: NDArray[np.float32] | None = None


class _Piece(NamedTuple):
    """Windows of one series that follow each other. first, last: whether they begin and end it."""

    series: Series
    cuts: list[Cut]
    first: bool
    last: bool


def score_series(model: Model, series: Series, *, explain: bool = False) -> SeriesScores:
    """Score the rows of one entity as the live pipeline does.

    The rows behind the last live window get one window more; the last `final_delay` rows get the final score of a
    series that ends there. explain: fill `residual` and `expected` too.
    """
    return next(score_all(model, [series], explain=explain))


def score_all(model: Model, every: Iterable[Series], *, explain: bool = False) -> Iterator[SeriesScores]:
    """Yield `score_series` of each series in order; windows of several entities share a pass.

    Passes run side by side, as many as torch has threads, ahead of the judgement.
    """
    threads = torch.get_num_threads() if model.detector.device.type == "cpu" else 1
    batches = _batches(model.manifest.geometry, every)

    def work(batch: list[_Piece]) -> tuple[list[_Piece], list[WindowView]]:
        return batch, _score(model, batch)

    judge: _Judge | None = None
    for batch, views in map(work, batches) if threads == 1 else mapped(work, batches, threads):
        rest = iter(views)
        for piece in batch:
            judge = _Judge(model, piece.series, explain=explain) if judge is None or piece.first else judge
            judge.add(piece.cuts, rest)
            if piece.last:
                yield judge.finish()


def _batches(geometry: Geometry, every: Iterable[Series]) -> Iterator[list[_Piece]]:
    """Fill batches with the windows of one series after the other."""
    batch, room = list[_Piece](), _BATCH_WINDOWS
    for series in every:
        cuts, start = cut_series(geometry, series), 0
        while start < len(cuts):
            end = min(start + room, len(cuts))
            batch.append(_Piece(series, cuts[start:end], start == 0, end == len(cuts)))
            room -= end - start
            start = end
            if room == 0:
                yield batch
                batch, room = [], _BATCH_WINDOWS
    if batch:
        yield batch


class _Judge:
    """Follows one series window by window and enters what they say into its rows."""

    def __init__(self, model: Model, series: Series, *, explain: bool) -> None:
        """Know only what training said of the entity."""
        self._model, self._series = model, series
        self._result = _empty(series, len(model.numeric) if explain else None)
        self._moments = initial_moments(model.manifest, model.calibration(series.entity))

    def add(self, cuts: Sequence[Cut], views: Iterator[WindowView]) -> None:
        """Judge the next windows; takes as many views."""
        for notice in _notices(self._model, self._series, cuts):
            self._newest = notice, next(views)
            verdict = judge(self._model.manifest, *self._newest, self._moments)
            self._moments = verdict.moments
            for judged in verdict.judged:
                self._enter(judged, *self._newest, known=True)

    def finish(self) -> SeriesScores:
        """Give the last rows the final score of a series that ends here, and return all as records tell it."""
        notice, view = self._newest
        last = msgspec.structs.replace(notice, final_delay=0, new_slots=notice.final_delay)
        for judged in judge(self._model.manifest, last, view, self._moments).judged:
            if judged.stage == "final":
                self._enter(judged, last, view, known=False)
        found = self._result
        p_value = tail_probability(tail_of(self._model.manifest, "final"), found.p_value)
        return found._replace(
            score=rounded(found.score, SCORE_DIGITS),
            provisional=rounded(found.provisional, SCORE_DIGITS),
            p_value=rounded(p_value, P_VALUE_DIGITS),
        )

    def _enter(self, judged: Judged, notice: WindowNotice, view: WindowView, *, known: bool) -> None:
        _put(self._result, self._series, judged, known=known)
        _explain(self._result, self._series, judged, notice, view)


def _notices(model: Model, series: Series, cuts: Sequence[Cut]) -> list[WindowNotice]:
    geometry = model.manifest.geometry
    return [
        WindowNotice(
            entity=series.entity,
            family=model.manifest.name,
            interval_ms=model.manifest.interval_ms,
            end_slot=cut.end_slot,
            length=geometry.length,
            new_slots=cut.new_slots,
            final_delay=geometry.final_delay,
            rows=cut.rows,
            ring=cut.ring,
            first_slot=cut.first_slot,
            gap_slots=cut.gap_slots,
            source=SourceRange("", 0, cut.first_offset, cut.last_offset),
            trigger_ms=0,
        )
        for cut in cuts
    ]


def _score(model: Model, batch: Sequence[_Piece]) -> list[WindowView]:
    """Cut and score the windows of a batch."""
    ends = np.array([cut.end_slot for piece in batch for cut in piece.cuts], dtype=np.int64)
    values = np.concatenate([_frames(piece, model.manifest.geometry.length) for piece in batch])
    entities = [piece.series.entity for piece in batch for _ in piece.cuts]
    newest = max(cut.new_slots for piece in batch for cut in piece.cuts)
    windows = WindowBatch(entities, ends, values)
    scores = model.detector.score(windows, newest + model.manifest.geometry.final_delay)
    numeric = values[:, model.numeric]
    columns = (numeric, scores.provisional, scores.final, scores.residual, scores.expected, scores.band)
    return [WindowView(*window) for window in zip(*columns, strict=True)]


def _frames(piece: _Piece, length: int) -> NDArray[np.float32]:
    ends = np.array([cut.end_slot for cut in piece.cuts], dtype=np.int64)
    values = frame(piece.series.slots, piece.series.values, ends, length)
    for window, cut in zip(values, piece.cuts, strict=True):
        window[:, : max(0, cut.first_slot - (cut.end_slot - length + 1))] = np.nan  # rows of an earlier life
    return values


def _empty(series: Series, channels: int | None) -> SeriesScores:
    rows = len(series.slots)
    nan = np.full(rows, np.nan)
    no = np.zeros(rows, dtype=bool)
    scores = SeriesScores(series.entity, nan, nan.copy(), no, nan.copy(), nan.copy(), no.copy(), no.copy())
    if channels is None:
        return scores
    wide = np.full((rows, channels), np.nan, dtype=np.float32)
    return scores._replace(residual=wide, expected=wide.copy())


def _rows(series: Series, judged: Judged) -> tuple[slice, NDArray[np.int64]]:
    """Return the rows that judged slots belong to, and which of the slots have a row, by place among them."""
    first, after = np.searchsorted(series.slots, [judged.first, judged.first + len(judged.scores)]).tolist()
    return slice(first, after), series.slots[first:after] - judged.first


def _put(result: SeriesScores, series: Series, judged: Judged, *, known: bool) -> None:
    """Enter judged slots into their rows, z where p-values go. known: whether a final score has all it waits for."""
    rows, present = _rows(series, judged)
    scores, preds = judged.scores[present], judged.preds[present]
    if judged.stage == "provisional":
        result.provisional[rows] = scores
        result.provisional_pred[rows] = preds
        return
    result.score[rows] = scores
    result.p_value[rows] = judged.z[present]
    result.pred[rows] = preds
    result.threshold[rows] = np.where(np.isnan(scores), np.nan, judged.threshold)
    result.final[rows] = known


def _explain(result: SeriesScores, series: Series, judged: Judged, notice: WindowNotice, view: WindowView) -> None:
    """Enter what the window says of the channels into the rows whose score it makes final."""
    if result.residual is None or result.expected is None or judged.stage == "provisional":
        return
    rows, _ = _rows(series, judged)
    position = series.slots[rows] - (notice.end_slot - notice.length + 1)
    rows, position = slice(rows.stop - (position >= 0).sum(), rows.stop), position[position >= 0]
    missing = np.isnan(view.values[:, position])
    result.residual[rows] = np.where(missing, np.float32(np.nan), view.residual[:, position]).T
    result.expected[rows] = view.expected[:, position].T
