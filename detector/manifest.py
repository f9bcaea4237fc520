"""What a checkpoint says about itself. Owns the manifest's types; reads and writes no file, knows no tensor."""

import math
from typing import Literal

import msgspec

from stream.grid import Geometry
from stream.sketch import Sketch

SCHEMA_VERSION: Literal[1] = 1
# What stands beside the reconstruction, where companions are configured: prediction, nearest window and activity.
COMPANION_VIEWS = 3


class Channel(msgspec.Struct, frozen=True):
    """One column of telemetry: numeric channels are reconstructed, command channels are the condition."""

    name: str
    kind: Literal["numeric", "command"]


class DenoiserConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hyper-parameters of the network (paper, Figure 1 and Table 2) and its noise schedule.

    numeric: C reconstructed channels. commands: K command channels. entities: E known entities, without the
    reserved index 0 of an entity never seen. entity_source: whether an entity's vector is learned with the weights or
    encoded from a stretch of its normal data. state: N. patch: slots that the cascade sees as one position, 1 in the
    paper; it must divide the window's length. layer: what extracts long-term features, the diagonal or the full state
    space or, as in the paper's Table 6, a dilated convolution. timesteps: T of a linear beta schedule.
    """

    numeric: int
    commands: int
    entities: int
    layers: int = 4
    width: int = 48
    state: int = 32
    kernel_size: int = 3
    dilation_cycle: int = 4
    patch: int = 1
    layer: Literal["s4d", "s4", "res"] = "s4d"
    use_commands: bool = True
    use_entity: bool = True
    entity_source: Literal["id", "context"] = "id"
    timesteps: int = 200
    beta_first: float = 1e-4
    beta_last: float = 0.02


class ScoringConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How residuals become a score.

    starts: start timesteps whose reconstructions are averaged. sampler_steps: network calls from each start.
    smoothing: kernel of eq. 5 and its size in slots (odd). provisional_size: the size for the score known at once, if
    that is another; half a kernel is left of it. smoothing_power: power of the residuals of which the kernel takes the
    mean, and then the root: 1 as in the paper, 2 for root mean square. top_channels: the score averages so many most
    deviating channels. noise_seed: seed of the per-slot noise. sigmas: half-width of the band around what is
    expected, in deviations.
    """

    starts: tuple[int, ...] = (5, 20, 60)
    sampler_steps: int = 1
    smoothing: Literal["hanning", "hamming", "bartlett"] = "hanning"
    smoothing_size: int = 201
    provisional_size: int | None = None
    smoothing_power: int = 1
    top_channels: int = 5
    noise_seed: int = 0
    sigmas: float = 3.0


class CompanionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The views beside the reconstruction: how far a prediction looks back, and the training windows kept an entity.

    lags: slots before the predicted one. window: W, slots of a training window. windows: M, how many are kept.
    activity: slots over which it is measured how much a channel moves (odd).
    """

    lags: int = 60
    window: int = 25
    windows: int = 1000
    activity: int = 51


class Moments(msgspec.Struct, frozen=True):
    """Count, mean and variance of a series of scores."""

    count: float
    mean: float
    variance: float

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(max(self.variance, 0.0))


class Peaks(msgspec.Struct, frozen=True):
    """Peaks of normal scores above a level, in deviations: of a stretch above it, the highest score.

    Stretches with at most `resolve_after` slots between them are one. slots: scores looked at. excesses: moments of how
    far the peaks are above the level.
    """

    level: float
    slots: float
    excesses: Moments


class AlarmBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """False alarms that an entity may raise, and where its floor starts from: all entities' scores on training rows."""

    alarms_per_week: float
    provisional: Peaks
    final: Peaks


class DecisionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How scores become alerts.

    final_sigmas: a final score so many deviations above the mean of the entity's scores so far is anomalous (the
    three-sigma rule, with another number). provisional_sigmas: the same for a provisional score, which rests on less.
    limit_sigmas: more deviations than these count as these for mean and deviation. memory: slots of scores that both
    remember. resolve_after: normal slots that end an episode. learning: scored slots of an entity before any is called
    anomalous. adapt_after: an alarm of more scored slots than these is the new normal level; 0 keeps alarming. budget:
    without one, no threshold is raised to keep it.
    """

    final_sigmas: float = 3.5
    provisional_sigmas: float = 6.0
    limit_sigmas: float = 12.0
    memory: int = 2000
    resolve_after: int = 50
    learning: int = 512
    adapt_after: int = 512
    budget: AlarmBudget | None = None


class EntityCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What training data said of one entity.

    index: row of the entities' vectors (0 for the entry of unseen entities). minimum, maximum: (C,) of the training
    values, mapped to [-1, 1]. residual_scale: (S, C), mean + standard deviation of |x - x_hat| in scaled units for
    each start timestep, then for each companion. provisional_levels, final_levels: what counts as 1 in the smoothed
    score of the reconstruction and of each companion. provisional, final: moments of the two scores on training data.
    sketch: what drift is told by; checkpoints of before have none.
    """

    name: str
    index: int
    minimum: list[float]
    maximum: list[float]
    residual_scale: list[list[float]]
    provisional_levels: tuple[float, ...] = (1.0,)
    final_levels: tuple[float, ...] = (1.0,)
    provisional: Moments
    final: Moments
    sketch: Sketch | None = None


class Tail(msgspec.Struct, frozen=True):
    """Upper quantiles of all entities' standardised training scores, levels ascending: p-values come from it."""

    levels: list[float]
    values: list[float]


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights come from. data_sha256: fingerprint of the training rows."""

    preset: str
    seed: int
    minutes: float
    train_steps: int
    rows: int
    data_sha256: str
    metrics: dict[str, float]


class FileEntry(msgspec.Struct, frozen=True):
    """Size and hash of one file of the bundle."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the weights: enough to rebuild the detector and to prove that it is the one that was trained.

    channels: in the order of the window's rows, numeric and command mixed as declared. unseen: the calibration used
    for entities that training never saw. files: every other file of the bundle by name.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str
    created_ms: int
    interval_ms: int
    geometry: Geometry
    channels: list[Channel]
    denoiser: DenoiserConfig
    scoring: ScoringConfig
    companions: CompanionConfig | None = None
    decision: DecisionConfig = DecisionConfig()
    entities: list[EntityCalibration]
    unseen: EntityCalibration
    provisional_tail: Tail
    final_tail: Tail
    training: TrainingRecord
    files: dict[str, FileEntry] = {}
