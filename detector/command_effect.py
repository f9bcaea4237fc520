"""Whether the commands sent around a hit account for it: windows and hits in, hits with the answer out.

A counterfactual: what the network expects with the commands as they were, against what it would have expected with each
command in its usual state. Knows no score and no threshold.
"""

from collections.abc import Sequence

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


def explain_by_commands(
    detector: Detector, notice: WindowNotice, values: NDArray[np.float32], hits: Sequence[Hit]
) -> list[Hit]:
    """Say of each hit which commands were sent around its peak, and how much of its deviation follows from them.

    values: (C_all, L), raw units, the window that the hits come from. A network without commands changes nothing.
    """
    if not detector.commands or not detector.manifest.denoiser.use_commands:
        return list(hits)
    return [_explain(detector, notice, values, hit) for hit in hits]


def _explain(detector: Detector, notice: WindowNotice, values: NDArray[np.float32], hit: Hit) -> Hit:
    peak = hit.peak_slot - (notice.end_slot - notice.length + 1)
    first, after = max(peak - REACH, 0), peak + _AVERAGED + 1
    commands = values[detector.commands]  # (K, L)
    usual = usual_states(commands[:, :first] if first else commands)
    sent = ((commands[:, first:after] > 0) != usual[:, None]) & ~np.isnan(commands[:, first:after])
    if not sent.any():
        return hit
    calm = values.copy()
    calm[detector.commands] = np.where(np.isnan(commands), np.nan, usual[:, None])
    both = WindowBatch([notice.entity] * 2, np.array([notice.end_slot] * 2), np.stack([values, calm]))
    near = slice(max(peak - _AVERAGED, 0), after)
    commanded, uncommanded = detector.expect_from_commands(both)[:, :, near]
    shares = explained_shares(values[detector.numeric, near], commanded, uncommanded)
    channels = detector.manifest.channels
    share_of = {channels[i].name: float(share) for i, share in zip(detector.numeric, shares, strict=True)}
    evidence = [msgspec.structs.replace(one, explained=round(share_of[one.channel], 4)) for one in hit.channels]
    names = [channels[i].name for i, was_sent in zip(detector.commands, sent.any(1), strict=True) if was_sent]
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
