"""Many rows in one record say what the rows say one by one, and are refused for what one row is refused for."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.columns import COLUMNS, ColumnReader, to_columns
from stream.contracts import SampleColumns
from stream.decoding import SampleDecoder
from stream.errors import ContractError
from stream.rows import decode_records
from stream.settings import FamilySettings, Settings
from tests.fakes import record, sample_record

FIRST = 1_767_225_600
FAMILY = FamilySettings(
    name="rover", numeric=["a", "b"], commands=["c"], length=8, hop=4, final_delay=4, slack=16, interval_ms=1000
)
SETTINGS = Settings(families=[FAMILY])
CHANNELS = [*FAMILY.channels]
VALUES = st.sampled_from([math.nan, 0.0, 1.0, -2.5, 3e38])


def columns_record(sample, offset=0, *, key=None):
    key = sample.entity.encode() if key is None else key
    return record(msgspec.msgpack.encode(sample), offset, key=key, headers=[("content-type", COLUMNS.encode())])


def rows_of(*slots, entity="e1", channels=CHANNELS, values=None):
    values = np.zeros((len(slots), len(channels)), np.float32) if values is None else values
    return to_columns(entity, channels, (FIRST + np.array(slots)) * 1000, np.array(values, np.float32))


@st.composite
def blocks(draw):
    """Draw stretches of rows of two entities: entity, slots, channels in any order, values."""
    result, newest = [], {"e1": 0, "e2": 5}
    for _ in range(draw(st.integers(1, 5))):
        entity = draw(st.sampled_from(["e1", "e2"]))
        slots = [newest[entity] + at for at in sorted(draw(st.sets(st.integers(0, FAMILY.hop), min_size=1)))]
        newest[entity] = slots[-1] + 1
        channels = draw(st.lists(st.sampled_from(CHANNELS), unique=True))
        shape = (len(slots), len(channels))
        values = draw(st.lists(VALUES, min_size=math.prod(shape), max_size=math.prod(shape)))
        result.append((entity, slots, channels, np.array(values, np.float32).reshape(shape)))
    return result


def as_rows(entity, slots, channels, values):
    """Return the same rows in records of their own."""
    for slot, row in zip(slots, values.tolist(), strict=True):
        named = {name: None if math.isnan(v) else v for name, v in zip(channels, row, strict=True)}
        yield sample_record(entity, FIRST + slot, named, 0)


@given(blocks(), st.data())
def test_a_record_of_many_rows_says_what_its_rows_say_alone(drawn, data):
    """Also among records of single rows."""
    mixed, single = [], []
    for entity, slots, channels, values in drawn:
        alone = list(as_rows(entity, slots, channels, values))
        single += alone
        together = columns_record(rows_of(*slots, entity=entity, channels=channels, values=values))
        mixed += data.draw(st.sampled_from([[together], alone]))
    one, other = (decode_records(SampleDecoder(SETTINGS), records) for records in (mixed, single))
    assert (one.refused, other.refused) == ({}, {})
    (one,), (other,) = one.families, other.families
    assert (one.entities, one.bounds, one.slots.tolist()) == (other.entities, other.bounds, other.slots.tolist())
    np.testing.assert_array_equal(one.values, other.values)


def test_rows_stand_at_their_records_offset():
    records = [columns_record(rows_of(0, 1), 7), sample_record("e1", FIRST + 2, {}, 9), columns_record(rows_of(3), 11)]
    (rows,), _ = decode_records(SampleDecoder(SETTINGS), records)
    assert rows.offsets.tolist() == [7, 7, 9, 11]
    assert rows.records.tolist() == [0, 0, 1, 2]


def changed(**fields):
    return msgspec.structs.replace(rows_of(0, 1), **fields)


BAD = {
    "no rows": (changed(ts=b"", values=b""), "schema"),
    "half a time stamp": (changed(ts=b"\0" * 15), "schema"),
    "values too few": (changed(values=b"\0" * 20), "schema"),
    "values too many": (changed(values=b"\0" * 25), "schema"),
    "an unknown channel": (rows_of(0, channels=["a", "x"]), "schema"),
    "a channel twice": (rows_of(0, channels=["a", "a"]), "schema"),
    "infinite": (rows_of(0, 1, values=[[1, 2, 0], [math.inf, 0, 0]]), "range"),
    "negative infinite": (rows_of(0, values=[[1, -math.inf, 0]]), "range"),
    "a slot twice": (rows_of(0, 1, 1), "order"),
    "backwards": (rows_of(1, 0), "order"),
    "too far apart": (rows_of(0, FAMILY.hop + 1), "span"),
    "seconds": (changed(ts=np.array([FIRST, FIRST + 1]).tobytes()), "timestamp"),
    "one of them of another age": (changed(ts=np.array([FIRST * 1000, 2**62]).tobytes()), "timestamp"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("known", [True, False], ids=["known entity", "new entity"])
def test_a_record_that_breaks_the_contract_is_refused_whole(name, known):
    sample, reason = BAD[name]
    decoder = SampleDecoder(SETTINGS)
    if known:
        decode_records(decoder, [columns_record(rows_of(0))])
    families, refused = decode_records(decoder, [columns_record(sample)])
    assert ({index: error.reason for index, error in refused.items()}, families) == ({0: reason}, [])


def test_key_and_size_hold_for_many_rows_too():
    records = [
        columns_record(rows_of(0), key=b"e2"),
        columns_record(rows_of(0, entity="e 1")),
        record(b"x" * (SETTINGS.limits.max_record_bytes + 1), headers=[("content-type", COLUMNS.encode())]),
        record(None, headers=[("content-type", COLUMNS.encode())]),
    ]
    _, refused = decode_records(SampleDecoder(SETTINGS), records)
    assert [refused[i].reason for i in range(4)] == ["key", "entity", "size", "empty"]


@given(st.binary(max_size=100), st.data())
def test_no_bytes_do_more_than_break_the_contract(value, data):
    good = msgspec.msgpack.encode(rows_of(0, 1))
    at = data.draw(st.integers(0, len(good)))
    value = data.draw(st.sampled_from([value, good[:at] + value[:4] + good[at + 4 :]]))
    one = record(value, headers=[("content-type", COLUMNS.encode())])
    families, refused = decode_records(SampleDecoder(SETTINGS), [one])
    assert len(families) + len(refused) == 1
    for error in refused.values():
        assert error.reason in {"malformed", "schema", "range", "timestamp", "order", "span", "key", "entity"}


def test_a_flood_of_channel_orders_does_not_grow_the_memory(monkeypatch):
    monkeypatch.setattr("stream.columns._MAX_ORDERS", 3)
    reader = ColumnReader(FAMILY)
    for channels in (["a"], ["b"], ["c"], ["a", "b"], ["b", "a"], ["c", "a"]):
        reader.read(rows_of(0, channels=channels))
        assert len(reader._columns) <= 3


def test_what_is_refused_names_what_came():
    with pytest.raises(ContractError, match=r"ascending slots, got 1767225600 after 1767225601"):
        ColumnReader(FAMILY).read(rows_of(1, 0))
    with pytest.raises(ContractError, match=r"at most 4 slots, got 9"):
        ColumnReader(FAMILY).read(rows_of(0, 9))
    assert isinstance(rows_of(0), SampleColumns)
