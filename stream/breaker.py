"""Says so when too large a share of a family's records breaks its contract, as after a change of schema.

It changes nothing in what becomes of records: `stream.refusals` bounds their dead letters. Knows no record's content.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import structlog

from stream.metrics import Health, Metrics

_log = structlog.get_logger()
# Shares are looked at once in so many seconds, and never of fewer records: one bad record of two is no schema change.
LOOK_S = 10.0
LEAST_RECORDS = 100


class Breaker:
    """Watches the share of refused records of each family; open from `share` on until it is half of that."""

    def __init__(
        self, share: float, metrics: Metrics, health: Health, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Be closed for every family."""
        self._share = share
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._taken: Counter[str] = Counter()
        self._refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._since: dict[str, float] = {}
        self._open: set[str] = set()

    def observe(self, taken: Mapping[str, int], refused: Mapping[tuple[str, str], int]) -> None:
        """Count records by family, and refused ones by family and reason."""
        self._taken.update(taken)
        for (family, reason), count in refused.items():
            self._refused[family][reason] += count
        for family in {*taken, *(family for family, _ in refused)}:
            self._look(family)

    def _look(self, family: str) -> None:
        since = self._since.setdefault(family, self._clock())
        refused, taken = self._refused[family].total(), self._taken[family]
        if self._clock() - since < LOOK_S or refused + taken < LEAST_RECORDS:
            return
        share, reasons = refused / (refused + taken), self._refused.pop(family)
        del self._taken[family], self._since[family]
        if share > self._share:
            self._trip(family, share, reasons.most_common(1)[0][0])
        elif share <= self._share / 2 and family in self._open:
            self._close(family, share)

    def _trip(self, family: str, share: float, reason: str) -> None:
        self._health.note(f"family {family}", f"{share:.0%} of its records are refused, most as {reason}")
        if family not in self._open:
            self._open.add(family)
            self._metrics.refusing.labels(family).set(1)
            _log.error("a family's records break their contract", family=family, share=round(share, 3), reason=reason)

    def _close(self, family: str, share: float) -> None:
        self._open.discard(family)
        self._metrics.refusing.labels(family).set(0)
        self._health.note(f"family {family}", "")
        _log.warning("a family's records keep their contract again", family=family, share=round(share, 3))
