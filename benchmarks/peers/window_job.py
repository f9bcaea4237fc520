"""What each opponent does with a decoded sample: keep its entity's last rows. No store, no transaction, nothing sent.

That is less than the windower does, in an opponent's favour.
"""

import json
import sys
import time
from collections import deque
from typing import Any

LENGTH, HOP = 512, 64
# Before this many samples nothing is measured: the client has still to join and to fetch.
_WARM = 1000


class WindowJob:
    """Keeps windows, counts, and measures from a thousand samples on until all have come or time is up."""

    def __init__(self, total: int, seconds: float) -> None:
        """Stop after `total` samples, or after so many seconds of measuring."""
        self._total = total
        self._seconds = seconds
        self._windows: dict[str, deque[list[Any]]] = {}
        self._begin = (0.0, 0.0)
        self.rows = self.finished = 0

    def take(self, sample: dict[str, Any]) -> bool:
        """Take a sample; return whether that was enough."""
        entity = sample["entity"]
        window = self._windows.get(entity)
        if window is None:
            window = self._windows[entity] = deque(maxlen=LENGTH)
        window.append([sample["ts"], *sample["values"].values()])
        self.finished += len(window) % HOP == 0
        self.rows += 1
        if self.rows == _WARM:
            self._begin = time.perf_counter(), time.process_time()
        if self.rows >= self._total:
            return True
        return self.rows > _WARM and self.rows % 1000 == 0 and time.perf_counter() - self._begin[0] > self._seconds

    def report(self) -> None:
        """Write the figures as one line of JSON."""
        wall, cpu = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        rows = self.rows - _WARM
        figures = {"samples_per_s": rows / wall, "samples_per_s_per_core": rows / cpu, "rows": rows}
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
