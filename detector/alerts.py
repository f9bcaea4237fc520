"""The life of an anomalous episode: firing, updated, resolved. A pure fold over hits: no broker, no clock, no store.

Time line, resolve_after 3 (P provisional hit, F final hit, numbers are slots of the final front):

    hits      P . . F F . . .
    message   firing    updated (rests on a final score now)    resolved, three normal final slots later

An alarm that lasts until its scores count as normal is told once more, as adapting. Its episode then waits for as many
normal slots as an alarm takes to be adapted to: what comes until the new level has settled is the same episode.
"""

from typing import NamedTuple

import msgspec

from detector.decision import Hit
from detector.manifest import DecisionConfig, Manifest
from stream.contracts import Alert, AlertState, ModelRef, Severity, Stage, WindowNotice, episode_id

# In the summary of an alarm that ended because its level counts as normal.
LEARNED = "new level learned"
# Deviations above the mean of the entity's scores from which an episode counts as more than a warning.
_ERROR_Z = 8.0
_CRITICAL_Z = 20.0
_RANK: dict[Severity, int] = {"warning": 0, "error": 1, "critical": 2}


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """An open episode; the peak is that of its most deviating hit. adapted: it lasted until it counted as normal."""

    id: str
    first_slot: int
    last_slot: int
    revision: int
    severity: Severity
    rests_on: Stage
    peak: Hit
    adapted: bool = False


class Step(NamedTuple):
    """The episode after a window, None when none is open, and the messages to publish."""

    episode: Episode | None
    alerts: list[Alert]


def advance(
    manifest: Manifest,
    deployment: str,
    notice: WindowNotice,
    hits: list[Hit],
    episode: Episode | None,
    missing_fraction: float,
    *,
    adapting: bool = False,
) -> Step:
    """Follow an entity's episode by one window: open, update or resolve it.

    adapting: the entity is judged by a level that it has moved to.
    """

    def message(state: AlertState, of: Episode) -> Alert:
        return _alert(state, of, manifest, notice, missing_fraction, adapting=adapting)

    alerts: list[Alert] = []
    if episode is not None and notice.end_slot < episode.first_slot:  # the entity's clock went back
        alerts.append(message("resolved", msgspec.structs.replace(episode, revision=episode.revision + 1)))
        episode = None
    if hits:
        before = episode
        episode = _open(deployment, notice, hits) if episode is None else _extend(episode, hits)
        if before is None:
            alerts.append(message("firing", episode))
        elif _news(episode) != _news(before):
            episode = msgspec.structs.replace(episode, revision=before.revision + 1)
            alerts.append(message("updated", episode))
    if episode is not None and _is_over(episode, notice, manifest.decision):
        episode = msgspec.structs.replace(episode, revision=episode.revision + 1)
        alerts.append(message("resolved", episode))
        episode = None
    return Step(episode, alerts)


def severity_of(z: float) -> Severity:
    """Grade a deviation."""
    return "critical" if z >= _CRITICAL_Z else "error" if z >= _ERROR_Z else "warning"


def _open(deployment: str, notice: WindowNotice, hits: list[Hit]) -> Episode:
    first = min(hit.first_slot for hit in hits)
    peak = max(hits, key=lambda hit: hit.z)
    return Episode(
        id=episode_id(deployment, notice.entity, first),
        first_slot=first,
        last_slot=max(hit.last_slot for hit in hits),
        revision=0,
        severity=severity_of(peak.z),
        rests_on=_stage(hits),
        peak=peak,
        adapted=any(hit.adapted for hit in hits),
    )


def _extend(episode: Episode, hits: list[Hit]) -> Episode:
    peak = max([episode.peak, *hits], key=lambda hit: hit.z)
    severity = max(episode.severity, severity_of(peak.z), key=_RANK.__getitem__)
    return msgspec.structs.replace(
        episode,
        last_slot=max(episode.last_slot, *(hit.last_slot for hit in hits)),
        severity=severity,
        rests_on="final" if episode.rests_on == "final" else _stage(hits),
        peak=peak,
        adapted=episode.adapted or any(hit.adapted for hit in hits),
    )


def _stage(hits: list[Hit]) -> Stage:
    return "final" if any(hit.stage == "final" for hit in hits) else "provisional"


def _news(episode: Episode) -> tuple[Severity, Stage, bool]:
    return episode.severity, episode.rests_on, episode.adapted


def _is_over(episode: Episode, notice: WindowNotice, rule: DecisionConfig) -> bool:
    """Say whether the final scores have passed the last anomalous slot by enough normal ones."""
    wait = max(rule.resolve_after, rule.adapt_after) if episode.adapted else rule.resolve_after
    return notice.end_slot - notice.final_delay >= episode.last_slot + wait


def _alert(
    state: AlertState,
    episode: Episode,
    manifest: Manifest,
    notice: WindowNotice,
    missing_fraction: float,
    *,
    adapting: bool,
) -> Alert:
    interval, peak = notice.interval_ms, episode.peak
    return Alert(
        state=state,
        episode_id=episode.id,
        revision=episode.revision,
        entity=notice.entity,
        family=notice.family,
        severity=episode.severity,
        summary=_summary(state, episode, notice.entity, moved=adapting),
        starts_at_ms=episode.first_slot * interval,
        ends_at_ms=episode.last_slot * interval if state == "resolved" else None,
        observed_at_ms=notice.end_slot * interval,
        rests_on=episode.rests_on,
        score=peak.score,
        threshold=peak.threshold,
        p_value=peak.p_value,
        channels=peak.channels,
        model=ModelRef(manifest.name, manifest.version),
        window_start_ms=(notice.end_slot - notice.length + 1) * interval,
        window_end_ms=notice.end_slot * interval,
        missing_fraction=round(missing_fraction, 4),
        source=notice.source,
        commands=list(peak.commands),
        adapting=adapting or episode.adapted,
    )


def _summary(state: AlertState, episode: Episode, entity: str, *, moved: bool) -> str:
    if episode.adapted:
        now = LEARNED if state == "resolved" else "quiet until its level has settled"
        return f"adapting: {entity} has deviated for so long that this counts as normal from now on: {now}"
    if state == "resolved":
        return f"{entity} behaves normally again"
    return _what(episode, entity) + ("; adapting: its level has moved since training" if moved else "")


def _what(episode: Episode, entity: str) -> str:
    if not episode.peak.channels:
        return f"{entity} behaves unlike its normal self"
    top = episode.peak.channels[0]
    observed = "missing" if top.observed is None else f"{top.observed:.4g}"
    return f"{entity}: {top.channel} is {observed}, expected {top.low:.4g} to {top.high:.4g}{_commanded(episode.peak)}"


def _commanded(peak: Hit) -> str:
    """Say whether the commands around the peak account for its first channel."""
    if not peak.commands:
        return ""
    share = peak.channels[0].explained or 0
    return f"; {', '.join(peak.commands)} commanded, which explains {share:.0%} of it"
