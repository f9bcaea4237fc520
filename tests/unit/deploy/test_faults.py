"""Laws of faults: where they act, what they do, and that a cheap detector can see each kind."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.fault_plan import EARLY, RECOVERY, plan_faults
from deploy.faults import KINDS, Fault, FaultKind, labels
from deploy.simulator import Fleet, Rows, Simulation, fleets, simulate

SEED = 5
START = 1_700_000_000
ROWS = 7000
COUNT = 42
FLEETS = fleets()
SPACECRAFT, SERVERS = FLEETS
by_family = pytest.mark.parametrize("fleet", FLEETS, ids=lambda fleet: fleet.family)


class Run(msgspec.Struct, frozen=True):
    """The same slots with and without the planned faults."""

    faults: list[Fault]
    normal: dict[str, Rows]
    faulty: dict[str, Rows]


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {fleet.family: planned_run(fleet) for fleet in FLEETS}


def planned_run(fleet: Fleet) -> Run:
    faults = plan_faults(fleet, SEED, START, START + ROWS - 1, COUNT)
    return Run(faults, simulate(fleet, SEED, START, ROWS), simulate(fleet, SEED, START, ROWS, faults))


def column_of(fleet: Fleet, name: str) -> int:
    return [channel.name for channel in fleet.channels].index(name)


def span(fault: Fault) -> slice:
    return slice(fault.first_slot - START, fault.last_slot + 1 - START)


def columns_of(fleet: Fleet, fault: Fault) -> list[int]:
    return [fleet.blueprint.sensor_index[name] for name in fault.channels if name in fleet.blueprint.sensor_index]


def fault(kind: FaultKind, fleet: Fleet, *channels: str, magnitude: float = 1.0, lasts: int = 100) -> Fault:
    return Fault(
        entity=fleet.entities[0],
        kind=kind,
        channels=channels,
        first_slot=START + 50,
        last_slot=START + 49 + lasts,
        magnitude=magnitude,
    )


@by_family
def test_a_plan_is_spread_and_leaves_time_to_recover(fleet: Fleet, runs: dict[str, Run]) -> None:
    faults = runs[fleet.family].faults
    assert len(faults) == COUNT
    assert START <= faults[0].first_slot < START + EARLY
    assert all(START <= fault.first_slot <= fault.last_slot < START + ROWS for fault in faults)
    assert faults == sorted(faults, key=lambda fault: fault.first_slot)
    for entity in fleet.entities:
        own = [fault for fault in faults if fault.entity == entity]
        assert abs(len(own) - COUNT / len(fleet.entities)) <= 3
        assert len({fault.kind for fault in own}) >= 3
        assert all(later.first_slot - sooner.last_slot > RECOVERY for sooner, later in pairwise(own))
    for kind in KINDS:
        assert abs(sum(fault.kind == kind for fault in faults) - COUNT / len(KINDS)) <= 2


@by_family
def test_a_plan_is_repeatable_and_follows_its_seed(fleet: Fleet) -> None:
    plans = [plan_faults(fleet, seed, START, START + 2000, 6) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@by_family
def test_a_short_plan_still_finds_its_place(fleet: Fleet) -> None:
    faults = plan_faults(fleet, SEED, START, START + 399, 4)
    assert len(faults) == 4
    assert all(fault.last_slot < START + 400 for fault in faults)


def test_too_many_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="plan fewer faults or more slots"):
        plan_faults(SERVERS, SEED, START, START + 400, 40)


@by_family
def test_nothing_differs_before_a_fault_or_on_other_entities(fleet: Fleet, runs: dict[str, Run]) -> None:
    run = runs[fleet.family]
    victim = run.faults[1].entity
    alone = simulate(fleet, SEED, START, ROWS, [fault for fault in run.faults if fault.entity == victim])
    first = min(fault.first_slot for fault in run.faults if fault.entity == victim) - START
    assert np.array_equal(alone[victim], run.faulty[victim])
    assert np.array_equal(alone[victim][:first], run.normal[victim][:first])
    assert not np.array_equal(alone[victim][first:], run.normal[victim][first:])
    for entity in set(fleet.entities) - {victim}:
        assert np.array_equal(alone[entity], run.normal[entity])


@by_family
def test_an_entity_recovers_before_its_next_fault(fleet: Fleet, runs: dict[str, Run]) -> None:
    run = runs[fleet.family]
    spread = fleet.blueprint.per_sensor(lambda sensor: sensor.spread)
    numeric = len(spread)
    for entity in fleet.entities:
        for fault in run.faults:
            after = fault.last_slot + 1 + RECOVERY - START
            if fault.entity == entity and after < ROWS:
                apart = run.faulty[entity][after - 1, :numeric] - run.normal[entity][after - 1, :numeric]
                # On average: the heater and the garbage collection may run at other times, which is normal.
                assert (np.abs(apart) / spread).mean() < 0.1, fault


@by_family
def test_an_injected_fault_is_as_one_known_from_the_start(fleet: Fleet) -> None:
    late = fault("drift", fleet, fleet.blueprint.sensors[1].name)
    live = Simulation(fleet, SEED, START)
    before = live.advance(50)
    live.inject(late)
    values = np.concatenate([before, live.advance(100)], axis=1)
    assert np.array_equal(values, Simulation(fleet, SEED, START, [late]).advance(150))
    with pytest.raises(ValueError, match="first_slot wants at least"):
        live.inject(late)


@by_family
def test_a_stuck_sensor_repeats_its_last_reading(fleet: Fleet) -> None:
    stuck = fault("stuck", fleet, *(sensor.name for sensor in fleet.blueprint.sensors if not sensor.controls))
    normal, faulty = simulate(fleet, SEED, START, 200), simulate(fleet, SEED, START, 200, [stuck])
    columns, entity = columns_of(fleet, stuck), stuck.entity
    assert (faulty[entity][span(stuck), columns] == normal[entity][49, columns]).all()
    others = [column for column in range(len(fleet.channels)) if column not in columns]
    assert np.array_equal(faulty[entity][:, others], normal[entity][:, others])
    assert np.array_equal(faulty[entity][150:], normal[entity][150:])


@by_family
def test_sensor_faults_have_the_size_they_say(fleet: Fleet) -> None:
    sensor = fleet.blueprint.sensors[1]
    column, entity = 1, fleet.entities[0]
    normal = simulate(fleet, SEED, START, 200)[entity][:, column]

    def change(kind: FaultKind) -> NDArray[np.float64]:
        wrong = fault(kind, fleet, sensor.name, magnitude=2.0)
        faulty = simulate(fleet, SEED, START, 200, [wrong])[entity][:, column]
        assert np.array_equal(np.delete(faulty, np.r_[span(wrong)]), np.delete(normal, np.r_[span(wrong)]))
        changed: NDArray[np.float64] = (faulty - normal)[span(wrong)] / sensor.spread
        return changed

    tolerance = 1.1 * sensor.quantum / sensor.spread
    drift, spike, burst = change("drift"), change("spike"), change("noise_burst")
    assert np.abs(drift - np.linspace(0.02, 2.0, 100)).max() < tolerance
    assert np.abs(spike[::3] - 2.0).max() < tolerance
    assert not spike[1::3].any()
    assert not spike[2::3].any()
    assert abs(burst.mean()) < 0.7
    assert 1.6 < burst.std() < 2.4


@by_family
def test_a_dead_actuator_leaves_its_command_without_effect(fleet: Fleet, runs: dict[str, Run]) -> None:
    """The command is sent as planned, and the answer differs from the normal one."""
    run = runs[fleet.family]
    spread = fleet.blueprint.per_sensor(lambda sensor: sensor.spread)
    dead = [fault for fault in run.faults if fault.kind == "wrong_command_response"]
    assert len({fault.channels[0] for fault in dead}) >= 2
    for fault in dead:
        commands = [name for name in fault.channels if name in fleet.blueprint.commands]
        sent = run.faulty[fault.entity][span(fault)][:, [column_of(fleet, name) for name in commands]]
        assert sent.max(axis=1).mean() > 0.2
        columns = columns_of(fleet, fault)
        apart = np.abs(run.faulty[fault.entity] - run.normal[fault.entity])[span(fault)][:, columns] / spread[columns]
        assert (apart.max(axis=0) > 0.3).all(), fault
        assert apart.max() > 0.7, fault


def test_a_dead_heater_lets_the_battery_cool_while_it_is_asked_to_heat() -> None:
    dead = fault("wrong_command_response", SPACECRAFT, "heater_on", "battery_temperature_c", lasts=300)
    rows = simulate(SPACECRAFT, SEED, START, 400, [dead])[dead.entity][span(dead)]
    normal = simulate(SPACECRAFT, SEED, START, 400)[dead.entity][span(dead)]
    battery, heater = column_of(SPACECRAFT, "battery_temperature_c"), column_of(SPACECRAFT, "heater_on")
    assert rows[:, battery].min() < normal[:, battery].min() - 0.5
    assert rows[:, heater].mean() > normal[:, heater].mean()


@pytest.mark.parametrize(
    ("fleet", "driver", "driven"),
    [
        (SPACECRAFT, "sun_sensor", "solar_current_a"),
        (SERVERS, "requests_per_s", "network_out_mbit_s"),
        (SERVERS, "requests_per_s", "cpu_percent"),
    ],
)
def test_a_broken_correlation_stays_in_range_and_loses_its_driver(fleet: Fleet, driver: str, driven: str) -> None:
    broken = fault("correlation_break", fleet, driven, lasts=600)
    faulty, normal = (simulate(fleet, SEED, START, 1200, faults)[broken.entity] for faults in ([broken], []))
    pair = [column_of(fleet, driver), column_of(fleet, driven)]
    within, usual = faulty[span(broken)][:, pair], normal[span(broken)][:, pair]
    assert np.corrcoef(usual.T)[0, 1] > 0.5
    assert np.corrcoef(within.T)[0, 1] < 0.25
    low, high = normal[:, pair[1]].min(), normal[:, pair[1]].max()
    assert np.mean((within[:, 1] >= 0.9 * low) & (within[:, 1] <= 1.1 * high)) > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (fault("drift", SERVERS, "cpu_percent"), "entity wants one of"),
        (fault("drift", SPACECRAFT, "cpu_percent"), "don't include cpu_percent"),
        (fault("drift", SPACECRAFT, "heater_on"), "for wrong_command_response only"),
        (fault("wrong_command_response", SPACECRAFT, "wheel_speed_rpm"), "for wrong_command_response only"),
        (fault("correlation_break", SPACECRAFT, "wheel_speed_rpm"), "correlation_break wants channels out of"),
    ],
)
def test_a_fault_that_fits_no_part_of_the_fleet_is_refused(wrong: Fault, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(SPACECRAFT, SEED, START, [wrong])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_slot": START}, "last_slot wants"),
        ({"channels": ()}, "channels wants"),
        ({"kind": "correlation_break", "magnitude": 1.5}, "wants a share"),
        ({"kind": "wrong_command_response", "magnitude": 0.0}, "wants a share"),
    ],
)
def test_an_impossible_fault_cannot_be_made(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        msgspec.structs.replace(fault("drift", SPACECRAFT, "sun_sensor"), **change)


def test_labels_cover_exactly_the_faulty_slots_of_the_entity() -> None:
    faults = [fault("drift", SPACECRAFT, "sun_sensor"), fault("spike", SPACECRAFT, "sun_sensor", lasts=200)]
    marked = labels(faults, SPACECRAFT.entities[0], START + 60, 300)
    assert marked.tolist() == [True] * 190 + [False] * 110
    assert not labels(faults, SPACECRAFT.entities[1], START + 60, 300).any()


@by_family
def test_a_cheap_detector_sees_every_kind(fleet: Fleet, runs: dict[str, Run]) -> None:
    """Learn without faults how each channel follows from the others and their past; judge all rows by the residuals."""
    run = runs[fleet.family]
    training = simulate(fleet, SEED, START - 5000, 4000)
    found: dict[FaultKind, list[float]] = {kind: [] for kind in KINDS}
    for entity in fleet.entities:
        detector = CheapDetector(training[entity], len(fleet.blueprint.sensors))
        normal, faulty = detector.score(run.normal[entity]), detector.score(run.faulty[entity])
        for fault in run.faults:
            if fault.entity == entity:
                found[fault.kind].append(share_below(normal, faulty[span(fault)]))
    for kind, areas in found.items():
        assert np.median(areas) > 0.9, kind
        assert np.quantile(areas, 0.2) > 0.75, kind


def share_below(normal: NDArray[np.float64], faulty: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve: how often a faulty row scores higher than a normal one."""
    return float(np.searchsorted(np.sort(normal), faulty).mean() / len(normal))


class CheapDetector:
    """Squared residuals of two linear predictions, smoothed, over their normal 99th percentile; the worst channel."""

    def __init__(self, rows: Rows, numeric: int) -> None:
        self._numeric = numeric
        inputs = self._inputs(rows)
        self._mean, self._std = inputs.mean(0), inputs.std(0) + 1e-6
        design = self._design(inputs)
        self._weights = []
        for column in range(numeric):
            others = self._others(column, rows.shape[1])
            gram = design[:, others].T @ design[:, others] + np.eye(len(others))
            self._weights.append(np.linalg.solve(gram, design[:, others].T @ rows[:, column]))
        self._scale = np.ones(2 * numeric)
        self._scale = np.quantile(self._energies(rows), 0.99, axis=0)

    def score(self, rows: Rows) -> NDArray[np.float64]:
        worst: NDArray[np.float64] = (self._energies(rows) / self._scale).max(1)
        return worst

    def _energies(self, rows: Rows) -> NDArray[np.float64]:
        design = self._design(self._inputs(rows))
        expected = [
            design[:, self._others(column, rows.shape[1])] @ weights for column, weights in enumerate(self._weights)
        ]
        residual = rows[:, : self._numeric] - np.stack(expected, 1)
        jump = np.diff(rows[:, : self._numeric], n=2, axis=0, prepend=rows[:1, : self._numeric].repeat(2, 0))
        return smoothed(np.concatenate([residual, jump], 1) ** 2, 8)

    def _inputs(self, rows: Rows) -> NDArray[np.float64]:
        return np.concatenate([rows, *(smoothed(rows, lag) for lag in (4, 20, 60))], 1)

    def _design(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.c_[(inputs - self._mean) / self._std, np.ones(len(inputs))]

    def _others(self, column: int, width: int) -> list[int]:
        return [index for index in range(4 * width + 1) if index == 4 * width or index % width != column]


def smoothed(values: NDArray[np.floating], lag: int) -> NDArray[np.float64]:
    result = np.array(values, np.float64)
    for index in range(1, len(result)):
        result[index] = result[index - 1] + (result[index] - result[index - 1]) / lag
    return result
