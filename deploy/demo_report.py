"""What a demo run was worth: rows that came through, and alerts against the known faults. Pure; knows no broker."""

from collections import Counter
from typing import NamedTuple

import msgspec

from deploy.demo_sources import KnownFault, Source
from detector.manifest import Manifest
from stream.contracts import Alert, Sample, ScoreBlock
from stream.settings import FamilySettings


class ServerReport(msgspec.Struct, frozen=True):
    """A server of the run."""

    kind: str
    version: str


class ModelReport(msgspec.Struct, frozen=True):
    """A model of the run."""

    name: str
    version: str


class FaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """A known fault and whether an alert told of it. delay_slots: from its first slot to the alert's newest slot."""

    entity: str
    kind: str
    first_ms: int
    last_ms: int
    found: bool
    delay_slots: int | None


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run.

    rows_scorable: rows in windows that were complete when the stream ended. alerts: episodes that fired;
    false_alarms: those at no known fault. faults: known ones that the streamed rows reached. first_alert_s: from the
    command to the first alert; first_alert_stream_s: from the first row.
    """

    source: str
    broker: ServerReport
    redis: ServerReport
    seconds: float
    rows_in: int
    rows_scorable: int
    rows_scored: int
    gap_slots: int
    alerts: int
    alert_messages: int
    false_alarms: int
    faults: int
    faults_found: int
    first_alert_s: float | None
    first_alert_stream_s: float | None
    model: ModelReport
    models: list[ModelReport]
    model_versions: dict[str, int]
    memory_mib: dict[str, float]
    fault_list: list[FaultReport]


class Tally:
    """Counts a run while it goes on."""

    def __init__(self, families: list[FamilySettings]) -> None:
        """Start at nothing."""
        self._families = families
        self._family_of: dict[str, FamilySettings] = {}
        self._slots: dict[str, list[int]] = {}
        self.rows_scored = 0
        self.gap_slots = 0
        self.model_versions: Counter[str] = Counter()
        self.alerts: list[Alert] = []
        self.first_alert_s: float | None = None
        self.first_alert_stream_s: float | None = None
        self.seconds = 0.0

    @property
    def rows_in(self) -> int:
        """Rows put onto the topic."""
        return sum(len(slots) for slots in self._slots.values())

    @property
    def rows_scorable(self) -> int:
        """Rows in windows that are complete: at or before the last hop boundary the watermark has passed."""
        total = 0
        for entity, slots in self._slots.items():
            geometry = self._family_of[entity].geometry
            last = geometry.last_boundary(max(slots) - geometry.lateness)
            total += sum(slot <= last for slot in set(slots))
        return total

    def sent(self, sample: Sample) -> None:
        """Count a row."""
        family = self._family_of.get(sample.entity) or next(f for f in self._families if f.matches(sample.entity))
        self._family_of[sample.entity] = family
        self._slots.setdefault(sample.entity, []).append(round(sample.ts / family.interval_ms))

    def scored(self, block: ScoreBlock) -> None:
        """Count the rows that a block scores for the first time."""
        if block.stage == "provisional":
            gaps = block.scores.count(None)
            self.rows_scored += len(block.scores) - gaps
            self.gap_slots += gaps
            self.model_versions[block.model.version] += len(block.scores) - gaps

    def last_ms(self, entity: str) -> int:
        """Return the newest time stamp sent of an entity, 0 if none was."""
        slots = self._slots.get(entity)
        return max(slots) * self._family_of[entity].interval_ms if slots else 0


class Episode(NamedTuple):
    """An anomalous stretch as its alerts tell it; ends_ms is None while it is open."""

    entity: str
    starts_ms: int
    ends_ms: int | None
    observed_ms: int


def episodes(alerts: list[Alert]) -> list[Episode]:
    """Put the messages of each episode together."""
    found: dict[str, Episode] = {}
    for alert in alerts:
        first = found.get(alert.episode_id)
        observed = first.observed_ms if first else alert.observed_at_ms
        found[alert.episode_id] = Episode(alert.entity, alert.starts_at_ms, alert.ends_at_ms, observed)
    return list(found.values())


def match(faults: list[KnownFault], found: list[Episode], tolerance_ms: int, interval_ms: int) -> list[FaultReport]:
    """Say for each fault which episode, if any, overlaps it; the end of a fault has `tolerance_ms` of aftermath."""
    reports = []
    for fault in faults:
        hits = [e for e in found if _overlap(e, fault, tolerance_ms)]
        first = min((e.observed_ms for e in hits), default=None)
        delay = None if first is None else max(0, first - fault.first_ms) // interval_ms
        reports.append(
            FaultReport(
                entity=fault.entity,
                kind=fault.kind,
                first_ms=fault.first_ms,
                last_ms=fault.last_ms,
                found=bool(hits),
                delay_slots=delay,
            )
        )
    return reports


def compare(
    source: Source,
    tally: Tally,
    servers: tuple[ServerReport, ServerReport],
    models: list[Manifest],
    memory_mib: dict[str, float],
) -> DemoReport:
    """Hold a run's alerts against the source's known faults, as far as the streamed rows reached them."""
    interval_ms = source.families[0].interval_ms
    tolerance_ms = source.families[0].final_delay * interval_ms
    reached = [fault for fault in source.faults() if fault.first_ms <= tally.last_ms(fault.entity)]
    found = episodes(tally.alerts)
    reports = match(reached, found, tolerance_ms, interval_ms)
    false_alarms = sum(not any(_overlap(e, fault, tolerance_ms) for fault in reached) for e in found)
    used = [ModelReport(manifest.name, manifest.version) for manifest in models]
    return DemoReport(
        source=source.name,
        broker=servers[0],
        redis=servers[1],
        seconds=round(tally.seconds, 1),
        rows_in=tally.rows_in,
        rows_scorable=tally.rows_scorable,
        rows_scored=tally.rows_scored,
        gap_slots=tally.gap_slots,
        alerts=len(found),
        alert_messages=len(tally.alerts),
        false_alarms=false_alarms,
        faults=len(reports),
        faults_found=sum(report.found for report in reports),
        first_alert_s=tally.first_alert_s,
        first_alert_stream_s=tally.first_alert_stream_s,
        model=used[0],
        models=used,
        model_versions=dict(tally.model_versions),
        memory_mib=memory_mib,
        fault_list=reports,
    )


def _overlap(episode: Episode, fault: KnownFault, tolerance_ms: int) -> bool:
    if episode.entity != fault.entity:
        return False
    starts_in_time = episode.starts_ms <= fault.last_ms + tolerance_ms
    return starts_in_time and (episode.ends_ms is None or episode.ends_ms >= fault.first_ms)
