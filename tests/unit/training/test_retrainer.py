"""The retrainer on a real registry, its training made up; killed wherever it may be, the end is the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detector.registry import Registry
from stream.contracts import Gate, ModelEvent
from stream.errors import TransientError
from stream.metrics import Metrics
from stream.settings import FamilySettings, Settings
from tests.bundles import make_golden, make_layout, make_manifest, make_weights
from tests.fakes import Crash
from tests.unit.training.test_gates import block
from training.observation import Observation
from training.retrain_job import Job
from training.retrainer import Retrainer
from training.retraining import Outcome, follow

PASSED, FAILED = Gate("error", True, 0.1, 0.2), Gate("alarm_rate", False, 0.9, 0.1)
FAMILY = FamilySettings(name="rover", numeric=["a", "b"], commands=["cmd"], length=16, hop=4, final_delay=4, slack=16)


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


class MadeUpJobs:
    """Publishes a version at the second look, once a job, as a training process would."""

    def __init__(self, registry: Registry, gates: list[Gate]) -> None:
        self.registry, self.gates = registry, gates
        self.looked: dict[int, int] = {}
        self.made: dict[int, Outcome] = {}
        self.jobs: list[Job] = []
        self.failure = ""

    def outcome(self, job: Job) -> Outcome | None:
        self.looked[job.at_ms] = self.looked.get(job.at_ms, 0) + 1
        if self.looked[job.at_ms] == 1:
            return None
        if job.at_ms not in self.made:
            self.jobs.append(job)
            version = None if self.failure else publish(self.registry, len(self.made) + 1)
            self.made[job.at_ms] = Outcome(version=version, gates=self.gates, failure=self.failure)
        return self.made[job.at_ms]

    def forget(self, family: str) -> None:
        pass

    stop = forget


class World:
    """Everything that outlives a retrainer: registry, topic, training processes, live scores."""

    def __init__(self, folder: Path, gates: list[Gate] | None = None, **settings: object) -> None:
        self.clock = Clock()
        self.registry = Registry(folder, layout=make_layout, clock=self.clock)
        self.old = publish(self.registry, 0)
        self.registry.promote("rover", self.old)
        self.jobs = MadeUpJobs(self.registry, gates or [PASSED])
        self.told: list[ModelEvent] = []
        self.die: Callable[[], None] = lambda: None
        retraining = {"shadow_slots": 4, "probation_slots": 4, "max_age_days": 1.0, **settings}
        self.settings = Settings(registry=str(folder), families=[FAMILY], retraining=retraining)
        self.start()

    def start(self) -> None:
        self.observation = Observation()
        self.retrainer = Retrainer(
            self.settings,
            self.registry,
            self.jobs,
            observe=lambda family: self.observation,
            exclude=lambda family, end_ms, moved_ms: {},
            announce=self.announce,
            metrics=Metrics(),
            clock=self.clock,
        )

    def announce(self, event: ModelEvent) -> None:
        self.die()
        self.told.append(event)

    def live(self, anomalous: bool = False) -> None:
        """Let every version that scores score a few slots more."""
        champion, challenger = (self.registry.alias("rover", alias) for alias in ("champion", "challenger"))
        now_ms = round(self.clock.now * 1000)
        for source, version in (("scores", champion), ("shadow", challenger)):
            if version is not None:
                model = block(family="rover").model
                made = type(model)("rover", version)
                one = block(family="rover", model=made, preds=[anomalous] * 3, scores=[0.5, 0.5, 0.5])
                self.observation.add(source, one, now_ms)

    def round(self) -> ModelEvent | None:
        self.clock.now += 1.0
        self.live()
        return self.retrainer.advance(FAMILY)

    def run(self, rounds: int = 20) -> list[str]:
        for _ in range(rounds):
            self.round()
        return self.kinds()

    def kinds(self) -> list[str]:
        return [event.kind for event in self.registry.history("rover")]


def publish(registry: Registry, seed: int) -> str:
    return registry.publish("rover", make_manifest(), make_weights(seed), make_golden())


def ask(world: World) -> None:
    at_ms = round(world.clock.now * 1000)
    world.registry.record(ModelEvent(kind="requested", family="rover", at_ms=at_ms, who="eve"))


WHOLE = ["requested", "training", "announced", "shadowing", "promoted", "on_probation", "kept"]


def test_a_model_that_is_asked_for_is_trained_tried_promoted_and_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    ask(world)
    assert world.run() == WHOLE
    new = world.jobs.made[world.jobs.jobs[0].at_ms].version
    assert world.registry.alias("rover", "champion") == new != world.old
    assert world.registry.alias("rover", "challenger") is None
    assert world.told == world.registry.history("rover")
    assert {event.champion for event in world.told[1:]} == {world.old}
    assert world.jobs.jobs[0].settings.data == world.settings.archive.url


def test_a_challenger_that_fails_a_gate_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, [FAILED])
    ask(world)
    assert world.run() == ["requested", "training", "announced", "rejected"]
    assert "alarm_rate" in world.told[-1].detail
    assert world.registry.alias("rover", "champion") == world.old
    assert world.registry.alias("rover", "challenger") is None


def test_a_bad_champion_is_taken_back(tmp_path: Path) -> None:
    world = World(tmp_path, probation_slots=100)
    ask(world)
    while world.kinds()[-1] != "on_probation":
        world.round()
    for _ in range(4):
        world.live(anomalous=True)
        world.clock.now += 1.0
        world.retrainer.advance(FAMILY)
    assert world.kinds()[-1] == "rolled_back"
    assert "live_alarm_rate" in world.told[-1].detail
    assert world.registry.alias("rover", "champion") == world.old
    world.run(30)
    assert world.kinds()[-1] == "rolled_back"


def test_with_approval_by_hand_it_waits_for_a_person_and_watches_what_they_promoted(tmp_path: Path) -> None:
    world = World(tmp_path, approval="manual")
    ask(world)
    assert world.run()[-1] == "waiting"
    assert world.registry.alias("rover", "champion") == world.old
    new = world.registry.promote("rover")
    world.registry.record(ModelEvent(kind="promoted", family="rover", version=new, at_ms=0, who="eve"))
    assert world.run()[-3:] == ["promoted", "on_probation", "kept"]


def test_a_training_that_fails_is_tried_again_after_a_while_and_the_champion_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path, cool_down_minutes=0.0, new_entities=0.0)
    world.jobs.failure = "no space left on device"
    world.clock.now += 2 * 86_400
    assert world.run(500) == ["training", "failed"]
    assert world.told[-1].detail == "no space left on device"
    assert world.registry.alias("rover", "champion") == world.old
    world.clock.now += 600
    assert world.run(5) == ["training", "failed"] * 2
    world.clock.now += 601
    assert world.run(5) == ["training", "failed"] * 2
    world.clock.now += 600
    assert world.run(5) == ["training", "failed"] * 3


EFFECTS = ("set_alias", "promote", "record", "clear_alias")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", [*EFFECTS, "announce"])
@pytest.mark.parametrize("nth", range(1, 7))
def test_killed_at_any_step_the_end_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str, nth: int
) -> None:
    world = World(tmp_path)
    ask(world)
    target = world if name == "announce" else world.registry
    whole, calls = getattr(target, name), 0

    def deadly(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            raise Crash(name)
        result = whole(*arguments)
        if calls == nth:
            raise Crash(name)
        return result

    monkeypatch.setattr(target, name, deadly)
    world.start()
    for _ in range(25):
        try:
            world.round()
        except Crash:
            world.start()
    assert world.kinds() == WHOLE
    assert len(world.jobs.jobs) == 1
    assert world.registry.alias("rover", "champion") == world.jobs.made[world.jobs.jobs[0].at_ms].version
    told = [event for event, after in zip(world.told, [*world.told[1:], None], strict=True) if event != after]
    assert told[-1].kind == "kept"
    assert [event.kind for event in told] == [kind for kind in WHOLE if kind in {event.kind for event in told}]


def test_a_registry_that_is_away_or_read_only_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    ask(world)
    record = world.registry.record

    def refuse(event: ModelEvent) -> ModelEvent:
        raise TransientError("read-only file system")

    monkeypatch.setattr(world.registry, "record", refuse)
    for _ in range(3):
        with pytest.raises(TransientError, match="read-only"):
            world.round()
    assert world.registry.alias("rover", "champion") == world.old
    monkeypatch.setattr(world.registry, "record", record)
    assert world.run() == WHOLE


def test_a_decision_that_could_not_be_announced_is_announced_later(tmp_path: Path) -> None:
    world = World(tmp_path)
    ask(world)

    def away() -> None:
        raise TransientError("no broker")

    world.die = away
    for _ in range(3):
        with pytest.raises(TransientError, match="no broker"):
            world.round()
    world.die = lambda: None
    assert world.run() == WHOLE
    assert world.told[-1].kind == "kept"


def test_a_history_says_how_a_family_stands_whoever_reads_it(tmp_path: Path) -> None:
    """What is remembered in the process is nothing but a saving."""
    world = World(tmp_path)
    ask(world)
    for _ in range(15):
        world.round()
        world.start()
        counted = world.kinds()[-1] in ("shadowing", "on_probation")
        since_ms = follow(world.registry.history("rover")).since_ms
        assert world.retrainer.since_ms("rover") == (since_ms if counted else None)
    assert world.run() == WHOLE
