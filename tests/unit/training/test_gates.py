import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.contracts import Gate, ModelRef, ScoreBlock
from stream.retraining_settings import GateSettings
from training.gates import Figures, Tally, count, explain, failed, judge, judge_probation, judge_shadow

SETTINGS = GateSettings()
GOOD = Figures(alarm_rate=0.002, error=0.3, detection=0.6, loss=0.1)

rates = st.floats(0, 1)
figures = st.builds(Figures, rates, st.floats(0, 10), rates, st.floats(0, 10), st.booleans())


def names(gates: list[Gate]) -> list[str]:
    return [gate.name for gate in failed(gates)]


def test_a_model_as_good_as_the_champion_passes() -> None:
    assert failed(judge(GOOD, GOOD, SETTINGS)) == []
    assert failed(judge(GOOD, None, SETTINGS)) == []


@pytest.mark.parametrize(
    ("worse", "gate"),
    [
        ({"alarm_rate": 0.01}, "alarm_rate"),
        ({"error": 0.5}, "reconstruction_error"),
        ({"detection": 0.4}, "injected_detection"),
        ({"golden": False}, "golden_windows"),
        ({"loss": float("nan")}, "finite_loss"),
        ({"loss": float("inf")}, "finite_loss"),
        ({"error": float("nan")}, "reconstruction_error"),
    ],
)
def test_one_that_is_worse_in_one_thing_is_refused_for_it(worse: dict[str, float], gate: str) -> None:
    gates = judge(GOOD._replace(**worse), GOOD, SETTINGS)
    assert names(gates) == [gate]
    assert explain(gates).startswith(f"{gate} is ")


@given(champion=figures)
def test_no_champion_is_so_bad_that_a_bad_successor_passes(champion: Figures) -> None:
    """Where the champion fails on the new rows, the new model must not, whatever the ratios say."""
    bad = Figures(SETTINGS.alarm_rate_most * 1.01, SETTINGS.error_most * 1.01, SETTINGS.detection_least * 0.99)
    assert names(judge(bad, champion, SETTINGS)) == ["alarm_rate", "reconstruction_error", "injected_detection"]


@given(challenger=figures, champion=figures, better=figures)
def test_being_better_in_everything_never_costs_a_gate(challenger: Figures, champion: Figures, better: Figures) -> None:
    best = Figures(
        min(challenger.alarm_rate, better.alarm_rate),
        min(challenger.error, better.error),
        max(challenger.detection, better.detection),
        min(challenger.loss, better.loss),
        challenger.golden or better.golden,
    )
    assert set(names(judge(best, champion, SETTINGS))) <= set(names(judge(challenger, champion, SETTINGS)))


@given(challenger=figures, champion=st.one_of(st.none(), figures))
def test_every_verdict_follows_from_the_numbers_that_are_recorded(
    challenger: Figures, champion: Figures | None
) -> None:
    for gate in judge(challenger, champion, SETTINGS):
        bound = float("inf") if gate.bound is None else gate.bound
        assert gate.value is not None
        floor = gate.name in ("golden_windows", "injected_detection")
        assert gate.passed == (gate.value >= bound if floor else gate.value <= bound)


@given(challenger=st.builds(Figures, *[st.floats()] * 4, st.booleans()))
def test_gates_can_be_written_and_read_whatever_the_figures_are(challenger: Figures) -> None:
    gates = judge(challenger, GOOD, SETTINGS)
    assert msgspec.json.decode(msgspec.json.encode(gates), type=list[Gate]) == gates


def test_a_shadow_must_have_scored_enough_and_alarm_no_more_than_the_champion() -> None:
    champion = Tally(10_000, 10, 9_000.0, 9_000.0)
    assert failed(judge_shadow(Tally(1000, 2, 900.0, 1000.0), champion, 1000, SETTINGS)) == []
    assert names(judge_shadow(Tally(999, 0, 900.0, 1000.0), champion, 1000, SETTINGS)) == ["shadow_slots"]
    assert names(judge_shadow(Tally(1000, 20, 900.0, 1000.0), champion, 1000, SETTINGS)) == ["shadow_alarm_rate"]
    assert names(judge_shadow(Tally(1000, 0, 4000.0, 1000.0), champion, 1000, SETTINGS)) == ["shadow_score_ratio"]


def test_a_champion_on_probation_stays_within_absolute_bounds() -> None:
    assert failed(judge_probation(Tally(1000, 40, 1000.0, 1000.0), SETTINGS)) == []
    assert names(judge_probation(Tally(1000, 60, 3100.0, 1000.0), SETTINGS)) == ["live_alarm_rate", "live_score_ratio"]
    assert failed(judge_probation(Tally(), SETTINGS)) == []


def block(**changes: object) -> ScoreBlock:
    fields = {
        "entity": "e",
        "family": "f",
        "stage": "final",
        "start_slot": 0,
        "ts_ms": 0,
        "interval_ms": 1000,
        "scores": [1.0, None, 3.0],
        "p_values": [0.5, None, 0.1],
        "preds": [False, False, True],
        "threshold": 2.0,
        "channels": [],
        "model": ModelRef("f", "v"),
    }
    return ScoreBlock(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_tally_counts_final_scores_of_entities_that_are_judged_and_no_gaps() -> None:
    assert count(Tally(1, 1, 1.0, 1.0), block(), 0.5) == Tally(3, 2, 5.0, 2.0)
    assert count(Tally(), block(stage="provisional"), 0.5) == Tally()
    assert count(Tally(), block(learning=True), 0.5) == Tally()
