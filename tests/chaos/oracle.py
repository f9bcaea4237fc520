"""What readers must see, worked out from what was sent and from the written contract alone.

Shares no code with the pipeline's windowing: it finds lives, finished windows and their content by itself, asks the
network for the scores of windows it cut, and compares with what committed readers got. The rules it knows are those of
`docs/formats.md` and of the docstrings in `stream/contracts.py` and `stream/grid.py`:

- a slot of a row has one provisional score, of the first window (they end where `(end + 1) % hop == 0`) that holds it,
  and one final score, of the first window that also holds the `final_delay` slots after it;
- a window is finished once no row of it may still come: rows lag at most `lateness` slots behind the newest one;
- a silence of more than `slack - hop - lateness` slots begins a new life, which knows no row of the one before;
- a row more than `max_jump` slots (and more than such a silence) from its entity's newest one is a dead letter, unless
  it is the last of `jump_rows` in a row, each later than the one before and none farther than that from it: with that
  row the entity begins anew, wherever it is;
- of two rows with one slot the later one counts; a row behind a finished window is a dead letter, as is a broken one;
- a record of many rows is taken or refused as its first row is, and refused where that lags more than the lateness.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.decision import initial_moments, sigmas_in_force
from detector.engine import WindowBatch
from detector.floor import Floor, floor_rule, follow_floor
from detector.levels import Level, follow_level
from detector.models import Model
from stream.contracts import Alert, ScoreBlock
from tests.chaos.workload import INTERVAL_MS, Sending

TOLERANCE = 1e-4
_BATCH = 64
_EXAMPLES = 5


class Found(NamedTuple):
    """What committed readers got, in the order they got it. dead_letters: the refused records' own bytes."""

    blocks: Sequence[ScoreBlock]
    alerts: Sequence[Alert]
    dead_letters: Sequence[bytes]


class Difference:
    """What is missing, there more than once, or wrong; with the first few of each."""

    def __init__(self) -> None:
        """Begin with none."""
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def note(self, kind: str, what: str, count: int = 1) -> None:
        """Count a difference."""
        self.counts[kind] += count
        if count and sum(line.startswith(kind) for line in self.examples) < _EXAMPLES:
            self.examples.append(f"{kind}: {what}")

    @property
    def none(self) -> bool:
        """Whether the pipeline kept its promise."""
        return not sum(self.counts.values())


Stretch = tuple[str, int]  # an entity, and how many times its clock has jumped


class Window(NamedTuple):
    """One finished window of an entity, cut here. rows: index of its rows among those of the stretch, ascending."""

    stretch: Stretch
    end: int
    rows: NDArray[np.intp]


class _Series:
    """The rows that count between two jumps of an entity's clock, and what must be said of each.

    ended: by a jump. score arrays: NaN where nothing is said.
    """

    def __init__(self, sent: Sequence[Sending], *, ended: bool) -> None:
        self.ended = ended
        last = {slot: values for one in sent for slot, values in one.rows}
        self.slots = np.array(sorted(last), dtype=np.int64)
        self.values = np.array([last[slot] for slot in self.slots.tolist()], dtype=np.float32)
        self.scores = {stage: np.full(len(last), np.nan) for stage in ("provisional", "final")}
        self.life = np.zeros(len(last), dtype=np.int64)


class Oracle:
    """The expected answer to one workload."""

    def __init__(self, model: Model, records: Iterable[Sending]) -> None:
        """Work out every score; takes about a second for 15,000 rows."""
        self._model = model
        self._geometry = model.manifest.geometry
        by_entity: dict[str, list[Sending]] = defaultdict(list)
        self._refused: Counter[bytes] = Counter()
        for one in records:
            if one.kind in ("late", "broken"):
                self._refused[one.payload] += 1
            if one.kind != "broken":
                by_entity[one.entity].append(one)
        self._series: dict[Stretch, _Series] = {}
        for entity, sent in by_entity.items():
            stretches = list(self._stretches(sent))
            for number, rows in enumerate(stretches):
                self._series[entity, number] = _Series(rows, ended=number < len(stretches) - 1)
        self._score()

    @property
    def scored_rows(self) -> int:
        """How many scores, provisional and final ones together, there must be."""
        known = [~np.isnan(scores) for series in self._series.values() for scores in series.scores.values()]
        return int(sum(row.sum() for row in known))

    def compare(self, found: Found, *, only_scores: bool = False) -> Difference:
        """Compare what readers got with what they must get.

        only_scores: not what is judged from them, which depends on when a new model version comes.
        """
        difference = Difference()
        self._compare_scores(found.blocks, difference)
        if not only_scores:
            self._compare_verdicts(found.blocks, difference)
            _compare_alerts(found, self._model, difference)
        _compare_letters(self._refused, Counter(found.dead_letters), difference)
        return difference

    def _stretches(self, sent: Sequence[Sending]) -> Iterator[list[Sending]]:
        """Split an entity's rows where its clock jumps for good, and refuse those that jump by themselves."""
        geometry = self._geometry
        far = max(geometry.max_jump, geometry.slack - geometry.hop - geometry.lateness)
        near: list[Sending] = []
        away: list[int] = []
        newest = sent[0].slot
        for one in sent:
            if abs(one.slot - newest) <= far:
                away = []
            else:
                if away and abs(one.slot - away[-1]) > far:
                    away = []
                if not away or one.slot > away[-1]:
                    away.append(one.slot)
                if len(away) < geometry.jump_rows:
                    self._refused[one.payload] += 1
                    continue
                yield near
                near, away, newest = [], [], one.slot
            if one.kind == "late":
                newest = max(newest, one.slot)
            else:
                newest = max(newest, one.rows[-1][0])
                near.append(one)
        yield near

    def _score(self) -> None:
        todo: list[Window] = []
        for stretch in self._series:
            for window in self._windows(stretch):
                todo.append(window)
                if len(todo) == _BATCH:
                    self._score_windows(todo)
                    todo = []
        if todo:
            self._score_windows(todo)

    def _windows(self, stretch: Stretch) -> Iterator[Window]:
        """Find lives and finished windows of an entity between two jumps of its clock."""
        series, geometry = self._series[stretch], self._geometry
        longest = geometry.slack - geometry.hop - geometry.lateness
        series.life[1:] = np.cumsum(np.diff(series.slots) > longest)
        for life in range(int(series.life[-1]) + 1):
            index = np.flatnonzero(series.life == life)
            slots = series.slots[index]
            ends = np.unique(np.concatenate([self._end_from(slots), self._end_from(slots + geometry.final_delay)]))
            if life == series.life[-1] and not series.ended:
                ends = ends[ends <= self._finished(slots)]
            for end in ends.tolist():
                yield Window(stretch, end, index[(slots > end - geometry.length) & (slots <= end)])

    def _end_from(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first window end at or after each slot."""
        hop = self._geometry.hop
        return -(-(slots + 1) // hop) * hop - 1

    def _finished(self, slots: NDArray[np.int64]) -> int:
        """Return the newest slot up to which every row has come that may come."""
        oldest_to_come = int(slots[-1]) - self._geometry.lateness
        return oldest_to_come if oldest_to_come in slots else oldest_to_come - 1

    def _score_windows(self, windows: Sequence[Window]) -> None:
        length = self._geometry.length
        values = np.full((len(windows), 2, length), np.nan, dtype=np.float32)
        for number, (stretch, end, rows) in enumerate(windows):
            series = self._series[stretch]
            values[number][:, series.slots[rows] - (end - length + 1)] = series.values[rows].T
        ends = np.array([window.end for window in windows], dtype=np.int64)
        scores = self._model.detector.score(WindowBatch([window.stretch[0] for window in windows], ends, values))
        for number, (stretch, end, rows) in enumerate(windows):
            series = self._series[stretch]
            for stage, delay, row in (
                ("provisional", 0, scores.provisional[number]),
                ("final", self._geometry.final_delay, scores.final[number]),
            ):
                decided = rows[self._end_from(series.slots[rows] + delay) == end]
                series.scores[stage][decided] = row[series.slots[decided] - (end - length + 1)]

    def _compare_scores(self, blocks: Iterable[ScoreBlock], difference: Difference) -> None:
        seen: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        told: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for block in blocks:
            key = block.entity, block.stage
            for slot, score in enumerate(block.scores, start=block.start_slot):
                seen[key][slot] += 1
                if score is not None:
                    told[key][slot] = score
        for key, slots in seen.items():
            for slot, times in slots.items():
                if times > 1:
                    difference.note("repeated", f"{key} slot {slot}, {times} times", times - 1)
        wanted = self._wanted()
        for key, by_slot in wanted.items():
            _compare_rows(key, by_slot, told[key], difference)
        for entity, stage in told.keys() - wanted.keys():
            difference.note("wrong", f"scores of {entity}, {stage}, which nobody sent")

    def _wanted(self) -> dict[tuple[str, str], dict[int, float]]:
        """Return the score of each slot by entity and stage."""
        wanted: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for (entity, _), series in self._series.items():
            for stage, scores in series.scores.items():
                known = zip(series.slots.tolist(), scores.tolist(), strict=True)
                wanted[entity, stage].update((slot, score) for slot, score in known if score == score)
        return wanted

    def _compare_verdicts(self, blocks: Iterable[ScoreBlock], difference: Difference) -> None:
        """Fold the published scores again: every threshold must follow from the scores published before it."""
        manifest = self._model.manifest
        levels: dict[tuple[str, str], Level] = {}
        floors: dict[tuple[str, str], Floor | None] = {}
        for block in blocks:
            rule = manifest.decision
            start = initial_moments(manifest, self._model.calibration(block.entity))
            provisional = block.stage == "provisional"
            level = levels.get((block.entity, block.stage)) or Level(
                start.provisional if provisional else start.final, start.provisional_stretch
            )
            key, peaks = (block.entity, block.stage), floor_rule(manifest, block.stage)
            floor = floors.get(key, start.provisional_floor if provisional else start.final_floor)
            sigmas = sigmas_in_force(manifest, block.stage, floor)
            threshold = level.moments.mean + sigmas * level.moments.deviation
            if abs(block.threshold - threshold) > 1e-3 * max(1.0, abs(threshold)):
                at = f"{block.entity} {block.stage} from slot {block.start_slot}"
                difference.note("wrong", f"threshold of {at}: {block.threshold}, wanted {threshold}")
            scores = np.array([np.nan if s is None else s for s in block.scores])
            levels[key] = follow_level(level, scores, rule, alarmed=any(block.preds))
            if peaks is not None and floor is not None and not block.learning:
                z = (scores - level.moments.mean) / max(level.moments.deviation, 1e-9)
                floors[key] = follow_floor(floor, z, sigmas, peaks)


def _compare_rows(
    key: tuple[str, str], wanted: dict[int, float], told: dict[int, float], difference: Difference
) -> None:
    for slot, score in wanted.items():
        if slot not in told:
            difference.note("missing", f"{key} slot {slot}")
        elif not abs(told[slot] - score) <= TOLERANCE * max(1.0, abs(score)):
            difference.note("wrong", f"{key} slot {slot}: {told[slot]}, wanted {score}")
    for slot in told.keys() - wanted.keys():
        difference.note("wrong", f"{key} slot {slot} has a score, wanted none")


def _compare_alerts(found: Found, model: Model, difference: Difference) -> None:
    """Check that every episode is told once and whole, and that alerts and verdicts speak of the same slots."""
    for name, times in Counter(alert.id for alert in found.alerts).items():
        if times > 1:
            difference.note("repeated", f"alert {name}, {times} times", times - 1)
    episodes: dict[str, list[Alert]] = defaultdict(list)
    for alert in found.alerts:
        episodes[alert.episode_id].append(alert)
    for name, messages in episodes.items():
        _compare_episode(name, messages, difference)
    by_entity: dict[str, list[list[Alert]]] = defaultdict(list)
    for messages in episodes.values():
        by_entity[messages[0].entity].append(messages)
    verdicts: dict[str, set[int]] = defaultdict(set)
    fronts: dict[str, int] = defaultdict(int)
    for block in found.blocks:
        flagged = [block.start_slot + i for i, pred in enumerate(block.preds) if pred]
        verdicts[block.entity].update(flagged)
        if block.stage == "final":
            fronts[block.entity] = max(fronts[block.entity], block.start_slot + len(block.scores) - 1)
    for entity in by_entity.keys() | verdicts.keys():
        _compare_spans(entity, by_entity[entity], sorted(verdicts[entity]), fronts[entity], model, difference)


def _compare_episode(name: str, messages: list[Alert], difference: Difference) -> None:
    revisions = [alert.revision for alert in messages]
    states = [alert.state for alert in messages]
    if revisions != list(range(len(messages))):
        difference.note("missing" if len(set(revisions)) <= max(revisions) else "wrong", f"{name}: {revisions}")
    if states[0] != "firing" or "firing" in states[1:] or "resolved" in states[:-1]:
        difference.note("wrong", f"episode {name} goes {', '.join(states)}")


def _compare_spans(
    entity: str, episodes: list[list[Alert]], flagged: list[int], front: int, model: Model, difference: Difference
) -> None:
    geometry, rule = model.manifest.geometry, model.manifest.decision
    spans: list[tuple[int, float]] = []
    for messages in episodes:
        first, ends = messages[0].starts_at_ms // INTERVAL_MS, messages[-1].ends_at_ms
        spans.append((first, float("inf") if ends is None else ends // INTERVAL_MS))
        if first not in flagged:
            difference.note("wrong", f"an episode of {entity} starts at slot {first}, which no score calls anomalous")
        # One that was told to have become normal waits until its new level has settled.
        learned = any(alert.adapting and alert.state == "updated" for alert in messages)
        wait = max(rule.resolve_after, rule.adapt_after) if learned else rule.resolve_after
        if ends is None and front >= max((slot for slot in flagged if slot >= first), default=front) + wait:
            difference.note("missing", f"the end of an episode of {entity} from slot {first}")
    # A final score may call slots anomalous that lie before the provisional one which opened the episode.
    before = geometry.final_delay + geometry.hop
    for slot in flagged:
        if not any(first - before <= slot <= last for first, last in spans):
            difference.note("missing", f"an alert of {entity} for slot {slot}")


def _compare_letters(wanted: Counter[bytes], got: Counter[bytes], difference: Difference) -> None:
    for payload in wanted.keys() | got.keys():
        if got[payload] < wanted[payload]:
            difference.note("missing", f"dead letter {payload!r}", wanted[payload] - got[payload])
        elif not wanted[payload]:
            difference.note("wrong", f"dead letter {payload!r} of a good row", got[payload])
        elif got[payload] > wanted[payload]:
            difference.note("repeated", f"dead letter {payload!r}", got[payload] - wanted[payload])
