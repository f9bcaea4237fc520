"""Where a thread spends its time: its stack looked at many times a second. Knows no service and no network."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

_SAMPLE_S = 0.002
# A busy thread hands the interpreter over this often. With the default of 5 ms it would be seen mostly at the places
# where it waits.
_SWITCH_S = 0.0001
OTHER = "other"


class StackProfile:
    """Counts which part of the program a thread is in.

    parts: what the time of a function, named as in `Class.method`, counts as; the innermost one on the stack decides.
    """

    def __init__(self, parts: Mapping[str, str]) -> None:
        """Look at nothing yet."""
        self._parts = parts
        self._seen: Counter[str] = Counter()

    def shares(self) -> dict[str, float]:
        """Return each part's share of the time, largest first."""
        total = sum(self._seen.values())
        return {part: round(count / total, 3) for part, count in self._seen.most_common()}

    @contextmanager
    def watching(self, thread_id: int) -> Iterator[None]:
        """Look at a thread's stack for the length of the block."""
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(thread_id, ended), name="profile", daemon=True)
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            sys.setswitchinterval(before)

    def _watch(self, thread_id: int, ended: threading.Event) -> None:
        while not ended.is_set():
            frame = sys._current_frames().get(thread_id)  # noqa: SLF001 documented, for debuggers and profilers
            self._seen[self._part(frame)] += 1
            time.sleep(_SAMPLE_S)

    def _part(self, frame: FrameType | None) -> str:
        while frame is not None:
            part = self._parts.get(frame.f_code.co_qualname)
            if part is not None:
                return part
            frame = frame.f_back
        return OTHER
