"""Services that take their time where a fault hurts most, so that a kill at a random moment finds them there.

Called in a service's own process. The places are those that `stream/windower.py` numbers: after the rows are written,
inside the transaction before its offsets, and after the commit before the snapshot.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

from tests.chaos import sabotage

_LONGEST_S = 0.06


def prepare(breaking: str | None) -> None:
    """Break a promise if asked to, then linger."""
    if breaking is not None:
        sabotage.BY_NAME[breaking]()
    linger()


def linger() -> None:
    """Wait a little at each of the three places."""
    from detector.worker import Worker
    from stream import loop
    from stream.window_store import RedisWindowStore
    from stream.windower import Windower

    drawn = random.Random()  # noqa: S311 no secret

    def wait() -> None:
        time.sleep(drawn.uniform(0, _LONGEST_S))

    def write_rows(store: Any, *arguments: Any) -> None:
        written(store, *arguments)
        wait()

    def add_offsets(producer: Any, *arguments: Any) -> None:
        producer.poll(0)
        wait()
        added(producer, *arguments)

    def committed(stage: Any, delivered: Sequence[Any]) -> None:
        wait()
        told[type(stage)](stage, delivered)

    written, added = RedisWindowStore.write_rows, loop._add_offsets
    told = {stage: stage.committed for stage in (Worker, Windower)}
    RedisWindowStore.write_rows = write_rows
    loop._add_offsets = add_offsets
    Worker.committed = Windower.committed = committed
