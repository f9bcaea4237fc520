"""Made-up recordings, and the offline answer that the live pipeline has to give for them, faults or not."""

import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from detector.alerts import advance
from detector.cuts import cut_series
from detector.decision import decide, initial_moments
from detector.models import Model
from detector.offline import score_series
from detector.worker import missing_fraction
from stream.contracts import Alert, Sample, ScoreBlock
from stream.grid import Geometry
from stream.settings import Settings
from tests.builders import scored_windows
from tests.pipeline import WAIT_S, alerts, blocks
from training.datasets import Series

FIRST = 1_767_225_600
GEOMETRY = Geometry(length=64, hop=8, lateness=2, final_delay=20, slack=64)
ENTITIES = ("P-1", "M-6", "never-trained")
TOLERANCE = 1e-4

Row = tuple[str, str, int]  # stage, entity, slot


class Judgement(NamedTuple):
    """What is said of one row; p_value and pred are None where only the score is known."""

    score: float
    p_value: float | None
    pred: bool | None


class Answer(NamedTuple):
    """What the pipeline must say. alerts: episode, revision and state of every message."""

    rows: dict[Row, Judgement]
    alerts: set[tuple[str, int, str]]

    def final_rows(self) -> int:
        """Count the rows with a final score."""
        return sum(stage == "final" for stage, _, _ in self.rows)


def record(model: Model, entity: str, rows: int, seed: int) -> Series:
    """Make a series with missing values, small gaps, a silence longer than a ring, and stretches that alarm."""
    generator = np.random.default_rng(seed)
    slots = FIRST + seed * 3 + np.arange(rows)
    slots[rows // 2 :] += 40  # within a life
    slots[3 * rows // 4 :] += 5000  # a new life
    slots = np.delete(slots, generator.integers(10, rows - 10, rows // 30))
    values = generator.uniform(0, 2, (len(slots), len(model.manifest.channels))).astype(np.float32)
    for start in range(100 + 17 * seed, len(slots) - 30, 150):
        values[start : start + 12] *= 8
    commands = [channel.kind == "command" for channel in model.manifest.channels]
    values[:, commands] = values[:, commands] > 1
    values[generator.random(values.shape) < 0.05] = np.nan
    return Series(entity, slots, values, None)


def recordings(model: Model, rows: int) -> list[Series]:
    """Make a series for each of the entities."""
    return [record(model, entity, rows, seed) for seed, entity in enumerate(ENTITIES)]


def telemetry(model: Model, series: Sequence[Series]) -> list[Sample]:
    """Return the rows of all series side by side, each row up to the lateness behind the newest of its entity."""
    rows = [_rows(model, one, seed) for seed, one in enumerate(series)]
    return [sample for at_once in zip_longest(*rows) for sample in at_once if sample is not None]


def _rows(model: Model, series: Series, seed: int) -> Iterator[Sample]:
    generator = np.random.default_rng(seed)
    arrival = series.slots + generator.uniform(0, GEOMETRY.lateness, len(series.slots))
    for i in np.argsort(arrival, kind="stable"):
        yield to_sample(model, series, int(i))


def to_sample(model: Model, series: Series, row: int) -> Sample:
    """Return one row as it goes over the wire."""
    named = zip(model.manifest.channels, series.values[row].tolist(), strict=True)
    values = {channel.name: None if value != value else value for channel, value in named}
    return Sample(series.entity, int(series.slots[row]) * model.manifest.interval_ms, values)


def answer_of(model: Model, settings: Settings, series: Sequence[Series]) -> Answer:
    """Return the offline answer, as far as live windows reach."""
    rows: dict[Row, Judgement] = {}
    said: set[tuple[str, int, str]] = set()
    for one in series:
        rows |= _offline_rows(model, one)
        said |= {(alert.episode_id, alert.revision, alert.state) for alert in _offline_alerts(model, settings, one)}
    return Answer(rows, said)


def _offline_rows(model: Model, series: Series) -> Iterator[tuple[Row, Judgement]]:
    result = score_series(model, series)
    last = cut_series(GEOMETRY, series, ended=False)[-1].end_slot
    for i, slot in enumerate(series.slots.tolist()):
        if slot <= last and not np.isnan(result.provisional[i]):
            yield ("provisional", series.entity, slot), Judgement(result.provisional[i], None, None)
        if slot <= last - GEOMETRY.final_delay and not np.isnan(result.score[i]):
            judgement = Judgement(result.score[i], result.p_value[i], bool(result.pred[i]))
            yield ("final", series.entity, slot), judgement


def _offline_alerts(model: Model, settings: Settings, series: Series) -> Iterator[Alert]:
    """Fold the windows of a series as the worker does, from one process that never dies."""
    cuts = cut_series(GEOMETRY, series, ended=False)
    moments, episode = initial_moments(model.manifest, model.calibration(series.entity)), None
    for notice, view in scored_windows(model, series, cuts):
        decision = decide(model.manifest, model.numeric_names, notice, view, moments)
        moments, missing = decision.moments, missing_fraction(notice)
        step = advance(model.manifest, settings.deployment, notice, decision.hits, episode, missing)
        episode = step.episode
        yield from step.alerts


def live_rows(found: Sequence[ScoreBlock]) -> dict[Row, Judgement]:
    """Return what was said of each row; a row that was judged twice fails the test."""
    rows: dict[Row, Judgement] = {}
    for block in found:
        for i, (score, p_value, pred) in enumerate(zip(block.scores, block.p_values, block.preds, strict=True)):
            key = block.stage, block.entity, block.start_slot + i
            assert key not in rows, f"{key} was judged twice"
            rows[key] = Judgement(np.nan if score is None else score, p_value, pred)
    return {key: judgement for key, judgement in rows.items() if not np.isnan(judgement.score)}


def wait_for_rows(settings: Settings, rows: int) -> None:
    """Wait until so many rows have a final score."""
    end = time.monotonic() + WAIT_S
    while (scored := _final_scores(settings)) < rows:
        assert time.monotonic() < end, f"waited {WAIT_S:.0f} s for {rows} final scores, got {scored}"
        time.sleep(0.2)


def _final_scores(settings: Settings) -> int:
    return sum(len(b.scores) - b.scores.count(None) for b in blocks(settings) if b.stage == "final")


def assert_is_offline(settings: Settings, answer: Answer) -> None:
    """Compare what committed readers see with the offline answer: nothing missing, repeated or wrong."""
    rows = live_rows(blocks(settings))
    assert rows.keys() == answer.rows.keys()
    wrong = {key: (rows[key], wanted) for key, wanted in answer.rows.items() if not _same(rows[key], wanted)}
    assert not wrong, f"{len(wrong)} of {len(rows)} rows differ, first {next(iter(wrong.items()))}"
    assert_alerts_in_order(alerts(settings), answer)


def _same(live: Judgement, offline: Judgement) -> bool:
    close = abs(live.score - offline.score) <= TOLERANCE * max(1.0, abs(offline.score))
    if offline.p_value is None or live.p_value is None:
        return close
    return close and live.pred == offline.pred and abs(live.p_value - offline.p_value) <= 0.02 * offline.p_value + 1e-9


def assert_alerts_in_order(found: Sequence[Alert], answer: Answer) -> None:
    """Check that every message is there once, those of an episode numbered from 0 in the order they are read."""
    assert len({alert.id for alert in found}) == len(found)
    revisions: dict[str, list[int]] = {}
    for alert in found:
        revisions.setdefault(alert.episode_id, []).append(alert.revision)
    assert all(numbers == list(range(len(numbers))) for numbers in revisions.values())
    assert {(alert.episode_id, alert.revision, alert.state) for alert in found} == answer.alerts
    assert any(state == "resolved" for _, _, state in answer.alerts), "the recording raises no alert"
