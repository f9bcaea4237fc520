"""Laws of the simulator: addressed values, physical bounds, and files in the datasets' shape."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.fault_plan import plan_faults
from deploy.faults import Fault, labels
from deploy.simulator import Fleet, Rows, Simulation, fleets, simulate, to_sample, write_parquet
from stream.contracts import Sample, check_entity

SEED = 3
START = 1_700_000_000
ROWS = 2400
FLEETS = fleets(satellites=3, servers=3)
SPACECRAFT, SERVERS = FLEETS
by_family = pytest.mark.parametrize("fleet", FLEETS, ids=lambda fleet: fleet.family)


@pytest.fixture(scope="module")
def telemetry() -> dict[str, dict[str, Rows]]:
    return {fleet.family: simulate(fleet, SEED, START, ROWS) for fleet in FLEETS}


def series(fleet: Fleet, rows: Rows, name: str) -> Rows:
    return rows[:, [channel.name for channel in fleet.channels].index(name)]


@cache
def crossing_faults(fleet: Fleet) -> list[Fault]:
    """One fault of most kinds, all in the same slots, so that cuts fall into them."""
    planned = plan_faults(fleet, SEED, START, START + 1200, 5)
    return [msgspec.structs.replace(fault, first_slot=START + 20, last_slot=START + 200) for fault in planned]


@by_family
@settings(max_examples=5, deadline=None)
@given(chunks=st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_chunks_of_any_size_make_the_same_rows(fleet: Fleet, chunks: list[int]) -> None:
    faults = crossing_faults(fleet)
    whole = Simulation(fleet, SEED, START, faults).advance(sum(chunks))
    simulation = Simulation(fleet, SEED, START, faults)
    parts = np.concatenate([simulation.advance(rows) for rows in chunks], axis=1)
    assert np.array_equal(whole, parts)
    assert simulation.next_slot == START + sum(chunks)


@by_family
def test_a_slot_has_the_same_values_wherever_the_simulation_began(fleet: Fleet) -> None:
    faults = plan_faults(fleet, SEED, START, START + 1200, 5)
    early = simulate(fleet, SEED, START, 1500, faults)
    late = simulate(fleet, SEED, START + 700, 800, faults)
    for entity in fleet.entities:
        assert np.array_equal(early[entity][700:], late[entity])


@by_family
def test_an_entity_does_not_depend_on_its_neighbours(fleet: Fleet) -> None:
    whole = simulate(fleet, SEED, START, 300)
    alone = simulate(fleet.only(fleet.entities[1]), SEED, START, 300)
    assert list(alone) == [fleet.entities[1]]
    assert np.array_equal(whole[fleet.entities[1]], alone[fleet.entities[1]])


@by_family
def test_every_entity_and_every_seed_is_its_own(fleet: Fleet, telemetry: dict[str, dict[str, Rows]]) -> None:
    numeric = len(fleet.blueprint.sensors)
    runs = [*telemetry[fleet.family].values(), *simulate(fleet, SEED + 1, START, ROWS).values()]
    means = np.array([run[:, :numeric].mean(0) for run in runs])
    assert all(len(np.unique(column)) == len(runs) for column in means.T)


@by_family
def test_values_are_finite_and_commands_are_boolean(fleet: Fleet, telemetry: dict[str, dict[str, Rows]]) -> None:
    for rows in telemetry[fleet.family].values():
        assert rows.shape == (ROWS, len(fleet.channels))
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()
        assert set(np.unique(rows[:, len(fleet.blueprint.sensors) :])) == {0.0, 1.0}


@by_family
def test_spreads_tell_the_size_of_normal_variation(fleet: Fleet, telemetry: dict[str, dict[str, Rows]]) -> None:
    for column, sensor in enumerate(fleet.blueprint.sensors):
        seen = np.mean([rows[:, column].std() for rows in telemetry[fleet.family].values()])
        assert sensor.spread / 1.5 < seen < sensor.spread * 1.5, sensor.name
        assert sensor.noise < seen / 5, f"{sensor.name} drowns in its noise"


@pytest.mark.parametrize(
    ("fleet", "command", "least", "most"),
    [
        (SPACECRAFT, "heater_on", 0.05, 0.4),
        (SPACECRAFT, "payload_on", 0.1, 0.35),
        (SPACECRAFT, "transmitter_on", 0.03, 0.12),
        (SPACECRAFT, "slew_plus", 0.02, 0.1),
        (SPACECRAFT, "slew_minus", 0.02, 0.1),
        (SERVERS, "backup_running", 0.05, 0.12),
        (SERVERS, "batch_running", 0.03, 0.25),
        (SERVERS, "traffic_drained", 0.005, 0.08),
        (SERVERS, "deploying", 0.005, 0.03),
    ],
)
def test_duty_cycles_are_sensible(
    fleet: Fleet, command: str, least: float, most: float, telemetry: dict[str, dict[str, Rows]]
) -> None:
    for rows in telemetry[fleet.family].values():
        assert least < series(fleet, rows, command).mean() < most


def test_spacecraft_stay_within_physical_limits(telemetry: dict[str, dict[str, Rows]]) -> None:
    limits = {
        "solar_current_a": (-0.2, 7.0),
        "battery_voltage_v": (29.0, 33.0),
        "bus_voltage_v": (27.0, 28.7),
        "panel_temperature_c": (-90.0, 70.0),
        "battery_temperature_c": (6.0, 20.0),
        "electronics_temperature_c": (5.0, 45.0),
        "wheel_speed_rpm": (500.0, 4000.0),
    }
    for rows in telemetry["spacecraft"].values():
        for name, (low, high) in limits.items():
            values = series(SPACECRAFT, rows, name)
            assert low < values.min(), name
            assert values.max() < high, name


def test_servers_stay_within_physical_limits(telemetry: dict[str, dict[str, Rows]]) -> None:
    limits = {"cpu_percent": 100, "memory_percent": 100, "latency_ms": 200, "temperature_c": 80, "fan_rpm": 6000}
    for rows in telemetry["servers"].values():
        assert (rows[:, : len(SERVERS.blueprint.sensors)] > 0).all()
        for name, most in limits.items():
            assert series(SERVERS, rows, name).max() < most, name


@pytest.mark.parametrize(
    ("fleet", "name", "per_slot"),
    [
        (SPACECRAFT, "panel_temperature_c", 12.0),
        (SPACECRAFT, "battery_temperature_c", 0.8),
        (SPACECRAFT, "electronics_temperature_c", 0.8),
        (SPACECRAFT, "wheel_speed_rpm", 65.0),
        (SPACECRAFT, "battery_voltage_v", 0.5),
        (SERVERS, "temperature_c", 1.5),
        (SERVERS, "fan_rpm", 150.0),
    ],
)
def test_what_has_inertia_is_continuous(
    fleet: Fleet, name: str, per_slot: float, telemetry: dict[str, dict[str, Rows]]
) -> None:
    for rows in telemetry[fleet.family].values():
        assert np.abs(np.diff(series(fleet, rows, name))).max() < per_slot


def test_the_battery_fills_in_the_sun_and_empties_in_the_shadow(telemetry: dict[str, dict[str, Rows]]) -> None:
    for rows in telemetry["spacecraft"].values():
        sun = series(SPACECRAFT, rows, "sun_sensor")
        current = series(SPACECRAFT, rows, "battery_current_a")
        assert (current[sun < 0.1] < 0).all()
        assert current[sun > 0.9].mean() > 0.5
        assert abs(current.sum()) < 0.1 * np.abs(current).sum()


@by_family
def test_samples_carry_the_row_exactly(fleet: Fleet, telemetry: dict[str, dict[str, Rows]]) -> None:
    for entity, rows in telemetry[fleet.family].items():
        check_entity(entity)
        sample = msgspec.json.decode(msgspec.json.encode(to_sample(fleet, entity, 1000 * START, rows[7])), type=Sample)
        assert np.array_equal(np.array(list(sample.values.values()), np.float32), rows[7])
        assert [isinstance(value, bool) for value in sample.values.values()] == [
            channel.kind == "command" for channel in fleet.channels
        ]


@by_family
@pytest.mark.parametrize("labelled", [False, True])
def test_files_have_the_datasets_shape(fleet: Fleet, labelled: bool, tmp_path: Path) -> None:
    faults = plan_faults(fleet, SEED, START, START + 900, 4) if labelled else None
    values = simulate(fleet, SEED, START, 900, faults or ())
    write_parquet(tmp_path / "data.parquet", fleet, values, START, faults)
    table = pq.read_table(tmp_path / "data.parquet")
    expected = [("entity", pa.dictionary(pa.int32(), pa.string())), ("t", pa.int32())]
    expected += [
        (channel.name, pa.float32() if channel.kind == "numeric" else pa.bool_()) for channel in fleet.channels
    ]
    expected += [("label", pa.uint8())] if labelled else []
    assert list(zip(table.schema.names, table.schema.types, strict=True)) == expected
    assert table["entity"].to_pylist() == [entity for entity in fleet.entities for _ in range(900)]
    assert table["t"].to_pylist() == [*range(900)] * len(fleet.entities)
    for channel in fleet.channels:
        stored = table[channel.name].to_numpy()
        assert np.array_equal(stored, np.concatenate([series(fleet, rows, channel.name) for rows in values.values()]))
    if faults is not None:
        faulty = np.concatenate([labels(faults, entity, START, 900) for entity in fleet.entities])
        assert np.array_equal(table["label"].to_numpy(), faulty)
        assert 0 < faulty.mean() < 0.5


def test_a_fleet_of_none_is_left_out() -> None:
    assert [fleet.family for fleet in fleets(satellites=0, servers=1)] == ["servers"]


def test_the_simulator_needs_no_network_and_no_torch() -> None:
    check = (
        "import sys, deploy.simulator, deploy.fault_plan; "
        "sys.exit(bool({'torch', 'confluent_kafka'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_change_of_regime_moves_the_whole_fleet_and_leaves_what_was_before(
    telemetry: dict[str, dict[str, Rows]],
) -> None:
    at = 1200
    moved = simulate(SPACECRAFT.moved(START + at), SEED, START, ROWS)
    for entity, rows in telemetry["spacecraft"].items():
        assert np.array_equal(moved[entity][:at], rows[:at])
        for name in ("load_current_a", "electronics_temperature_c", "wheel_speed_rpm"):
            usual, after = (series(SPACECRAFT, one[at + 300 :], name) for one in (rows, moved[entity]))
            assert after.mean() - usual.mean() > 0.5 * usual.std()


def test_only_spacecraft_have_another_regime() -> None:
    with pytest.raises(ValueError, match="only spacecraft"):
        SERVERS.moved(START)
