"""From the scores of a window to score blocks: which slots, which threshold, how improbable. Pure: no store, no clock.

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

from detector.floor import Floor, floor_deviations, floor_rule, follow_floor, start_floor
from detector.levels import NO_SCORES, Level, follow_level
from detector.manifest import EntityCalibration, Manifest, Moments, Tail
from detector.rounding import nullable
from stream.contracts import ChannelEvidence, ModelRef, ScoreBlock, Stage, WindowNotice

EVIDENCE_CHANNELS = 3
_SMALLEST_P = 1e-12


class WindowView(NamedTuple):
    """One scored window. values, residual, expected, band: (C, L) of the numeric channels; see `WindowScores`."""

    values: NDArray[np.float32]
    provisional: NDArray[np.float32]
    final: NDArray[np.float32]
    residual: NDArray[np.float32]
    expected: NDArray[np.float32]
    band: NDArray[np.float32]


class SeriesMoments(msgspec.Struct, frozen=True):
    """Moments of an entity's scores so far, by stage, for one model version.

    followed: live slots with a score, under whichever model. The stretches hold the scores of the alarm that each stage
    is in, and nothing while it is in none. The floors are None without a budget. usual: what a mean of final scores
    above is no training level any more; None for an entity that training never saw.
    """

    version: str
    provisional: Moments
    final: Moments
    followed: int = 0
    provisional_stretch: Moments = NO_SCORES
    final_stretch: Moments = NO_SCORES
    provisional_floor: Floor | None = None
    final_floor: Floor | None = None
    usual: float | None = None

    @property
    def moved(self) -> bool:
        """Whether what is normal now would have been anomalous by the training level."""
        return self.usual is not None and self.final.mean > self.usual


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


class Decision(NamedTuple):
    """What one window says. adapting: the level that it was judged by is one that the entity has moved to."""

    blocks: list[ScoreBlock]
    hits: list[Hit]
    moments: SeriesMoments
    adapting: bool = False


def initial_moments(manifest: Manifest, entity: EntityCalibration, followed: int = 0) -> SeriesMoments:
    """Start from what training data said of the entity. followed: its live slots so far, under an earlier model."""
    return SeriesMoments(
        manifest.version,
        entity.provisional,
        entity.final,
        followed,
        provisional_floor=start_floor(manifest, "provisional"),
        final_floor=start_floor(manifest, "final"),
        usual=entity.final.mean + manifest.decision.final_sigmas * entity.final.deviation if entity.name else None,
    )


def sigmas_in_force(manifest: Manifest, stage: Stage, floor: Floor | None) -> float:
    """Return how many deviations above the mean a stage's scores are anomalous: its own number, or the floor's."""
    rule, own = floor_rule(manifest, stage), manifest.decision
    sigmas = own.provisional_sigmas if stage == "provisional" else own.final_sigmas
    return sigmas if rule is None or floor is None else max(sigmas, floor_deviations(floor, rule))


def decide(
    manifest: Manifest, numeric: Sequence[str], notice: WindowNotice, view: WindowView, moments: SeriesMoments
) -> Decision:
    """Judge the slots that a window scores for the first time and those whose score it makes final."""
    learning = moments.followed < manifest.decision.learning
    blocks: list[ScoreBlock] = []
    hits: list[Hit] = []
    levels: list[Level] = []
    floors: list[Floor | None] = []
    for part in _parts(manifest, notice, view, moments):
        judged = _judge(manifest, notice, part, learning=learning)
        if judged is None:
            levels.append(part.level)
            floors.append(part.floor)
            continue
        level = follow_level(part.level, judged.scores, manifest.decision, alarmed=bool(judged.preds.any()))
        levels.append(level)
        floors.append(part.floor if learning else _follow(manifest, part, judged.z))
        evidence = _evidence(numeric, view, judged.peak_position)
        blocks.append(_block(manifest, notice, judged, evidence, learning=learning))
        hits += _hits(judged, evidence, adapted=level.adapted)
    provisional, final = levels
    followed = moments.followed + sum(len(b.scores) - b.scores.count(None) for b in blocks if b.stage == "provisional")
    after = msgspec.structs.replace(
        moments,
        version=manifest.version,
        provisional=provisional.moments,
        final=final.moments,
        followed=followed,
        provisional_stretch=provisional.stretch,
        final_stretch=final.stretch,
        provisional_floor=floors[0],
        final_floor=floors[1],
    )
    return Decision(blocks, hits, after, moments.moved)


def unscored(notice: WindowNotice) -> list[ScoreBlock]:
    """Report the slots of a window that can't be scored for want of a model, as gaps."""
    fronts: tuple[tuple[Stage, int], ...] = (
        ("provisional", notice.end_slot),
        ("final", notice.end_slot - notice.final_delay),
    )
    spans = [(stage, max(last - notice.new_slots + 1, notice.first_slot), last) for stage, last in fronts]
    return [
        ScoreBlock(
            entity=notice.entity,
            family=notice.family,
            stage=stage,
            start_slot=first,
            ts_ms=first * notice.interval_ms,
            interval_ms=notice.interval_ms,
            scores=[None] * (last - first + 1),
            p_values=[None] * (last - first + 1),
            preds=[False] * (last - first + 1),
            threshold=0.0,
            channels=[],
            model=ModelRef(notice.family, "none"),
            gap_slots=notice.gap_slots if stage == "provisional" else 0,
        )
        for stage, first, last in spans
        if first <= last
    ]


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


class _Judged(NamedTuple):
    """The new slots of one stage. peak_position: where in the window the highest score is."""

    stage: Stage
    first: int
    scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    preds: NDArray[np.bool_]
    threshold: float
    z: NDArray[np.float64]
    peak_position: int | None


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


def _judge(manifest: Manifest, notice: WindowNotice, part: _Part, *, learning: bool) -> _Judged | None:
    first = max(part.last - notice.new_slots + 1, notice.first_slot)
    if first > part.last:
        return None
    window_start = notice.end_slot - notice.length + 1
    inside = part.scores[max(first - window_start, 0) : part.last - window_start + 1].astype(np.float64)
    scores = np.concatenate([np.full(part.last - first + 1 - len(inside), np.nan), inside])
    moments = part.level.moments
    threshold = moments.mean + part.sigmas * moments.deviation
    z = (scores - moments.mean) / max(moments.deviation, 1e-9)
    tail = manifest.provisional_tail if part.stage == "provisional" else manifest.final_tail
    peak = None if np.isnan(scores).all() else first + int(np.nanargmax(scores)) - window_start
    preds = (scores > threshold) & (not learning)
    return _Judged(part.stage, first, scores, tail_probability(tail, z), preds, threshold, z, peak)


def _block(
    manifest: Manifest, notice: WindowNotice, judged: _Judged, evidence: list[ChannelEvidence], *, learning: bool
) -> ScoreBlock:
    return ScoreBlock(
        entity=notice.entity,
        family=notice.family,
        stage=judged.stage,
        start_slot=judged.first,
        ts_ms=judged.first * notice.interval_ms,
        interval_ms=notice.interval_ms,
        scores=nullable(judged.scores, 7),
        p_values=nullable(judged.p_values, 4),
        preds=judged.preds.tolist(),
        threshold=judged.threshold,
        channels=evidence,
        model=ModelRef(manifest.name, manifest.version),
        gap_slots=notice.gap_slots if judged.stage == "provisional" else 0,
        learning=learning,
    )


def _hits(judged: _Judged, evidence: list[ChannelEvidence], *, adapted: bool) -> list[Hit]:
    flagged = np.flatnonzero(judged.preds)
    if not len(flagged):
        return []
    peak = int(np.nanargmax(judged.scores))
    hit = Hit(
        stage=judged.stage,
        first_slot=judged.first + int(flagged[0]),
        last_slot=judged.first + int(flagged[-1]),
        peak_slot=judged.first + peak,
        score=float(judged.scores[peak]),
        threshold=judged.threshold,
        p_value=float(judged.p_values[peak]),
        z=float(judged.z[peak]),
        channels=evidence,
        adapted=adapted,
    )
    return [hit]


def _evidence(numeric: Sequence[str], view: WindowView, position: int | None) -> list[ChannelEvidence]:
    if position is None:
        return []
    residual = view.residual[:, position]
    total = max(float(residual.sum()), 1e-9)
    order = np.argsort(-residual, kind="stable")[:EVIDENCE_CHANNELS]
    return [_channel_evidence(numeric[c], view, c, position, float(residual[c]) / total) for c in order]


def _channel_evidence(name: str, view: WindowView, channel: int, position: int, share: float) -> ChannelEvidence:
    observed = float(view.values[channel, position])
    expected = float(view.expected[channel, position])
    half = float(view.band[channel, position])
    return ChannelEvidence(
        channel=name,
        share=round(share, 4),
        observed=None if np.isnan(observed) else observed,
        expected=expected,
        low=expected - half,
        high=expected + half,
    )
