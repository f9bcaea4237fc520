"""From the scores of a window to a decision: which slots, which threshold, how improbable. Pure: no store, no clock.

The three-sigma rule is kept on the entity's own scores so far (paper, section 4.2, read causally): mean and variance
start from training data and follow the scored series. An entity that was followed for less than `learning` slots is
not judged, since its level may not be that of training. Under a budget of false alarms the sigmas are those that keep
it, where they are more (`detector.floor`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.blocks import Judged, WindowView, block_of, evidence_at
from detector.floor import Floor, floor_deviations, floor_rule, follow_floor, start_floor
from detector.levels import NO_SCORES, Level, follow_level
from detector.manifest import EntityCalibration, Manifest, Moments, Tail
from stream.contracts import ChannelEvidence, ScoreBlock, Stage, WindowNotice

_SMALLEST_P = 1e-12


class SeriesMoments(msgspec.Struct, frozen=True):
    """Moments of an entity's scores so far, by stage, for one model version.

    followed: live slots with a score, under whichever model. The stretches hold the scores of the alarm that each stage
    is in, and nothing while it is in none. The floors are None without a budget.
    """

    version: str
    provisional: Moments
    final: Moments
    followed: int = 0
    provisional_stretch: Moments = NO_SCORES
    final_stretch: Moments = NO_SCORES
    provisional_floor: Floor | None = None
    final_floor: Floor | None = None


class Hit(NamedTuple):
    """The anomalous slots of one block. z: deviations of the peak above the mean of the scores so far.

    adapted: the alarm has lasted so long that its scores are the normal ones from here on. commands: see `Alert`.
    """

    stage: Stage
    first_slot: int
    last_slot: int
    peak_slot: int
    score: float
    threshold: float
    p_value: float
    z: float
    channels: list[ChannelEvidence]
    adapted: bool = False
    commands: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """How the new slots of a window are judged, a stage that has none left out, and what was learned from them."""

    judged: list[Judged]
    moments: SeriesMoments


class Decision(NamedTuple):
    """What one window says."""

    blocks: list[ScoreBlock]
    hits: list[Hit]
    moments: SeriesMoments


def initial_moments(manifest: Manifest, entity: EntityCalibration, followed: int = 0) -> SeriesMoments:
    """Start from what training data said of the entity. followed: its live slots so far, under an earlier model."""
    return SeriesMoments(
        manifest.version,
        entity.provisional,
        entity.final,
        followed,
        provisional_floor=start_floor(manifest, "provisional"),
        final_floor=start_floor(manifest, "final"),
    )


def sigmas_in_force(manifest: Manifest, stage: Stage, floor: Floor | None) -> float:
    """Return how many deviations above the mean a stage's scores are anomalous: its own number, or the floor's."""
    rule, own = floor_rule(manifest, stage), manifest.decision
    sigmas = own.provisional_sigmas if stage == "provisional" else own.final_sigmas
    return sigmas if rule is None or floor is None else max(sigmas, floor_deviations(floor, rule))


def decide(
    manifest: Manifest, numeric: Sequence[str], notice: WindowNotice, view: WindowView, moments: SeriesMoments
) -> Decision:
    """Say what `judge` finds in a window as records, with the channels that speak for it."""
    learning = _is_learning(manifest, moments)
    verdict = judge(manifest, notice, view, moments)
    blocks: list[ScoreBlock] = []
    hits: list[Hit] = []
    for judged in verdict.judged:
        peak = int(np.where(np.isnan(judged.scores), -np.inf, judged.scores).argmax())
        known = not np.isnan(judged.scores[peak])
        position = judged.first + peak - (notice.end_slot - notice.length + 1)
        evidence = evidence_at(numeric, view, position) if known else []
        p_values = tail_probability(tail_of(manifest, judged.stage), judged.z)
        blocks.append(block_of(manifest, notice, judged, p_values, evidence, learning=learning))
        hits += _hits(judged, peak, p_values, evidence)
    return Decision(blocks, hits, verdict.moments)


def judge(manifest: Manifest, notice: WindowNotice, view: WindowView, moments: SeriesMoments) -> Verdict:
    """Judge the slots that a window scores for the first time and those whose score it makes final."""
    learning = _is_learning(manifest, moments)
    found: list[Judged] = []
    levels: list[Level] = []
    floors: list[Floor | None] = []
    followed = moments.followed
    for part in _parts(manifest, notice, view, moments):
        judged = _judge(notice, part, learning=learning)
        if judged is None:
            levels.append(part.level)
            floors.append(part.floor)
            continue
        level = follow_level(part.level, judged.scores, manifest.decision, alarmed=bool(judged.preds.any()))
        levels.append(level)
        floors.append(part.floor if learning else _follow(manifest, part, judged.z))
        found.append(judged._replace(adapted=level.adapted))
        if part.stage == "provisional":
            followed += int(np.count_nonzero(judged.z == judged.z))
    provisional, final = levels
    after = SeriesMoments(
        manifest.version, provisional.moments, final.moments, followed, provisional.stretch, final.stretch, *floors
    )
    return Verdict(found, after)


def tail_of(manifest: Manifest, stage: Stage) -> Tail:
    """Return what the p-values of a stage come from."""
    return manifest.provisional_tail if stage == "provisional" else manifest.final_tail


def tail_probability(tail: Tail, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how probable a standardised score at least as high is in normal data; NaN stays NaN.

    Between the tail's levels by interpolation, beyond the last one by an exponential through the last two.
    """
    levels, values = np.array(tail.levels), np.array(tail.values)
    inside = 1 - np.interp(z, values, levels)
    rate = np.log((1 - levels[-2]) / (1 - levels[-1])) / max(values[-1] - values[-2], 1e-9)
    beyond = (1 - levels[-1]) * np.exp(-rate * np.maximum(z - values[-1], 0))
    p = np.where(z > values[-1], beyond, inside)
    return np.where(np.isnan(z), np.nan, np.maximum(p, _SMALLEST_P))


class _Part(NamedTuple):
    """One stage of a window before it is judged. last: its newest slot. scores: (L,). sigmas: those in force."""

    stage: Stage
    last: int
    scores: NDArray[np.float32]
    level: Level
    floor: Floor | None
    sigmas: float


def _parts(manifest: Manifest, notice: WindowNotice, view: WindowView, moments: SeriesMoments) -> tuple[_Part, _Part]:
    provisional = Level(moments.provisional, moments.provisional_stretch)
    final = Level(moments.final, moments.final_stretch)
    front = notice.end_slot - notice.final_delay
    floors = moments.provisional_floor, moments.final_floor
    sigmas = sigmas_in_force(manifest, "provisional", floors[0]), sigmas_in_force(manifest, "final", floors[1])
    return (
        _Part("provisional", notice.end_slot, view.provisional, provisional, floors[0], sigmas[0]),
        _Part("final", front, view.final, final, floors[1], sigmas[1]),
    )


def _follow(manifest: Manifest, part: _Part, z: NDArray[np.float64]) -> Floor | None:
    rule = floor_rule(manifest, part.stage)
    return part.floor if rule is None or part.floor is None else follow_floor(part.floor, z, part.sigmas, rule)


def _is_learning(manifest: Manifest, moments: SeriesMoments) -> bool:
    return moments.followed < manifest.decision.learning


def _judge(notice: WindowNotice, part: _Part, *, learning: bool) -> Judged | None:
    first = max(part.last - notice.new_slots + 1, notice.first_slot)
    if first > part.last:
        return None
    window_start = notice.end_slot - notice.length + 1
    scores = part.scores[max(first - window_start, 0) : part.last - window_start + 1].astype(np.float64)
    before = part.last - first + 1 - len(scores)  # slots that no window has
    if before:
        scores = np.concatenate([np.full(before, np.nan), scores])
    moments = part.level.moments
    threshold = moments.mean + part.sigmas * moments.deviation
    z = (scores - moments.mean) / max(moments.deviation, 1e-9)
    preds = np.zeros(len(scores), bool) if learning else scores > threshold
    return Judged(part.stage, first, scores, z, preds, threshold, adapted=False)


def _hits(judged: Judged, peak: int, p_values: NDArray[np.float64], evidence: list[ChannelEvidence]) -> list[Hit]:
    flagged = np.flatnonzero(judged.preds)
    if not len(flagged):
        return []
    hit = Hit(
        stage=judged.stage,
        first_slot=judged.first + int(flagged[0]),
        last_slot=judged.first + int(flagged[-1]),
        peak_slot=judged.first + peak,
        score=float(judged.scores[peak]),
        threshold=judged.threshold,
        p_value=float(p_values[peak]),
        z=float(judged.z[peak]),
        channels=evidence,
        adapted=judged.adapted,
    )
    return [hit]
