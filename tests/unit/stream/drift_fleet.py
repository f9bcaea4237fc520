"""A fleet whose rows remember: block means of first-order autoregressive rows, drawn without drawing the rows."""

import math

import numpy as np

from stream.contracts import BlockSummary, ModelRef
from stream.drift_family import FamilyWatch
from stream.settings import DriftSettings
from stream.sketch import Sketch, TrainingSketch

LENGTH = 512
PHI = 0.98
MONTH = 30 * 86_400 // LENGTH  # blocks, at a row a second
FIRST_BLOCK = 1_767_225_600 // LENGTH
CHANNELS = ["volts", "amps"]
TRAINING_BLOCKS = 170  # a day
# Nothing is told twice in the length of a test.
ONCE = DriftSettings(cooldown_s=10**9)
MEMORY = -1 / math.log(PHI)


def block_means(seed, blocks, series, phi=PHI, length=LENGTH):
    """Return means and variances of blocks of standard AR(1) rows, (blocks, series); the means exactly so distributed.

    A block's mean and last row are, given the last row before, normal: mean = a x + e, last = phi^n x + f.
    """
    powers = phi ** np.arange(1, length + 1)
    # The share of the innovation at row i in the block's mean and in its last row.
    in_mean = (1 - phi ** np.arange(length, 0, -1)) / (1 - phi) / length
    in_last = phi ** np.arange(length - 1, -1, -1)
    noise = np.linalg.cholesky(_gram(in_mean, in_last, phi))
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(series)
    means = np.empty((blocks, series))
    for block in range(blocks):
        e, f = noise @ generator.standard_normal((2, series))
        means[block] = powers.mean() * x + e
        x = powers[-1] * x + f
    return means, np.full_like(means, 1 - means.var())


def _gram(one, other, phi):
    return (1 - phi**2) * np.array([[one @ one, one @ other], [one @ other, other @ other]])


def sketches(entities, blocks=TRAINING_BLOCKS, seed=1000, mean=0.0):
    """Return what training saw of entities whose channels and score are standard AR(1) rows about a mean."""
    found = {}
    for i in range(entities):
        means, variances = block_means(seed + i, blocks, len(CHANNELS) + 1)
        deviation = np.sqrt(variances.mean(0) + means.var(0))
        block = np.full(len(CHANNELS) + 1, means.std())
        found[f"e{i}"] = Sketch(
            blocks, (means.mean(0) + mean).tolist(), deviation.tolist(), block.tolist(), [MEMORY] * len(deviation)
        )
    return found


def training_sketch(found, rule=ONCE):
    return TrainingSketch.of(LENGTH, CHANNELS, found, rule.max_merged)


def summary(entity, block, means, variances=None, *, counts=LENGTH, version="v1", family="rover"):
    """Summarise a block; means, variances: of the channels, then of the score; NaN where there is no value."""
    variances = np.ones(len(means)) if variances is None else variances
    counts = np.broadcast_to(counts, len(means)).tolist()
    told = [None if np.isnan(m) else float(m) for m in means]
    spread = [None if m is None else float(v) for m, v in zip(told, variances, strict=True)]
    return BlockSummary(
        entity=entity,
        family=family,
        interval_ms=1000,
        block=FIRST_BLOCK + block,
        length=LENGTH,
        channels=CHANNELS,
        counts=[0 if m is None else n for m, n in zip(told[:-1], counts[:-1], strict=True)],
        means=told[:-1],
        variances=spread[:-1],
        minimums=told[:-1],
        maximums=told[:-1],
        scores=0 if told[-1] is None else counts[-1],
        score_mean=told[-1],
        score_variance=spread[-1],
        alarmed=0,
        model=ModelRef(family, version),
    )


def walk(means, found=None, rule=ONCE, watch=None, **more):
    """Fold the blocks (blocks, entities, series) in time order; return the events with the index of their block."""
    entities = means.shape[1]
    sketch = training_sketch(found or sketches(entities), rule)
    watch = watch or FamilyWatch("telltale", rule, lambda version: sketch)
    events = []
    for block, row in enumerate(means):
        for entity in range(entities):
            event = watch.add(summary(f"e{entity}", block, row[entity], **more))
            if event is not None:
                events.append((block, event))
    return events


def fleet(seed, blocks, entities):
    """Return block means (blocks, entities, series) of independent entities."""
    series = len(CHANNELS) + 1
    return block_means(seed, blocks, entities * series)[0].reshape(blocks, entities, series)
