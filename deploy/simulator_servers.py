"""The physics of a web server: demand, queueing, memory, disks, network, heat. Knows no faults' origin, no wire.

A day is shortened to DAY slots. Rates are per slot, temperatures in °C.
"""

import numpy as np

from deploy.simulator_blueprint import Blueprint, Effects, Response, Sensor, mixed
from deploy.simulator_draws import Activity, Floats, Ints, Keys, active, constant, normal, since_start, uniform

DAY = 600

SENSORS = (
    Sensor("requests_per_s", noise=3.0, quantum=1.0, spread=180.0),
    Sensor("cpu_percent", noise=0.6, quantum=0.1, spread=13.0),
    Sensor("memory_percent", noise=0.05, quantum=0.1, spread=5.0),
    Sensor("disk_read_mb_s", noise=0.3, quantum=0.1, spread=23.0),
    Sensor("disk_write_mb_s", noise=0.3, quantum=0.1, spread=9.0),
    Sensor("network_in_mbit_s", noise=0.2, quantum=0.1, spread=6.0),
    Sensor("network_out_mbit_s", noise=0.5, quantum=0.1, spread=32.0),
    Sensor("connections", noise=1.0, quantum=1.0, spread=33.0),
    Sensor("latency_ms", noise=0.2, quantum=0.1, spread=3.0),
    Sensor("temperature_c", noise=0.1, quantum=0.1, spread=3.0, controls=True),
    Sensor("fan_rpm", noise=12.0, quantum=10.0, spread=360.0),
)
COMMANDS = ("backup_running", "batch_running", "traffic_drained", "deploying")

_CPU, _WRITE, _OUT, _TEMPERATURE = (
    [sensor.name for sensor in SENSORS].index(name)
    for name in ("cpu_percent", "disk_write_mb_s", "network_out_mbit_s", "temperature_c")
)
_BACKUP, _BATCH, _DRAIN, _DEPLOY = range(len(COMMANDS))

# Lanes of the draws: 200 and more belong to plants.
_ACTIVITIES = (
    (_BACKUP, Activity(lane=200, chance=1.0, earliest=30, latest=120, shortest=40, longest=60)),
    (_BATCH, Activity(lane=203, chance=0.7, earliest=150, latest=260, shortest=30, longest=60)),
    (_BATCH, Activity(lane=206, chance=0.7, earliest=380, latest=500, shortest=30, longest=60)),
    (_DRAIN, Activity(lane=209, chance=0.7, earliest=130, latest=540, shortest=20, longest=40)),
)
_RELEASE = Activity(lane=212, chance=1.0, earliest=250, latest=500, shortest=12, longest=18)
_BURSTS = tuple(
    Activity(
        lane=215 + 4 * number, chance=0.7, earliest=150 * number, latest=150 * number + 90, shortest=25, longest=45
    )
    for number in range(4)
)
_BURST_HEIGHT = 3
_DEMAND_LANE, _READ_LANE, _WRITE_LANE, _IN_LANE, _OUT_LANE = 120, 121, 122, 123, 124
_CONSTANT_LANE = 240

# A release restarts the service every so many days: the leak starts anew.
_DAYS_BETWEEN_RELEASES = 2
_MAX_UTILISATION = 0.95


class Servers:
    """E hosts of one service that differ in size, daily rhythm, leak, heap and cooling."""

    def __init__(self, keys: Keys) -> None:
        """Start freshly released, which is forgotten at the next release. keys: (E,)."""
        self._keys = keys
        self._set_constants(keys)
        entities = len(keys)
        self._unrest = np.zeros(entities)
        self._leak = np.zeros(entities)
        self._heap = np.zeros(entities)
        self._temperature = np.full(entities, 45.0)
        self._fan = np.full(entities, 2000.0)

    def _set_constants(self, keys: Keys) -> None:
        lanes = iter(range(_CONSTANT_LANE, _CONSTANT_LANE + 20))

        def between(low: float, high: float) -> Floats:
            return constant(keys, next(lanes), low, high)

        self._phase = between(0, 60).astype(np.int64)
        self._release_day = between(0, _DAYS_BETWEEN_RELEASES).astype(np.int64)
        self._capacity = between(900.0, 1300.0)
        self._swing = between(0.18, 0.26)
        self._evening = between(0.03, 0.08)
        self._work = between(60.0, 70.0)
        self._service_ms = between(6.0, 10.0)
        self._resident = between(25.0, 40.0)
        self._leak_rate = between(0.006, 0.012)
        self._heap_limit = between(9.0, 14.0)
        self._response_kbit = between(90.0, 140.0)
        self._ambient = between(21.0, 26.0)

    def prepare(self, slots: Ints, effects: Effects) -> None:
        """Work out demand and schedules of the next slots, (R,)."""
        day, position = np.divmod(slots[:, None] + self._phase, DAY)  # (R, E)
        self._demand = self._daily_demand(day, position)
        self._other_demand = self._daily_demand(*np.divmod(slots[:, None] + self._phase + DAY // 2, DAY))
        self._commands = self._schedule(day, position)
        self._response = effects.response
        self._coupling = effects.coupling
        self._noise = {
            lane: normal(self._keys, slots[:, None], lane)
            for lane in (_DEMAND_LANE, _READ_LANE, _WRITE_LANE, _IN_LANE, _OUT_LANE)
        }

    def _daily_demand(self, day: Ints, position: Ints) -> Floats:
        """Return the demand as a share of the capacity: lowest at the start of the day, with bursts, (R, E)."""
        angle = 2.0 * np.pi * position / DAY
        demand = 0.42 - self._swing * np.cos(angle) + self._evening * np.sin(2.0 * angle)
        for burst in _BURSTS:
            since, lasts = since_start(self._keys, day, position, burst)
            height = 0.15 + 0.2 * uniform(self._keys, day, burst.lane + _BURST_HEIGHT)
            rise_and_fall = np.sin(np.pi * np.clip((since + 1) / (lasts + 1), 0.0, 1.0)) ** 2
            demand = demand * (1.0 + height * rise_and_fall)
        return demand

    def _schedule(self, day: Ints, position: Ints) -> Floats:
        commands = np.zeros((*day.shape, len(COMMANDS)))
        for column, activity in _ACTIVITIES:
            commands[..., column] = np.maximum(commands[..., column], active(self._keys, day, position, activity))
        release = (day + self._release_day) % _DAYS_BETWEEN_RELEASES == 0
        commands[..., _DEPLOY] = release * active(self._keys, day, position, _RELEASE)
        return commands

    def advance(self, index: int, readings: Floats) -> tuple[Floats, Floats]:
        """Move to slot `index` of the prepared ones; return true values (E, C) and commands (E, K)."""
        commands = self._commands[index]
        effect = commands * self._response[index]
        coupling = self._coupling[index]
        self._unrest = 0.9 * self._unrest + 0.02 * self._noise[_DEMAND_LANE][index]
        admitted = (1.0 + self._unrest) * (1.0 - 0.6 * effect[:, _DRAIN]) * (1.0 - 0.3 * effect[:, _DEPLOY])
        load = self._demand[index] * admitted
        other = self._other_demand[index] * admitted

        busy = self._utilisation(mixed(coupling[:, _CPU], load, other), effect)
        latency = 3.0 + self._service_ms / (1.0 - np.minimum(busy, _MAX_UTILISATION))
        memory = self._use_memory(load, effect)
        self._cool(busy, readings[:, _TEMPERATURE])
        requests = self._capacity * load
        truth = (
            *(requests, 100.0 * busy, memory),
            *self._move_data(index, load, mixed(coupling[:, _WRITE], load, other), effect),
            *self._talk(index, requests, self._capacity * mixed(coupling[:, _OUT], load, other), effect),
            *(20.0 + requests * (0.15 + latency / 1000.0), latency, self._temperature, self._fan),
        )
        return np.stack(truth, axis=1), commands

    def _utilisation(self, load: Floats, effect: Floats) -> Floats:
        """Return the share of processor time in use, (E,)."""
        tasks = 10.0 * effect[:, _BACKUP] + 16.0 * effect[:, _BATCH] + 12.0 * effect[:, _DEPLOY]
        return np.clip((3.0 + self._work * load + tasks) / 100.0, 0.0, 1.0)

    def _use_memory(self, load: Floats, effect: Floats) -> Floats:
        """Let the heap fill and be collected, the leak grow and a release start both anew; return percent, (E,)."""
        filled = self._heap + 0.6 * load
        self._heap = np.where(filled > self._heap_limit, 0.2 * self._heap_limit, filled)
        self._leak = self._leak + self._leak_rate * load / 0.42
        released = effect[:, _DEPLOY] > 0.5
        self._heap = np.where(released, 0.0, self._heap)
        self._leak = np.where(released, 0.0, self._leak)
        return self._resident + self._leak + self._heap + 6.0 * effect[:, _BATCH]

    def _move_data(self, index: int, load: Floats, write_load: Floats, effect: Floats) -> tuple[Floats, Floats]:
        """Return what the disk reads and writes in MB/s, (E,) each."""
        read = 4.0 + 14.0 * load + 85.0 * effect[:, _BACKUP] + 12.0 * effect[:, _BATCH]
        write = 3.0 + 22.0 * write_load + 24.0 * effect[:, _BATCH] + 30.0 * effect[:, _DEPLOY]
        return (
            read * np.exp(0.05 * self._noise[_READ_LANE][index]),
            write * np.exp(0.05 * self._noise[_WRITE_LANE][index]),
        )

    def _talk(self, index: int, requests: Floats, answered: Floats, effect: Floats) -> tuple[Floats, Floats]:
        """Return the network's traffic in and out in Mbit/s, (E,) each."""
        received = 0.03 * requests + 20.0 * effect[:, _DEPLOY]
        sent = self._response_kbit / 1000.0 * answered + 90.0 * effect[:, _BACKUP]
        return (
            received * np.exp(0.03 * self._noise[_IN_LANE][index]),
            sent * np.exp(0.03 * self._noise[_OUT_LANE][index]),
        )

    def _cool(self, busy: Floats, reading: Floats) -> None:
        """Move temperature and fan one slot on; the fan follows the temperature's reading."""
        wanted = np.clip(1200.0 + 130.0 * (reading - 38.0), 1200.0, 6000.0)
        self._fan = self._fan + (wanted - self._fan) / 6.0
        goal = self._ambient + (60.0 + 190.0 * busy) / (3.0 + self._fan / 1000.0)
        self._temperature = self._temperature + (goal - self._temperature) / 25.0


BLUEPRINT = Blueprint(
    family="servers",
    sensors=SENSORS,
    commands=COMMANDS,
    cycle=DAY,
    # Not deploying: a release that fails to restart the service leaves its memory wrong for days.
    responses=(
        Response(("backup_running",), ("disk_read_mb_s", "network_out_mbit_s")),
        Response(("batch_running",), ("cpu_percent", "disk_write_mb_s")),
        Response(("traffic_drained",), ("requests_per_s", "cpu_percent")),
    ),
    couplings=("cpu_percent", "disk_write_mb_s", "network_out_mbit_s"),
    plant=Servers,
)
