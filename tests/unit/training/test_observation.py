import msgspec
import pytest

from stream.contracts import DriftEvent, ModelRef
from stream.kafka import Record
from stream.settings import TopicSettings
from tests.unit.training.test_gates import block
from training.gates import Tally
from training.observation import Observations
from training.retraining import Drift

TOPICS = TopicSettings(prefix="p.")
USUAL = {"v": {"e": 0.5, "": 2.0}}


def record(topic: str, value: bytes, timestamp_ms: int = 10) -> Record:
    return Record(f"p.{topic}", 0, 0, b"e", value, timestamp_ms)


def scores(topic: str = "scores", timestamp_ms: int = 10, **changes: object) -> Record:
    return record(topic, msgspec.json.encode(block(**changes)), timestamp_ms)


@pytest.fixture
def seen() -> Observations:
    return Observations(TOPICS)


def test_scores_count_from_the_beginning_of_a_phase_each_kind_for_itself(seen: Observations) -> None:
    observed = seen.of("f")
    seen.add(scores())
    assert observed.tally("v") == Tally()
    observed.begin(10, USUAL)
    for one in (scores(), scores("shadow-scores"), scores(timestamp_ms=9), scores(family="g"), scores(entity="new")):
        seen.add(one)
    assert observed.tally("v") == Tally(4, 2, 8.0, 5.0)
    assert observed.shadow("v") == Tally(2, 1, 4.0, 1.0)
    assert observed.tally("other") == observed.tally(None) == Tally()
    observed.begin(11, USUAL)
    assert observed.tally("v") == Tally()


DRIFT = DriftEvent(
    id="id",
    family="f",
    model=ModelRef("f", "v"),
    detected_at_ms=0,
    first_block_ms=1,
    blocks=8,
    block_slots=512,
    watched=10,
    moved=3,
    share=0.3,
    adwin=3,
    sketch=3,
    score=0,
    persistence=0,
    channels=[],
)


def test_entities_that_a_model_does_not_know_are_a_share_of_those_alive(seen: Observations) -> None:
    assert seen.of("f").unknown(["e"]) == 0.0
    for entity in ("e", "e", "new", "newer", "newest"):
        seen.add(scores(entity=entity))
    assert seen.of("f").unknown(["e", "gone"]) == 0.75


def test_the_fleets_time_is_that_of_its_rows_whatever_the_clock_of_one(seen: Observations) -> None:
    assert seen.of("f").newest_ms is None
    for start_slot in (100, 200, 150):
        for number in range(10):
            seen.add(scores(entity=f"e-{number}", start_slot=start_slot, interval_ms=10))
    assert seen.of("f").newest_ms == (200 + 3) * 10
    seen.add(scores(entity="e-3", start_slot=10**9, interval_ms=10))
    assert seen.of("f").newest_ms == (200 + 3) * 10


def test_the_newest_drift_is_remembered_and_what_cannot_be_read_is_left_out(seen: Observations) -> None:
    for at_ms in (5, 6):
        event = msgspec.json.encode(msgspec.structs.replace(DRIFT, detected_at_ms=at_ms))
        seen.add(record("drift", event[:-1] + b',"more":1}'))
    seen.add(record("drift", b"{"))
    seen.add(record("scores", b"\xff"))
    assert seen.of("f").drift == Drift("v", 6, 1)
