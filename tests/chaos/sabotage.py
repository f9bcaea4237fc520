"""Promises broken on purpose, in the services' own processes: a suite that still passes proves nothing."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import KafkaException


def skip_the_fence() -> None:
    """Let a former owner write to Redis, and let nobody notice that Redis lost its data."""
    from stream import window_store

    for name in ("_WRITE_ROWS", "_SAVE_HEADS"):
        first, _, rest = getattr(window_store, name).lstrip().partition("\n")
        assert first.endswith("return 0 end")
        setattr(window_store, name, rest)


def skip_the_transaction() -> None:
    """Publish outputs at once, and the offsets they come from afterwards."""
    from stream import loop

    class Plain:
        """A producer without transactions that is asked for them."""

        def __init__(self, config: dict[str, Any]) -> None:
            self._producer = made({name: value for name, value in config.items() if not name.startswith("transaction")})
            self.produce, self.poll, self.flush = self._producer.produce, self._producer.poll, self._producer.flush

        def init_transactions(self, *_: float) -> None:
            """Do nothing."""

        begin_transaction = abort_transaction = commit_transaction = init_transactions

    def commit_offsets(producer: Plain, offsets: list[Any], _: Any, timeout_s: float) -> None:
        producer.flush(timeout_s)
        end = time.monotonic() + timeout_s
        while True:
            try:
                consumers[-1].commit(offsets=offsets, asynchronous=False)
            except KafkaException:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return

    def remember(config: dict[str, Any]) -> Any:
        consumers.append(consumer(config))
        return consumers[-1]

    made, consumer, consumers = loop.make_producer, loop.make_consumer, []
    loop.make_producer, loop.make_consumer, loop._add_offsets = Plain, remember, commit_offsets


def skip_the_replay() -> None:
    """Go on at the committed offset, whatever the snapshot in Redis lacks."""
    from stream.windower import Windower

    restore = Windower.restore

    def from_the_committed_offset(self: Windower, partition: int, committed: int, low: int) -> int:
        restore(self, partition, committed, low)
        return committed

    Windower.restore = from_the_committed_offset


def forget_the_verdicts() -> None:
    """Judge an entity anew after every change of owner, as if nothing had been published of it."""
    from detector import worker

    def nothing(*_: Any) -> Callable[[int], Iterable[Any]]:
        return lambda partition: ()

    worker.read_states = nothing


BY_NAME: dict[str, Callable[[], None]] = {
    "fence": skip_the_fence,
    "transaction": skip_the_transaction,
    "replay": skip_the_replay,
    "verdicts": forget_the_verdicts,
}
