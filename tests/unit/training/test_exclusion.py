import msgspec

from stream.contracts import Alert, ModelRef, SourceRange
from training.exclusion import excluded


def alert(**changes: object) -> Alert:
    fields = {
        "state": "firing",
        "episode_id": "6f0d2c1e-4f58-5d0a-9a3e-7e11a1e0a1e7",
        "revision": 0,
        "entity": "e1",
        "family": "rover",
        "severity": "error",
        "summary": "e1 behaves unlike its normal self",
        "starts_at_ms": 100,
        "ends_at_ms": None,
        "observed_at_ms": 150,
        "rests_on": "final",
        "score": 5.0,
        "threshold": 1.0,
        "p_value": 0.01,
        "channels": [],
        "model": ModelRef("rover", "v1"),
        "window_start_ms": 0,
        "window_end_ms": 200,
        "missing_fraction": 0.0,
        "source": SourceRange("telemetry", 0, 0, 0),
    }
    return Alert(**{**fields, **changes})  # type: ignore[arg-type]


FIRING = alert()
RESOLVED = msgspec.structs.replace(FIRING, state="resolved", revision=1, ends_at_ms=300)


def test_an_episode_is_left_out_from_firing_to_resolved_and_an_open_one_to_the_end() -> None:
    assert excluded([FIRING, RESOLVED], "rover", 1000) == {"e1": [(100, 301)]}
    assert excluded([RESOLVED, FIRING], "rover", 1000) == {"e1": [(100, 301)]}
    assert excluded([FIRING], "rover", 1000) == {"e1": [(100, 1000)]}
    assert excluded([FIRING], "lander", 1000) == {}


def test_what_became_the_new_level_is_normal() -> None:
    learned = msgspec.structs.replace(RESOLVED, summary="e1: new level learned")
    assert excluded([FIRING, learned], "rover", 1000) == {}


def test_alarms_that_tell_of_a_moved_fleet_are_what_is_to_be_learned_and_earlier_ones_are_not() -> None:
    assert excluded([FIRING, RESOLVED], "rover", 1000, moved_ms=100) == {}
    assert excluded([FIRING, RESOLVED], "rover", 1000, moved_ms=101) == {"e1": [(100, 301)]}
