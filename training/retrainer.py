"""The retrainer: looks after the models of the families it owns, one decision after the other.

One round for a family: 1. read its history, 2. see how it stands, 3. ask for the next decision, 4. have its effect on
the registry, 5. record it there, 6. announce it. Killed between any two of them, the next round or another retrainer
does the same again: an effect may be had twice, and what is announced twice is the same record. The rules are in
`training.retraining`.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from detector.manifest import Manifest
from detector.registry import Registry
from stream.contracts import ModelEvent
from stream.metrics import Metrics
from stream.settings import FamilySettings, Settings
from training.exclusion import Intervals
from training.observation import Observation
from training.retrain_job import Job
from training.retraining import Move, Outcome, Standing, View, follow, next_move

_log = structlog.get_logger(__name__)

# Phases in which live scores are counted.
_COUNTED = ("shadowing", "on_probation")
# Decisions of people are told on `models`; should that be missed, they are found after so long.
_HISTORY_S = 10.0


class Jobs(Protocol):
    """Training processes, at most one a family."""

    def outcome(self, job: Job) -> Outcome | None:
        """Return how a job ended, None while it runs; start it, or go on with it, where nobody does."""

    def forget(self, family: str) -> None:
        """End a family's process, if there is one, and remove what it left."""

    def stop(self, family: str) -> None:
        """End a family's process, if there is one; what it left is gone on with."""


class Retrainer:
    """Decides for families; the outside world is passed in."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        jobs: Jobs,
        *,
        observe: Callable[[str], Observation],
        exclude: Callable[[str, int, int | None], Intervals],
        announce: Callable[[ModelEvent], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Know nothing yet. exclude(family, end_ms, moved_ms): see `training.exclusion.excluded`."""
        self._settings = settings
        self._registry = registry
        self._jobs = jobs
        self._observe = observe
        self._exclude = exclude
        self._announce = announce
        self._metrics = metrics
        self._clock = clock
        self._excluded: dict[tuple[str, int], Intervals] = {}
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._counting: dict[str, tuple[str, int]] = {}
        self._untold: dict[str, ModelEvent] = {}
        self._histories: dict[str, tuple[float, list[ModelEvent]]] = {}

    def since_ms(self, family: str) -> int | None:
        """Return from when on a family's live scores are counted; None while they are not."""
        standing = follow(self._history(family))
        return standing.since_ms if standing.phase in _COUNTED else None

    def advance(self, family: FamilySettings) -> ModelEvent | None:
        """Make the next decision about a family and return it; None where there is none.

        Raises TransientError where registry, archive or broker can't be used now: call again.
        """
        history = self._history(family.name)
        self._tell(family.name)
        standing = follow(history)
        view = self._view(family, standing)
        move = next_move(standing, view, self._settings.retraining)
        if move is None:
            return None
        self._have_effect(family.name, move, view)
        event = self._registry.record(self._event(family.name, move, standing, view))
        history.append(event)
        self._metrics.model_decisions.labels(family.name, event.kind).inc()
        _log.info("model_decision", **{k: v for k, v in _told(event).items() if v})
        if event.kind in ("failed", "announced"):
            self._jobs.forget(family.name)
        self._untold[family.name] = event
        self._tell(family.name)
        return event

    def release(self, family: str) -> None:
        """Leave a family to another retrainer."""
        self._jobs.stop(family)
        self.wake(family)
        self._counting.pop(family, None)
        self._untold.pop(family, None)

    def wake(self, family: str) -> None:
        """Read a family's history again in the next round: somebody else has decided something."""
        self._histories.pop(family, None)

    def _history(self, family: str) -> list[ModelEvent]:
        """Return a family's decisions; the newest may not have been announced by whoever made it."""
        read_at, history = self._histories.get(family, (float("-inf"), []))
        if self._clock() - read_at >= _HISTORY_S:
            known, history = len(history), self._registry.history(family)
            if history and not known:
                self._untold[family] = history[-1]
            self._histories[family] = self._clock(), history
        return history

    def _tell(self, family: str) -> None:
        if family in self._untold:
            self._announce(self._untold[family])
            del self._untold[family]

    def _view(self, family: FamilySettings, standing: Standing) -> View:
        name, observed = family.name, self._observe(family.name)
        champion = self._registry.alias(name, "champion")
        manifest = self._manifest(name, champion) if champion else None
        self._count(name, standing, observed, champion)
        return View(
            now_ms=round(self._clock() * 1000),
            interval_ms=family.interval_ms,
            champion=champion,
            champion_ms=manifest.created_ms if manifest else 0,
            drift=observed.drift,
            unknown=observed.unknown(entity.name for entity in manifest.entities) if manifest else 0.0,
            outcome=self._jobs.outcome(self._job(family, standing)) if standing.phase == "training" else None,
            champion_tally=observed.tally(champion),
            challenger_tally=observed.shadow(standing.version),
            newest_ms=observed.newest_ms,
        )

    def _count(self, family: str, standing: Standing, observed: Observation, champion: str | None) -> None:
        """Begin to count when a phase begins."""
        phase = standing.phase, standing.since_ms
        if standing.phase in _COUNTED and self._counting.get(family) != phase:
            versions = {version for version in (champion, standing.version) if version}
            observed.begin(standing.since_ms, {version: self._usual(family, version) for version in versions})
            self._counting[family] = phase

    def _usual(self, family: str, version: str) -> Mapping[str, float]:
        manifest = self._manifest(family, version)
        return {entity.name: entity.final.mean for entity in manifest.entities} | {"": manifest.unseen.final.mean}

    def _manifest(self, family: str, version: str) -> Manifest:
        place = family, version
        if place not in self._manifests:
            self._manifests = {other: kept for other, kept in self._manifests.items() if other[0] != family}
            self._manifests[place] = self._registry.manifest(family, version)
        return self._manifests[place]

    def _have_effect(self, family: str, move: Move, view: View) -> None:
        version = move.version or ""
        match move.kind:
            case "shadowing" | "waiting":
                self._registry.set_alias(family, "challenger", version)
            case "promoted" if view.champion != version:
                self._registry.promote(family, version)
            case "rejected" if self._registry.alias(family, "challenger") == version:
                self._registry.clear_alias(family, "challenger")
            case "rolled_back" if view.champion == version:
                self._registry.rollback(family)

    def _event(self, family: str, move: Move, standing: Standing, view: View) -> ModelEvent:
        return ModelEvent(
            kind=move.kind,
            family=family,
            version=move.version,
            champion=view.champion if move.kind == "training" else standing.champion,
            at_ms=view.now_ms,
            reason=move.reason,
            detail=move.detail,
            data_sha256=move.data_sha256 or standing.data_sha256,
            start_ms=move.start_ms,
            gates=list(move.gates),
        )

    def _job(self, family: FamilySettings, standing: Standing) -> Job:
        retraining = self._settings.retraining
        return Job(
            registry=self._settings.registry,
            family=family.model_dump(),
            retraining=retraining.model_dump() | {"data": retraining.data or self._settings.archive.url},
            at_ms=standing.since_ms,
            start_ms=standing.start_ms,
            exclude=self._exclusion(family.name, standing),
            champion=standing.champion,
            device=self._settings.worker.device,
        )

    def _exclusion(self, family: str, standing: Standing) -> Intervals:
        place = family, standing.since_ms
        if place not in self._excluded:
            moved_ms = standing.start_ms if standing.reason == "drift" else None
            self._excluded = {place: self._exclude(family, standing.since_ms, moved_ms)}
        return self._excluded[place]


def _told(event: ModelEvent) -> dict[str, object]:
    names = ("family", "kind", "version", "champion", "reason", "detail")
    return {name: getattr(event, name) for name in names}
