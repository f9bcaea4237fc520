"""Score blocks: what a window says of its new slots, as records. Judges nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.manifest import Manifest
from detector.rounding import nullable
from stream.contracts import ChannelEvidence, ModelRef, ScoreBlock, Stage, WindowNotice

EVIDENCE_CHANNELS = 3
# What records tell of a score and of a p-value.
SCORE_DIGITS, P_VALUE_DIGITS = 7, 4


class WindowView(NamedTuple):
    """One scored window. values, residual, expected, band: (C, L) of the numeric channels; see `WindowScores`."""

    values: NDArray[np.float32]
    provisional: NDArray[np.float32]
    final: NDArray[np.float32]
    residual: NDArray[np.float32]
    expected: NDArray[np.float32]
    band: NDArray[np.float32]


class Judged(NamedTuple):
    """The slots of one stage that a window makes known, (n,) each; z is NaN where there is no score.

    first: the first of them. adapted: see `Hit`.
    """

    stage: Stage
    first: int
    scores: NDArray[np.float64]
    z: NDArray[np.float64]
    preds: NDArray[np.bool_]
    threshold: float
    adapted: bool


def block_of(
    manifest: Manifest,
    notice: WindowNotice,
    judged: Judged,
    p_values: NDArray[np.float64],
    evidence: list[ChannelEvidence],
    *,
    learning: bool,
) -> ScoreBlock:
    """Put judged slots into a record."""
    return ScoreBlock(
        entity=notice.entity,
        family=notice.family,
        stage=judged.stage,
        start_slot=judged.first,
        ts_ms=judged.first * notice.interval_ms,
        interval_ms=notice.interval_ms,
        scores=nullable(judged.scores, SCORE_DIGITS),
        p_values=nullable(p_values, P_VALUE_DIGITS),
        preds=judged.preds.tolist(),
        threshold=judged.threshold,
        channels=evidence,
        model=ModelRef(manifest.name, manifest.version),
        gap_slots=notice.gap_slots if judged.stage == "provisional" else 0,
        learning=learning,
    )


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


def evidence_at(numeric: Sequence[str], view: WindowView, position: int) -> list[ChannelEvidence]:
    """Return the channels that speak most for the score at a position of the window."""
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
