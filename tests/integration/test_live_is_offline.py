"""The live pipeline on real Kafka and Redis gives what the offline scorer gives."""

from itertools import zip_longest

import numpy as np
import pytest

from detector.cuts import cut_series
from detector.offline import score_series
from stream.grid import Geometry
from stream.topics import DEAD_LETTERS
from tests.builders import untrained
from tests.pipeline import (
    alerts,
    blocks,
    make_settings,
    publish,
    read_all,
    running,
    sample,
    scores_by_slot,
    send,
    wait_for,
)
from training.datasets import Series

FIRST = 1_767_225_600
GEOMETRY = Geometry(length=64, hop=8, lateness=2, final_delay=20, slack=64)


@pytest.fixture
def model(tmp_path):
    manifest, weights = untrained(geometry=GEOMETRY)
    return publish(tmp_path / "registry", manifest, weights)


@pytest.fixture
def settings(model, tmp_path, kafka_bootstrap, redis_url, topic_prefix):
    return make_settings(model.manifest, tmp_path / "registry", kafka_bootstrap, redis_url, topic_prefix)


def recorded(entity, rows, channels, seed, *, gaps=True):
    """Make a series with missing values, small gaps and one silence longer than a ring."""
    generator = np.random.default_rng(seed)
    slots = FIRST + seed * 3 + np.arange(rows)
    if gaps:
        slots[rows // 2 :] += 40  # within a life
        slots[3 * rows // 4 :] += 5000  # a new life
        slots = np.delete(slots, generator.integers(10, rows - 10, 20))
    values = generator.uniform(0, 2, (len(slots), len(channels))).astype(np.float32)
    values[:, [c.kind == "command" for c in channels]] = values[:, [c.kind == "command" for c in channels]] > 1
    values[generator.random(values.shape) < 0.05] = np.nan
    return Series(entity, slots, values, None)


def telemetry(model, series, order):
    names = [channel.name for channel in model.manifest.channels]
    return [sample(names, series.entity, int(series.slots[i]) * 1000, series.values[i]) for i in order]


def shuffled_within(slots, lateness, seed):
    """Order rows so that none is more than `lateness` slots behind the newest before it."""
    generator = np.random.default_rng(seed)
    return np.argsort(slots + generator.uniform(0, lateness, len(slots)), kind="stable")


def expected_scores(model, all_series):
    """Return final and provisional scores by slot, as far as the live windows reach."""
    final, provisional = {}, {}
    for series in all_series:
        result = score_series(model, series)
        last = cut_series(GEOMETRY, series, ended=False)[-1].end_slot
        for slot, score, early in zip(series.slots.tolist(), result.score, result.provisional, strict=True):
            if slot <= last and not np.isnan(early):
                provisional[series.entity, slot] = early
            if slot <= last - GEOMETRY.final_delay and not np.isnan(score):
                final[series.entity, slot] = score
    return final, provisional


def known(found, stage):
    return {key: score for key, score in scores_by_slot(found, stage).items() if score is not None}


def test_live_scores_equal_offline_scores_row_by_row(model, settings):
    names = ("P-1", "M-6", "never-trained")
    all_series = [recorded(name, 600, model.manifest.channels, seed) for seed, name in enumerate(names)]
    rows = [telemetry(model, s, shuffled_within(s.slots, 2, i)) for i, s in enumerate(all_series)]
    send(settings, [message for at_once in zip_longest(*rows) for message in at_once if message])
    final, provisional = expected_scores(model, all_series)

    with running(settings):
        wait_for(lambda: len(known(blocks(settings), "final")) >= len(final), "final scores of all rows")

    for stage, wanted in (("final", final), ("provisional", provisional)):
        live = known(blocks(settings), stage)
        assert set(live) == set(wanted)
        assert all(abs(live[key] - score) <= 1e-4 * max(1.0, abs(score)) for key, score in wanted.items())
    assert not read_all(settings, DEAD_LETTERS)
    assert len({alert.id for alert in alerts(settings)}) == len(alerts(settings))
