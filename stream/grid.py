"""The event-time grid: slots, window geometry and hop boundaries. Knows no clock, no broker, no values.

A slot is `round(ts_ms / interval_ms)`. Windows of a family end at slots `e` with `(e + 1) % hop == 0`, whatever
the entity and whenever it started, so that a replay cuts the same windows.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.errors import ContractError

# 2000-01-01 and 2100-01-01: a time stamp outside is in another unit or from a reset clock.
MIN_TS_MS = 946_684_800_000
MAX_TS_MS = 4_102_444_800_000


class Geometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How windows lie on the grid; all in slots.

    length: L, rows the model sees. hop: new rows between two windows. lateness: how far a row may lag behind the
    entity's newest one and still count. final_delay: d, how many slots after its own a score becomes final.
    slack: rows the ring keeps beyond L, the room in which the windower may run ahead of the worker.
    max_jump: how far a row may lie from the entity's newest one, either way, before its time stamp is doubted.
    jump_rows: how many doubted rows in a row must agree before the clock is taken to have jumped.
    """

    length: int = 512
    hop: int = 64
    lateness: int = 0
    final_delay: int = 100
    slack: int = 1024
    max_jump: int = 86_400
    jump_rows: int = 5

    def __post_init__(self) -> None:
        """Raise ValueError naming every inconsistency."""
        problems = [
            text
            for bad, text in (
                (self.length < 8, f"length wants at least 8 slots, got {self.length}"),
                (not 1 <= self.hop <= self.length, f"hop wants 1 to length ({self.length}), got {self.hop}"),
                (
                    self.hop > 0 and self.length % self.hop != 0,
                    f"length wants a multiple of hop ({self.hop}), got {self.length}",
                ),
                (self.lateness < 0, f"lateness wants 0 or more slots, got {self.lateness}"),
                (self.final_delay < 0, f"final_delay wants 0 or more slots, got {self.final_delay}"),
                (self.max_jump < 0, f"max_jump wants 0 or more slots, got {self.max_jump}"),
                (self.jump_rows < 1, f"jump_rows wants at least 1 row, got {self.jump_rows}"),
                (
                    self.hop + self.final_delay > self.length,
                    f"hop + final_delay ({self.hop} + {self.final_delay}) must fit into length ({self.length})",
                ),
                (
                    self.slack < self._least_slack,
                    f"slack wants at least 2 * (hop + lateness) + final_delay = {self._least_slack}, got {self.slack}",
                ),
            )
            if bad
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def _least_slack(self) -> int:
        return 2 * (self.hop + self.lateness) + self.final_delay

    @property
    def capacity(self) -> int:
        """Rows the ring holds."""
        return self.length + self.slack

    @property
    def max_gap(self) -> int:
        """Slots an entity may skip and still be the same life; after a longer silence it starts anew.

        Chosen so that a row after the gap never takes the place of one that a window still to be cut needs, and so
        that the windows which make the earlier rows final end before the new life begins. Counted from the newest row
        that has come: of rows out of order, one that jumps over a gap ends a life up to `lateness` slots earlier.
        """
        return self.slack - self.hop - self.lateness

    @property
    def longest_step(self) -> int:
        """Slots between an entity's newest row and one whose time stamp is still believed at once."""
        return max(self.max_jump, self.max_gap)

    def last_boundary(self, watermark: int) -> int:
        """Return the newest window end the watermark has passed: the largest e <= it with (e + 1) % hop == 0."""
        return (watermark + 1) // self.hop * self.hop - 1


def slot_of(ts_ms: int, interval_ms: int) -> int:
    """Return the slot of a time stamp: `round(ts_ms / interval_ms)`, halves up.

    Raises ContractError for a time stamp outside the years 2000 to 2100, which is one in another unit.
    """
    if not MIN_TS_MS <= ts_ms < MAX_TS_MS:
        raise ContractError(
            "timestamp", f"ts wants milliseconds since 1970 between 2000 and 2100, got {ts_ms}{_unit_hint(ts_ms)}"
        )
    return (2 * ts_ms + interval_ms) // (2 * interval_ms)


def slots_of(ts_ms: Sequence[int] | NDArray[np.int64], interval_ms: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the slots of time stamps, and which of them `slot_of` takes; the slot of another one means nothing."""
    try:
        ts = np.array(ts_ms, dtype=np.int64)
    except OverflowError:
        ts = np.array([min(max(one, 0), MAX_TS_MS) for one in ts_ms], dtype=np.int64)
    return (2 * ts + interval_ms) // (2 * interval_ms), (ts >= MIN_TS_MS) & (ts < MAX_TS_MS)


def _unit_hint(ts_ms: int) -> str:
    # In whole numbers: a time stamp may have more digits than a float can hold.
    for unit, factor, divisor in (("seconds", 1000, 1), ("microseconds", 1, 1000), ("nanoseconds", 1, 1_000_000)):
        if MIN_TS_MS * divisor <= ts_ms * factor < MAX_TS_MS * divisor:
            return f" (it looks like {unit})"
    return ""
