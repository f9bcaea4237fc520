"""Which rows are no example of normal: those of alarms. Reads no topic, knows no data set."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from detector.alerts import LEARNED
from stream.contracts import Alert

Intervals = Mapping[str, list[tuple[int, int]]]


def excluded(alerts: Iterable[Alert], family: str, end_ms: int, moved_ms: int | None = None) -> Intervals:
    """Return from when to when (exclusive) rows of each entity are left out: from firing to resolved, or to `end_ms`.

    An alarm that became the new level is normal from its end on and was normal in it. moved_ms: since when the whole
    family is different; an alarm that began later tells of that, and the new model has to learn it.
    """
    episodes: dict[str, list[Alert]] = defaultdict(list)
    for alert in alerts:
        if alert.family == family:
            episodes[alert.episode_id].append(alert)
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for messages in episodes.values():
        last = max(messages, key=lambda alert: alert.revision)
        start_ms = min(alert.starts_at_ms for alert in messages)
        tells_of_move = moved_ms is not None and start_ms >= moved_ms
        if not tells_of_move and LEARNED not in last.summary:
            stop_ms = end_ms if last.ends_at_ms is None else last.ends_at_ms + 1
            found[last.entity].append((start_ms, stop_ms))
    return {entity: sorted(intervals) for entity, intervals in found.items()}
