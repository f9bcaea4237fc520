"""What becomes of refused records: a dead letter each, up to a rate; beyond it they are counted and told together.

Every reason has a budget of its own, so that a flood of one kind does not hide the others. The rate is one of this
process, by its own clock: no score depends on which refused record has a letter of its own.
"""

import time
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from stream.contracts import DroppedLetters
from stream.dead_letters import dead_letter, summary_letter
from stream.errors import ContractError
from stream.kafka import Outgoing, Record
from stream.metrics import Metrics

_log = structlog.get_logger()
# A reason that has been quiet may send so many seconds' worth at once.
BURST_S = 10.0
_LOG_S = 1.0


class Refusals:
    """The dead letters of one windower."""

    def __init__(self, topic: str, per_s: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        """Send at most `per_s` letters a second for each reason to the dead-letters topic."""
        self._topic = topic
        self._per_s = per_s
        self._metrics = metrics
        self._clock = clock
        self._budgets: dict[str, tuple[float, float]] = {}  # letters left, and as of when
        self._dropped: dict[int, DroppedLetters] = {}
        self._untold: dict[int, DroppedLetters] = {}
        self._logged = float("-inf")

    def letter(self, record: Record, error: ContractError) -> Outgoing | None:
        """Return the record's dead letter, or None where `summary` is to tell of it."""
        reason = error.reason
        self._metrics.records_rejected.labels(reason).inc()
        if reason == "late":
            self._metrics.late_records.inc()
        if self._has_budget(reason):
            self._metrics.dead_letters.labels(reason).inc()
            return dead_letter(self._topic, record, error)
        self._metrics.dead_letters_dropped.labels(reason).inc()
        _count(self._dropped, record, reason)
        return None

    def summary(self, partition: int) -> Outgoing | None:
        """Return one letter for all records of a batch that have none; it belongs into the batch's transaction."""
        dropped = self._dropped.pop(partition, None)
        if dropped is None:
            return None
        self._metrics.dead_letters.labels("dropped").inc()
        known = self._untold.get(partition)
        self._untold[partition] = dropped if known is None else _together(known, dropped)
        self.tell()
        return summary_letter(self._topic, dropped)

    def tell(self) -> None:
        """Log what has been dropped, at most once a second."""
        if not self._untold or self._clock() - self._logged < _LOG_S:
            return
        self._logged = self._clock()
        told = [msgspec.to_builtins(one) for one in self._untold.values()]
        _log.error("refused records beyond limits.dead_letters_per_s have no dead letter of their own", dropped=told)
        self._untold = {}

    def _has_budget(self, reason: str) -> bool:
        now, most = self._clock(), self._per_s * BURST_S
        left, asked = self._budgets.get(reason, (most, now))
        left = min(most, left + (now - asked) * self._per_s)
        self._budgets[reason] = (left - 1 if left >= 1 else left), now
        return left >= 1


def _count(by_partition: dict[int, DroppedLetters], record: Record, reason: str) -> None:
    one = DroppedLetters(
        topic=record.topic,
        partition=record.partition,
        first_offset=record.offset,
        last_offset=record.offset,
        reasons={reason: 1},
    )
    known = by_partition.get(record.partition)
    by_partition[record.partition] = one if known is None else _together(known, one)


def _together(one: DroppedLetters, later: DroppedLetters) -> DroppedLetters:
    return msgspec.structs.replace(
        one,
        first_offset=min(one.first_offset, later.first_offset),
        last_offset=max(one.last_offset, later.last_offset),
        reasons=dict(Counter(one.reasons) + Counter(later.reasons)),
    )
