"""The demo's report: what counts as scorable, scored, found and false."""

from types import SimpleNamespace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo_report import Episode, ServerReport, Tally, compare, episodes, match
from deploy.demo_sources import KnownFault
from stream.contracts import Alert, ModelRef, Sample, ScoreBlock, SourceRange
from stream.grid import Geometry
from stream.heads import Head
from stream.settings import FamilySettings
from tests.bundles import make_manifest

FIRST = 1_767_225_600
INTERVAL_MS = 2000
GEOMETRY = Geometry(length=16, hop=4, final_delay=4, slack=16)
FAMILY = FamilySettings(name="rover", interval_ms=INTERVAL_MS, numeric=["a"], **msgspec.structs.asdict(GEOMETRY))
ALERT = Alert(
    state="firing",
    episode_id="one",
    revision=0,
    entity="e-1",
    family="rover",
    severity="error",
    summary="",
    starts_at_ms=0,
    ends_at_ms=None,
    observed_at_ms=0,
    rests_on="final",
    score=1.0,
    threshold=0.5,
    p_value=0.01,
    channels=[],
    model=ModelRef("rover", "v1"),
    window_start_ms=0,
    window_end_ms=0,
    missing_fraction=0.0,
    source=SourceRange("telemetry", 0, 0, 0),
)


def alert(**changes):
    return msgspec.structs.replace(ALERT, **changes)


def block(scores, stage="provisional", version="v1", start_slot=FIRST):
    return ScoreBlock(
        entity="e-1",
        family="rover",
        stage=stage,
        start_slot=start_slot,
        ts_ms=start_slot * INTERVAL_MS,
        interval_ms=INTERVAL_MS,
        scores=scores,
        p_values=scores,
        preds=[False] * len(scores),
        threshold=1.0,
        channels=[],
        model=ModelRef("rover", version),
    )


def sent(tally, entity, slots):
    for slot in slots:
        tally.sent(Sample(entity, slot * INTERVAL_MS, {"a": 1.0}))


def fault(entity="e-1", first=10, last=20):
    return KnownFault(entity, "stuck", ("a",), first, last)


steps = st.lists(st.integers(1, 6) | st.sampled_from([GEOMETRY.max_gap, GEOMETRY.max_gap + 1, 100]), max_size=40)


@given(st.integers(0, 7), steps)
def test_scorable_rows_are_those_of_the_windows_that_the_windower_cuts(start, gaps):
    slots = [FIRST + start]
    for gap in gaps:
        slots.append(slots[-1] + gap)
    head, last = Head(GEOMETRY, slots[0]), -1
    for slot in slots:
        last = max([last, *(cut.end_slot for cut in head.add(slot, 0))])
    tally = Tally([FAMILY])
    sent(tally, "e-1", slots)
    assert tally.rows_in == len(slots)
    assert tally.rows_scorable == sum(slot <= last for slot in slots)


def test_entities_are_counted_each_on_its_own():
    tally = Tally([FAMILY])
    sent(tally, "e-1", range(FIRST, FIRST + 10))
    sent(tally, "e-2", range(FIRST + 1000, FIRST + 1003))
    one = Tally([FAMILY])
    sent(one, "e-1", range(FIRST, FIRST + 10))
    assert tally.rows_scorable == one.rows_scorable
    assert tally.rows_in == one.rows_in + 3
    assert [tally.last_ms(e) for e in ("e-1", "e-2", "e-3")] == [(FIRST + 9) * 2000, (FIRST + 1002) * 2000, 0]


def test_a_row_counts_as_scored_once_and_gaps_never():
    tally = Tally([FAMILY])
    for one in (block([1.0, None, 2.0]), block([1.0, 2.0], "final"), block([None]), block([3.0], version="v2")):
        tally.scored(one)
    assert (tally.rows_scored, tally.gap_slots) == (3, 2)
    assert tally.model_versions == {"v1": 2, "v2": 1}


def test_an_episode_is_seen_when_it_fires_and_lasts_until_it_is_resolved():
    messages = [
        alert(starts_at_ms=100, observed_at_ms=140),
        alert(episode_id="two", entity="e-2", starts_at_ms=110, observed_at_ms=130),
        alert(state="updated", revision=1, starts_at_ms=100, observed_at_ms=160),
        alert(state="resolved", revision=2, starts_at_ms=100, observed_at_ms=200, ends_at_ms=170),
    ]
    assert episodes(messages) == [Episode("e-1", 100, 170, 140), Episode("e-2", 110, None, 130)]


spans = st.tuples(st.integers(0, 30), st.integers(0, 10))


@given(spans, st.lists(st.tuples(spans, st.booleans(), st.integers(0, 9)), max_size=4), st.integers(0, 5))
def test_a_fault_is_found_by_an_alarm_that_shares_a_moment_with_it_or_its_aftermath(span, alarms, tolerance):
    first, last = span[0], span[0] + span[1]
    found = [
        Episode("e-1", start, None if is_open else start + length, start + delay)
        for (start, length), is_open, delay in alarms
    ]
    moments = set(range(first, last + tolerance + 1))
    hits = [e for e in found if moments & set(range(e.starts_ms, (e.ends_ms if e.ends_ms is not None else 100) + 1))]
    (report,) = match([fault(first=first, last=last)], found, tolerance, 1)
    assert report.found == bool(hits)
    assert report.delay_slots == (max(0, min(e.observed_ms for e in hits) - first) if hits else None)


def test_an_alarm_of_another_entity_finds_nothing():
    (report,) = match([fault()], [Episode("e-2", 10, 20, 15)], 0, 1)
    assert not report.found


def report_of(faults, alerts, sent_until):
    tally = Tally([FAMILY])
    sent(tally, "e-1", range(FIRST, sent_until + 1))
    tally.alerts = alerts
    source = SimpleNamespace(name="made up", families=[FAMILY], faults=lambda: faults)
    server = ServerReport("kind", "1")
    return compare(source, tally, (server, server), [make_manifest()], {"worker": 1.0})


def at(slot):
    return (FIRST + slot) * INTERVAL_MS


def test_every_alert_is_either_at_a_known_fault_or_false_and_later_faults_do_not_count():
    faults = [fault(first=at(10), last=at(20)), fault(first=at(40), last=at(45)), fault(first=at(90), last=at(99))]
    alarms = [
        alert(episode_id="hit", starts_at_ms=at(12), observed_at_ms=at(14), state="resolved", ends_at_ms=at(21)),
        alert(episode_id="aftermath", starts_at_ms=at(24), observed_at_ms=at(28)),
        alert(episode_id="false", starts_at_ms=at(70), observed_at_ms=at(71)),
    ]
    report = report_of(faults, alarms[:1] + alarms[2:], sent_until=FIRST + 80)
    assert (report.alerts, report.false_alarms, report.faults, report.faults_found) == (2, 1, 2, 1)
    assert [one.delay_slots for one in report.fault_list] == [4, None]
    # Within the final delay of a fault's end, an alarm is its aftermath.
    assert report_of(faults, alarms[1:2], sent_until=FIRST + 39).false_alarms == 0
    later = alert(starts_at_ms=at(20 + GEOMETRY.final_delay + 1), observed_at_ms=at(30))
    assert report_of(faults, [later], sent_until=FIRST + 39).false_alarms == 1


def test_without_faults_every_alert_is_false():
    report = report_of([], [alert(starts_at_ms=at(5), observed_at_ms=at(6))], sent_until=FIRST + 20)
    assert (report.alerts, report.false_alarms, report.faults) == (1, 1, 0)


def test_the_report_is_one_plain_json_object():
    report = msgspec.json.decode(msgspec.json.encode(report_of([fault(first=at(1), last=at(2))], [], FIRST + 20)))
    assert report["rows_in"] == 21
    assert report["model"] == report["models"][0]
    assert report["fault_list"][0]["found"] is False
    assert report["broker"] == {"kind": "kind", "version": "1"}
