"""What every baseline can do, and what a caller may choose. Knows no method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from training.datasets import Dataset, Series
from training.metrics import Scores
from training.presets import PRESETS, Preset

# The paper's detector at the size of the `small` preset: reconstruction alone, plain mean of residuals.
PLAIN = msgspec.structs.replace(
    PRESETS["small"],
    companions=None,
    scoring=msgspec.structs.replace(PRESETS["small"].scoring, smoothing_power=1, provisional_size=None),
)

# Raw scores of the rows of one fitted entity's series, (n,), not smoothed; NaN where no numeric channel is present.
Scorer = Callable[[Series], Scores]


class Baseline(Protocol):
    """A method with its hyper-parameters and its seed: equal ones give equal scores."""

    @property
    def lookahead(self) -> int:
        """Most rows behind a row that its raw score depends on."""

    def fit(self, dataset: Dataset) -> Scorer:
        """Fit every series; the scorer takes series of the same entities."""


@dataclass(frozen=True)
class Options:
    """What a caller chooses. Networks train for `train_steps`, else for `minutes`; the preset is DiffADT's."""

    seed: int = 0
    minutes: float = 2.0
    train_steps: int | None = None
    preset: Preset = PLAIN
