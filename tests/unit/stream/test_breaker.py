import pytest
from structlog.testing import capture_logs

from stream.breaker import LEAST_RECORDS, LOOK_S, Breaker
from stream.metrics import Health, Metrics


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class World:
    """A breaker of a fifth, and who looks at it."""

    def __init__(self):
        self.clock, self.metrics, self.health = Clock(), Metrics(), Health(30.0)
        self.health.set_ready("assignment", ready=True)
        self.breaker = Breaker(0.2, self.metrics, self.health, self.clock)

    def pass_by(self, taken, refused, reason="schema", family="rover"):
        """Let records of a family come, and then time go by until they are looked at."""
        self.breaker.observe({family: taken}, {(family, reason): refused})
        self.clock.now += LOOK_S
        self.breaker.observe({family: 0}, {})

    def refusing(self, family="rover"):
        return self.metrics.registry.get_sample_value("telltale_refusing", {"family": family})


@pytest.fixture
def world():
    return World()


def test_a_family_whose_schema_changed_is_named_with_reason_and_share(world):
    with capture_logs() as lines:
        world.pass_by(20, 180)
    assert world.refusing() == 1
    assert world.health.ready() == (True, "ready; family rover: 90% of its records are refused, most as schema")
    said = {name: lines[0][name] for name in ("log_level", "family", "reason", "share")}
    assert said == {"log_level": "error", "family": "rover", "reason": "schema", "share": 0.9}


def test_it_is_told_once_and_over_at_half_the_share(world):
    """share     90 % | 90 % | 15 % | 9 %"""
    with capture_logs() as lines:
        for taken, refused in ((20, 180), (20, 180), (170, 30)):
            world.pass_by(taken, refused)
            assert world.refusing() == 1
        world.pass_by(182, 18)
    assert world.refusing() == 0
    assert world.health.ready() == (True, "ready")
    assert [line["log_level"] for line in lines] == ["error", "warning"]


@pytest.mark.parametrize(("taken", "refused"), [(800, 200), (LEAST_RECORDS - 51, 50), (1000, 0)])
def test_a_fifth_or_a_few_bad_records_are_no_change_of_schema(world, taken, refused):
    world.pass_by(taken, refused)
    assert not world.refusing()


def test_few_records_are_looked_at_when_there_are_enough_of_them(world):
    for _ in range(9):
        world.pass_by(1, 10)
        assert not world.refusing()
    world.pass_by(1, 10)
    assert world.refusing() == 1


def test_families_are_judged_apart(world):
    world.breaker.observe({"rover": 500, "probe": 10}, {("probe", "range"): 400})
    world.clock.now += LOOK_S
    world.breaker.observe({"rover": 0, "probe": 0}, {})
    assert (world.refusing("rover"), world.refusing("probe")) == (None, 1)


def test_a_note_does_not_say_that_a_service_is_ready(world):
    world.pass_by(0, 200)
    world.health.set_ready("assignment", ready=False)
    ready, line = world.health.ready()
    assert not ready
    assert line.startswith("waiting for assignment; family rover")
