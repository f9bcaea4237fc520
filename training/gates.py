"""What a new model must show before it takes over, and after. Pure: figures in, verdicts out; measures nothing."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stream.contracts import Gate, ScoreBlock
from stream.retraining_settings import GateSettings


class Figures(NamedTuple):
    """What a model does on recent rows that the new one was not trained on.

    alarm_rate: share of normal rows in alarm. error: mean distance of reconstruction and rows, in deviations of the
    rows. detection: corrected event F0.5 on injected anomalies. loss: of training, on rows held out from it. golden:
    whether the model that was read back scores its golden windows as the one that was trained.
    """

    alarm_rate: float
    error: float
    detection: float
    loss: float = 0.0
    golden: bool = True


class Tally(NamedTuple):
    """Live final scores of one model, counted. usual: the sum of what training data lets expect of each score."""

    slots: int = 0
    alarms: int = 0
    scores: float = 0.0
    usual: float = 0.0

    @property
    def alarm_rate(self) -> float:
        """The share of slots in alarm, 0 of none."""
        return self.alarms / self.slots if self.slots else 0.0

    @property
    def score_ratio(self) -> float:
        """Mean score over the mean that is usual, 0 of none."""
        return self.scores / self.usual if self.usual else 0.0


def count(tally: Tally, block: ScoreBlock, usual: float) -> Tally:
    """Add a block's slots; usual: the mean of the entity's scores on training data.

    Provisional scores and those of an entity that is not judged yet don't count.
    """
    scores = [score for score in block.scores if score is not None]
    if block.stage != "final" or block.learning:
        return tally
    slots = len(scores)
    return Tally(
        tally.slots + slots, tally.alarms + sum(block.preds), tally.scores + sum(scores), tally.usual + usual * slots
    )


def judge(challenger: Figures, champion: Figures | None, settings: GateSettings) -> list[Gate]:
    """Compare a new model with the champion, on the same rows; without a champion only the absolute bounds hold."""
    return [
        _most("finite_loss", challenger.loss, math.inf),
        Gate("golden_windows", challenger.golden, float(challenger.golden), 1.0),
        alarm_rate_gate("alarm_rate", challenger.alarm_rate, champion and champion.alarm_rate, settings),
        _error_gate(challenger.error, champion and champion.error, settings),
        _detection_gate(challenger.detection, champion and champion.detection, settings),
    ]


def judge_shadow(challenger: Tally, champion: Tally, wanted_slots: int, settings: GateSettings) -> list[Gate]:
    """Compare what both made of live windows. wanted_slots: that the challenger must have scored."""
    return [
        _least("shadow_slots", challenger.slots, wanted_slots),
        alarm_rate_gate("shadow_alarm_rate", challenger.alarm_rate, champion.alarm_rate, settings),
        _most("shadow_score_ratio", challenger.score_ratio, settings.score_ratio_most, champion.score_ratio),
    ]


def judge_probation(tally: Tally, settings: GateSettings) -> list[Gate]:
    """Say whether a new champion's live scores stay within the absolute bounds."""
    return [
        _most("live_alarm_rate", tally.alarm_rate, settings.alarm_rate_most),
        _most("live_score_ratio", tally.score_ratio, settings.score_ratio_most),
    ]


def alarm_rate_gate(name: str, rate: float, champion: float | None, settings: GateSettings) -> Gate:
    """Hold a share of slots in alarm against the champion's, and against what is refused in any case."""
    allowed = math.inf if champion is None else max(settings.alarm_rate_ratio * champion, settings.alarm_rate_free)
    return _most(name, rate, min(allowed, settings.alarm_rate_most), champion)


def failed(gates: Iterable[Gate]) -> list[Gate]:
    """Return the gates that were not passed."""
    return [gate for gate in gates if not gate.passed]


def explain(gates: Sequence[Gate]) -> str:
    """Name the gates that were not passed, with their figures; empty if there are none."""
    return "; ".join(f"{gate.name} is {_shown(gate.value)}, bound {_shown(gate.bound)}" for gate in failed(gates))


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def _error_gate(error: float, champion: float | None, settings: GateSettings) -> Gate:
    allowed = math.inf if champion is None else settings.error_ratio * champion
    return _most("reconstruction_error", error, min(allowed, settings.error_most), champion)


def _detection_gate(detection: float, champion: float | None, settings: GateSettings) -> Gate:
    wanted = settings.detection_least if champion is None else champion - settings.detection_margin
    return _least("injected_detection", detection, max(wanted, settings.detection_least), champion)


def _most(name: str, value: float, bound: float, champion: float | None = None) -> Gate:
    return _gate(name, value <= bound, value, bound, champion)


def _least(name: str, value: float, bound: float, champion: float | None = None) -> Gate:
    return _gate(name, value >= bound, value, bound, champion)


def _gate(name: str, passed: bool, value: float, bound: float, champion: float | None) -> Gate:
    """Make a gate that can be written as JSON; what is no number has not passed."""
    finite = math.isfinite(value)
    before = None if champion is None else _number(champion)
    return Gate(name, passed and finite, _number(value), _number(bound), before)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
