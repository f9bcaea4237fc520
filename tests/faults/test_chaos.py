"""Chaos in small, and its oracle, which agrees with the offline answer and notices whatever a reader is told wrong."""

from collections import defaultdict
from copy import copy

import msgspec
import numpy as np
import pytest

from detector.alerts import advance
from detector.decision import decide, initial_moments
from detector.floor import WEEK_MS
from detector.manifest import AlarmBudget, Moments, Peaks
from detector.worker import missing_fraction
from stream.errors import ContractError
from stream.heads import Head
from tests.builders import scored_windows
from tests.chaos.oracle import Found, Oracle
from tests.chaos.plan import Fault
from tests.chaos.rig import GEOMETRY, publish_model
from tests.chaos.seeds import Size, run_seed
from tests.chaos.workload import FIRST_SLOT, Workload
from training.datasets import Series

WORKLOAD = Workload(GEOMETRY, seed=5, entities=8, rows=4800)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish_model(tmp_path_factory.mktemp("chaos") / "registry")


@pytest.fixture(scope="module")
def oracle(model):
    return Oracle(model, WORKLOAD.records)


def folded(sent, *, whole=True):
    """What the live fold makes of one entity's records: the rows it takes, its cuts, and what it refuses.

    whole: refuse records of many rows as a whole.
    """
    head, rows, cuts, refused = Head(GEOMETRY, sent[0].slot), {}, [], []
    for offset, one in enumerate(sent):
        try:
            if whole and one.kind != "row" and one.more:
                raise ContractError(one.kind, "a record of many is refused as a whole")
            for slot, values in one.rows:
                cuts += head.add(slot, offset)
                rows[slot] = values
        except ContractError:
            refused.append(one.payload)
    return rows, cuts, refused


def answer(model, **how):
    """What a pipeline that nothing happens to publishes."""
    sent = defaultdict(list)
    letters = [one.payload for one in WORKLOAD.records if one.kind == "broken"]
    for one in WORKLOAD.records:
        if one.kind != "broken":
            sent[one.entity].append(one)
    blocks, alerts = [], []
    for entity, records in sent.items():
        by_slot, cuts, refused = folded(records, **how)
        letters += refused
        slots = np.array(sorted(by_slot))
        series = Series(entity, slots, np.array([by_slot[s] for s in slots], dtype=np.float32), None)
        moments, episode = initial_moments(model.manifest, model.calibration(entity)), None
        for notice, view in scored_windows(model, series, cuts):
            decision = decide(model.manifest, model.numeric_names, notice, view, moments)
            moments = decision.moments
            step = advance(model.manifest, "chaos", notice, decision.hits, episode, missing_fraction(notice))
            episode = step.episode
            blocks += decision.blocks
            alerts += step.alerts
    return Found(blocks, alerts, letters)


@pytest.fixture(scope="module")
def offline(model):
    return answer(model)


def test_the_oracle_agrees_with_the_offline_answer(oracle, offline):
    difference = oracle.compare(offline)
    assert difference.none, difference.examples
    assert sum(len(b.scores) - b.scores.count(None) for b in offline.blocks) == oracle.scored_rows > 8000
    assert {alert.state for alert in offline.alerts} >= {"firing", "resolved"}
    assert len(offline.dead_letters) > 10
    assert {one.kind for one in WORKLOAD.records} == {"row", "late", "stray", "broken"}
    assert {one.kind for one in WORKLOAD.records if one.more} == {"row", "late", "stray"}
    assert {number for _, number in oracle._series} == {0, 1, 2}  # a clock that has jumped ahead and back


def test_the_oracle_agrees_where_a_budget_of_false_alarms_raises_thresholds(model, offline):
    peaks = Peaks(1.5, 1000.0, Moments(20.0, 1.0, 1.0))
    alarms = 2 * WEEK_MS / (20_000 * model.manifest.interval_ms)
    budget = AlarmBudget(alarms_per_week=alarms, provisional=peaks, final=peaks)
    rule = msgspec.structs.replace(model.manifest.decision, budget=budget)
    budgeted = copy(model)
    budgeted.manifest = msgspec.structs.replace(model.manifest, decision=rule)
    found, judge = answer(budgeted), Oracle(budgeted, WORKLOAD.records)
    assert judge.compare(found).none
    raised = [b.threshold > o.threshold * 1.01 for b, o in zip(found.blocks, offline.blocks, strict=True)]
    assert any(raised)
    assert judge.compare(offline).counts["wrong"] > 0


def test_the_oracle_notices_rows_taken_from_a_record_that_is_refused(model, oracle):
    difference = oracle.compare(answer(model, whole=False))
    assert difference.counts["wrong"] > 0
    assert difference.counts["missing"] > 0


def test_the_oracle_notices_a_clock_that_was_not_believed_when_it_jumped(oracle, offline):
    jumped = {entity for entity, number in oracle._series if number}
    ahead = [b for b in offline.blocks if not (b.entity in jumped and b.start_slot > FIRST_SLOT + 10**6)]
    assert oracle.compare(offline._replace(blocks=ahead)).counts["missing"] > 100


def without(items, index):
    return [*items[:index], *items[index + 1 :]]


def twice(items, index):
    return [*items[: index + 1], *items[index:]]


def first(items, condition):
    return next(i for i, item in enumerate(items) if condition(item))


@pytest.mark.parametrize("what", Found._fields)
@pytest.mark.parametrize(("change", "seen"), [(without, "missing"), (twice, "repeated")])
def test_the_oracle_notices_one_message_too_few_or_too_many(oracle, offline, what, change, seen):
    items = getattr(offline, what)
    index = (
        first(items, lambda block: any(s is not None for s in block.scores)) if what == "blocks" else len(items) // 2
    )
    assert oracle.compare(offline._replace(**{what: change(items, index)})).counts[seen] > 0


@pytest.mark.parametrize("state", ["firing", "resolved"])
def test_the_oracle_notices_that_an_episode_does_not_begin_or_end(oracle, offline, state):
    lost = first(offline.alerts, lambda alert: alert.state == state)
    assert not oracle.compare(offline._replace(alerts=without(offline.alerts, lost))).none


def test_the_oracle_notices_an_episode_that_nobody_was_told_of(oracle, offline):
    lost = offline.alerts[0].episode_id
    told = [alert for alert in offline.alerts if alert.episode_id != lost]
    assert oracle.compare(offline._replace(alerts=told)).counts["missing"] > 0


def changed(block, **fields):
    return msgspec.structs.replace(block, **fields)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: changed(b, scores=[b.scores[0] * 1.001 if b.scores[0] else 1.0, *b.scores[1:]]),
        lambda b: changed(b, start_slot=b.start_slot + 1),
        lambda b: changed(b, threshold=b.threshold * 1.01),
    ],
    ids=["a score", "a slot", "a threshold"],
)
def test_the_oracle_notices_one_wrong_number(oracle, offline, change):
    index = len(offline.blocks) // 2
    blocks = [*offline.blocks]
    blocks[index] = change(blocks[index])
    assert oracle.compare(offline._replace(blocks=blocks)).counts["wrong"] > 0


def fault(kind, victim, hold_s):
    return Fault(kind=kind, victim=victim, pause_s=1.0, hold_s=hold_s, hard=True, meanwhile=False)


def test_a_few_thousand_samples_under_faults_are_scored_as_the_oracle_says():
    faults = [fault("kill", "worker", 0.5), fault("flush", "worker", 0), fault("zombie", "windower", 3.0)]
    report = run_seed(3, Size(rows=2400, entities=6, rows_per_s=250.0), faults=faults)
    assert (report.kills, report.zombies, report.flushes) == (2, 1, 1)
    assert report.scores > 4000
    assert (report.missing, report.repeated, report.wrong) == (0, 0, 0), report.examples
