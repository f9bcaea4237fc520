"""What people are shown of the registry, and what they decide."""

from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from deploy.model_decisions import promote, request, rollback
from deploy.model_table import model_diff, model_report, model_table
from detector.registry import Registry
from stream.contracts import Gate, ModelEvent
from stream.errors import UsageError
from stream.settings import FamilySettings, Settings
from tests.bundles import make_golden, make_layout, make_manifest, make_weights

# Without an address nobody is told, which is said.
SETTINGS = Settings(families=[FamilySettings(name="rover", numeric=["a"])])


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path, layout=make_layout)


@pytest.fixture
def versions(registry: Registry) -> list[str]:
    changed = msgspec.structs.replace(make_manifest().scoring, smoothing_size=7)
    manifests = [make_manifest(), make_manifest(scoring=changed)]
    return [registry.publish("rover", one, make_weights(i), make_golden()) for i, one in enumerate(manifests)]


def shown(table: object) -> str:
    console = Console(width=250)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_people_promote_and_roll_back_and_it_is_written_down_who(registry: Registry, versions: list[str]) -> None:
    said: list[str] = []
    for version in versions:
        assert promote(SETTINGS, registry, f"rover@{version}", said.append) == version
    assert rollback(SETTINGS, registry, "rover", said.append) == versions[0]
    told = [(one.kind, one.version, one.champion) for one in registry.history("rover")]
    old, new = versions
    assert told == [("promoted", old, None), ("promoted", new, old), ("rolled_back", new, old)]
    assert all(one.who not in ("", "retrainer") for one in registry.history("rover"))
    assert len(said) == 3
    assert all("not announced on Kafka" in text for text in said)
    promote(SETTINGS, registry, f"rover@{new}", said.append)
    assert f"rover@{new} was rolled back before" in said[3]


def test_a_model_is_asked_for_only_of_a_declared_family(registry: Registry) -> None:
    request(SETTINGS, registry, "rover", lambda text: None)
    assert [one.kind for one in registry.history("rover")] == ["requested"]
    with pytest.raises(UsageError, match="no declared family lander; there are: rover"):
        request(SETTINGS, registry, "lander", lambda text: None)


def test_a_report_has_the_gates_and_the_decisions(registry: Registry, versions: list[str]) -> None:
    gate = Gate("alarm_rate", False, 0.25, 0.05, 0.01)
    for version, kind in ((versions[1], "announced"), (versions[1], "rejected"), (versions[0], "kept")):
        event = ModelEvent(kind=kind, family="rover", version=version, at_ms=0, gates=[gate])  # type: ignore[arg-type]
        registry.record(event)
    report = model_report(registry, "rover", versions[1])
    assert report["version"] == versions[1]
    assert [one["kind"] for one in report["decisions"]] == ["announced", "rejected"]
    assert report["decisions"][0]["gates"][0]["bound"] == 0.05
    listed = shown(model_table(registry))
    assert [word in listed for word in ("rejected", "kept", *versions)] == [True] * 4


def test_a_diff_shows_what_differs_and_nothing_else(registry: Registry, versions: list[str]) -> None:
    gate = Gate("alarm_rate", True, 0.01, 0.05)
    registry.record(ModelEvent(kind="announced", family="rover", version=versions[1], at_ms=0, gates=[gate]))
    lines = shown(model_diff(registry, ("rover", versions[0]), ("rover", versions[1]))).splitlines()
    facts = {line.split("│")[1].strip() for line in lines if line.startswith("│")}
    assert facts == {"scoring.smoothing_size", "gate alarm_rate", "decisions"}
    same = shown(model_diff(registry, ("rover", versions[0]), ("rover", versions[0])))
    assert not any(line.startswith("│") for line in same.splitlines())
