"""Arrays from many records say what reading record by record says."""

import math

import msgspec
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from stream.decoding import MSGPACK, SampleDecoder, to_float32
from stream.errors import ContractError
from stream.grid import MAX_TS_MS, MIN_TS_MS, slot_of, slots_of
from stream.rows import decode_records
from stream.settings import FamilySettings, LimitSettings, Settings
from tests.fakes import record

TS = 1_767_225_600_000
FAMILIES = [
    FamilySettings(name="probe", entities="p-*", numeric=["temperature", "voltage"], commands=["heater"]),
    FamilySettings(name="rest", entities="[a-z]*", numeric=["voltage"], interval_ms=60_000),
]
SETTINGS = Settings(families=FAMILIES, limits=LimitSettings(max_record_bytes=200))
# Of both families, of none, and one that can be no name.
ENTITIES = ["p-1", "p-2", "x", "y", "0", "-"]
CHANNELS = ["temperature", "voltage", "voltage", "heater", "pressure"]
NUMBERS = st.sampled_from([None, True, False, 0, -1, 1.5, 1e39, -3.5e38, math.nan, math.inf, "1", 10**30])
TIMES = st.sampled_from([TS, TS + 500, TS + 60_000, TS // 1000, -1, MIN_TS_MS, MAX_TS_MS, 2**63, 2**64, -(2**70)])


@st.composite
def records(draw):
    """Draw records, some good and the others wrong in one way or another."""
    result = []
    for offset in range(draw(st.integers(0, 12))):
        entity = draw(st.sampled_from(ENTITIES))
        values = draw(st.dictionaries(st.sampled_from(CHANNELS), NUMBERS, max_size=3))
        sample = {"entity": entity, "ts": draw(st.just(TS) | TIMES), "values": values}
        if draw(st.booleans()):  # JSON as it comes, with NaN and Infinity, which are none
            value, headers = repr_json(sample), ()
        else:
            sample["ts"] = min(max(sample["ts"], -(2**63)), 2**64 - 1)
            sample["values"] = {name: float(v) if v == 10**30 else v for name, v in values.items()}
            value, headers = msgspec.msgpack.encode(sample), [("content-type", MSGPACK.encode())]
        value = draw(st.sampled_from([value] * 8 + [None, b"", value[:-1], value + b" " * 200]))
        key = draw(st.sampled_from([entity.encode()] * 8 + [None, b"p-1", b"x"]))
        result.append(record(value, 3 * offset, key=key, headers=headers))
    return result


def repr_json(value):
    if isinstance(value, dict):
        return b"{" + b",".join(repr_json(k) + b":" + repr_json(v) for k, v in value.items()) + b"}"
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": b"NaN", "inf": b"Infinity"}[repr(value)]
    return str(value).encode() if isinstance(value, int) and abs(value) > 2**64 else msgspec.json.encode(value)


def one_by_one(records):
    """Return each record's row, or the reason and words of its refusal, by index."""
    decoder, rows, refused = SampleDecoder(SETTINGS), {}, {}
    for index, one in enumerate(records):
        try:
            row = decoder.decode(one.key, one.value, one.header("content-type"))
            slot = slot_of(row.ts_ms, row.family.interval_ms)
            values, fits = to_float32([row.values], len(row.values))
            if not fits[0]:
                raise ContractError("range", "values want finite numbers within float32")
        except ContractError as error:
            refused[index] = (error.reason, str(error))
        else:
            rows[index] = (row.family.name, row.entity, slot, one.offset, values[0].tobytes())
    return rows, refused


@given(records())
def test_arrays_hold_what_the_records_hold_one_by_one(records):
    families, refused = decode_records(SampleDecoder(SETTINGS), records)
    rows = {}
    for of_family in families:
        assert of_family.bounds[0] == 0
        assert of_family.bounds[-1] == len(of_family.slots) == len(of_family.values)
        assert sorted(set(of_family.bounds)) == of_family.bounds  # nobody without rows
        for entity, first, end in zip(of_family.entities, of_family.bounds, of_family.bounds[1:], strict=False):
            indexes = of_family.records[first:end].tolist()
            assert indexes == sorted(indexes)
            for at, index in enumerate(indexes, first):
                taken = (int(of_family.slots[at]), int(of_family.offsets[at]), of_family.values[at].tobytes())
                rows[index] = (of_family.family.name, entity, *taken)
    assert (rows, {index: (e.reason, str(e)) for index, e in refused.items()}) == one_by_one(records)


@given(st.lists(st.integers(-(2**70), 2**70) | TIMES, max_size=6), st.integers(1, 90_000))
@example([2**63 - 1, -(2**63), TS], 1)
def test_slots_of_many_time_stamps_are_those_of_each(times, interval_ms):
    slots, dated = slots_of(times, interval_ms)
    for ts_ms, slot, good in zip(times, slots.tolist(), dated.tolist(), strict=True):
        assert good == (MIN_TS_MS <= ts_ms < MAX_TS_MS)
        if good:
            assert slot == slot_of(ts_ms, interval_ms)


def test_values_are_single_precision_and_missing_ones_nan():
    sample = {"entity": "p-1", "ts": TS, "values": {"voltage": 0.1, "heater": True}}
    (rows,), _ = decode_records(SampleDecoder(SETTINGS), [record(msgspec.json.encode(sample), key=b"p-1")])
    np.testing.assert_array_equal(rows.values, np.array([[np.nan, 0.1, 1]], np.float32))
