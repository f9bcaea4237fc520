"""The compose file, the Dockerfile and the dashboards say the same as the code they are about."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import dashboard, versions
from deploy.kafka_jars import read_pins
from deploy.local_kafka import SINGLE_BROKER_SETTINGS
from deploy.simulator import fleets
from stream.metrics import Metrics
from stream.settings import Settings, load_settings

ROOT = Path(__file__).parents[3]
PROMETHEUS_DIR = ROOT / "deploy" / "prometheus"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return dict(compose["services"])


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "deploy" / "docker" / "Dockerfile").read_text()


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if "build" in service}


def exposed_names() -> set[str]:
    """Every time series name that a service can expose."""
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
    }
    return {family.name + suffix for family in Metrics().registry.collect() for suffix in suffixes[family.type]}


def test_images_are_those_of_the_local_stack(services: dict[str, Any], dockerfile: str) -> None:
    images = {name: service["image"] for name, service in services.items() if "build" not in service}
    assert images == {
        "kafka": versions.KAFKA_IMAGE,
        "redis": versions.VALKEY_IMAGE,
        "prometheus": versions.PROMETHEUS_IMAGE,
        "grafana": versions.GRAFANA_IMAGE,
    }
    assert f"ARG PYTHON_IMAGE={versions.PYTHON_IMAGE}\n" in dockerfile


def test_pinned_jars_are_of_the_version_that_is_named() -> None:
    pins = read_pins()
    kafka = [path for path in pins if path.startswith("org/apache/kafka/")]
    assert kafka
    assert all(f"/{versions.KAFKA_VERSION}/" in path for path in kafka)
    for artifact in (versions.KAFKA_ARTIFACT, versions.LOG_BINDING_ARTIFACT):
        group, name, version = artifact.split(":")
        assert f"{group.replace('.', '/')}/{name}/{version}/{name}-{version}.jar" in pins


def test_containers_run_with_the_broker_settings_of_one_machine(services: dict[str, Any]) -> None:
    environment = services["kafka"]["environment"]
    for name, value in SINGLE_BROKER_SETTINGS.items():
        assert environment["KAFKA_" + name.upper().replace(".", "_")] == value
    assert "noeviction" in services["redis"]["command"]


def test_ports_agree(services: dict[str, Any], dockerfile: str) -> None:
    kafka = services["kafka"]["environment"]
    assert f"PLAINTEXT://kafka:{versions.KAFKA_PORT}" in kafka["KAFKA_ADVERTISED_LISTENERS"]
    assert f"HOST://127.0.0.1:{versions.KAFKA_HOST_PORT}" in kafka["KAFKA_ADVERTISED_LISTENERS"]
    assert kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"].endswith(f":{versions.KAFKA_CONTROLLER_PORT}")
    assert f"EXPOSE {versions.METRICS_PORT}\n" in dockerfile
    assert f":{versions.METRICS_PORT}/livez" in dockerfile
    scrapes = yaml.safe_load((PROMETHEUS_DIR / "prometheus.yml").read_text())["scrape_configs"]
    assert [scrape["dns_sd_configs"][0]["port"] for scrape in scrapes] == [versions.METRICS_PORT]
    assert set(scrapes[0]["dns_sd_configs"][0]["names"]) == set(ours(services))
    published = {port for service in services.values() for port in service.get("ports", ())}
    host_ports = (versions.KAFKA_HOST_PORT, versions.PROMETHEUS_PORT, versions.GRAFANA_PORT)
    assert published == {f"127.0.0.1:{port}:{port}" for port in host_ports}


def test_environment_is_what_the_settings_understand(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TELLTALE_")]:
        monkeypatch.delenv(name)
    for name, service in ours(services).items():
        with monkeypatch.context() as patch:
            for variable, value in service["environment"].items():
                patch.setenv(variable, value)
            patch.setenv("TELLTALE_CONFIG", str(ROOT / "deploy" / "docker" / "telltale.toml"))
            settings = load_settings()
        assert known_variables(Settings) >= set(service["environment"]) - {"TELLTALE_CONFIG"}, name
        assert settings.kafka.bootstrap == f"kafka:{versions.KAFKA_PORT}"
        assert settings.redis.url.get_secret_value() == f"redis://redis:{versions.REDIS_PORT}/0"
        assert settings.metrics.port == versions.METRICS_PORT


def known_variables(settings: Any, prefix: str = "TELLTALE_") -> set[str]:
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        variable = prefix + name.upper()
        names.add(variable)
        if hasattr(field.annotation, "model_fields"):
            names |= known_variables(field.annotation, variable + "__")
    return names


def test_two_services_of_one_kind_never_share_a_transactional_id(services: dict[str, Any]) -> None:
    names = [
        (service["command"][0], service["environment"].get("TELLTALE_INSTANCE", "0"))
        for service in ours(services).values()
    ]
    assert len(set(names)) == len(names)


def test_default_families_are_those_of_the_simulator() -> None:
    families = tomllib.loads((ROOT / "deploy" / "docker" / "telltale.toml").read_text())["families"]
    declared = {family["name"]: [*family["numeric"], *family["commands"]] for family in families}
    assert declared == {fleet.family: [channel.name for channel in fleet.channels] for fleet in fleets()}
    settings = Settings(families=families)
    for fleet in fleets():
        for entity in fleet.entities:
            family = settings.family_of(entity)
            assert family is not None
            assert family.name == fleet.family


def test_our_containers_run_as_nobody_in_particular(services: dict[str, Any], dockerfile: str) -> None:
    users = re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)
    assert users
    assert "0" not in users
    for name, service in ours(services).items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_build_targets_exist_and_only_the_detector_gets_torch(services: dict[str, Any], dockerfile: str) -> None:
    names = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    assert {service["build"]["target"] for service in ours(services).values()} <= names
    sections = re.split(r"^FROM \S+ AS ", dockerfile, flags=re.MULTILINE)
    torch = {section.split()[0] for section in sections if "torch.txt" in section}
    assert torch == {"detector-packages"}
    assert "--from=stream-packages" in next(section for section in sections if section.startswith("stream\n"))


def test_everything_the_image_copies_exists_and_is_not_ignored(dockerfile: str) -> None:
    ignore = (ROOT / "deploy" / "docker" / "Dockerfile.dockerignore").read_text().split()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    for source in [source for line in copies for source in line.split()]:
        assert (ROOT / source).exists(), source
        assert f"!{Path(source).parts[0]}" in ignore, source


def test_dashboard_file_is_what_the_module_makes() -> None:
    assert dashboard.FILE.read_text() == dashboard.render(), "run: python -m deploy.dashboard"


def test_every_metric_in_dashboard_and_rules_is_exposed() -> None:
    texts = [dashboard.FILE.read_text(), (PROMETHEUS_DIR / "rules.yml").read_text()]
    used = {name for text in texts for name in re.findall(r"\btelltale_\w+", text)}
    assert used
    assert used <= exposed_names()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"\btelltale_\w+", dashboard.FILE.read_text()))
    for family in Metrics().registry.collect():
        assert any(name.startswith(family.name) for name in shown), family.name


def test_labels_in_queries_are_those_of_the_metrics() -> None:
    """`by (...)` of a label that a metric lacks would silently merge what the panel promises to split."""
    declared = {family.name: labels_of(family.name) for family in Metrics().registry.collect()}
    from_prometheus = {"service", "le"}
    for panel in json.loads(dashboard.FILE.read_text())["panels"]:
        for target in panel.get("targets", ()):
            for labels, metric in re.findall(r"by \(([^)]*)\) \((?:rate\()?(telltale_\w+)", target["expr"]):
                family = max((name for name in declared if metric.startswith(name)), key=len)
                split = {label.strip() for label in labels.split(",") if label.strip()}
                assert split <= declared[family] | from_prometheus, target["expr"]


def labels_of(family: str) -> set[str]:
    metrics = Metrics()
    collectors = [value for value in vars(metrics).values() if getattr(value, "_name", None) == family]
    assert len(collectors) == 1, family
    return set(collectors[0]._labelnames)


def test_rules_are_complete() -> None:
    groups = yaml.safe_load((PROMETHEUS_DIR / "rules.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")"), rule["alert"]
