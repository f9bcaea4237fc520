import uuid
from datetime import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import contracts
from stream.contracts import (
    Alert,
    ChannelEvidence,
    DeadLetter,
    ModelRef,
    Sample,
    ScoreBlock,
    SourceRange,
    WindowNotice,
    check_entity,
    cloud_event_headers,
    episode_id,
)
from stream.errors import ContractError

EVIDENCE = ChannelEvidence(channel="a", share=0.5, observed=None, expected=1.0, low=0.0, high=2.0)
SOURCE = SourceRange("telemetry", 1, 5, 9)
MODEL = ModelRef("rover", "v1")
EPISODE = episode_id("telltale", "e1", 100)


def make_alert(**changes):
    fields = {
        "state": "firing",
        "episode_id": EPISODE,
        "revision": 0,
        "entity": "e1",
        "family": "rover",
        "severity": "error",
        "summary": "e1 behaves unlike its normal self",
        "starts_at_ms": 100_000,
        "ends_at_ms": None,
        "observed_at_ms": 1_767_225_600_123,
        "rests_on": "final",
        "score": 4.0,
        "threshold": 2.0,
        "p_value": 1e-6,
        "channels": [EVIDENCE],
        "model": MODEL,
        "window_start_ms": 0,
        "window_end_ms": 1000,
        "missing_fraction": 0.25,
        "source": SOURCE,
    }
    return Alert(**{**fields, **changes})


NOTICE = WindowNotice(
    entity="e1",
    family="rover",
    interval_ms=1000,
    end_slot=99,
    length=8,
    new_slots=4,
    final_delay=2,
    rows=7,
    ring=90,
    first_slot=90,
    source=SOURCE,
    trigger_ms=5,
)
BLOCK = ScoreBlock(
    entity="e1",
    family="rover",
    stage="final",
    start_slot=96,
    ts_ms=96_000,
    interval_ms=1000,
    scores=[1.0, None],
    p_values=[0.5, None],
    preds=[True, False],
    threshold=2.0,
    channels=[EVIDENCE],
    model=MODEL,
)
LETTER = DeadLetter(reason="schema", detail="d", topic="t", partition=0, offset=1, size=2, truncated=False)
RECORDS = [Sample("e1", 5, {"a": 1.0, "b": None, "c": True}), NOTICE, BLOCK, make_alert(), LETTER]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack], ids=["json", "msgpack"])
def test_a_record_survives_the_wire(record, codec):
    assert codec.decode(codec.encode(record), type=type(record)) == record


@pytest.mark.parametrize("record", [NOTICE, BLOCK, make_alert()], ids=lambda record: type(record).__name__)
def test_a_record_says_its_schema_version_and_takes_additions_but_no_other_version(record):
    plain = msgspec.to_builtins(record)
    assert plain["v"] == 1
    assert msgspec.convert({**plain, "added_later": 1}, type(record)) == record
    with pytest.raises(msgspec.ValidationError, match=r"\$\.v"):
        msgspec.convert({**plain, "v": 2}, type(record))


def test_no_record_changes_after_it_was_made():
    structs = [c for c in vars(contracts).values() if isinstance(c, type) and issubclass(c, msgspec.Struct)]
    assert [c.__name__ for c in structs if c is not msgspec.Struct and not c.__struct_config__.frozen] == []


ALPHABET = "aZ09._:/@- \n*é\0"


@given(st.text(ALPHABET, max_size=300))
def test_an_entity_is_a_name_that_begins_and_ends_with_a_letter_or_digit(name):
    plain = set("aZ09")
    good = 1 <= len(name) <= 256 and {name[0], name[-1]} <= plain and set(name) <= plain | set("._:/@-")
    if good:
        assert check_entity(name) == name
    else:
        with pytest.raises(ContractError) as caught:
            check_entity(name)
        assert caught.value.reason == "entity"


NAMES = st.sampled_from(["a", "b", "ab", "a/b"])


@given(st.tuples(NAMES, NAMES, st.integers(0, 3)), st.tuples(NAMES, NAMES, st.integers(0, 3)))
def test_an_episode_is_named_by_deployment_entity_and_where_it_began(one, other):
    assert (episode_id(*one) == episode_id(*other)) == (one == other)
    assert uuid.UUID(episode_id(*one)).version == 5


def test_episode_names_stay_what_they_were():
    """Receivers remember them across releases."""
    assert episode_id("telltale", "P-1", 1_767_225_600) == "35fd0faa-817f-539b-89c1-2cb8ff482e10"


def test_a_message_has_an_identity_of_its_own_within_its_episode():
    messages = [
        make_alert(state=s, revision=r) for s, r in [("firing", 0), ("updated", 1), ("updated", 2), ("resolved", 3)]
    ]
    assert len({alert.id for alert in messages}) == 4
    again = make_alert(revision=0, summary="said otherwise", score=9.0)
    assert again.id == messages[0].id


def test_an_alert_is_a_cloud_event_in_binary_mode():
    alert = make_alert()
    headers = cloud_event_headers(alert, "prod")
    assert len(headers) == len(dict(headers))
    text = {name: value.decode() for name, value in headers}
    assert datetime.fromisoformat(text.pop("ce_time")).timestamp() == 1_767_225_600.123
    assert text == {
        "ce_specversion": "1.0",
        "ce_id": alert.id,
        "ce_source": "/prod/worker",
        "ce_type": "telltale.alert.firing.v1",
        "ce_subject": "e1",
        "content-type": "application/json",
    }
