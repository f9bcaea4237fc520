"""Small data sets and presets, made up, that train in a second."""

import msgspec
import numpy as np

from detector.manifest import Channel, CompanionConfig
from stream.grid import Geometry
from training.datasets import Dataset, Series
from training.presets import PRESETS

TINY = msgspec.structs.replace(
    PRESETS["small"],
    geometry=Geometry(length=64, hop=32, final_delay=20, slack=96),
    scoring=msgspec.structs.replace(PRESETS["small"].scoring, smoothing_size=21),
    companions=CompanionConfig(lags=12, window=9, windows=200),
    layers=2,
    width=16,
    state=8,
    batch=8,
)


def waves(rows: tuple[int, ...] = (600, 500), seed: int = 0, gap: bool = True) -> Dataset:
    """Return sines with a command that lifts them; the second entity has a constant channel, both have a gap."""
    generator = np.random.default_rng(seed)
    series = []
    for number, count in enumerate(rows):
        t = np.arange(count)
        on = (t // 50) % 2
        wave = np.sin(t / 5) + on + 0.05 * generator.standard_normal(count)
        other = np.full(count, 3.0) if number == 1 else np.cos(t / 7) * 10
        values = np.stack([wave, on, other], -1).astype(np.float32)
        slots = 29_000_000 + t + (t > count // 2) * 7 * gap
        series.append(Series(f"e-{number}", slots, values, None))
    return Dataset([Channel("wave", "numeric"), Channel("on", "command"), Channel("other", "numeric")], 1000, series)
