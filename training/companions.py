"""Fits the views beside the reconstruction to training rows: `detector.companions` says what they are. Trains nothing.

Rows count as consecutive, gaps are filled with the value before them, as in the baselines of the same names.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from detector.companions import PREFIX, Companions, activity
from detector.entity_table import INPUT_LIMIT
from detector.manifest import CompanionConfig
from training.baselines.ridge import fit_regression
from training.datasets import Dataset
from training.scaling import Scaling, scale

# Distances lose their meaning in many dimensions: with many channels, windows are shorter.
MOST_VALUES = 128
# Rows that stand for all entities where one is fitted that training never saw.
_POOLED_ROWS = 20_000

Values = NDArray[np.float64]


def companions_for(config: CompanionConfig, numeric: int) -> CompanionConfig:
    """Shorten the windows so that one holds at most MOST_VALUES values."""
    return CompanionConfig(
        lags=config.lags,
        window=max(1, min(config.window, MOST_VALUES // numeric)),
        windows=config.windows,
        activity=config.activity,
    )


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
    present = np.isfinite(scaled)
    last = np.maximum.accumulate(np.where(present, np.arange(len(scaled))[:, None], -1), 0)
    position = np.where(last < 0, present.argmax(0), last)
    values = np.take_along_axis(scaled, position, 0)
    return np.where(np.isfinite(values), values, 0).clip(-INPUT_LIMIT, INPUT_LIMIT).astype(np.float64)


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
    padded = np.pad(values, ((size // 2, size - 1 - size // 2), (0, 0)), "edge")
    windows = sliding_window_view(padded, size, axis=0)  # (n, C, W)
    chosen = np.sort(generator.choice(len(values), kept, replace=len(values) < kept))
    companions.windows[row] = torch.from_numpy(windows[chosen].astype(np.float32))
    companions.window_slots[row] = torch.from_numpy(slots[chosen])
