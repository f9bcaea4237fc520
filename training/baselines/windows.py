"""Short windows around every row, as points that methods for plain vectors can take. Knows no method."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import Matrix, ScaledRows, ScoreRows, fit_per_entity
from training.datasets import Dataset
from training.metrics import Scores

LONGEST = 25
# Distances lose their meaning and methods their speed in many dimensions: with many channels, windows are shorter.
MOST_VALUES = 128

_BLOCK = 4096

ScoreWindows = Callable[[Matrix], Scores]
# Fits to windows (m, D); the number seeds whatever is random in it.
FitWindows = Callable[[Matrix, int], ScoreWindows]


@dataclass(frozen=True)
class WindowPlan:
    """How rows become windows. most: training windows that are kept, drawn evenly; None for all.

    longest: rows of a window where the number of channels allows it. use_commands: off, because a new combination of
    commands would count as an anomaly; anomalies injected into training rows are found better without.
    """

    most: int | None
    longest: int = LONGEST
    use_commands: bool = False

    @property
    def lookahead(self) -> int:
        """Rows of a window behind its middle."""
        return self.longest // 2

    def windows(self, rows: ScaledRows) -> Matrix:
        """Return the window around each row, (n, D); commands only count as their mean over it."""
        length = max(1, min(self.longest, MOST_VALUES // rows.filled.shape[1]))
        windows = centred_windows(rows.filled, length)
        if not self.use_commands or not rows.commands.shape[1]:
            return windows
        commands = centred_windows(rows.commands, length).reshape(*rows.commands.shape, length)  # (n, K, L)
        return np.hstack([windows, commands.mean(-1)])


def centred_windows(values: Matrix, length: int) -> Matrix:
    """Return the rows (n, C) around each row as (n, C length); those beyond the ends repeat the outermost one."""
    before = length // 2
    padded = np.pad(values, ((before, length - 1 - before), (0, 0)), "edge")
    return sliding_window_view(padded, length, axis=0).reshape(len(values), -1)


def fit_on_windows(dataset: Dataset, seed: int, plan: WindowPlan, fit: FitWindows) -> Scorer:
    """Fit one model of windows an entity; every row gets the score of the window around it."""

    def fit_rows(rows: ScaledRows, generator: np.random.Generator) -> ScoreRows:
        windows = plan.windows(rows)
        if plan.most is not None and len(windows) > plan.most:
            windows = windows[np.sort(generator.choice(len(windows), plan.most, replace=False))]
        model = fit(windows, int(generator.integers(2**31)))
        return lambda rows: in_blocks(model, plan.windows(rows))

    return fit_per_entity(dataset, seed, fit_rows)


def in_blocks(score: ScoreWindows, windows: Matrix) -> Scores:
    """Score a limited number of windows at a time, which bounds memory."""
    return np.concatenate([score(windows[start : start + _BLOCK]) for start in range(0, len(windows), _BLOCK)])
