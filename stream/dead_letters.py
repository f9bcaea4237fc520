"""Refused records: their own bytes as the value, why and from where in the headers. Knows no service."""

import msgspec

from stream.contracts import DeadLetter
from stream.errors import ContractError
from stream.kafka import Outgoing, Record

# A refused record keeps at most so many bytes; what is over the size limit is cut to this prefix.
MAX_KEPT_BYTES = 65_536
HEADER = "telltale-dead-letter"


def dead_letter(topic: str, record: Record, error: ContractError) -> Outgoing:
    """Wrap a refused record for the dead-letters topic, on the partition it came from."""
    value = record.value or b""
    letter = DeadLetter(
        reason=error.reason,
        detail=str(error),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        size=len(value),
        truncated=len(value) > MAX_KEPT_BYTES,
    )
    headers = [*record.headers, (HEADER, msgspec.json.encode(letter))]
    return Outgoing(topic, record.partition, record.key, value[:MAX_KEPT_BYTES], headers)
