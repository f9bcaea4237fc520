"""Whether the commands sent around a hit account for it: windows and hits in, hits with the answer out.

A counterfactual: what the network expects with the commands as they were, against what it would have expected with each
command in its usual state. Knows no score and no threshold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.decision import Hit
from detector.engine import Detector, WindowBatch
from stream.contracts import WindowNotice

# How long before a hit's peak, in slots, a command can have been sent that has to do with it.
REACH = 64
# Slots on each side of the peak over which deviations are averaged.
_AVERAGED = 12
_MOST_COMMANDS = 5
# Each is two windows of one network run; activations stay in a core's cache.
_QUESTIONS_PER_PASS = 16


class Question(NamedTuple):
    """A hit, and the window (C_all, L), raw units, that it comes from."""

    notice: WindowNotice
    values: NDArray[np.float32]
    hit: Hit


def explain_by_commands(detector: Detector, questions: Sequence[Question]) -> list[Hit]:
    """Say of each hit which commands were sent around its peak, and how much of its deviation follows from them.

    A network without commands changes nothing. Hits are asked about together: alone, each would take several times as
    long.
    """
    hits = [one.hit for one in questions]
    if not detector.commands or not detector.manifest.denoiser.use_commands:
        return hits
    sent = [_sent(detector, one) for one in questions]
    asked = [at for at, of_hit in enumerate(sent) if of_hit.any()]
    for part in (asked[first : first + _QUESTIONS_PER_PASS] for first in range(0, len(asked), _QUESTIONS_PER_PASS)):
        expected = detector.expect_from_commands(_both([questions[at] for at in part], detector))
        for number, at in enumerate(part):
            hits[at] = _explained(detector, questions[at], sent[at], expected[2 * number : 2 * number + 2])
    return hits


def _near(question: Question) -> tuple[int, int, int]:
    """Return the peak's position in its window, how far back commands matter, and where the slots after it end."""
    notice = question.notice
    peak = question.hit.peak_slot - (notice.end_slot - notice.length + 1)
    return peak, max(peak - REACH, 0), peak + _AVERAGED + 1


def _usual(commands: NDArray[np.float32], first: int) -> NDArray[np.bool_]:
    return usual_states(commands[:, :first] if first else commands)


def _sent(detector: Detector, question: Question) -> NDArray[np.bool_]:
    """Say of each command (K,) whether it was in another than its usual state around the peak."""
    _, first, after = _near(question)
    commands = question.values[detector.commands]  # (K, L)
    around = commands[:, first:after]
    found: NDArray[np.bool_] = (((around > 0) != _usual(commands, first)[:, None]) & ~np.isnan(around)).any(1)
    return found


def _both(questions: Sequence[Question], detector: Detector) -> WindowBatch:
    """Make of each question two windows: as it was, and with every command in its usual state."""
    windows = []
    for one in questions:
        commands, calm = one.values[detector.commands], one.values.copy()
        usual = _usual(commands, _near(one)[1])
        calm[detector.commands] = np.where(np.isnan(commands), np.nan, usual[:, None])
        windows += [one.values, calm]
    entities = [one.notice.entity for one in questions for _ in range(2)]
    return WindowBatch(entities, np.repeat([one.notice.end_slot for one in questions], 2), np.stack(windows))


def _explained(detector: Detector, question: Question, sent: NDArray[np.bool_], expected: NDArray[np.float32]) -> Hit:
    """Enter what was expected with the commands and without them, (2, C, L), into a hit."""
    peak, _, after = _near(question)
    near = slice(max(peak - _AVERAGED, 0), after)
    shares = explained_shares(question.values[detector.numeric, near], *expected[:, :, near])
    channels, hit = detector.manifest.channels, question.hit
    share_of = {channels[i].name: float(share) for i, share in zip(detector.numeric, shares, strict=True)}
    evidence = [msgspec.structs.replace(one, explained=round(share_of[one.channel], 4)) for one in hit.channels]
    names = [channels[i].name for i, was_sent in zip(detector.commands, sent, strict=True) if was_sent]
    return hit._replace(channels=evidence, commands=tuple(names[:_MOST_COMMANDS]))


def usual_states(commands: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return whether each command (K, L), NaN where missing, was on for most of the time, (K,)."""
    on: NDArray[np.bool_] = 2 * (commands > 0).sum(1) > (~np.isnan(commands)).sum(1)
    return on


def explained_shares(
    observed: NDArray[np.float32], commanded: NDArray[np.float32], uncommanded: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the part of each channel's deviation (C,) that the commands account for, 0 to 1.

    observed, commanded, uncommanded: (C, slots), what was measured, NaN where missing, and what is expected with and
    without the commands.
    """
    without = np.nansum(np.abs(observed - uncommanded), axis=1, dtype=np.float64)
    within = np.nansum(np.abs(observed - commanded), axis=1, dtype=np.float64)
    return np.clip((without - within) / np.maximum(without, 1e-9), 0, 1)
