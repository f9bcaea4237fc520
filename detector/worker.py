"""Window notices to scores and alerts. Owns the order of the work; knows no slot arithmetic and no network.

One batch: 1. read the windows as of their end slots, 2. score them together, 3. judge each entity's windows in order,
4. one transaction with score blocks, alerts, block summaries, the changed decision states, what a challenger made of
some windows, and the notices' offsets. The states live in a compacted topic written in that transaction, so a successor
starts from exactly what was published.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import msgspec
import structlog
import torch

from detector.alerts import Episode, advance
from detector.blocks import WindowView, unscored
from detector.command_effect import explain_by_commands
from detector.decision import SeriesMoments, decide, initial_moments
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
        outgoing: list[Outgoing] = []
        changed: dict[tuple[int, str], EntityState] = {}
        for record, notice in zip(records, notices, strict=True):
            one = scored.get(id(notice))
            if one is None:
                outgoing += self._blocks(record.partition, unscored(notice))
                self._metrics.unscored_windows.inc()
                continue
            state, messages = self._judge(record.partition, one)
            self._states[record.partition][notice.entity] = changed[record.partition, notice.entity] = state
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

    def _judge(self, partition: int, one: _Scored) -> tuple[EntityState, list[Outgoing]]:
        notice, manifest = one.notice, one.model.manifest
        state = self._states[partition].get(notice.entity)
        moments, counted = (state.moments, state.tally) if state else (None, NO_TALLY)
        if moments is None or moments.version != manifest.version:
            followed = moments.followed if moments else 0
            moments = initial_moments(manifest, one.model.calibration(notice.entity), followed)
            counted = NO_TALLY
        decision = decide(manifest, one.model.numeric_names, notice, one.view, moments)
        hits = decision.hits
        if hits:  # seldom, and the window's channels would be copied for nothing
            values = one.window.values[one.model.columns]
            hits = explain_by_commands(one.model.detector, notice, values, hits)
        episode, missing = state.episode if state else None, missing_fraction(notice)
        deployment, adapting = self._settings.deployment, decision.adapting
        step = advance(manifest, deployment, notice, hits, episode, missing, adapting=adapting)
        self._observe(decision.blocks)
        messages = self._blocks(partition, decision.blocks) + [self._alert(partition, a) for a in step.alerts]
        counted = tally(counted, decision.blocks)
        model = ModelRef(manifest.name, manifest.version)
        summary = summarise(notice, one.model.numeric_names, one.view.values, counted, model)
        if summary is not None:
            messages.append(Outgoing(self._topics[SUMMARIES], BY_KEY, notice.family.encode(), _ENCODER.encode(summary)))
            counted = NO_TALLY
        return EntityState(decision.moments, step.episode, counted), messages

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
        run_service(settings, Service("worker", WINDOWS, settings.worker.batch_windows, stage, metrics, health), stop)
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
