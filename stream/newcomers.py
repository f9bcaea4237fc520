"""How many entities a partition takes in all, and how many new ones a minute. Pure: the log's time, no clock.

A minute is one of the records' Kafka time stamps, and each has a budget of its own: whether an entity is taken follows
from the log, so a replay takes the same ones; and a time stamp far ahead uses up no minute but its own.
"""

from collections import Counter

from stream.errors import ContractError
from stream.settings import LimitSettings

_MINUTE_MS = 60_000


class Newcomers:
    """The entities of one partition by the minute in which they were taken."""

    def __init__(self, limits: LimitSettings, *, whole_log: bool) -> None:
        """Know none yet. whole_log: whether the oldest record there is, is the first there was."""
        self._limits = limits
        self._whole_log = whole_log
        self._by_minute: Counter[int] = Counter()

    def take(self, entity: str, timestamp_ms: int, *, silent: bool) -> int:
        """Count an entity that is new and return its minute; raise ContractError if it is one too many.

        silent: its outputs were committed before. Where retention has taken the log's beginning, entities of long ago
        look new then, all at once, and only the limit of all entities holds.
        """
        most = self._limits.max_entities_per_partition
        if self._by_minute.total() >= most:
            raise ContractError("entity_limit", f"a partition takes {most} entities; {entity!r} is beyond")
        minute, most = timestamp_ms // _MINUTE_MS, self._limits.new_entities_per_minute
        if self._by_minute[minute] >= most and (self._whole_log or not silent):
            raise ContractError("new_entities", f"a partition takes {most} new entities a minute; {entity!r} is beyond")
        self.count(minute)
        return minute

    def count(self, minute: int) -> None:
        """Count an entity that has been taken before."""
        self._by_minute[minute] += 1
