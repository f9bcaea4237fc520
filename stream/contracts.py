"""Every record on the wire, decoded once at the edge. Knows no topic, no broker, no model.

A record carries its schema version in the field `v`; inside a version changes are only additive.
Times are milliseconds since 1970 (`_ms`), slots are positions on the event-time grid (`stream.grid`).
"""

import re
import uuid
from datetime import UTC, datetime
from typing import Literal

import msgspec

from stream.errors import ContractError

MAX_ENTITY_LENGTH = 256
_ENTITY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/@-]*[A-Za-z0-9])?")
_ALERT_NAMESPACE = uuid.UUID("6f0d2c1e-4f58-5d0a-9a3e-7e11a1e0a1e7")
_DRIFT_NAMESPACE = uuid.UUID("0c1f3f0e-6d0a-5b7c-8b39-64ad0d4e5f10")

Stage = Literal["provisional", "final"]
AlertState = Literal["firing", "updated", "resolved"]
Severity = Literal["warning", "error", "critical"]
ModelEventKind = Literal[
    "requested",
    "training",
    "failed",
    "announced",
    "rejected",
    "shadowing",
    "waiting",
    "promoted",
    "on_probation",
    "kept",
    "rolled_back",
]


class Sample(msgspec.Struct, frozen=True):
    """One row of telemetry of one entity. `null` and an absent channel both mean missing."""

    entity: str
    ts: int
    values: dict[str, float | bool | None]


class SampleColumns(msgspec.Struct, frozen=True, gc=False):
    """Rows of one entity in one record, see `stream.columns`.

    ts: little-endian int64 of each row. values: little-endian float32 row by row, in the order of `channels`; NaN where
    missing. Channels left out are missing in all rows.
    """

    entity: str
    channels: list[str]
    ts: bytes
    values: bytes

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.ts) // 8


class SourceRange(msgspec.Struct, frozen=True):
    """Where a window's rows stand in Kafka: offsets of the first and last one, both inclusive."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int


class WindowNotice(msgspec.Struct, frozen=True, kw_only=True):
    """A window is ready: slots `end_slot - length + 1 .. end_slot` of the entity's ring will not change any more.

    new_slots: slots since the previous notice of the entity, so that notices cover every slot.
    rows: slots of the window that hold a row; a reader that finds another number reads a damaged ring.
    ring: names the ring within the entity. first_slot: the first slot of this life of the entity; earlier slots are
    not gaps. gap_slots: slots of silence before this life, told once, in its first notice.
    trigger_ms: Kafka time stamp of the record that made the window final.
    """

    v: Literal[1] = 1
    entity: str
    family: str
    interval_ms: int
    end_slot: int
    length: int
    new_slots: int
    final_delay: int
    rows: int
    ring: int
    first_slot: int
    gap_slots: int = 0
    source: SourceRange
    trigger_ms: int


class ModelRef(msgspec.Struct, frozen=True):
    """Which checkpoint made a score."""

    name: str
    version: str


class ChannelEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What one channel did where the score peaked. share: its part of the score, 0 to 1. low, high: the normal band.

    explained: the part of its deviation that the commands sent around then account for, 0 to 1; None where no command
    was, in a score block, or of a model without commands.
    """

    channel: str
    share: float
    observed: float | None
    expected: float
    low: float
    high: float
    explained: float | None = None


class ScoreBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of consecutive slots of one entity, from `start_slot` on; null where the slot has no row (a gap).

    Every slot appears in exactly one provisional and, `final_delay` slots later, in exactly one final block.
    gap_slots: slots of silence before the block that stand in none, told in the provisional block that ends it.
    learning: the entity is too new to judge, so no slot of the block is called anomalous, whatever its score.
    """

    v: Literal[1] = 1
    entity: str
    family: str
    stage: Stage
    start_slot: int
    ts_ms: int
    interval_ms: int
    scores: list[float | None]
    p_values: list[float | None]
    preds: list[bool]
    threshold: float
    channels: list[ChannelEvidence]
    model: ModelRef
    gap_slots: int = 0
    learning: bool = False


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one anomalous episode of one entity: the payload of a CloudEvent.

    episode_id stays the same from firing to resolved; revision counts the messages of an episode from 0.
    rests_on: whether the deciding score was provisional or final. threshold: in units of the score. commands: the
    command channels that were not in their usual state around the peak. adapting: the entity's level has moved, and
    what it does now is being taken for normal: by an alarm that lasted for too long, or by one before this episode.
    """

    v: Literal[1] = 1
    state: AlertState
    episode_id: str
    revision: int
    entity: str
    family: str
    severity: Severity
    summary: str
    starts_at_ms: int
    ends_at_ms: int | None
    observed_at_ms: int
    rests_on: Stage
    score: float
    threshold: float
    p_value: float
    channels: list[ChannelEvidence]
    model: ModelRef
    window_start_ms: int
    window_end_ms: int
    missing_fraction: float
    source: SourceRange
    commands: list[str] = []
    adapting: bool = False

    @property
    def id(self) -> str:
        """The deterministic identity of this message: equal ids are duplicates."""
        return str(uuid.uuid5(uuid.UUID(self.episode_id), f"{self.state}/{self.revision}"))


class BlockSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one entity was over a block of `length` slots, from slot `block * length` on; blocks never overlap.

    counts, means, variances, minimums, maximums: by numeric channel, in the order of `channels`; 0 or null where no
    slot had a value. scores: how many scores became final since the entity's previous summary; score_mean,
    score_variance: of them, null where there were none; alarmed: how many of them were anomalous.
    """

    v: Literal[1] = 1
    entity: str
    family: str
    interval_ms: int
    block: int
    length: int
    channels: list[str]
    counts: list[int]
    means: list[float | None]
    variances: list[float | None]
    minimums: list[float | None]
    maximums: list[float | None]
    scores: int
    score_mean: float | None
    score_variance: float | None
    alarmed: int
    model: ModelRef

    @property
    def missing(self) -> list[float]:
        """The share of the slots without a value, by channel."""
        return [1 - count / self.length for count in self.counts]

    @property
    def end_ms(self) -> int:
        """When the block ended."""
        return (self.block + 1) * self.length * self.interval_ms


class MovedEntity(msgspec.Struct, frozen=True, kw_only=True):
    """How far a series of an entity is from what it was in training. deviations: of rows; blocks: for how long.

    adwin, sketch: which tests say so; a series that one alone says it of has moved by persistence.
    """

    entity: str
    sketch_mean: float
    sketch_deviation: float
    live_mean: float
    live_deviation: float
    deviations: float
    blocks: int
    adwin: bool
    sketch: bool


class MovedChannel(msgspec.Struct, frozen=True):
    """A channel that moved, or the score under the name `""`: in how many entities, and the worst of them first."""

    channel: str
    moved: int
    worst: list[MovedEntity]


class DriftEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A family whose level has moved away from its model's training data: the record on `drift`.

    detected_at_ms: end of the block that decided. first_block_ms: since when the first of the moved entities deviates.
    blocks: of `block_slots` slots each, between the two. watched: entities with blocks now and a training sketch.
    moved: those of them that moved; share: moved / watched. adwin, sketch, score: in how many of the moved entities the
    change detector, the comparison with training, and either of them on the score agrees. persistence: how many moved
    by one test alone that went on for long.
    """

    v: Literal[1] = 1
    id: str
    family: str
    model: ModelRef
    detected_at_ms: int
    first_block_ms: int
    blocks: int
    block_slots: int
    watched: int
    moved: int
    share: float
    adwin: int
    sketch: int
    score: int
    persistence: int
    channels: list[MovedChannel]


class Gate(msgspec.Struct, frozen=True):
    """One condition of a promotion: the value that was measured, the bound it was held against, and the champion's.

    passed is the verdict; whether the bound is a floor or a ceiling is the gate's affair. value: None for what is no
    number. bound: None where any number will do. champion: None where there was none to compare with.
    """

    name: str
    passed: bool
    value: float | None
    bound: float | None
    champion: float | None = None


class ModelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One decision about a family's model: the record on `models` and the file in the registry's history.

    version: the model that it is about, None where there is none (yet). champion: the one in force before it.
    reason: why it was trained (drift, age, entities, by hand); detail: what there is to say beside it. data_sha256:
    fingerprint of the training rows. start_ms: the oldest row that training may use, told by `training`.
    who: `retrainer`, or the person who decided.
    """

    v: Literal[1] = 1
    kind: ModelEventKind
    family: str
    version: str | None = None
    champion: str | None = None
    at_ms: int
    reason: str = ""
    detail: str = ""
    data_sha256: str = ""
    start_ms: int = 0
    gates: list[Gate] = []
    who: str = "retrainer"

    @property
    def key(self) -> bytes:
        """The Kafka key: compaction keeps what was last decided about each version."""
        return f"{self.family}/{self.version or self.kind}".encode()


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Why a record was refused; the record's own bytes are the message's value, this goes into its headers."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    size: int
    truncated: bool


class DroppedLetters(msgspec.Struct, frozen=True, kw_only=True):
    """Refused records of one partition that have no dead letter of their own: how many by reason, and between where."""

    v: Literal[1] = 1
    topic: str
    partition: int
    first_offset: int
    last_offset: int
    reasons: dict[str, int]


def episode_id(deployment: str, entity: str, start_slot: int) -> str:
    """Name an episode by where it began, so that a replay names it the same."""
    return str(uuid.uuid5(_ALERT_NAMESPACE, f"{deployment}\n{entity}\n{start_slot}"))


def drift_id(deployment: str, family: str, version: str, detected_at_ms: int) -> str:
    """Name a drift event by what it is about and when, so that a replay names it the same."""
    return str(uuid.uuid5(_DRIFT_NAMESPACE, f"{deployment}\n{family}\n{version}\n{detected_at_ms}"))


def cloud_event_headers(alert: Alert, deployment: str) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of an alert in CloudEvents 1.0 binary mode (Kafka protocol binding, section 3.2)."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": alert.id,
        "ce_source": f"/{deployment}/worker",
        "ce_type": f"telltale.alert.{alert.state}.v1",
        "ce_subject": alert.entity,
        "ce_time": datetime.fromtimestamp(alert.observed_at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "content-type": "application/json",
    }
    return [(name, value.encode()) for name, value in attributes.items()]


def check_entity(entity: str) -> str:
    """Return the entity's name if it may be used as a key; raise ContractError otherwise."""
    if not 1 <= len(entity) <= MAX_ENTITY_LENGTH:
        raise ContractError("entity", f"entity wants 1 to {MAX_ENTITY_LENGTH} characters, got {len(entity)}")
    if not _ENTITY.fullmatch(entity):
        raise ContractError("entity", f"entity wants letters, digits and . _ : / @ - between them, got {entity!r}")
    return entity
