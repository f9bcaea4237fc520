"""Fits the views beside the reconstruction to training rows: `detector.companions` says what they are. Trains nothing.

Rows count as consecutive, gaps are filled with the value before them, as in the baselines of the same names.
"""

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.companions import PREFIX, Companions, activity, fill_gaps
from detector.entity_table import INPUT_LIMIT
from detector.manifest import CompanionConfig
from training.baselines.ridge import fit_regression
from training.baselines.windows import MOST_VALUES, centred_windows
from training.datasets import Dataset
from training.scaling import Scaling, scale

# Rows that stand for all entities where one is fitted that training never saw.
_POOLED_ROWS = 20_000

Values = NDArray[np.float64]


def companions_for(config: CompanionConfig, numeric: int) -> CompanionConfig:
    """Shorten the windows so that one holds at most MOST_VALUES values."""
    return msgspec.structs.replace(config, window=max(1, min(config.window, MOST_VALUES // numeric)))


def fit_companions(config: CompanionConfig, dataset: Dataset, scaling: Scaling, seed: int) -> dict[str, Tensor]:
    """Return the companions' tensors by their names among a checkpoint's weights."""
    companions = Companions(config, len(dataset.numeric), len(dataset.series))
    rows = [_filled(dataset, scaling, index) for index in range(len(dataset.series))]
    slots = [series.slots for series in dataset.series]
    share = max(config.window, _POOLED_ROWS // len(rows))
    pooled = np.concatenate([values[-share:] for values in rows]), np.concatenate([each[-share:] for each in slots])
    for row, (values, at) in enumerate([pooled, *zip(rows, slots, strict=True)]):
        generator = np.random.default_rng([seed, row])
        _fit_prediction(companions, row, values)
        _keep_windows(companions, row, values, at, generator)
        companions.usual_activity[row] = _usual_activity(values, config.activity)
    return {f"{PREFIX}{name}": tensor for name, tensor in companions.state_dict().items()}


def _filled(dataset: Dataset, scaling: Scaling, index: int) -> Values:
    """Return one series' numeric channels (n, C) in scaled units, every gap filled, within the network's limits."""
    scaled = scale(dataset.series[index].values[:, dataset.numeric], scaling.minimum[index], scaling.maximum[index])
    x = torch.from_numpy(scaled.T[None].copy())
    valid = x.isfinite()
    filled = fill_gaps(x.where(valid, 0), valid).clamp(-INPUT_LIMIT, INPUT_LIMIT)
    return filled[0].T.numpy().astype(np.float64)


def _fit_prediction(companions: Companions, row: int, values: Values) -> None:
    for channel, series in enumerate(values.T):
        regression = fit_regression(np.ascontiguousarray(series), companions.coefficients.shape[-1])
        newest = regression.coefficients[-1]
        if len(newest):
            companions.coefficients[row, channel, -len(newest) :] = torch.from_numpy(newest).float()
        companions.intercept[row, channel] = float(regression.mean - newest @ regression.mean_lags)


def _usual_activity(values: Values, size: int) -> Tensor:
    """Return the middle of the activity's central 99 % by channel, (C,)."""
    x = torch.from_numpy(values.T[None].astype(np.float32))
    log_deviation, _ = activity(x, torch.ones_like(x, dtype=torch.bool), size)
    low, high = np.quantile(log_deviation[0].numpy(), [0.005, 0.995], axis=1)
    return torch.from_numpy((low + high) / 2).float()


def _keep_windows(
    companions: Companions, row: int, values: Values, slots: NDArray[np.int64], generator: np.random.Generator
) -> None:
    """Keep windows drawn evenly, without repetition as long as there are enough."""
    kept, _, size = companions.windows.shape[1:]
    windows = centred_windows(values, size).reshape(*values.shape, size)  # (n, C, W)
    chosen = np.sort(generator.choice(len(values), kept, replace=len(values) < kept))
    companions.windows[row] = torch.from_numpy(windows[chosen].astype(np.float32))
    companions.window_slots[row] = torch.from_numpy(slots[chosen])
