"""How long it takes from a row that ends a window to its alert, as an outside reader sees it."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from benchmarks.workload import Shape, add_spikes, make_values, to_samples
from deploy.replay import EncodedSample, Sent, encode, send
from stream.errors import TransientError
from stream.settings import Settings
from stream.subscriber import Subscriber, decode_alert
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


class Sender(threading.Thread):
    """Produces rows at one rate after the other and remembers when the last row of each hop went out.

    phases: so many rows at so many a second. sent, ended: of each phase that is over, and when that was.
    count, rows_by_entity: handed to the producer so far.
    """

    def __init__(self, settings: Settings, rows: Iterable[EncodedSample], phases: Sequence[tuple[int, float]]) -> None:
        """Send nothing yet."""
        super().__init__(name="send")
        self._settings = settings
        self._rows = iter(rows)
        self._phases = phases
        self._family = settings.families[0]
        self._produced: dict[tuple[str, int], float] = {}
        self._stopping = threading.Event()
        self.sent: list[Sent] = []
        self.ended: list[float] = []
        self.count = 0
        self.rows_by_entity: Counter[str] = Counter()
        self.failure: TransientError | None = None

    def run(self) -> None:
        """Send all phases."""
        try:
            for rows, rows_per_s in self._phases:
                telemetry = self._noting(islice(self._rows, rows))
                sent = send(self._settings, telemetry, rows_per_s=rows_per_s, stop=self._stopping)
                self.ended.append(time.monotonic())
                self.sent.append(sent)
        except TransientError as error:
            self.failure = error

    def stop(self) -> None:
        """Send no more, and raise what ended the sending if something did."""
        self._stopping.set()
        self.join()
        if self.failure:
            raise self.failure

    def produced(self, entity: str, ts_ms: int) -> float:
        """Return when the row was handed to the producer, in seconds since 1970."""
        return self._produced[entity, ts_ms]

    def _noting(self, rows: Iterable[EncodedSample]) -> Iterator[EncodedSample]:
        interval, hop = self._family.interval_ms, self._family.hop
        for sample in rows:
            if (sample.ts // interval + 1) % hop == 0:
                self._produced[sample.entity, sample.ts] = time.time()
            self.count += 1
            self.rows_by_entity[sample.entity] += 1
            yield sample


def measure_latency(
    settings: Settings, shape: Shape, entities: int, rows: int, rows_per_s: float, spike_every: int, seed: int
) -> Latencies:
    """Produce rows with spikes at a rate, and see when each alert that begins comes out.

    Raises TransientError if rows can't be produced or no alert comes.
    """
    values = make_values(shape, entities, rows, seed)
    add_spikes(values, shape, spike_every, seed)
    sender = Sender(settings, encode(to_samples(settings.families[0], values)), [(entities * rows, rows_per_s)])
    subscriber = Subscriber(settings, ALERTS, from_beginning=True)
    try:
        seen = _follow(sender, subscriber)
    finally:
        sender.stop()
        subscriber.close()
    if not seen:
        raise TransientError("no alert came, so there is no latency to measure; see the services' logs")
    p50, p99, worst = np.percentile(seen, [50, 99, 100]).round(1).tolist()
    sent = sender.sent[0]
    return Latencies(p50, p99, worst, len(seen), round(sent.rows / sent.seconds, 1))


def alert_latency(sender: Sender, subscriber: Subscriber) -> list[float]:
    """Return the latency in ms of the alerts that began and are seen now; wait for one a little."""
    seen = []
    for record in subscriber.poll(_POLL_S):
        alert, seen_s = decode_alert(record)
        if alert.state == "firing":
            seen.append(1000 * (seen_s - sender.produced(alert.entity, alert.observed_at_ms)))
    return seen


def _follow(sender: Sender, subscriber: Subscriber) -> list[float]:
    """Return the latency in ms of every alert that fires until some time after the last row."""
    seen: list[float] = []
    sender.start()
    end = float("inf")
    while time.monotonic() < end:
        if end == float("inf") and not sender.is_alive():
            end = time.monotonic() + _DRAIN_S
        seen += alert_latency(sender, subscriber)
    return seen
