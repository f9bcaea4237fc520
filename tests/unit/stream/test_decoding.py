import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.contracts import MAX_ENTITY_LENGTH
from stream.decoding import MSGPACK, SampleDecoder, to_float32
from stream.errors import ContractError
from stream.settings import FamilySettings, LimitSettings, Settings

TS = 1_767_225_600_000
CHANNELS = ("temperature", "voltage", "heater")
FAMILIES = [
    FamilySettings(name="probe", entities="p-*", numeric=["temperature", "voltage"], commands=["heater"]),
    FamilySettings(name="rest", entities="[a-z]*", numeric=["voltage"]),
]
SETTINGS = Settings(families=FAMILIES, limits=LimitSettings(max_record_bytes=2000))
ENCODERS = {None: msgspec.json.encode, "application/json": msgspec.json.encode, MSGPACK: msgspec.msgpack.encode}
NUMBERS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def decoder():
    """One that has seen an entity of each family before."""
    decoder = SampleDecoder(SETTINGS)
    for entity in ("p-1", "x"):
        decode(decoder, sample(entity))
    return decoder


def sample(entity="p-1", ts=TS, **values):
    return {"entity": entity, "ts": ts, "values": values}


def decode(decoder, value, content_type=None, key=None):
    key = value["entity"].encode() if key is None else key
    return decoder.decode(key, ENCODERS[content_type](value), content_type)


def refusal(decoder, key, value, content_type=None):
    with pytest.raises(ContractError) as caught:
        decoder.decode(key, value, content_type)
    return caught.value


@given(st.dictionaries(st.sampled_from(CHANNELS), NUMBERS), st.integers(-(2**63), 2**63 - 1))
def test_json_and_msgpack_say_the_same_in_the_order_of_the_familys_channels(decoder, values, ts):
    rows = [decode(decoder, sample(ts=ts, **values), content_type) for content_type in ENCODERS]
    wanted = tuple(values.get(channel) for channel in CHANNELS)
    for row in rows:
        assert (row.family, row.entity, row.ts_ms, row.values) == (FAMILIES[0], "p-1", ts, wanted)


def test_the_first_family_that_fits_wins_and_absent_channels_are_missing(decoder):
    assert decode(decoder, sample("p-9")).family.name == "probe"
    assert decode(decoder, sample("q", voltage=1)).family.name == "rest"
    assert decode(decoder, sample("p-9")).values == (None, None, None)


@pytest.mark.parametrize("content_type", [None, MSGPACK])
def test_fields_that_we_do_not_know_are_no_reason_to_refuse_a_row(decoder, content_type):
    for entity in ("p-1", "p-new"):
        row = decode(decoder, {**sample(entity, voltage=3), "quality": "good", "v": 2}, content_type)
        assert row.values == (None, 3.0, None)


def line(values='{"voltage": 1}', *, entity='"p-1"', ts=str(TS)):
    return f'{{"entity": {entity}, "ts": {ts}, "values": {values}}}'.encode()


BAD_JSON = {
    "not JSON": (b"temperature=3", "malformed"),
    "nothing": (b"", "malformed"),
    "cut short": (line()[:-1], "malformed"),
    "two records": (line() + line(), "malformed"),
    "a list": (b"[]", "schema"),
    "a number": (b"1", "schema"),
    "no entity": (b'{"ts": 1, "values": {}}', "schema"),
    "no time": (b'{"entity": "p-1", "values": {}}', "schema"),
    "no values": (b'{"entity": "p-1", "ts": 1}', "schema"),
    "values are a list": (line("[1, 2]"), "schema"),
    "a text where a number belongs": (line('{"voltage": "1.5"}'), "schema"),
    "the text NaN": (line('{"voltage": "NaN"}'), "schema"),
    "a vector where a number belongs": (line('{"voltage": [1]}'), "schema"),
    "an unknown channel": (line('{"pressure": 1}'), "schema"),
    "NaN": (line('{"voltage": NaN}'), "malformed"),
    "Infinity": (line('{"voltage": Infinity}'), "malformed"),
    "-Infinity": (line('{"voltage": -Infinity}'), "malformed"),
    "beyond float64": (line('{"voltage": 1e400}'), "schema"),
    "a number of 1900 digits": (line(f'{{"voltage": {"9" * 1900}}}'), "schema"),
    "time is a text": (line(ts='"2026-01-01T00:00:00Z"'), "schema"),
    "time has a fraction": (line(ts="1767225600.5"), "schema"),
    "time is null": (line(ts="null"), "schema"),
    "entity is a number": (line(entity="1"), "schema"),
    "not UTF-8 in the entity": (line().replace(b"p-1", b"p-\xff"), "malformed"),
    "not UTF-8 in a channel": (line().replace(b"voltage", b"volt\xffge"), "malformed"),
    "half a surrogate pair": (line('{"\\ud800": 1}'), "malformed"),
    "deep nesting": (line("[" * 1900), "schema"),
    "deep nesting in an unknown field": (b'{"entity": "p-1", "x": ' + b"[" * 1900, "malformed"),
}


@pytest.mark.parametrize("known", [True, False], ids=["known entity", "new entity"])
@pytest.mark.parametrize("name", BAD_JSON)
def test_a_record_that_breaks_the_format_is_refused_with_its_reason(decoder, name, known):
    value, reason = BAD_JSON[name]
    key = b"p-1" if known else b"p-77"
    error = refusal(decoder, key, value.replace(b"p-1", key))
    assert error.reason == reason
    assert str(error)


def test_messages_say_what_was_wanted_and_what_came(decoder):
    assert "`$.values.voltage`" in str(refusal(decoder, b"p-1", line('{"voltage": "high"}')))
    assert "pressure" in str(refusal(decoder, b"p-1", line('{"pressure": 1}')))
    assert "missing required field `ts`" in str(refusal(decoder, b"p-1", b'{"entity": "p-1", "values": {}}'))
    assert "got 'other'" not in str(refusal(decoder, b"other", line()))
    assert "b'other'" in str(refusal(decoder, b"other", line()))


@pytest.mark.parametrize(
    "entity", ["", " ", "p 1", "p-1\n", "-p", "p-", "../p", "p*", "p\0", "é", "p-" + "x" * MAX_ENTITY_LENGTH]
)
def test_an_entity_that_can_be_no_key_is_refused(decoder, entity):
    error = refusal(decoder, entity.encode(), msgspec.json.encode(sample(entity)))
    assert error.reason == "entity"


def test_the_longest_entity_is_taken(decoder):
    entity = "p-" + "x" * (MAX_ENTITY_LENGTH - 2)
    assert decode(decoder, sample(entity)).entity == entity


@pytest.mark.parametrize("key", [None, b"", b"p-2", b"P-1", b"p-1 ", b"\xff", b"x"])
def test_a_record_whose_key_is_not_its_entity_is_refused(decoder, key):
    """It may stand on another entity's partition, where nobody owns its windows."""
    assert refusal(decoder, key, line()).reason == "key"
    assert refusal(SampleDecoder(SETTINGS), key, line()).reason == "key"


def test_an_entity_of_no_family_is_refused_and_told_which_there_are(decoder):
    error = refusal(decoder, b"0", msgspec.json.encode(sample("0")))
    assert error.reason == "family"
    assert "(declared: probe, rest)" in str(error)
    assert "(declared: none)" in str(refusal(SampleDecoder(Settings()), b"p-1", line()))


def test_a_record_over_the_limit_is_refused_unread(decoder):
    limit = SETTINGS.limits.max_record_bytes
    fitting = line() + b" " * (limit - len(line()))
    assert decoder.decode(b"p-1", fitting).entity == "p-1"
    error = refusal(decoder, b"p-1", fitting + b"\xff")
    assert error.reason == "size"
    assert f"at most {limit} bytes, got {limit + 1}" in str(error)


def test_a_tombstone_is_refused(decoder):
    assert refusal(decoder, b"p-1", None).reason == "empty"


@pytest.mark.parametrize("content_type", [None, MSGPACK])
@given(value=st.binary(max_size=80), entity=st.sampled_from(["p-1", "x", "p-2"]), data=st.data())
@example(value=b"\xdf\xff\xff\xff\xff", entity="p-1", data=None)
@example(value=b"\xc7\xff\xff", entity="p-1", data=None)
@example(value=b"\x91" * 80, entity="p-1", data=None)
def test_no_bytes_do_more_than_break_the_contract(decoder, content_type, value, entity, data):
    """Neither noise nor a record with some of its bytes replaced."""
    good = ENCODERS[content_type](sample(entity, voltage=1.5))
    if data is not None and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(good)))
        value = good[:at] + value[:4] + good[at + data.draw(st.integers(0, 4)) :]
    outcome = row_or_refusal(decoder, entity.encode(), value, content_type)
    if isinstance(outcome, ContractError):
        assert outcome.reason in {"malformed", "schema", "entity", "key", "family", "range"}
        msgspec.json.encode(str(outcome))  # no half characters, so that a dead letter can tell it
    else:
        assert outcome.entity == entity
        to_float32([outcome.values], len(outcome.family.channels))


def row_or_refusal(decoder, *arguments):
    try:
        return decoder.decode(*arguments)
    except ContractError as error:
        return error


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-msgpack"])
def test_any_other_content_type_is_read_as_json(decoder, content_type):
    assert decoder.decode(b"p-1", line(), content_type).values == (None, 1.0, None)


def test_a_msgpack_nan_is_refused_as_a_json_one_is(decoder):
    error = refusal(decoder, b"p-1", msgspec.msgpack.encode(sample(voltage=math.nan)), MSGPACK)
    assert error.reason == "range"


FLOAT32_MAX = float(np.finfo(np.float32).max)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
@example([(1e308, 0, 0), (0, 1, 2)])
@example([(FLOAT32_MAX, -FLOAT32_MAX, 1e-320)])
def test_rows_become_float32_or_do_not_fit(rows):
    values, fits = to_float32(rows, 3)
    assert values.dtype == np.float32
    for row, out, fit in zip(rows, values, fits, strict=True):
        assert fit == all(v is None or abs(v) <= FLOAT32_MAX for v in row)
        if fit:
            np.testing.assert_array_equal(out, [np.nan if v is None else np.float32(v) for v in row])
            assert not np.isinf(out).any()
        else:
            assert np.isnan(out).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e308, -3.5e38])
def test_a_number_beyond_float32_does_not_fit_and_spoils_no_other_row(value):
    values, fits = to_float32([(1.0, 2.0), (value, None), (3.0, None)], 2)
    assert fits.tolist() == [True, False, True]
    np.testing.assert_array_equal(values[[0, 2]], np.array([[1, 2], [3, np.nan]], np.float32))


def test_no_rows_are_no_values():
    values, fits = to_float32([], 3)
    assert (values.shape, fits.shape) == ((0, 3), (0,))


def test_a_flood_of_entities_does_not_grow_the_memory(monkeypatch):
    monkeypatch.setattr("stream.decoding._MAX_KNOWN", 10)
    decoder = SampleDecoder(SETTINGS)
    for number in range(35):
        assert decode(decoder, sample(f"p-{number}", voltage=number)).values == (None, float(number), None)
        assert len(decoder._reader_by_key) <= 10
