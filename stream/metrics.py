"""Every metric in one table, and the endpoint that shows them with the health probes. Knows no service's logic.

Entities are never labels: their number is not bounded by us.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stream.errors import UsageError
from stream.settings import MetricsSettings

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service process, each with its type and unit."""

    def __init__(self) -> None:
        """Make a registry of its own, so that several services can live in one test process."""
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"telltale_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"telltale_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"telltale_{name}", text, labels, registry=registry, buckets=buckets)

        self.records_consumed = counter("records_consumed", "Records taken from Kafka")
        self.records_rejected = counter("records_rejected", "Records that broke their contract", "reason")
        self.dead_letters = counter("dead_letters", "Records written to the dead-letters topic", "reason")
        self.dead_letters_dropped = counter(
            "dead_letters_dropped", "Refused records told together, without a dead letter of their own", "reason"
        )
        self.refusing = gauge("refusing", "1 while too many of a family's records break their contract", "family")
        self.late_records = counter("late_records", "Rows that came after their window was final")
        self.clock_jumps = counter("clock_jumps", "Times that an entity's clock jumped for good")
        self.notices = counter("notices", "Windows announced to the worker")
        self.windows_scored = counter("windows_scored", "Windows that went through the network")
        self.rows_scored = counter("rows_scored", "Rows that got their first score")
        self.gap_slots = counter("gap_slots", "Slots without a row, reported as gaps")
        self.unscored_windows = counter("unscored_windows", "Windows reported as gaps for want of a model")
        self.alerts = counter("alerts", "Alert messages published", "severity", "state")
        self.drift_events = counter("drift_events", "Families found to have moved from their training data", "family")
        self.drift_watched_entities = gauge(
            "drift_watched_entities", "Entities compared with their training data", "family"
        )
        self.drift_moved_entities = gauge(
            "drift_moved_entities", "Entities that have moved from their training data", "family"
        )
        self.consumer_lag_records = gauge("consumer_lag_records", "Records behind the end of the input", "partition")
        self.end_to_end_latency = histogram(
            "end_to_end_latency_seconds", "From a record's Kafka time stamp to its committed score", _LATENCY
        )
        self.txn_commit = histogram("txn_commit_seconds", "Produce, send offsets and commit of a transaction", _SHORT)
        self.txn_aborts = counter("txn_aborts", "Transactions given up; their input is read again")
        self.redis_op = histogram("redis_op_seconds", "Round trips to Redis", _SHORT, "op")
        self.inference_compute = histogram("inference_compute_seconds", "One pass of the network over a batch", _SHORT)
        self.inference_batch = histogram("inference_batch_windows", "Windows in one pass of the network", _WINDOWS)
        self.model_info = gauge("model_info", "1 for the checkpoint in use", "family", "version")
        self.model_swaps = counter("model_swaps", "Changes of the checkpoint in use", "result")
        self.shadow_windows = counter("shadow_windows", "Windows that a challenger scored beside the champion")
        self.model_decisions = counter("model_decisions", "Decisions of the retrainer about models", "family", "kind")
        self.families_owned = gauge("families_owned", "Families whose models this retrainer looks after")
        self.challengers_dropped = counter("challengers_dropped", "Challengers given up by this worker", "family")
        self.entities_active = gauge("entities_active", "Entities this process keeps state of")
        self.rebalances = counter("rebalances", "Partitions gained or lost")
        self.window_rebuilds = counter("window_rebuilds", "Partitions whose windows were rebuilt from Kafka", "cause")
        self.held_back_partitions = gauge(
            "held_back_partitions", "Partitions whose records wait behind a transaction that nobody ends"
        )
        self.paused_partitions = gauge("paused_partitions", "Partitions waiting for the worker to catch up")
        self.archived_rows = counter("archived_rows", "Rows written to the archive", "family")
        self.archive_written_bytes = counter("archive_written_bytes", "Bytes of files written to the archive", "cause")
        self.archive_removed_bytes = counter(
            "archive_removed_bytes", "Bytes of files removed from the archive", "cause"
        )
        self.archive_size_bytes = gauge("archive_size_bytes", "All files of the archive")
        self.archive_buffer_bytes = gauge(
            "archive_buffer_bytes", "Rows that wait in memory to be written to the archive"
        )
        self.archive_flush = histogram("archive_flush_seconds", "Writing what has waited to the archive", _LATENCY)
        self.archive_flush_age = gauge("archive_flush_age_seconds", "Age of the oldest row that waits to be written")

    def time_redis(self, operation: str) -> AbstractContextManager[object]:
        """Measure one Redis round trip."""
        return self.redis_op.labels(operation).time()


class Health:
    """Whether the loop moves (live) and the service can do its work (ready)."""

    def __init__(self, liveness_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Count as live while the last tick is at most `liveness_s` old."""
        self._liveness_s = liveness_s
        self._clock = clock
        self._ticked = clock()
        self._missing = {"assignment"}
        self._notes: dict[str, str] = {}

    def tick(self) -> None:
        """Record that the loop came round."""
        self._ticked = self._clock()

    def set_ready(self, part: str, ready: bool) -> None:
        """Say whether a part (assignment, model, redis) is there."""
        if ready:
            self._missing.discard(part)
        else:
            self._missing.add(part)

    def note(self, part: str, text: str) -> None:
        """Show a line about a part beside whether it is ready, which stays as it is; none where the text is empty."""
        self._notes = {**self._notes, part: text}  # read by the thread that serves the probes

    def live(self) -> tuple[bool, str]:
        """Return whether the loop moves, and a line to show."""
        age = self._clock() - self._ticked
        return age <= self._liveness_s, f"last loop {age:.1f} s ago, {self._liveness_s:.0f} s allowed"

    def ready(self) -> tuple[bool, str]:
        """Return whether everything is there, and what is missing or to be noted."""
        missing = sorted(self._missing)
        line = "ready" if not missing else f"waiting for {', '.join(missing)}"
        return not missing, "; ".join([line, *(f"{part}: {text}" for part, text in self._notes.items() if text)])


class MetricsServer:
    """Serve /metrics, /livez and /readyz from a thread."""

    def __init__(self, settings: MetricsSettings, metrics: Metrics, health: Health) -> None:
        """Bind at once; raises UsageError if the port is taken."""
        try:
            self._server = ThreadingHTTPServer((settings.host, settings.port), _handler(metrics, health))
        except OSError as error:
            raise UsageError(
                f"metrics can't be served at {settings.host}:{settings.port}: {error.strerror}; set metrics.port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port in use, also where the settings said 0."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(metrics: Metrics, health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.split("?")[0]:
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
                case "/livez":
                    self._probe(health.live())
                case "/readyz":
                    self._probe(health.ready())
                case _:
                    self._answer(404, "text/plain", b"try /metrics, /livez or /readyz\n")

        def _probe(self, outcome: tuple[bool, str]) -> None:
            good, line = outcome
            self._answer(200 if good else 503, "text/plain", f"{line}\n".encode())

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep probes out of the log."""

    return Handler
