"""A challenger's scores of a share of the live windows, beside the champion's and of no effect on them.

A challenger that fails or is slow is dropped, and its entities' states with it; nothing here raises into the worker.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from detector.blocks import WindowView
from detector.decision import SeriesMoments, decide, initial_moments
from detector.models import Model, Models
from stream.contracts import ScoreBlock, WindowNotice
from stream.metrics import Metrics
from stream.window_store import Window

_log = structlog.get_logger()

# Passes whose time is compared together: one alone may have waited for anything.
_PASSES = 50


class Shadow:
    """Challengers at work, and how their entities stand under them."""

    def __init__(
        self,
        models: Models,
        share: float,
        slowness: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """share: of the windows; slowness: a challenger whose share takes so many times as long as all is dropped."""
        self._models = models
        self._share = share
        self._slowness = slowness
        self._metrics = metrics
        self._clock = clock
        self._moments: dict[tuple[int, str], SeriesMoments] = {}
        self._pace: dict[str, _Pace] = {}

    def score(
        self,
        family: str,
        notices: Sequence[WindowNotice],
        windows: Sequence[Window],
        champion_s: float,
        followed: Callable[[WindowNotice], int],
    ) -> list[tuple[int, ScoreBlock]]:
        """Return partition and block of what the challenger makes of some of these windows; nothing without one.

        champion_s: how long the champion took for all of them. followed: for how many slots the champion has followed a
        notice's entity, so that the challenger need not learn about it again.
        """
        challenger = self._models.challenger(family)
        if challenger is None:
            return []
        drawn = [i for i, one in enumerate(notices) if challenger.takes(one) and is_drawn(one, self._share)]
        if not drawn:
            return []
        own, own_windows = [notices[i] for i in drawn], [windows[i] for i in drawn]
        begun = self._clock()
        try:
            views = challenger.score(own, own_windows)
            blocks = [
                block for one in zip(own, views, strict=True) for block in self._judge(challenger, *one, followed)
            ]
        except (ArithmeticError, RuntimeError, ValueError, LookupError) as error:
            self._models.drop_challenger(family, f"{type(error).__name__}: {error}")
            return []
        self._metrics.shadow_windows.inc(len(own))
        self._watch_pace(challenger, self._clock() - begun, champion_s)
        return blocks

    def drop(self, partitions: set[int]) -> None:
        """Forget partitions that belong to somebody else now."""
        self._moments = {place: m for place, m in self._moments.items() if place[0] not in partitions}

    def _judge(
        self, challenger: Model, notice: WindowNotice, view: WindowView, followed: Callable[[WindowNotice], int]
    ) -> list[tuple[int, ScoreBlock]]:
        manifest, partition = challenger.manifest, notice.source.partition
        moments = self._moments.get((partition, notice.entity))
        if moments is None or moments.version != manifest.version:
            moments = initial_moments(manifest, challenger.calibration(notice.entity), followed(notice))
        decision = decide(manifest, challenger.numeric_names, notice, view, moments)
        self._moments[partition, notice.entity] = decision.moments
        return [(partition, block) for block in decision.blocks]

    def _watch_pace(self, challenger: Model, own_s: float, champion_s: float) -> None:
        """Compare the passes of a stretch, not windows: a pass over few windows takes longer for each."""
        manifest = challenger.manifest
        pace = self._pace.get(manifest.name)
        if pace is None or pace.version != manifest.version or pace.passes == _PASSES:
            pace = _Pace(manifest.version, 0, 0.0, 0.0)
        pace = _Pace(pace.version, pace.passes + 1, pace.own_s + own_s, pace.champion_s + champion_s)
        self._pace[manifest.name] = pace
        if pace.passes == _PASSES and pace.own_s > self._slowness * pace.champion_s:
            slower = f"{pace.own_s / pace.champion_s:.1f} times as long as the champion, allowed are {self._slowness:g}"
            self._models.drop_challenger(manifest.name, f"its share of the windows takes {slower}")


class _Pace(NamedTuple):
    """Seconds that challenger and champion took in the passes of a stretch."""

    version: str
    passes: int
    own_s: float
    champion_s: float


def is_drawn(notice: WindowNotice, share: float) -> bool:
    """Say whether a window is in the share that is tried, by entity and end slot alone, so that a replay agrees."""
    digest = hashlib.blake2b(f"{notice.entity}\n{notice.end_slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
