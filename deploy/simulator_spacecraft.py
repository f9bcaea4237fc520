"""The physics of a small satellite in low orbit: light, power, heat, wheels. Knows no faults' origin, no wire.

An orbit is shortened to ORBIT slots so that a day and a night pass within a window of the detector. Rates are per
slot, temperatures in °C, energy in W·slot.
"""

import numpy as np

from deploy.simulator_blueprint import Blueprint, Effects, Response, Sensor, mixed
from deploy.simulator_draws import Activity, Floats, Ints, Keys, active, constant, normal, since_start, uniform

ORBIT = 300
PENUMBRA = 4

SENSORS = (
    Sensor("sun_sensor", noise=0.004, quantum=0.002, spread=0.47),
    Sensor("solar_current_a", noise=0.03, quantum=0.01, spread=2.5),
    Sensor("battery_current_a", noise=0.03, quantum=0.01, spread=2.0),
    Sensor("battery_voltage_v", noise=0.02, quantum=0.01, spread=0.55),
    Sensor("bus_voltage_v", noise=0.01, quantum=0.01, spread=0.12),
    Sensor("load_current_a", noise=0.02, quantum=0.01, spread=0.55),
    Sensor("panel_temperature_c", noise=0.3, quantum=0.1, spread=60.0),
    Sensor("battery_temperature_c", noise=0.05, quantum=0.05, spread=2.0, controls=True),
    Sensor("electronics_temperature_c", noise=0.05, quantum=0.05, spread=3.0),
    Sensor("wheel_speed_rpm", noise=2.0, quantum=1.0, spread=220.0),
    Sensor("wheel_current_a", noise=0.01, quantum=0.005, spread=0.17),
)
COMMANDS = ("heater_on", "payload_on", "transmitter_on", "slew_plus", "slew_minus")

_SUN, _SOLAR, _PANEL, _BATTERY = (
    [sensor.name for sensor in SENSORS].index(name)
    for name in ("sun_sensor", "solar_current_a", "panel_temperature_c", "battery_temperature_c")
)
_HEATER, _PAYLOAD, _TRANSMITTER, _PLUS, _MINUS = range(len(COMMANDS))

# Lanes of the draws: 200 and more belong to plants.
_PAYLOAD_RUN = Activity(lane=200, chance=0.8, earliest=20, latest=110, shortest=50, longest=90)
_PASS = Activity(lane=203, chance=0.7, earliest=0, latest=260, shortest=20, longest=35)
_SLEWS = (
    Activity(lane=206, chance=0.8, earliest=0, latest=70, shortest=20, longest=40),
    Activity(lane=210, chance=0.8, earliest=140, latest=220, shortest=20, longest=40),
)
_SLEW_SIGN = 3
_BURN = 12
_LOAD_LANE, _CONSTANT_LANE = 120, 230

_BUS_V = 28.0
# What a change of regime adds: a second payload that is always on, and a wheel that stores more momentum.
_REGIME_W, _REGIME_RPM = 14.0, 350.0
_PAYLOAD_W, _TRANSMITTER_W, _HEATER_W = 34.0, 26.0, 16.0
_HEATER_FROM, _HEATER_TO = 8.0, 11.0
_SPIN_UP = 45.0


class Spacecraft:
    """E satellites of one design that differ in orbit phase, efficiency, capacity, masses and friction."""

    def __init__(self, keys: Keys, regime_from: int | None = None) -> None:
        """Start at a nominal condition, which is forgotten within a few orbits. keys: (E,).

        regime_from: the slot from which on the whole fleet is operated in another way, for good.
        """
        self._keys = keys
        self._regime_from = regime_from
        self._set_constants(keys)
        entities = len(keys)
        self._charge = 0.8 * self._capacity
        self._panel = np.zeros(entities)
        self._battery = np.full(entities, 10.0)
        self._electronics = np.full(entities, 20.0)
        self._wheel = self._wheel_bias.copy()
        self._jitter = np.zeros(entities)
        self._heater = np.zeros(entities)

    def _set_constants(self, keys: Keys) -> None:
        lanes = iter(range(_CONSTANT_LANE, _CONSTANT_LANE + 20))

        def between(low: float, high: float) -> Floats:
            return constant(keys, next(lanes), low, high)

        self._phase = between(0, ORBIT).astype(np.int64)
        self._night = between(98.0, 112.0)
        self._array_a = between(5.3, 5.9)
        self._capacity = between(30_000.0, 36_000.0)
        self._base_w = between(40.0, 48.0)
        self._panel_lag = between(18.0, 26.0)
        self._battery_lag = between(45.0, 60.0)
        self._electronics_lag = between(50.0, 75.0)
        self._resistance = between(0.06, 0.09)
        self._wheel_bias = between(1800.0, 2600.0)
        self._wheel_drag = between(1.2e-4, 1.7e-4)
        self._wheel_lag = between(110.0, 140.0)

    def prepare(self, slots: Ints, effects: Effects) -> None:
        """Work out light and scheduled commands of the next slots, (R,)."""
        orbit, position = np.divmod(slots[:, None] + self._phase, ORBIT)  # (R, E)
        sun = self._illumination(position)
        other_sun = self._illumination((position + ORBIT // 2) % ORBIT)
        self._sun = sun
        self._shown_sun = mixed(effects.coupling[:, :, _SUN], sun, other_sun)
        self._metered_sun = mixed(effects.coupling[:, :, _SOLAR], sun, other_sun)
        self._panel_sun = mixed(effects.coupling[:, :, _PANEL], sun, other_sun)
        self._commands = self._schedule(orbit, position)
        self._response = effects.response
        self._regime = np.zeros(len(slots)) if self._regime_from is None else 1.0 * (slots >= self._regime_from)
        self._noise = normal(self._keys, slots[:, None], _LOAD_LANE)

    def _illumination(self, position: Ints) -> Floats:
        """Return the light on a sun-pointing surface, 0 in the Earth's shadow and 1 in the sun, (R, E)."""
        into_day = np.clip((position + 0.5) / PENUMBRA, 0.0, 1.0)
        into_night = np.clip((ORBIT - self._night - position) / PENUMBRA, 0.0, 1.0)
        return np.minimum(into_day, into_night)

    def _schedule(self, orbit: Ints, position: Ints) -> Floats:
        """Return the commands that follow a plan, (R, E, K); the thermostat's column is left 0."""
        commands = np.zeros((*orbit.shape, len(COMMANDS)))
        commands[..., _PAYLOAD] = active(self._keys, orbit, position, _PAYLOAD_RUN)
        commands[..., _TRANSMITTER] = active(self._keys, orbit, position, _PASS)
        for slew in _SLEWS:
            since, coast = since_start(self._keys, orbit, position, slew)
            first = (since >= 0) & (since < _BURN)
            second = (since >= _BURN + coast) & (since < 2 * _BURN + coast)
            forward = uniform(self._keys, orbit, slew.lane + _SLEW_SIGN) < 0.5
            commands[..., _PLUS] += np.where(forward, first, second)
            commands[..., _MINUS] += np.where(forward, second, first)
        return commands

    def advance(self, index: int, readings: Floats) -> tuple[Floats, Floats]:
        """Move to slot `index` of the prepared ones; return true values (E, C) and commands (E, K)."""
        commands = self._commands[index]
        self._heater = _thermostat(self._heater, readings[:, _BATTERY])
        commands[:, _HEATER] = self._heater
        effect = commands * self._response[index]
        sun = self._sun[index]

        wheel_a = self._turn_wheel(effect, self._wheel_bias + _REGIME_RPM * self._regime[index])
        self._jitter = 0.9 * self._jitter + 0.35 * self._noise[index]
        switched_w = _PAYLOAD_W * effect[:, _PAYLOAD] + _TRANSMITTER_W * effect[:, _TRANSMITTER]
        electronics_w = self._base_w + _REGIME_W * self._regime[index] + self._jitter + switched_w
        load_w = electronics_w + _BUS_V * wheel_a + _HEATER_W * effect[:, _HEATER]

        # Cold cells give more: the current peaks where the panel leaves the shadow.
        array_a = self._array_a * (1.0 - 0.0008 * (self._panel - 28.0))
        battery_a, battery_v = self._charge_battery(_BUS_V * array_a * sun - load_w)
        self._exchange_heat(index, electronics_w, effect[:, _HEATER], battery_a)

        # A broken coupling is the meter's: a night without sun would leave the battery empty long after the fault.
        solar_a = array_a * self._metered_sun[index]
        load_a = load_w / _BUS_V
        bus_v = _BUS_V + 0.2 * sun - 0.06 * load_a + 0.05 * (battery_v - 30.0)
        truth = (
            *(self._shown_sun[index], solar_a, battery_a, battery_v, bus_v, load_a),
            *(self._panel, self._battery, self._electronics, self._wheel, wheel_a),
        )
        return np.stack(truth, axis=1), commands

    def _turn_wheel(self, effect: Floats, bias: Floats) -> Floats:
        """Spin the wheel against its friction, about its bias in rpm; return the motor's current in A, (E,) each."""
        torque = effect[:, _PLUS] - effect[:, _MINUS]
        self._wheel = self._wheel + _SPIN_UP * torque - (self._wheel - bias) / self._wheel_lag
        return self._wheel_drag * self._wheel + 0.45 * torque

    def _charge_battery(self, surplus_w: Floats) -> tuple[Floats, Floats]:
        """Store or draw the surplus; return the battery's current (charging is positive) and voltage, (E,) each."""
        # The regulator tapers the charge near full and shunts the rest; an empty battery gives no more.
        power = np.clip(surplus_w, -self._charge, (self._capacity - self._charge) / 20.0)
        self._charge = self._charge + np.where(power > 0, 0.95 * power, power)
        level = self._charge / self._capacity
        open_v = 26.4 + 5.4 * level + 0.8 * level**4
        current = power / open_v
        return current, open_v + self._resistance * current

    def _exchange_heat(self, index: int, electronics_w: Floats, heater: Floats, battery_a: Floats) -> None:
        """Move the temperatures towards their equilibria, first order."""
        panel_goal = -85.0 + 150.0 * self._panel_sun[index]
        electronics_goal = 2.0 + 5.0 * self._sun[index] + 0.3 * electronics_w
        battery_goal = (
            2.5
            + 10.0 * self._sun[index]
            + 0.2 * (self._electronics - 18.0)
            + 0.75 * _HEATER_W * heater
            + 2.0 * self._resistance * battery_a**2
        )
        self._panel = self._panel + (panel_goal - self._panel) / self._panel_lag
        self._electronics = self._electronics + (electronics_goal - self._electronics) / self._electronics_lag
        self._battery = self._battery + (battery_goal - self._battery) / self._battery_lag


def _thermostat(heater: Floats, temperature: Floats) -> Floats:
    """Return the heater's command: on below _HEATER_FROM until above _HEATER_TO."""
    return np.where(temperature < _HEATER_FROM, 1.0, np.where(temperature > _HEATER_TO, 0.0, heater))


BLUEPRINT = Blueprint(
    family="spacecraft",
    sensors=SENSORS,
    commands=COMMANDS,
    cycle=ORBIT,
    responses=(
        Response(("heater_on",), ("battery_temperature_c", "load_current_a")),
        Response(("payload_on",), ("load_current_a", "electronics_temperature_c")),
        Response(("transmitter_on",), ("load_current_a", "electronics_temperature_c")),
        Response(("slew_plus", "slew_minus"), ("wheel_speed_rpm", "wheel_current_a")),
    ),
    couplings=("sun_sensor", "solar_current_a", "panel_temperature_c"),
    plant=Spacecraft,
)
