"""What the loop demo sends and sees while it runs: committed records and the registry. Shows nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from deploy.demo_report import episodes, match
from deploy.loop_source import INTERVAL_MS, RegimeSource
from deploy.loop_tally import LoopTally
from deploy.replay import send
from deploy.services import Services
from detector.registry import Registry
from stream.contracts import Alert, DriftEvent, Gate, ModelEvent, ModelEventKind, Sample
from stream.errors import TelltaleError
from stream.settings import Settings
from stream.subscriber import Subscriber, decode_alert, decode_block
from stream.topics import ALERTS, DRIFT, SCORES, topic_name

_DRIFT = msgspec.json.Decoder(DriftEvent)
_POLL_S = 0.1
_LOOK_S = 0.25
_DRAIN_S = 30.0


class LoopWatch:
    """One run: a thread sends rows; whoever waits here reads what comes out of the services."""

    def __init__(self, settings: Settings, source: RegimeSource, services: Services, stop: threading.Event) -> None:
        """Send nothing yet."""
        self.tally = LoopTally(source.first_slot)
        self.drift: DriftEvent | None = None
        self.rows = 0
        self.history: list[ModelEvent] = []
        self._settings, self._source, self._services, self._stop = settings, source, services, stop
        self._registry, self._family = Registry(settings.registry), source.family.name
        self._subscriber = Subscriber(settings, SCORES, ALERTS, DRIFT, from_beginning=True)
        self._alerts: list[Alert] = []
        self._sent: dict[str, int] = {}
        self._failure: list[TelltaleError] = []
        self._looked = 0.0

    @contextmanager
    def sending(self, rows_per_s: float) -> Iterator[None]:
        """Send telemetry while the block runs; then wait until all that can be is scored."""
        ended = threading.Event()
        sender = threading.Thread(target=self._send, args=(rows_per_s, ended), name="send")
        sender.start()
        try:
            yield
            ended.set()
            sender.join()
            self.wait(lambda: not self.unscored(), _DRAIN_S)
        finally:
            ended.set()
            sender.join()
            self._subscriber.close()

    def wait(self, done: Callable[[], bool], most_s: float) -> bool:
        """Read until something is done; say whether it was in time.

        Raises TransientError if a service has stopped by itself or rows can't be sent.
        """
        end = time.monotonic() + most_s
        while not done():
            if time.monotonic() > end or self._stop.is_set():
                return False
            self._read()
        return True

    def last(self, *kinds: ModelEventKind) -> bool:
        """Say whether the newest decision is of one of these kinds."""
        return bool(self.history) and self.history[-1].kind in kinds

    def decided(self, kind: ModelEventKind, version: str | None) -> ModelEvent | None:
        """Return the first decision of a kind about a version."""
        return next((event for event in self.history if event.kind == kind and event.version == version), None)

    def champion(self) -> str | None:
        """Return the version in force."""
        return self._registry.alias(self._family, "champion")

    def gates(self, version: str | None) -> list[Gate]:
        """Return what a version had to show so far: in its trial, then in shadow."""
        told = [self.decided(kind, version) for kind in ("announced", "promoted")]
        return [gate for event in told if event is not None for gate in event.gates]

    def delay_blocks(self) -> float | None:
        """Return how many blocks after the change drift was called."""
        if self.drift is None:
            return None
        return round((self.drift.detected_at_ms / INTERVAL_MS - self._source.regime_slot) / self.drift.block_slots, 2)

    def training_s(self, version: str | None) -> float | None:
        """Return the seconds from the beginning of the first training to the announcement of a version."""
        began, told = self.decided("training", None), self.decided("announced", version)
        return round((told.at_ms - began.at_ms) / 1000, 1) if began and told else None

    def swap_s(self, version: str | None) -> float | None:
        """Return the seconds from a version's promotion until the scores of every partition are its own."""
        promoted = self.decided("promoted", version)
        if promoted is None or version is None:
            return None
        return self.tally.swap_s(version, promoted.at_ms, self._settings.topics.partitions)

    def rate(self, first_slot: int, last_slot: int) -> float | None:
        """Return the share of normal slots in alarm, both ends inclusive."""
        return self.tally.alarm_rate(first_slot, last_slot, self._source.faults(), self._source.geometry.length)

    def unscored(self) -> int:
        """Count slots without a score, of those sent that windows have gone over."""
        return self.tally.unscored(self._sent, self._source.geometry)

    def faults_found(self, first_slot: int, last_slot: int) -> tuple[int, int]:
        """Return how many faults an alert told of, and how many alerts told of none; alerts that began in a range."""
        tolerance_ms = self._source.geometry.final_delay * INTERVAL_MS
        faults, found = self._source.faults(), episodes(self._alerts)
        new = [e for e in found if first_slot * INTERVAL_MS <= e.starts_ms <= last_slot * INTERVAL_MS]
        told = [any(one.found for one in match(faults, [e], tolerance_ms, INTERVAL_MS)) for e in new]
        return sum(one.found for one in match(faults, new, tolerance_ms, INTERVAL_MS)), told.count(False)

    def _send(self, rows_per_s: float, ended: threading.Event) -> None:
        try:
            send(self._settings, self._source.rows(), rows_per_s=rows_per_s, stop=ended, on_sent=self._count)
        except TelltaleError as error:
            self._failure.append(error)

    def _count(self, sample: Sample) -> None:
        self._sent[sample.entity] = sample.ts // INTERVAL_MS
        self.rows += 1

    def _read(self) -> None:
        self._services.check()
        if self._failure:
            raise self._failure[0]
        scores, alerts = (topic_name(self._settings.topics, topic) for topic in (SCORES, ALERTS))
        for record in self._subscriber.poll(_POLL_S):
            if record.topic == scores:
                self.tally.add(decode_block(record), record.partition, record.timestamp_ms)
            elif record.topic == alerts:
                self._alerts.append(decode_alert(record).alert)
            else:
                self.drift = self.drift or _DRIFT.decode(record.value or b"")
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self.history = self._registry.history(self._family)
