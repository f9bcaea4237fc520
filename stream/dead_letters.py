"""Refused records: their own bytes as the value, why and from where in the headers. Knows no service."""

import msgspec

from stream.contracts import DeadLetter, DroppedLetters
from stream.errors import ContractError
from stream.kafka import Headers, Outgoing, Record

# What a refused record keeps of its value and of its headers. With the key and the detail below it stays under
# message.max.bytes of the broker and the producer, 1 MB: a letter that can't be sent would stop its partition.
MAX_KEPT_BYTES = 65_536
MAX_KEY_BYTES = 1024
MAX_DETAIL = 1000
HEADER = "telltale-dead-letter"


def dead_letter(topic: str, record: Record, error: ContractError) -> Outgoing:
    """Wrap a refused record for the dead-letters topic, on the partition it came from."""
    value, kept = record.value or b"", _fitting(record.headers)
    letter = DeadLetter(
        reason=error.reason,
        detail=str(error)[:MAX_DETAIL],
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        size=len(value),
        truncated=len(value) > MAX_KEPT_BYTES or len(record.key or b"") > MAX_KEY_BYTES or kept != record.headers,
    )
    key = None if record.key is None else record.key[:MAX_KEY_BYTES]
    headers = [*kept, (HEADER, msgspec.json.encode(letter))]
    return Outgoing(topic, record.partition, key, value[:MAX_KEPT_BYTES], headers)


def summary_letter(topic: str, dropped: DroppedLetters) -> Outgoing:
    """Tell of refused records that have no dead letter of their own, on the partition they came from."""
    count = sum(dropped.reasons.values())
    letter = DeadLetter(
        reason="dropped",
        detail=f"{count} refused records up to offset {dropped.last_offset} have no dead letter of their own",
        topic=dropped.topic,
        partition=dropped.partition,
        offset=dropped.first_offset,
        size=0,
        truncated=False,
    )
    return Outgoing(
        topic, dropped.partition, None, msgspec.json.encode(dropped), [(HEADER, msgspec.json.encode(letter))]
    )


def _fitting(headers: Headers) -> Headers:
    """Return the headers if they are small enough to keep, else none of them."""
    size = sum(len(name.encode()) + len(value or b"") for name, value in headers)
    return headers if size <= MAX_KEPT_BYTES else ()
