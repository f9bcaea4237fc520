from collections import defaultdict
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from detector.cuts import cut_series
from detector.engine import Detector
from detector.manifest import DecisionConfig, ScoringConfig
from detector.models import Model, fit_columns
from detector.offline import score_series
from detector.worker import EntityState, Worker, missing_fraction
from stream.contracts import Alert, BlockSummary, ScoreBlock, WindowNotice
from stream.errors import TransientError
from stream.grid import Geometry
from stream.kafka import BY_KEY, Record
from stream.metrics import Health, Metrics
from stream.settings import FamilySettings, KafkaSettings, Settings
from stream.windower import Windower
from tests.builders import untrained
from tests.fakes import FIRST_SLOT, FakeAcknowledgements, InMemoryWindowStore, sample_record

GEOMETRY = Geometry(length=16, hop=4, lateness=1, final_delay=4, slack=400)
MANIFEST, WEIGHTS = untrained(geometry=GEOMETRY, scoring=ScoringConfig(smoothing_size=9))
# Low thresholds, so that an untrained network finds something to tell.
DECISION = DecisionConfig(final_sigmas=1.0, provisional_sigmas=1.5, resolve_after=6, learning=18, adapt_after=10)
MANIFEST = msgspec.structs.replace(MANIFEST, decision=DECISION)
GEOMETRY_FIELDS = msgspec.structs.asdict(GEOMETRY)
# Another order than the model's channels, which stand m0 c0 c1 c2 m1.
FAMILY = FamilySettings(
    name="test", entities="[PMn]*", numeric=["m1", "m0"], commands=["c2", "c0", "c1"], **GEOMETRY_FIELDS
)
WITHOUT_MODEL = FamilySettings(name="bare", entities="x*", numeric=["m0"], **GEOMETRY_FIELDS)
SETTINGS = Settings(families=[FAMILY, WITHOUT_MODEL], kafka=KafkaSettings(reconnect_deadline_s=0.2))
MODEL = Model(Detector(MANIFEST, WEIGHTS), fit_columns(FAMILY, MANIFEST))
ROWS = 70


def make_series(entity, seed):
    generator = np.random.default_rng(seed)
    slots = FIRST_SLOT + seed + np.arange(ROWS)
    slots[40:] += 9
    values = generator.uniform(0, 2, (ROWS, len(MANIFEST.channels))).astype(np.float32)
    commands = [channel.kind == "command" for channel in MANIFEST.channels]
    values[:, commands] = values[:, commands] > 1.9
    values[generator.random(values.shape) < 0.1] = np.nan
    values[30:33, MODEL.numeric] *= 20
    return SimpleNamespace(entity=entity, slots=slots, values=values)


SERIES = [make_series("P-1", 0), make_series("never-trained", 3), make_series("x1", 6)]


def telemetry():
    """Return all rows, the entities' mixed."""
    names = [channel.name for channel in MANIFEST.channels]
    for row in range(ROWS):
        for one in SERIES:
            values = {n: None if np.isnan(v) else float(v) for n, v in zip(names, one.values[row], strict=True)}
            yield one.entity, int(one.slots[row]), {"m0": values["m0"]} if one.entity == "x1" else values


@pytest.fixture(scope="module")
def announced():
    """Run a windower over the telemetry; return its store and the notices as consumed."""
    store = InMemoryWindowStore()
    windower = Windower(SETTINGS, store, FakeAcknowledgements(), Metrics(), Health(30.0))
    windower.restore(0, 0, 0)
    progress = windower.process([sample_record(*row, offset) for offset, row in enumerate(telemetry())])
    assert not progress.held
    messages = [message for message in progress.outgoing if message.topic == "windows"]
    assert len(messages) == len(progress.outgoing) > 40
    records = [Record("windows", 0, offset, m.key, m.value, 0) for offset, m in enumerate(messages)]
    return SimpleNamespace(store=store, records=records)


class Champions:
    """Which model is in use, set by hand."""

    def __init__(self, model=MODEL):
        self.model = model
        self.refreshed = 0

    def refresh(self):
        self.refreshed += 1

    def current(self, family):
        return self.model if family == "test" else None

    def challenger(self, family):
        return None


class Outputs:
    """What a worker's transactions published; also what a successor reads its states from."""

    def __init__(self):
        self.messages = []

    def states(self, partition):
        for message in self.messages:
            if message.topic == "decisions" and message.partition == partition:
                yield message.key.decode(), msgspec.json.decode(message.value, type=EntityState)

    def of(self, topic, record):
        return [msgspec.json.decode(m.value, type=record) for m in self.messages if m.topic == topic]

    @property
    def blocks(self):
        return self.of("scores", ScoreBlock)

    @property
    def alerts(self):
        return self.of("alerts", Alert)

    @property
    def summaries(self):
        return self.of("summaries", BlockSummary)

    def last_states(self):
        return dict(self.states(0))


def start(announced, outputs, *, champions=None, metrics=None):
    worker = Worker(SETTINGS, announced.store, champions or Champions(), outputs.states, metrics or Metrics())
    assert worker.restore(0, 7, 0) == 7
    return worker


def score(worker, outputs, records):
    progress = worker.process(records)
    outputs.messages += progress.outgoing
    worker.committed([(message, 0) for message in progress.outgoing])
    return progress


def run(announced, batches, *, restarts=False):
    """Score all notices in batches of these sizes, the last as large as it must be; maybe by a new process each."""
    outputs = Outputs()
    worker, at = start(announced, outputs), 0
    for size in [*batches, len(announced.records)]:
        if restarts:
            worker = start(announced, outputs)
        score(worker, outputs, announced.records[at : at + size])
        at += size
        if at >= len(announced.records):
            break
    return outputs


@pytest.fixture(scope="module")
def whole(announced):
    return run(announced, [])


def by_slot(outputs, field="scores"):
    """Return stage, entity and slot -> score; a slot told twice fails the test."""
    found = {}
    for block in outputs.blocks:
        for i, value in enumerate(getattr(block, field)):
            key = block.stage, block.entity, block.start_slot + i
            assert key not in found
            found[key] = value
    return found


def assert_same(one, other):
    """The same messages, and numbers as near as another batch makes them."""
    mine, theirs = by_slot(one), by_slot(other)
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert theirs[key] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6))
    assert by_slot(one, "preds") == by_slot(other, "preds")
    assert [(a.id, a.state, a.severity, a.entity) for a in one.alerts] == [
        (a.id, a.state, a.severity, a.entity) for a in other.alerts
    ]
    assert one.last_states().keys() == other.last_states().keys()
    for a, b in zip(one.summaries, other.summaries, strict=True):
        assert without_scores(a) == without_scores(b)
        assert (a.scores, a.alarmed) == (b.scores, b.alarmed)
        if a.scores:
            assert b.score_mean == pytest.approx(a.score_mean, rel=1e-4)
            assert b.score_variance == pytest.approx(a.score_variance, rel=1e-2, abs=1e-6)


def without_scores(summary):
    return msgspec.structs.replace(summary, score_mean=None, score_variance=None)


def entity_order(outputs):
    """Order alerts by entity: how notices are batched decides only how entities mix."""
    outputs.messages.sort(key=lambda message: message.key)
    return outputs


def test_there_is_something_to_tell(whole):
    """Else the other tests would compare nothing."""
    assert {alert.state for alert in whole.alerts} == {"firing", "updated", "resolved"}
    assert {block.entity for block in whole.blocks} == {"P-1", "never-trained", "x1"}
    assert any(score is None for score in by_slot(whole).values())
    assert {block.learning for block in whole.blocks if block.entity == "P-1"} == {True, False}
    assert any("new level learned" in alert.summary for alert in whole.alerts)


@pytest.mark.parametrize("batches", [[1] * 100, [3] * 40, [10, 1, 20]], ids=["one by one", "threes", "mixed"])
def test_how_notices_are_batched_does_not_matter(announced, batches):
    assert_same(entity_order(run(announced, batches)), entity_order(run(announced, [])))


@pytest.mark.parametrize("batches", [[1] * 100, [7] * 20], ids=["one by one", "sevens"])
def test_a_successor_goes_on_from_what_was_published(announced, batches):
    """Moments and open episodes come from the topic, so nothing is told twice and nothing is left open."""
    assert_same(run(announced, batches, restarts=True), run(announced, batches))


def test_live_scores_are_the_offline_ones(whole):
    live = by_slot(whole)
    for series in SERIES[:2]:
        offline = score_series(MODEL, series)
        last = cut_series(GEOMETRY, series, ended=False)[-1].end_slot
        for slot, final, provisional in zip(series.slots.tolist(), offline.score, offline.provisional, strict=True):
            for stage, value, end in (
                ("provisional", provisional, last),
                ("final", final, last - GEOMETRY.final_delay),
            ):
                if slot <= end:
                    told = live[stage, series.entity, slot]
                    assert told == (None if np.isnan(value) else pytest.approx(value, rel=1e-4, abs=1e-5))


def test_every_slot_is_told_once_a_stage_gaps_and_all(whole):
    found = by_slot(whole)
    for series in SERIES:
        last = cut_series(GEOMETRY, series, ended=False)[-1].end_slot
        for stage, end in (("provisional", last), ("final", last - GEOMETRY.final_delay)):
            slots = sorted(slot for s, entity, slot in found if (s, entity) == (stage, series.entity))
            assert slots == list(range(series.slots[0], end + 1))
            present = set(series.slots.tolist())
            assert all(found[stage, series.entity, slot] is None for slot in slots if slot not in present)


def test_summaries_are_those_of_the_rows_block_by_block(announced, whole):
    """Of a block whose end fell into a gap, of the rows that the next window still holds."""
    notices = [msgspec.json.decode(record.value, type=WindowNotice) for record in announced.records]
    names = [MANIFEST.channels[i].name for i in MODEL.numeric]
    for series in SERIES[:2]:
        told = [one for one in whole.summaries if one.entity == series.entity]
        blocks = [one.block for one in told]
        assert blocks == sorted(set(blocks))
        assert len(blocks) >= 3
        final = [block for block in whole.blocks if block.entity == series.entity and block.stage == "final"]
        for one in told:
            assert (one.channels, one.length, one.model.version) == (names, GEOMETRY.length, MANIFEST.version)
            last = (one.block + 1) * GEOMETRY.length - 1
            told_by = min(n.end_slot for n in notices if n.entity == series.entity and n.end_slot >= last)
            held = (series.slots > max(last, told_by) - GEOMETRY.length) & (series.slots <= last)
            rows = series.values[held][:, MODEL.numeric].astype(float)
            for c, column in enumerate(rows.T):
                known = column[~np.isnan(column)]
                got = one.means[c], one.variances[c], one.minimums[c], one.maximums[c]
                assert one.counts[c] == len(known)
                wanted = (known.mean(), known.var(), known.min(), known.max()) if len(known) else (None,) * 4
                assert got == (pytest.approx(wanted, rel=1e-6) if len(known) else wanted)
        until = (told[-1].block + 1) * GEOMETRY.length - GEOMETRY.final_delay
        scores = [s for b in final if b.start_slot + len(b.scores) <= until for s in b.scores if s is not None]
        assert sum(one.scores for one in told) == len(scores)
        total = sum(one.scores * one.score_mean for one in told if one.scores)
        assert total == pytest.approx(sum(scores), rel=1e-6)


def test_a_family_without_a_model_is_told_as_gaps_and_holds_nobody_up(announced):
    metrics, outputs = Metrics(), Outputs()
    worker = start(announced, outputs, metrics=metrics)
    score(worker, outputs, announced.records)
    bare = [block for block in outputs.blocks if block.entity == "x1"]
    assert {score for block in bare for score in block.scores} == {None}
    assert {block.model.version for block in bare} == {"none"}
    windows = sum(record.key == b"x1" for record in announced.records)
    sample = metrics.registry.get_sample_value
    assert sample("telltale_unscored_windows_total") == windows
    assert sample("telltale_windows_scored_total") == len(announced.records) - windows
    assert "x1" not in outputs.last_states()


def test_outputs_stay_on_the_partition_and_key_of_their_entity(announced):
    outputs = Outputs()
    worker = Worker(SETTINGS, announced.store, Champions(), lambda _: [], Metrics())
    for partition in (1, 3):
        worker.restore(partition, 0, 0)
    progress = worker.process([r._replace(partition=3) for r in announced.records if r.key == b"P-1"])
    outputs.messages = progress.outgoing
    of_family = [message for message in progress.outgoing if message.topic == "summaries"]
    assert {(message.partition, message.key) for message in of_family} == {(BY_KEY, b"test")}
    others = [message for message in progress.outgoing if message.topic != "summaries"]
    assert {(message.partition, message.key) for message in others} == {(3, b"P-1")}
    assert progress.next_offsets.keys() == {3}
    assert progress.held == []


def test_offsets_are_of_the_next_notice_to_score(announced):
    worker = start(announced, Outputs())
    assert worker.process(announced.records[:5]).next_offsets == {0: announced.records[4].offset + 1}


def test_the_state_of_a_batch_is_published_once_an_entity_with_its_scores(announced):
    worker = start(announced, Outputs())
    messages = worker.process(announced.records[:12]).outgoing
    keys = [message.key for message in messages if message.topic == "decisions"]
    assert sorted(keys) == sorted({m.key for m in messages if m.topic == "scores"} - {b"x1"})


def test_alerts_are_cloud_events(announced, whole):
    messages = [message for message in whole.messages if message.topic == "alerts"]
    for message, alert in zip(messages, whole.alerts, strict=True):
        headers = dict(message.headers)
        assert headers["ce_id"].decode() == alert.id
        assert headers["ce_type"].decode() == f"telltale.alert.{alert.state}.v1"
        assert headers["ce_subject"] == message.key


def test_an_alert_says_what_commands_explain_where_commands_were_sent(whole):
    assert any(alert.commands for alert in whole.alerts)
    for alert in whole.alerts:
        for evidence in alert.channels:
            assert (evidence.explained is not None) == bool(alert.commands)


def test_a_new_model_starts_from_its_own_calibration_and_keeps_the_episode(announced):
    other = msgspec.structs.replace(MANIFEST, version="2")
    champions, outputs = Champions(), Outputs()
    worker = start(announced, outputs, champions=champions)
    half = len(announced.records) // 2
    score(worker, outputs, announced.records[:half])
    before = outputs.last_states()
    champions.model = Model(Detector(other, WEIGHTS), MODEL.columns)
    score(worker, outputs, announced.records[half : half + 6])
    versions = [block.model.version for block in outputs.blocks if block.entity != "x1"]
    assert versions == sorted(versions)
    assert set(versions) == {"1", "2"}
    fresh = other.entities[0].provisional
    first = next(b for b in outputs.blocks if (b.entity, b.stage, b.model.version) == ("P-1", "provisional", "2"))
    assert first.threshold == fresh.mean + other.decision.provisional_sigmas * fresh.variance**0.5
    after = outputs.last_states()["P-1"]
    assert (before["P-1"].moments.version, after.moments.version) == ("1", "2")
    assert after.moments.followed > before["P-1"].moments.followed > DECISION.learning
    assert not any(block.learning for block in outputs.blocks if block.model.version == "2")
    assert champions.refreshed == 2


def test_a_window_that_is_being_rebuilt_is_waited_for(announced, monkeypatch):
    """Scored as it stands it would get another score than before."""
    store, outputs = InMemoryWindowStore(), Outputs()
    kept = announced.store._rings
    worker = Worker(SETTINGS, store, Champions(), outputs.states, Metrics())
    worker.restore(0, 0, 0)
    monkeypatch.setattr("detector.worker.time.sleep", lambda _: store._rings.update(kept))
    score(worker, outputs, announced.records)
    assert_same(outputs, run(announced, []))


def test_a_window_that_stays_incomplete_is_worth_a_retry_and_publishes_nothing(announced):
    worker = Worker(SETTINGS, InMemoryWindowStore(), Champions(), lambda _: [], Metrics())
    worker.restore(0, 0, 0)
    wanted = msgspec.json.decode(announced.records[0].value, type=WindowNotice)
    with pytest.raises(TransientError, match=f"windows are incomplete, first {wanted.entity} up to slot"):
        worker.process(announced.records[:3])


def test_a_partition_that_was_given_up_is_forgotten(announced):
    outputs = Outputs()
    worker = start(announced, outputs)
    score(worker, outputs, announced.records[:9])
    worker.drop([0])
    assert worker._states == {}
    worker.restore(0, 9, 0)
    assert worker._states[0] == outputs.last_states()


def test_there_is_nothing_to_replay(announced):
    with pytest.raises(AssertionError):
        start(announced, Outputs()).replay(0, announced.records[:1])


def test_rows_are_counted_when_they_get_their_first_score(announced, whole):
    metrics = Metrics()
    score(start(announced, Outputs(), metrics=metrics), Outputs(), announced.records)
    first = [value for (stage, _, _), value in by_slot(whole).items() if stage == "provisional"]
    sample = metrics.registry.get_sample_value
    scored = sum(value is not None for value in first)
    assert sample("telltale_rows_scored_total") == scored
    unscored = sum(1 for (stage, entity, _) in by_slot(whole) if (stage, entity) == ("provisional", "x1"))
    assert sample("telltale_gap_slots_total") == len(first) - scored - unscored


def test_the_delay_to_the_committed_score_is_measured_for_every_window(announced):
    metrics = Metrics()
    score(start(announced, Outputs(), metrics=metrics), Outputs(), announced.records)
    count = metrics.registry.get_sample_value("telltale_end_to_end_latency_seconds_count")
    assert count == len(announced.records)


@pytest.mark.parametrize(
    ("rows", "first_slot", "share"), [(16, 0, 0.0), (4, 0, 0.75), (4, 96, 0.0), (0, 96, 1.0), (0, 100, 1.0)]
)
def test_what_was_before_an_entitys_first_row_is_not_missing(rows, first_slot, share):
    """window      84 . . . . . . . . . . . 96 . . 99"""
    notice = SimpleNamespace(length=16, end_slot=99, rows=rows, first_slot=first_slot)
    assert missing_fraction(notice) == share


def test_all_alerts_of_a_batch_are_counted(announced, whole):
    metrics, counted = Metrics(), defaultdict(int)
    score(start(announced, Outputs(), metrics=metrics), Outputs(), announced.records)
    for alert in whole.alerts:
        counted[alert.severity, alert.state] += 1
    for (severity, state), count in counted.items():
        labels = {"severity": severity, "state": state}
        assert metrics.registry.get_sample_value("telltale_alerts_total", labels) == count


@pytest.mark.parametrize("change", [{"length": 8}, {"final_delay": 0}, {"interval_ms": 17}])
def test_a_window_announced_under_other_settings_is_not_taken_for_the_models(change):
    geometry = MANIFEST.geometry
    fields = {"length": geometry.length, "final_delay": geometry.final_delay, "interval_ms": MANIFEST.interval_ms}
    assert MODEL.takes(SimpleNamespace(**fields))
    assert not MODEL.takes(SimpleNamespace(**{**fields, **change}))
