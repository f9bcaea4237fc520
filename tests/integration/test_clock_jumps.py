"""Clocks that jump, on real Kafka and Redis: a wrong time stamp costs its own row, a clock that is reset a few more."""

import msgspec
import numpy as np
import pytest

from stream.contracts import DeadLetter
from stream.dead_letters import HEADER
from stream.topics import DEAD_LETTERS
from tests.chaos.oracle import Oracle
from tests.chaos.rig import GEOMETRY, publish_model, read_found
from tests.chaos.workload import FIRST_SLOT, _row
from tests.pipeline import make_settings, read_all, running, send, wait_for

YEAR = 31_536_000
REFUSED = GEOMETRY.jump_rows - 1  # of a clock that has really jumped


@pytest.fixture
def model(tmp_path):
    return publish_model(tmp_path / "registry")


@pytest.fixture
def settings(model, tmp_path, kafka_bootstrap, redis_url, topic_prefix):
    return make_settings(model.manifest, tmp_path / "registry", kafka_bootstrap, redis_url, topic_prefix)


def rows(first_slot, count, seed):
    values = np.random.default_rng(seed).uniform(0, 2, count).astype(np.float32)
    return [_row("row", "e-0", first_slot + i, (float(value), 1.0)) for i, value in enumerate(values)]


def strays(*slots):
    return [_row("stray", "e-0", slot, (3.0 + i, 0.0)) for i, slot in enumerate(slots)]


def test_every_row_but_those_far_away_is_scored_once_before_and_after_clocks_jump(model, settings):
    """now . . x now . . | ten years ago, from the fifth row on | now | ten years ago | now"""
    reset = FIRST_SLOT - 10 * YEAR
    records = [
        *rows(FIRST_SLOT, 100, 0),
        *strays(FIRST_SLOT + YEAR, FIRST_SLOT + YEAR + 1, FIRST_SLOT - YEAR),
        *rows(FIRST_SLOT + 100, 120, 1),
        *rows(reset, 150, 2),
        *rows(FIRST_SLOT + 400, 100, 3),
        *rows(reset + 2000, 150, 4),
        *rows(FIRST_SLOT + 1000, 150, 5),
    ]
    oracle = Oracle(model, records)
    send(settings, [(one.entity, one.payload) for one in records])
    with running(settings):
        wait_for(lambda: scored(settings) >= oracle.scored_rows, "all scores")
    assert oracle.scored_rows > 1200
    difference = oracle.compare(read_found(settings), only_scores=True)
    assert difference.none, difference.examples
    letters = [msgspec.json.decode(one.header(HEADER), type=DeadLetter) for one in read_all(settings, DEAD_LETTERS)]
    assert [letter.reason for letter in letters] == ["clock_jump"] * (3 + 4 * REFUSED)


def scored(settings):
    return sum(len(block.scores) - block.scores.count(None) for block in read_found(settings).blocks)
