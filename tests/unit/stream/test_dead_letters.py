import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stream.contracts import DeadLetter
from stream.dead_letters import HEADER, MAX_KEPT_BYTES, dead_letter
from stream.errors import ContractError
from tests.fakes import record

# message.max.bytes of librdkafka, key, headers and value together.
SENDABLE = 1_000_000
SIZES = st.sampled_from([0, 1, 300, MAX_KEPT_BYTES, MAX_KEPT_BYTES + 1, 900_000])


def letter_of(outgoing):
    return msgspec.json.decode(dict(outgoing.headers)[HEADER], type=DeadLetter)


@given(st.binary(max_size=200), st.none() | st.binary(max_size=50), st.text(max_size=100))
def test_a_small_record_is_kept_byte_by_byte_with_its_place_and_the_reason(value, key, detail):
    refused = record(value, 7, key=key, partition=3, headers=[("a", b"1"), ("a", None)])
    outgoing = dead_letter("dead-letters", refused, ContractError("schema", detail))
    assert (outgoing.topic, outgoing.partition, outgoing.key, outgoing.value) == ("dead-letters", 3, key, value)
    assert list(outgoing.headers)[:-1] == [("a", b"1"), ("a", None)]
    letter = letter_of(outgoing)
    assert (letter.reason, letter.detail) == ("schema", detail)
    assert (letter.topic, letter.partition, letter.offset) == (refused.topic, 3, 7)
    assert (letter.size, letter.truncated) == (len(value), False)


@given(value=SIZES, key=SIZES, header=SIZES, detail=SIZES)
def test_whatever_came_can_be_sent_on_and_what_was_cut_is_said(value, key, header, detail):
    refused = record(b"\0" * value, key=b"\0" * key, headers=[("h", b"\0" * header)])
    outgoing = dead_letter("dead-letters", refused, ContractError("key", "\0" * detail))
    sent = len(outgoing.key) + len(outgoing.value) + sum(len(name) + len(data) for name, data in outgoing.headers)
    assert sent < SENDABLE / 2
    letter = letter_of(outgoing)
    assert letter.size == value
    whole = (outgoing.key, outgoing.value, list(outgoing.headers)[:-1]) == (refused.key, refused.value, refused.headers)
    assert letter.truncated is not whole


def test_a_record_without_a_value_is_refused_with_an_empty_one():
    outgoing = dead_letter("dead-letters", record(None), ContractError("empty", "no value"))
    assert (outgoing.value, letter_of(outgoing).size) == (b"", 0)
