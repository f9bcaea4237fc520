"""A new model goes live under load by itself, and a bad one does not, or not for long. Training is left out here."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import structlog

from deploy.processes import free_port
from detector.models import Model
from detector.registry import Registry
from detector.worker import run_worker
from stream.contracts import Gate, ModelEvent, ScoreBlock
from stream.settings import MetricsSettings, Settings
from stream.topics import SHADOW_SCORES
from stream.windower import run_windower
from tests.builders import untrained
from tests.faults.live import metric, sending
from tests.faults.recorded import GEOMETRY, answer_of, live_rows, recordings, telemetry, wait_for_rows
from tests.pipeline import blocks, publish, read_all, running, wait_for
from training.retrainer_service import run_retrainer

_log = structlog.get_logger(__name__)
# Random networks on random rows: whatever they do is good enough, but alarms in most slots.
GATES = {"alarm_rate_most": 0.6, "alarm_rate_ratio": 100.0, "score_ratio_most": 1e6}
WORKERS = 3


class Loop:
    """A pipeline of several workers and a retrainer, and the models it is about."""

    def __init__(self, settings: Settings, old: Model, folder: Path, **retraining: object) -> None:
        self.settings = settings.model_copy(
            update={"retraining": settings.retraining.model_validate({"gates": GATES, **retraining})}
        )
        self.registry, self.old, self.folder = Registry(settings.registry), old.manifest.version, folder
        self.ports = [free_port() for _ in range(WORKERS)]

    def offer(self, **decision: object) -> str:
        """Publish another model and say that it was trained and passed its gates."""
        manifest, weights = untrained(geometry=GEOMETRY, seed=1)
        manifest = msgspec.structs.replace(manifest, decision=msgspec.structs.replace(manifest.decision, **decision))
        new = publish(self.folder, manifest, weights).manifest.version
        self.registry.rollback("test")
        gates = [Gate("alarm_rate", True, 0.0, 1.0)]
        for kind, version in (("training", None), ("announced", new)):
            event = ModelEvent(kind=kind, family="test", version=version, champion=self.old, at_ms=0, gates=gates)
            self.registry.record(event)
        return new

    @contextmanager
    def live(self) -> Iterator[None]:
        services: list[Callable[[Settings, threading.Event], None]] = [run_windower, run_retrainer]
        for number, port in enumerate(self.ports):
            changes = {"metrics": MetricsSettings(port=port), "instance": str(number)}
            own = self.settings.model_copy(update=changes)
            services.append(lambda _, stop, own=own: run_worker(own, stop))
        with running(self.settings, *services):
            yield

    def last(self) -> str:
        """Return what was decided last."""
        return self.registry.history("test")[-1].kind

    def using(self, version: str) -> int:
        """Count the workers that use a version."""
        line = f'telltale_model_info{{family="test",version="{version}"}}'
        return sum(metric(port, line) == 1 for port in self.ports)


def test_a_good_model_is_tried_promoted_taken_by_every_worker_and_kept(
    model: Model, settings: Settings, tmp_path: Path
) -> None:
    loop = Loop(settings, model, tmp_path / "registry", shadow_share=0.5, shadow_slots=60, probation_slots=200)
    series = recordings(model, 700)
    answer = answer_of(model, settings, series)
    new = loop.offer()
    with loop.live():
        with sending(loop.settings, telemetry(model, series), rows_per_s=60):
            wait_for(lambda: loop.last() in ("promoted", "on_probation", "kept"), "promotion")
            wait_for(lambda: loop.using(new) == WORKERS, "the swap on every worker")
            promoted = next(e for e in loop.registry.history("test") if e.kind == "promoted")
            _log.info("swapped", workers=WORKERS, at_most_s=round(time.time() - promoted.at_ms / 1000, 1))
            wait_for(lambda: loop.last() == "kept", "the end of probation")
        wait_for_rows(settings, answer.final_rows())
    found = blocks(settings)
    assert live_rows(found).keys() == answer.rows.keys(), "no slot lost or scored twice"
    assert {block.model.version for block in found} == {model.manifest.version, new}
    shadow = [msgspec.json.decode(r.value, type=ScoreBlock) for r in read_all(settings, SHADOW_SCORES)]
    assert {block.model.version for block in shadow} == {new}
    assert live_rows(shadow).keys() < answer.rows.keys()
    assert loop.registry.alias("test", "champion") == new


def test_a_bad_model_is_refused_by_what_it_does_in_shadow(model: Model, settings: Settings, tmp_path: Path) -> None:
    loop = Loop(settings, model, tmp_path / "registry", shadow_share=1.0, shadow_slots=100)
    loop.offer(final_sigmas=-100.0)
    series = recordings(model, 400)
    with loop.live(), sending(loop.settings, telemetry(model, series), rows_per_s=60):
        wait_for(lambda: loop.last() == "rejected", "the refusal")
    assert "shadow_alarm_rate" in loop.registry.history("test")[-1].detail
    assert loop.registry.alias("test", "champion") == model.manifest.version
    assert {block.model.version for block in blocks(settings)} == {model.manifest.version}


@pytest.mark.usefixtures("model")
def test_a_bad_champion_is_rolled_back_by_itself(model: Model, settings: Settings, tmp_path: Path) -> None:
    loop = Loop(settings, model, tmp_path / "registry", shadow_share=0.0, probation_slots=1000)
    bad = loop.offer(final_sigmas=-100.0)
    series = recordings(model, 700)
    with loop.live(), sending(loop.settings, telemetry(model, series), rows_per_s=60):
        wait_for(lambda: loop.last() == "rolled_back", "the rollback")
        wait_for(lambda: loop.using(model.manifest.version) == WORKERS, "the old model on every worker")
    event = loop.registry.history("test")[-1]
    assert (event.version, event.champion) == (bad, model.manifest.version)
    assert "live_alarm_rate" in event.detail
    assert loop.registry.alias("test", "champion") == model.manifest.version
