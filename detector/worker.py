"""Window notices to scores and alerts. Owns the order of the work; knows no slot arithmetic and no network.

One batch: 1. read the windows as of their end slots, 2. score them together, 3. judge each entity's windows in order,
and find out what commands have to do with those that may alarm, 4. one transaction with score blocks, alerts, block
summaries, the changed decision states, what a challenger made of some windows, and the notices' offsets. The states
live in a compacted topic written in that transaction, so a successor starts from exactly what was published.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from operator import attrgetter
from typing import NamedTuple, cast

import msgspec
import structlog
import torch

from detector.alerts import Episode, Step, advance
from detector.blocks import WindowView, unscored
from detector.command_effect import Question, explain_by_commands
from detector.decision import Decision, SeriesMoments, decide, initial_moments
from detector.engine import Detector
from detector.models import Model, Models, choose_device
from detector.registry import Registry
from detector.shadow import Shadow
from detector.summary import NO_TALLY, ScoreTally, summarise, tally
from stream.contracts import Alert, ModelRef, ScoreBlock, WindowNotice, cloud_event_headers
from stream.errors import TransientError, UsageError
from stream.kafka import BY_KEY, Outgoing, Record, read_to_end
from stream.loop import Progress
from stream.metrics import Health, Metrics
from stream.ring import Layout
from stream.service import Service, run_service
from stream.settings import Settings
from stream.topics import ALERTS, DECISIONS, SCORES, SHADOW_SCORES, SUMMARIES, USES, WINDOWS, Topic, topic_name
from stream.waiting import Stopping, never, wait_until
from stream.window_store import RingRef, Window, WindowRequest, WindowStore, connect

_log = structlog.get_logger()
_ENCODER = msgspec.json.Encoder()
_NOTICE = msgspec.json.Decoder(WindowNotice)
# A window whose rows are not all there is being rebuilt by the windower; it is asked for again so often.
_INCOMPLETE_POLL_S = 0.1
# Of one batch of windows: the first of them waits for the last.
_BATCH_S = 0.2
# After so long the loop joins again, which keeps it live and lets it give up after its deadline.
_INCOMPLETE_S = 5.0


class EntityState(msgspec.Struct, frozen=True):
    """What judging an entity's next window needs to know of the earlier ones."""

    moments: SeriesMoments
    episode: Episode | None = None
    tally: ScoreTally = NO_TALLY


_STATE = msgspec.json.Decoder(EntityState)
StateReader = Callable[[int], Iterable[tuple[str, EntityState]]]


class _Scored(NamedTuple):
    notice: WindowNotice
    model: Model
    window: Window
    view: WindowView


class _Place(NamedTuple):
    """A window of a batch, with the partition it was announced in; not scored for want of a model."""

    partition: int
    scored: _Scored | None
    notice: WindowNotice


class Worker:
    """A stage of the transactional loop: implements `stream.loop.Stage`."""

    def __init__(
        self, settings: Settings, store: WindowStore, models: Models, read_states: StateReader, metrics: Metrics
    ) -> None:
        """Own no partition yet. read_states(partition): the committed states of a partition's entities."""
        self._settings = settings
        self._families = {family.name: family for family in settings.families}
        self._store = store
        self._models = models
        self._read_states = read_states
        self._metrics = metrics
        self._states: dict[int, dict[str, EntityState]] = {}
        self._topics = {topic: topic_name(settings.topics, topic) for topic in USES["worker"].writes}
        retraining = settings.retraining
        self._shadow = Shadow(models, retraining.shadow_share, retraining.shadow_slowness, metrics)
        self._aside: list[Outgoing] = []
        self._triggers: list[int] = []

    def restore(self, partition: int, committed: int, low: int) -> int:
        """Read the states that belong to the committed offset."""
        self._states[partition] = dict(self._read_states(partition))
        return committed

    def replay(self, partition: int, records: Sequence[Record]) -> None:
        """Refuse: the worker starts at the committed offset, so nothing lies below it."""
        raise AssertionError(f"{len(records)} notices of partition {partition} lie below the committed offset")

    def process(self, records: Sequence[Record]) -> Progress:
        """Score a batch of windows."""
        self._models.refresh()
        notices = [_NOTICE.decode(record.value or b"") for record in records]
        self._aside = []
        scored = {id(one.notice): one for one in self._score(notices)}
        windows = [_Place(record.partition, scored.get(id(n)), n) for record, n in zip(records, notices, strict=True)]
        decisions = self._decide(windows)
        self._explain(windows, decisions)
        outgoing: list[Outgoing] = []
        changed: dict[tuple[int, str], EntityState] = {}
        for window, decision in zip(windows, decisions, strict=True):
            if decision is None:
                outgoing += self._blocks(window.partition, unscored(window.notice))
                self._metrics.unscored_windows.inc()
                continue
            state, messages = self._follow(window, decision)
            changed[window.partition, window.notice.entity] = state
            self._states[window.partition][window.notice.entity] = state
            outgoing += messages
        outgoing += [self._state_message(partition, entity, state) for (partition, entity), state in changed.items()]
        outgoing += self._aside
        self._triggers = [notice.trigger_ms for notice in notices]
        return Progress(outgoing, {record.partition: record.offset + 1 for record in records}, [])

    def check(self) -> None:
        """Take a new champion."""
        self._models.refresh()

    def committed(self, delivered: Sequence[tuple[Outgoing, int]]) -> None:
        """Measure how long the rows of the batch took to their scores."""
        now_ms = time.time() * 1000
        for trigger_ms in self._triggers:
            self._metrics.end_to_end_latency.observe(max(0.0, now_ms - trigger_ms) / 1000)
        self._triggers = []

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget partitions that belong to somebody else now."""
        dropped = set(partitions)
        for partition in dropped:
            self._states.pop(partition, None)
        self._shadow.drop(dropped)

    def _score(self, notices: Sequence[WindowNotice]) -> Iterator[_Scored]:
        by_family: dict[str, list[WindowNotice]] = defaultdict(list)
        for notice in notices:
            by_family[notice.family].append(notice)
        for family, of_family in by_family.items():
            model = self._models.current(family)
            fitting = [notice for notice in of_family if model is not None and model.takes(notice)]
            if model is not None and fitting:
                yield from self._run(model, fitting, self._read(fitting))

    def _read(self, notices: Sequence[WindowNotice]) -> list[Window]:
        """Read windows; wait while one is incomplete, which means that its ring is being rebuilt."""
        requests = [self._request(notice) for notice in notices]
        end = time.monotonic() + _INCOMPLETE_S
        while True:
            windows = self._store.read_windows(requests)
            broken = [n for n, window in zip(notices, windows, strict=True) if window.rows != n.rows]
            if not broken:
                return windows
            if time.monotonic() > end:
                first = broken[0]
                raise TransientError(
                    f"{len(broken)} windows are incomplete, first {first.entity} up to slot {first.end_slot}: "
                    f"its ring wants {first.rows} rows"
                )
            time.sleep(_INCOMPLETE_POLL_S)

    def _request(self, notice: WindowNotice) -> WindowRequest:
        family = self._families[notice.family]
        layout = Layout(family.geometry.capacity, len(family.channels))
        ref = RingRef(notice.entity, notice.ring, layout)
        return WindowRequest(notice.source.partition, ref, notice.end_slot, notice.length)

    def _run(self, model: Model, notices: Sequence[WindowNotice], windows: Sequence[Window]) -> Iterator[_Scored]:
        begun = time.monotonic()
        with self._metrics.inference_compute.time():
            views = model.score(notices, windows)
        self._metrics.inference_batch.observe(len(notices))
        self._metrics.windows_scored.inc(len(notices))
        champion_s = time.monotonic() - begun
        yield from map(_Scored, notices, repeat(model), windows, views)
        blocks = self._shadow.score(notices[0].family, notices, windows, champion_s, self._followed)
        self._aside += [self._message(SHADOW_SCORES, partition, block) for partition, block in blocks]

    def _followed(self, notice: WindowNotice) -> int:
        state = self._states.get(notice.source.partition, {}).get(notice.entity)
        return state.moments.followed if state else 0

    def _decide(self, windows: Sequence[_Place]) -> list[Decision | None]:
        """Judge the windows in order, each by what the entity's earlier ones said."""
        decisions: list[Decision | None] = []
        newest: dict[tuple[int, str], SeriesMoments] = {}
        for window in windows:
            notice, one = window.notice, window.scored
            if one is None:
                decisions.append(None)
                continue
            state, manifest = self._states[window.partition].get(notice.entity), one.model.manifest
            moments = newest.get((window.partition, notice.entity), state.moments if state else None)
            if moments is None or moments.version != manifest.version:
                followed = moments.followed if moments else 0
                moments = initial_moments(manifest, one.model.calibration(notice.entity), followed)
            decision = decide(manifest, one.model.numeric_names, notice, one.view, moments)
            newest[window.partition, notice.entity] = decision.moments
            decisions.append(decision)
        return decisions

    def _explain(self, windows: Sequence[_Place], decisions: list[Decision | None]) -> None:
        """Say of hits what commands have to do with them, where an alert may show it: of the ones that deviate most.

        Which those are is seen by following the episodes, which no command changes.
        """
        episodes: dict[tuple[int, str], Episode | None] = {}
        asked: dict[int, tuple[Detector, list[tuple[int, Question]]]] = {}
        for at, (window, decision) in enumerate(zip(windows, decisions, strict=True)):
            if decision is None or window.scored is None:
                continue
            key, notice, model = (window.partition, window.notice.entity), window.notice, window.scored.model
            state = self._states[window.partition].get(notice.entity)
            before = episodes.get(key, state.episode if state else None)
            after = episodes[key] = self._advance(window, decision, before).episode
            peak = max(decision.hits, key=attrgetter("z"), default=None)
            if peak is not None and (after is None or after.peak is peak):
                values = window.scored.window.values[model.columns]
                questions = asked.setdefault(id(model), (model.detector, []))[1]
                questions.append((at, Question(notice, values, peak)))
        for detector, questions in asked.values():
            explained = explain_by_commands(detector, [question for _, question in questions])
            for (at, question), hit in zip(questions, explained, strict=True):
                decision = cast("Decision", decisions[at])
                hits = [hit if one is question.hit else one for one in decision.hits]
                decisions[at] = decision._replace(hits=hits)

    def _advance(self, window: _Place, decision: Decision, episode: Episode | None) -> Step:
        manifest, notice = cast("_Scored", window.scored).model.manifest, window.notice
        deployment, missing = self._settings.deployment, missing_fraction(notice)
        return advance(manifest, deployment, notice, decision.hits, episode, missing, adapting=decision.adapting)

    def _follow(self, window: _Place, decision: Decision) -> tuple[EntityState, list[Outgoing]]:
        state = self._states[window.partition].get(window.notice.entity)
        step = self._advance(window, decision, state.episode if state else None)
        self._observe(decision.blocks)
        messages = self._blocks(window.partition, decision.blocks)
        messages += [self._alert(window.partition, alert) for alert in step.alerts]
        counted, summaries = self._summarise(cast("_Scored", window.scored), decision.blocks, state)
        return EntityState(decision.moments, step.episode, counted), messages + summaries

    def _summarise(
        self, one: _Scored, blocks: list[ScoreBlock], state: EntityState | None
    ) -> tuple[ScoreTally, list[Outgoing]]:
        """Count the scores on, from zero for another model, and tell them where a block of slots is over."""
        manifest, notice = one.model.manifest, one.notice
        same = state is not None and state.moments.version == manifest.version
        counted = tally(state.tally if state is not None and same else NO_TALLY, blocks)
        model = ModelRef(manifest.name, manifest.version)
        summary = summarise(notice, one.model.numeric_names, one.view.values, counted, model)
        if summary is None:
            return counted, []
        key, value = notice.family.encode(), _ENCODER.encode(summary)
        return NO_TALLY, [Outgoing(self._topics[SUMMARIES], BY_KEY, key, value)]

    def _blocks(self, partition: int, blocks: list[ScoreBlock]) -> list[Outgoing]:
        return [self._message(SCORES, partition, block) for block in blocks]

    def _message(self, topic: Topic, partition: int, block: ScoreBlock) -> Outgoing:
        return Outgoing(self._topics[topic], partition, block.entity.encode(), _ENCODER.encode(block))

    def _alert(self, partition: int, alert: Alert) -> Outgoing:
        self._metrics.alerts.labels(alert.severity, alert.state).inc()
        headers = cloud_event_headers(alert, self._settings.deployment)
        return Outgoing(self._topics[ALERTS], partition, alert.entity.encode(), _ENCODER.encode(alert), headers)

    def _state_message(self, partition: int, entity: str, state: EntityState) -> Outgoing:
        return Outgoing(self._topics[DECISIONS], partition, entity.encode(), _ENCODER.encode(state))

    def _observe(self, blocks: list[ScoreBlock]) -> None:
        for block in blocks:
            if block.stage == "provisional":
                gaps = block.scores.count(None)
                self._metrics.rows_scored.inc(len(block.scores) - gaps)
                self._metrics.gap_slots.inc(gaps + block.gap_slots)


def missing_fraction(notice: WindowNotice) -> float:
    """Return the share of a window's slots, since the entity's first one, that hold no row."""
    slots = min(notice.length, notice.end_slot - notice.first_slot + 1)
    return 1 - notice.rows / slots if slots > 0 else 1.0


def read_states(settings: Settings, stopping: Stopping = never) -> StateReader:
    """Return a reader of the compacted decisions topic. stopping: breaks waiting off."""
    topic = topic_name(settings.topics, DECISIONS)

    def read(partition: int) -> Iterator[tuple[str, EntityState]]:
        for record in read_to_end(settings.kafka, topic, partition, stopping=stopping):
            yield (record.key or b"").decode(), _STATE.decode(record.value or b"")

    return read


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Run the worker as a service until `stop` is set."""
    if settings.worker.threads:
        torch.set_num_threads(settings.worker.threads)
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)
    device = choose_device(settings.worker.device)
    models = Models(
        Registry(settings.registry),
        settings.families,
        metrics,
        device=device,
        poll_s=settings.worker.model_poll_s,
        shadow=settings.retraining.shadow_share > 0,
    )
    store = connect(settings.redis, metrics.time_redis, layout=settings.layout)
    try:
        models.refresh(wait=True, stopping=stop.is_set)
        _require_models(settings, models)
        wait_until(store.check, settings.kafka.reconnect_deadline_s, "Redis", stop.is_set)
        stage = Worker(settings, store, models, read_states(settings, stop.is_set), metrics)
        run_service(
            settings, Service("worker", WINDOWS, settings.worker.batch_windows, _BATCH_S, stage, metrics, health), stop
        )
    finally:
        models.close()
        store.close()


def _require_models(settings: Settings, models: Models) -> None:
    without = [family.name for family in settings.families if models.current(family.name) is None]
    if len(without) == len(settings.families):
        raise UsageError(
            f"no usable champion in {settings.registry} for any declared family ({', '.join(without) or 'none'}): "
            "run `telltale train`, and see the log above for refused checkpoints"
        )
    for name in without:
        _log.error("family has no model; its slots are reported as gaps", family=name)
