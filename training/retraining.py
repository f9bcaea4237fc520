"""When a family's model is trained, tried, promoted and taken back: a fold over decisions, and the next decision.

Pure: no clock, no registry, no process. All it remembers is the family's history, so whoever reads that goes on where
another stopped. A decision is recorded after its effect, which may be had twice; `next_move` asks for the same again
until it is recorded.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from stream.contracts import Gate, ModelEvent, ModelEventKind
from stream.retraining_settings import RetrainingSettings
from training.gates import Tally, explain, failed, judge_probation, judge_shadow

Phase = Literal["idle", "training", "announced", "waiting", "shadowing", "promoted", "on_probation"]

_DAY_MS = 86_400_000
_MINUTE_MS = 60_000
# Of the slots of a probation, the share after which a champion that misbehaves is taken back early.
_EARLY_SHARE = 0.05
# After a drift so many times the rows are waited for that an entity must have: the newest are not in the archive yet,
# and of some there are gaps.
_AMPLE = 1.25
BY_HAND = "by hand"


class Standing(NamedTuple):
    """How a family stands after its decisions. since_ms: of the phase. ended_ms: of the last attempt.

    version: the model that the phase is about. champion: the one before it. failures: attempts in a row that changed
    nothing. requested_ms: when somebody asked for a model that is not being made yet.
    """

    phase: Phase = "idle"
    since_ms: int = 0
    version: str | None = None
    champion: str | None = None
    reason: str = ""
    start_ms: int = 0
    data_sha256: str = ""
    gates: tuple[Gate, ...] = ()
    ended_ms: int | None = None
    failures: int = 0
    requested_ms: int | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a training process ended: a version with its gates, or why there is none."""

    version: str | None = None
    data_sha256: str = ""
    gates: list[Gate] = []
    failure: str = ""


class Drift(NamedTuple):
    """A drift that was called on a version: when, and since when rows are different."""

    version: str
    detected_ms: int
    first_ms: int


class View(NamedTuple):
    """All that a decision rests on. champion_tally, challenger_tally: live scores since the phase began.

    champion_ms: when the champion was made. unknown: share of the live entities that the champion does not know.
    newest_ms: how far the rows are, None if that is not known: a replay or a backlog has a time of its own.
    """

    now_ms: int
    interval_ms: int
    champion: str | None
    champion_ms: int = 0
    drift: Drift | None = None
    unknown: float = 0.0
    outcome: Outcome | None = None
    champion_tally: Tally = Tally()
    challenger_tally: Tally = Tally()
    newest_ms: int | None = None


class Move(NamedTuple):
    """The next decision, and what goes with it."""

    kind: ModelEventKind
    version: str | None = None
    reason: str = ""
    detail: str = ""
    start_ms: int = 0
    gates: tuple[Gate, ...] = ()
    data_sha256: str = ""


def follow(history: Iterable[ModelEvent]) -> Standing:
    """Fold a family's decisions, oldest first."""
    standing = Standing()
    for event in history:
        standing = _follow(standing, event)
    return standing


def _follow(before: Standing, event: ModelEvent) -> Standing:
    after = before
    match event.kind:
        case "requested":
            after = before._replace(requested_ms=event.at_ms)
        case "training":
            after = Standing(
                "training",
                event.at_ms,
                champion=event.champion,
                reason=event.reason,
                start_ms=event.start_ms,
                ended_ms=before.ended_ms,
                failures=before.failures,
            )
        case "failed" | "rejected" | "rolled_back" if before.phase != "idle":
            after = _ended(before, event, before.failures + 1)
        case "kept":
            after = _ended(before, event, 0)
        case "announced":
            after = before._replace(
                phase="announced",
                since_ms=event.at_ms,
                version=event.version,
                gates=tuple(event.gates),
                data_sha256=event.data_sha256,
            )
        case "waiting" | "shadowing" | "promoted" | "on_probation" if event.version == before.version:
            after = before._replace(phase=event.kind, since_ms=event.at_ms)
    return after  # a person's decision about another version is no part of an attempt


def _ended(before: Standing, event: ModelEvent, failures: int) -> Standing:
    return Standing(ended_ms=event.at_ms, failures=failures, requested_ms=before.requested_ms)


def next_move(standing: Standing, view: View, settings: RetrainingSettings) -> Move | None:
    """Return the next decision, None while there is nothing to decide."""
    move = _move(standing, view, settings)
    return move and move._replace(reason=move.reason or standing.reason)


def _move(standing: Standing, view: View, settings: RetrainingSettings) -> Move | None:
    match standing.phase:
        case "idle":
            return _begin(standing, view, settings)
        case "training":
            return _finish(view.outcome)
        case "announced":
            return _try(standing, settings)
    return _overtaken(standing, view) or _judged(standing, view, settings)


def _judged(standing: Standing, view: View, settings: RetrainingSettings) -> Move | None:
    match standing.phase:
        case "shadowing":
            return _compare(standing, view, settings)
        case "promoted":
            return Move("on_probation", standing.version)
        case "on_probation":
            return _watch(standing, view, settings)
    return None


def _begin(standing: Standing, view: View, settings: RetrainingSettings) -> Move | None:
    oldest_ms = view.now_ms - round(settings.history_days * _DAY_MS)
    if standing.requested_ms is not None:
        return Move("training", reason=BY_HAND, start_ms=oldest_ms)
    if view.champion is None or view.now_ms < rested_ms(standing, settings):
        return None
    drift = view.drift if settings.on_drift else None
    if drift is not None and drift.version == view.champion:
        # Only rows since then are what normal is now; of those there must be enough.
        enough_ms = drift.first_ms + round(_AMPLE * settings.minimum_rows * view.interval_ms)
        begin = Move("training", reason="drift", start_ms=max(oldest_ms, drift.first_ms))
        return begin if (view.newest_ms or view.now_ms) >= enough_ms else None
    if settings.new_entities and view.unknown >= settings.new_entities:
        detail = f"{view.unknown:.0%} of the entities are unknown to the champion"
        return Move("training", reason="entities", detail=detail, start_ms=oldest_ms)
    old = settings.max_age_days and view.now_ms - view.champion_ms > settings.max_age_days * _DAY_MS
    return Move("training", reason="age", start_ms=oldest_ms) if old else None


def rested_ms(standing: Standing, settings: RetrainingSettings) -> int:
    """Return from when on a family may be trained again: after the cool-down, and longer after failures in a row."""
    if standing.ended_ms is None:
        return 0
    waits = [settings.cool_down_minutes * _MINUTE_MS]
    if standing.failures:
        waits.append(min(settings.back_off_minutes * _MINUTE_MS * 2.0 ** min(standing.failures - 1, 30), _DAY_MS))
    return standing.ended_ms + round(max(waits))


def _finish(outcome: Outcome | None) -> Move | None:
    if outcome is None:
        return None
    if outcome.version is None:
        return Move("failed", detail=outcome.failure)
    return Move("announced", outcome.version, gates=tuple(outcome.gates), data_sha256=outcome.data_sha256)


def _try(standing: Standing, settings: RetrainingSettings) -> Move:
    if failed(standing.gates):
        return Move("rejected", standing.version, detail=explain(standing.gates), gates=standing.gates)
    if settings.approval == "manual":
        return Move("waiting", standing.version, detail="all gates passed; `telltale models promote` makes it champion")
    return Move("shadowing" if settings.shadow_share else "promoted", standing.version)


def _overtaken(standing: Standing, view: View) -> Move | None:
    """Record what happened to the aliases before it could be written down, or by another hand."""
    tried, now = standing.phase in ("waiting", "shadowing"), view.champion
    if tried and now == standing.version:
        return Move("promoted", standing.version)
    if tried and now != standing.champion:
        return Move(
            "rejected", standing.version, detail=f"it was tried beside {standing.champion}, and now there is {now}"
        )
    if not tried and now != standing.version:
        return Move("rolled_back", standing.version, detail=f"the champion is {now} now")
    return None


def _compare(standing: Standing, view: View, settings: RetrainingSettings) -> Move | None:
    over = view.now_ms - standing.since_ms > settings.shadow_minutes * _MINUTE_MS
    if view.challenger_tally.slots < settings.shadow_slots and not over:
        return None
    gates = judge_shadow(view.challenger_tally, view.champion_tally, settings.shadow_slots, settings.gates)
    kind: ModelEventKind = "rejected" if failed(gates) else "promoted"
    return Move(kind, standing.version, detail=explain(gates), gates=tuple(gates))


def _watch(standing: Standing, view: View, settings: RetrainingSettings) -> Move | None:
    tally, gates = view.champion_tally, tuple(judge_probation(view.champion_tally, settings.gates))
    if failed(gates) and tally.slots >= settings.probation_slots * _EARLY_SHARE:
        return Move("rolled_back", standing.version, detail=explain(gates), gates=gates)
    over = view.now_ms - standing.since_ms > settings.probation_minutes * _MINUTE_MS
    if over or tally.slots >= settings.probation_slots:
        return Move("kept", standing.version, detail=f"{tally.slots} slots on probation", gates=gates)
    return None
