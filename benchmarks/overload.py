"""What happens at twice the rate that the pipeline keeps up with, and how soon it is over. Knows no service's work."""

import time

import msgspec

from benchmarks.latency import Sender, alert_latency
from benchmarks.rig import RunningService
from benchmarks.workload import Shape, add_spikes, make_values, to_samples
from deploy.replay import encode
from stream.settings import Settings
from stream.subscriber import Subscriber
from stream.topics import ALERTS

_SCORED = "telltale_rows_scored_total"
_POLL_S = 0.2
# For so long after the overload rows come at half of the sustained rate; half of that should do.
_AFTER = 4
_DRAIN_S = 30.0
# A backlog that the pipeline works off in this time is none.
_CLEAR_S = 1.0


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """Twice the sustained rate for some seconds, then half of it.

    unscored: rows of complete windows without a score when all was over. latency_ms_max: of the alerts that began,
    from the produce call of the row that ended their window. backlog_rows_max: rows sent and not scored, beyond those
    whose window is not complete. recovered_s: from the end of the overload until the backlog was that of a second's
    work; None if it never was. rows_per_s: as sent during the overload.
    """

    unscored: int
    latency_ms_max: float
    recovered_s: float | None
    backlog_rows_max: int
    alerts: int
    rows_per_s: float
    seconds: float


def measure_overload(
    settings: Settings,
    worker: RunningService,
    shape: Shape,
    entities: int,
    *,
    rows_per_s: float,
    seconds: float,
    spike_every: int,
    seed: int,
) -> Overload:
    """Send rows at twice the rate, then at half of it, and follow backlog and alerts. No row was scored before."""
    family = settings.families[0]
    at_twice, after = int(2 * rows_per_s * seconds), int(rows_per_s / 2 * _AFTER * seconds)
    values = make_values(shape, entities, -(-(at_twice + after) // entities), seed)
    add_spikes(values, shape, spike_every, seed)
    phases = [(at_twice, 2 * rows_per_s), (after, rows_per_s / 2)]
    sender = Sender(settings, encode(to_samples(family, values)), phases)  # ahead: twice the rate leaves no time for it
    subscriber = Subscriber(settings, ALERTS, from_beginning=True)
    try:
        found = _follow(sender, subscriber, worker, entities * family.hop + _CLEAR_S * rows_per_s)
    finally:
        sender.stop()
        subscriber.close()
    sent = sender.sent[0]
    complete = sum(rows // family.hop * family.hop for rows in sender.rows_by_entity.values())
    return Overload(
        unscored=complete - _scored_of(worker, complete),
        latency_ms_max=round(max(found.latencies, default=0.0), 1),
        recovered_s=found.recovered_s,
        backlog_rows_max=int(found.backlog - entities * family.hop),
        alerts=len(found.latencies),
        rows_per_s=round(sent.rows / sent.seconds, 1),
        seconds=round(sent.seconds, 1),
    )


class _Followed(msgspec.Struct):
    latencies: list[float] = []
    backlog: float = 0.0
    recovered_s: float | None = None


def _follow(sender: Sender, subscriber: Subscriber, worker: RunningService, clear: float) -> _Followed:
    """Follow until the backlog is at most `clear` rows again after the overload, or all rows are sent."""
    found = _Followed()
    sender.start()
    looked = 0.0
    while sender.is_alive() and found.recovered_s is None:
        found.latencies += alert_latency(sender, subscriber)
        if time.monotonic() - looked < _POLL_S:
            continue
        looked = time.monotonic()
        backlog = sender.count - worker.metric(_SCORED)
        found.backlog = max(found.backlog, backlog)
        if sender.sent and backlog <= clear:  # its first phase is over
            found.recovered_s = round(time.monotonic() - sender.ended[0], 2)
    return found


def _scored_of(worker: RunningService, complete: int) -> int:
    """Return how many rows are scored, once those wanted are or time is up."""
    end = time.monotonic() + _DRAIN_S
    while (scored := int(worker.metric(_SCORED))) < complete and time.monotonic() < end:
        time.sleep(_POLL_S)
    return scored
