"""The retrainer on real Kafka: one of two trains, and what it makes goes live by itself."""

import threading
from pathlib import Path

import msgspec
import pytest

from deploy.model_decisions import request
from detector.registry import Registry
from stream.contracts import ModelEvent
from stream.kafka import make_admin
from stream.settings import Settings, load_settings
from stream.topics import MODELS, ensure_topics
from tests.pipeline import read_all, running, wait_for
from tests.unit.training.test_new_model import FAMILY, recent_waves, write
from training.retrainer_service import run_retrainer


@pytest.fixture
def settings(tmp_path: Path, kafka_bootstrap: str, redis_url: str, topic_prefix: str) -> Settings:
    data = write(tmp_path / "waves.parquet", recent_waves(700, 600))
    retraining = {
        "data": str(data),
        "work_dir": str(tmp_path / "work"),
        "minutes": 0.02,
        "nice": 0,
        "minimum_rows": 300,
        "history_days": 10_000.0,
        "shadow_share": 0.0,
        "probation_minutes": 0.02,
        "gates": {"entities": 1, "detection_least": 0.0, "alarm_rate_most": 1.0, "error_most": 100.0},
    }
    settings = load_settings(
        registry=str(tmp_path / "registry"),
        kafka={"bootstrap": kafka_bootstrap},
        redis={"url": redis_url},
        topics={"prefix": topic_prefix, "partitions": 2},
        metrics={"port": 0},
        families=[FAMILY.model_dump()],
        retraining=retraining,
    )
    ensure_topics(make_admin(settings.kafka), settings.topics)
    return settings


def other(settings: Settings) -> Settings:
    """Return the settings of a second retrainer on another machine."""
    retraining = settings.retraining.model_copy(update={"work_dir": f"{settings.retraining.work_dir}-2"})
    return settings.model_copy(update={"retraining": retraining, "instance": "1"})


def test_two_retrainers_train_a_model_once_and_tell_of_every_decision(settings: Settings, tmp_path: Path) -> None:
    registry, said = Registry(settings.registry), []
    second = other(settings)

    def run_second(_: Settings, stop: threading.Event) -> None:
        run_retrainer(second, stop)

    with running(settings, run_retrainer, run_second):
        request(settings, registry, "waves", said.append)
        wait_for(lambda: [e.kind for e in registry.history("waves")][-1:] == ["kept"], "the end of probation", 300.0)
    history = registry.history("waves")
    assert [event.kind for event in history] == [
        "requested",
        "training",
        "announced",
        "promoted",
        "on_probation",
        "kept",
    ]
    (version,) = registry.versions("waves")
    assert registry.alias("waves", "champion") == version
    assert said == []
    told = [msgspec.json.decode(record.value, type=ModelEvent) for record in read_all(settings, MODELS)]
    assert {(event.kind, event.at_ms) for event in told} == {(event.kind, event.at_ms) for event in history}
    folders = [path for path in (tmp_path / "work", tmp_path / "work-2") if path.exists()]
    assert len(folders) == 1, "only one of them ever began"
