"""How long it takes from a row that ends a window to its alert, as an outside reader sees it."""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.workload import Shape, add_spikes, make_values, to_samples
from deploy.replay import Sent, send
from deploy.subscriber import Subscriber, decode_alert
from stream.contracts import Sample
from stream.errors import TransientError
from stream.settings import Settings
from stream.topics import ALERTS

# A poll lasts so long even when an alert comes at its beginning.
_POLL_S = 0.005
_DRAIN_S = 5.0


class Latencies(NamedTuple):
    """Latencies of the first messages of alerts, and the rate at which rows were really produced."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    alerts: int
    rows_per_s: float


class _Sender(threading.Thread):
    """Produces rows at a rate and remembers when the last row of each hop went out."""

    def __init__(self, settings: Settings, rows: Iterator[Sample], rows_per_s: float) -> None:
        super().__init__(name="send")
        self._settings = settings
        self._rows = rows
        self._rows_per_s = rows_per_s
        self._family = settings.families[0]
        self._produced: dict[tuple[str, int], float] = {}
        self.sent = Sent(0, 0.0)
        self.failure: TransientError | None = None

    def run(self) -> None:
        try:
            self.sent = send(self._settings, self._noting(), rows_per_s=self._rows_per_s, stop=threading.Event())
        except TransientError as error:
            self.failure = error

    def produced(self, entity: str, ts_ms: int) -> float:
        """Return when the row was handed to the producer, in seconds since 1970."""
        return self._produced[entity, ts_ms]

    def _noting(self) -> Iterator[Sample]:
        interval, hop = self._family.interval_ms, self._family.hop
        for sample in self._rows:
            if (sample.ts // interval + 1) % hop == 0:
                self._produced[sample.entity, sample.ts] = time.time()
            yield sample


def measure_latency(
    settings: Settings, shape: Shape, entities: int, rows: int, rows_per_s: float, spike_every: int, seed: int
) -> Latencies:
    """Produce rows with spikes at a rate, and see when each alert that begins comes out.

    Raises TransientError if rows can't be produced or no alert comes.
    """
    values = make_values(shape, entities, rows, seed)
    add_spikes(values, shape, spike_every, seed)
    sender = _Sender(settings, to_samples(settings.families[0], values), rows_per_s)
    subscriber = Subscriber(settings, ALERTS, from_beginning=True)
    try:
        seen = _follow(sender, subscriber)
    finally:
        sender.join()
        subscriber.close()
    if sender.failure:
        raise sender.failure
    if not seen:
        raise TransientError("no alert came, so there is no latency to measure; see the services' logs")
    p50, p99, worst = np.percentile(seen, [50, 99, 100]).round(1).tolist()
    return Latencies(p50, p99, worst, len(seen), round(sender.sent.rows / sender.sent.seconds, 1))


def _follow(sender: _Sender, subscriber: Subscriber) -> list[float]:
    """Return the latency in ms of every alert that fires until some time after the last row."""
    seen: list[float] = []
    sender.start()
    end = float("inf")
    while time.monotonic() < end:
        if end == float("inf") and not sender.is_alive():
            end = time.monotonic() + _DRAIN_S
        for record in subscriber.poll(_POLL_S):
            alert, seen_s = decode_alert(record)
            if alert.state == "firing":
                seen.append(1000 * (seen_s - sender.produced(alert.entity, alert.observed_at_ms)))
    return seen
