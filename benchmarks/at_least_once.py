"""A service without its transactions, to tell what they cost: `python -m benchmarks.at_least_once windower`.

Outputs are published as they are produced, and once all of them have arrived the offsets they come from are committed.
A service that dies in between repeats what it said. For measurements only; nothing of the product runs like this.
"""

from typing import Any
from unittest.mock import patch

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from stream import loop
from stream.kafka import make_consumer, make_producer


class PlainProducer:
    """A producer without transactions that is asked for them."""

    def __init__(self, config: dict[str, Any], consumers: list[Consumer]) -> None:
        """Commit offsets by the newest of the consumers."""
        self._consumers = consumers
        self._producer = make_producer({k: v for k, v in config.items() if not k.startswith("transaction")})
        self.produce, self.poll = self._producer.produce, self._producer.poll

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], _: object, timeout_s: float) -> None:
        """Wait until everything has arrived, then commit the offsets."""
        if self._producer.flush(timeout_s):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 the client's own name for it
        self._consumers[-1].commit(offsets=offsets, asynchronous=False)

    def init_transactions(self, *_: float) -> None:
        """Do nothing."""

    begin_transaction = commit_transaction = abort_transaction = init_transactions


def main() -> None:
    """Be the command line, with the loop's producer replaced."""
    from telltale import main as command_line

    consumers: list[Consumer] = []

    def remembered(config: dict[str, Any]) -> Consumer:
        consumers.append(make_consumer(config))
        return consumers[-1]

    def plain(config: dict[str, Any]) -> PlainProducer:
        return PlainProducer(config, consumers)

    with patch.object(loop, "make_producer", plain), patch.object(loop, "make_consumer", remembered):
        command_line()


if __name__ == "__main__":
    main()
