"""The whole product from the command line alone: servers, services, telemetry, alerts, and all of it ended again."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.services import Services
from stream.topics import ALL
from tests.builders import untrained
from tests.commands import CommandLine
from tests.faults.recorded import GEOMETRY, recordings
from tests.pipeline import publish, wait_for

SETTINGS = """
registry = "{registry}"
[topics]
partitions = 2
[metrics]
port = 0
[worker]
threads = 1
[[families]]
name = "test"
entities = "*-*"
numeric = ["m0", "m1"]
commands = ["c0", "c1", "c2"]
length = 64
hop = 8
lateness = 2
final_delay = 20
slack = 64
"""


@pytest.fixture
def telltale(tmp_path):
    (tmp_path / "telltale.toml").write_text(SETTINGS.format(registry=tmp_path / "registry"))
    command = CommandLine(tmp_path, TELLTALE_STATE_DIR=str(tmp_path / "state"))
    yield command
    command("down")


@pytest.fixture
def services(tmp_path, telltale):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TELLTALE_")}
    settings = {"TELLTALE_CONFIG": str(tmp_path / "telltale.toml")}
    running = Services(tmp_path, {**kept, **telltale.environment, **settings})
    yield running
    running.stop()


def write(model, file):
    """Write recordings as a data set: floats are numeric channels, bools are commands, nulls are missing."""
    tables = []
    for series in recordings(model, 400):
        columns = {"entity": np.repeat(series.entity, len(series.slots)), "ts": series.slots * 1000}
        for channel, values in zip(model.manifest.channels, series.values.T, strict=True):
            kind = pa.float32() if channel.kind == "numeric" else pa.bool_()
            columns[channel.name] = pa.array(values, from_pandas=True).cast(kind)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), file)


def findings(outcome):
    """Return what the doctor found, good or bad, by what it looked at."""
    return {line[2:].partition(":")[0]: line[0] == "✓" for line in outcome.out.splitlines()}


def test_from_nothing_to_alerts_and_back(telltale, services, tmp_path):
    assert telltale("status").code == 1
    assert "telltale up" in telltale("doctor").complaint()

    up = telltale("up")
    assert up.code == 0, up.err
    assert telltale("up").out == up.out
    status = telltale("status")
    assert (status.code, status.out.count("answering")) == (0, 2)

    bad = telltale("doctor")
    assert bad.code == 1
    assert findings(bad) == {"Kafka": True, "topics": True, "Redis": True, "families": True, "model of test": False}
    model = publish(tmp_path / "registry", *untrained(geometry=GEOMETRY))
    assert telltale("doctor").code == 0

    for service in ("windower", "worker"):
        services.start(service, service)
    write(model, tmp_path / "data.parquet")
    rows = pq.read_metadata(tmp_path / "data.parquet").num_rows
    sent = telltale("replay --data data.parquet --rate 2000")
    assert (sent.code, sent.out.startswith(f"{rows:,} rows in")) == (0, True), sent.err

    def resolved():
        services.check()
        return '"resolved"' in telltale("alerts --json-lines").out

    wait_for(resolved, "an alert that is resolved")
    told = [json.loads(line) for line in telltale("alerts --json-lines").out.splitlines()]
    assert {alert["state"] for alert in told} == {"firing", "updated", "resolved"}
    assert {alert["model"]["version"] for alert in told} == {model.manifest.version}
    shown = telltale("alerts").out
    assert shown.count("ALERT") >= 1
    assert all(alert["entity"] in shown for alert in told)
    assert f"{len(ALL)} with 2 partitions each" in telltale("doctor").out

    services.stop()
    assert all('"stopped"' in (tmp_path / f"{service}.log").read_text() for service in ("windower", "worker"))
    assert (telltale("down").out, telltale("down").out) == ("stopped\n", "nothing was running\n")
    assert telltale("status").code == 1
    assert "telltale up" in telltale("windower").complaint()
