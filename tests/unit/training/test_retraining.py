"""The rules of retraining, one decision at a time; no clock, no registry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.contracts import Gate, ModelEvent
from stream.retraining_settings import RetrainingSettings
from training.gates import Tally
from training.retraining import Drift, Move, Outcome, Standing, View, follow, next_move, rested_ms

MINUTE = 60_000
SETTINGS = RetrainingSettings(minimum_rows=1000, shadow_slots=100, probation_slots=1000)
NOW = 1_790_000_000_000
QUIET = View(NOW, 1000, "v1", champion_ms=NOW)
DRIFTED = QUIET._replace(drift=Drift("v1", NOW - 1, NOW - 2_000_000))
PASSED, FAILED = Gate("error", True, 0.1, 0.2), Gate("alarm_rate", False, 0.9, 0.1)
TRYING = Standing("shadowing", NOW, "v2", "v1", "drift")
WATCHED = Standing("on_probation", NOW, "v2", "v1", "drift")
GOOD, BAD = Tally(1000, 1, 900.0, 1000.0), Tally(1000, 400, 900.0, 1000.0)


def event(kind: str, **more: object) -> ModelEvent:
    return ModelEvent(**{"kind": kind, "family": "f", "at_ms": NOW, **more})  # type: ignore[arg-type]


def move(standing: Standing, view: View, **settings: object) -> Move | None:
    return next_move(standing, view, SETTINGS.model_copy(update=settings))


def kind(found: Move | None) -> str | None:
    return found and found.kind


def test_nothing_happens_while_nothing_is_the_matter() -> None:
    assert move(Standing(), QUIET) is None


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (DRIFTED, "drift"),
        (QUIET._replace(unknown=0.2), "entities"),
        (QUIET._replace(champion_ms=NOW - 31 * 24 * 60 * MINUTE), "age"),
    ],
)
def test_each_reason_begins_a_training_unless_it_is_switched_off(view: View, reason: str) -> None:
    found = move(Standing(), view)
    assert found is not None
    assert (found.kind, found.reason) == ("training", reason)
    assert move(Standing(), view, on_drift=False, new_entities=0.0, max_age_days=0.0) is None
    assert move(Standing(), view._replace(champion=None)) is None


def test_after_a_drift_only_rows_since_then_count_and_there_must_be_enough_of_them() -> None:
    first_ms = NOW - 1_249_000  # a quarter more than `minimum_rows`: the newest are not in the archive yet
    early = QUIET._replace(drift=Drift("v1", NOW, first_ms))
    assert move(Standing(), early) is None
    later = move(Standing(), early._replace(now_ms=NOW + 1000))
    assert later is not None
    assert (later.kind, later.start_ms) == ("training", first_ms)


def test_rows_are_waited_for_by_their_own_time_in_a_replay_faster_or_older_than_the_wall_clock() -> None:
    first_ms = NOW - 10**9
    old = QUIET._replace(drift=Drift("v1", NOW, first_ms), newest_ms=first_ms + 1_249_000)
    assert move(Standing(), old) is None
    assert kind(move(Standing(), old._replace(newest_ms=first_ms + 1_250_000))) == "training"
    assert kind(move(Standing(), old._replace(now_ms=first_ms, newest_ms=first_ms + 1_250_000))) == "training"


def test_a_drift_from_an_earlier_champion_says_nothing_of_this_one() -> None:
    assert move(Standing(), DRIFTED._replace(champion="v2")) is None


@pytest.mark.parametrize("phase", ["training", "waiting", "shadowing", "promoted", "on_probation"])
def test_drift_begins_nothing_while_an_attempt_goes_on(phase: str) -> None:
    """Not even a storm of it, nor one during probation."""
    standing = Standing(phase, NOW, "v2", "v1", "age")  # type: ignore[arg-type]
    assert kind(move(standing, DRIFTED)) != "training"
    assert kind(move(standing, DRIFTED._replace(champion="v2"))) != "training"


@given(failures=st.integers(1, 100))
def test_failures_in_a_row_are_waited_out_longer_but_a_day_at_most(failures: int) -> None:
    impatient = SETTINGS.model_copy(update={"cool_down_minutes": 0.0})
    waits = [rested_ms(Standing(ended_ms=0, failures=n), impatient) for n in (failures, failures + 1)]
    assert 10 * MINUTE <= waits[0] <= waits[1] <= 24 * 60 * MINUTE
    assert rested_ms(Standing(ended_ms=0), impatient) == 0


def test_a_cool_down_follows_every_attempt_but_holds_up_no_person() -> None:
    ended = Standing(ended_ms=NOW - 359 * MINUTE)
    assert move(ended, DRIFTED) is None
    assert kind(move(ended, DRIFTED._replace(now_ms=NOW + 2 * MINUTE))) == "training"
    asked = ended._replace(requested_ms=NOW, failures=9)
    found = move(asked, QUIET)
    assert found is not None
    assert (found.kind, found.reason) == ("training", "by hand")


def test_a_request_is_answered_once_and_one_that_comes_during_an_attempt_is_not_lost() -> None:
    asked = follow([event("requested")])
    begun = follow([event("requested"), event("training", champion="v1", reason="by hand")])
    assert kind(move(asked, QUIET)) == "training"
    assert begun.requested_ms is None
    again = follow([event("training"), event("requested"), event("failed")])
    assert kind(move(again, QUIET)) == "training"


def test_a_training_ends_as_its_process_does() -> None:
    training = Standing("training", NOW, champion="v1", reason="age")
    assert move(training, QUIET) is None
    lost = move(training, QUIET._replace(outcome=Outcome(failure="no memory")))
    assert lost == Move("failed", reason="age", detail="no memory")
    made = move(training, QUIET._replace(outcome=Outcome(version="v2", gates=[PASSED], data_sha256="abc")))
    assert made == Move("announced", "v2", "age", gates=(PASSED,), data_sha256="abc")


def test_gates_decide_and_the_one_that_failed_is_named() -> None:
    announced = Standing("announced", NOW, "v2", "v1", "age", gates=(PASSED, FAILED))
    found = move(announced, QUIET)
    assert found is not None
    assert (found.kind, found.detail) == ("rejected", "alarm_rate is 0.9, bound 0.1")
    good = announced._replace(gates=(PASSED,))
    assert kind(move(good, QUIET)) == "shadowing"
    assert kind(move(good, QUIET, shadow_share=0.0)) == "promoted"
    assert kind(move(good, QUIET, approval="manual")) == "waiting"


def test_a_model_that_waits_for_a_person_waits() -> None:
    waiting = Standing("waiting", NOW, "v2", "v1")
    assert move(waiting, QUIET._replace(now_ms=NOW + 10**12)) is None
    assert kind(move(waiting, QUIET._replace(champion="v2"))) == "promoted"


def test_a_shadow_is_judged_when_it_has_scored_enough() -> None:
    assert move(TRYING, QUIET._replace(challenger_tally=Tally(99))) is None
    assert kind(move(TRYING, QUIET._replace(challenger_tally=GOOD, champion_tally=GOOD))) == "promoted"
    worse = move(TRYING, QUIET._replace(challenger_tally=BAD, champion_tally=GOOD))
    assert worse is not None
    assert worse.kind == "rejected"
    assert worse.detail.startswith("shadow_alarm_rate is 0.4")


def test_a_shadow_that_was_dropped_is_rejected_in_the_end() -> None:
    late = QUIET._replace(now_ms=NOW + 1441 * MINUTE, challenger_tally=Tally(99))
    found = move(TRYING, late)
    assert found is not None
    assert (found.kind, found.detail) == ("rejected", "shadow_slots is 99, bound 100")


def test_what_was_tried_beside_one_champion_does_not_take_over_from_another() -> None:
    assert kind(move(TRYING, QUIET._replace(champion="v9", challenger_tally=GOOD))) == "rejected"


def test_a_probation_ends_early_for_a_bad_champion_and_in_time_for_a_good_one() -> None:
    live = QUIET._replace(champion="v2")
    assert move(WATCHED, live._replace(champion_tally=Tally(49, 49))) is None
    assert kind(move(WATCHED, live._replace(champion_tally=Tally(50, 49)))) == "rolled_back"
    assert move(WATCHED, live._replace(champion_tally=Tally(999, 1))) is None
    assert kind(move(WATCHED, live._replace(champion_tally=Tally(1000, 1)))) == "kept"
    assert kind(move(WATCHED, live._replace(now_ms=NOW + 1441 * MINUTE))) == "kept"


def test_a_rollback_by_hand_ends_the_probation() -> None:
    assert kind(move(WATCHED, QUIET)) == "rolled_back"
    assert follow([event("training"), event("announced", version="v2"), event("rolled_back")]).phase == "idle"


def test_a_version_that_was_rolled_back_is_never_promoted_again() -> None:
    """Whatever comes: only the version of the attempt that goes on can be."""
    ended = follow(
        [
            event("training", champion="v1"),
            event("announced", version="v2"),
            event("shadowing", version="v2"),
            event("promoted", version="v2"),
            event("on_probation", version="v2"),
            event("rolled_back", version="v2"),
        ]
    )
    assert (ended.phase, ended.version, ended.failures) == ("idle", None, 1)
    assert kind(move(ended, DRIFTED)) is None
    assert follow([event("promoted", version="v2")]).phase == "idle"


def test_what_people_promote_is_no_part_of_an_attempt() -> None:
    training = follow([event("training", champion="v1")])
    assert follow([event("training", champion="v1"), event("promoted", version="v0", who="eve")]) == training
