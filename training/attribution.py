"""Whether the channels that a detector blames are those that people blamed (Su et al. 2019).

HitRate@P% is the share of the guilty channels among the floor(P % x guilty) most blamed ones; NDCG@P% weighs each hit
by its place. A row, or a segment, without shares hits nothing. Opponent: the expectation of a random ranking.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.errors import UsageError
from training.labelled_scores import LabelledSeries
from training.metrics import Flags

Shares = NDArray[np.float32]
Struct = TypeVar("Struct", bound=msgspec.Struct)


class Blame(msgspec.Struct, frozen=True):
    """HitRate and NDCG at 100 % and 150 % of the guilty channels, in [0, 1]."""

    hit_rate_100: float
    hit_rate_150: float
    ndcg_100: float
    ndcg_150: float


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """Means over rows and over segments; of a segment the rows' shares are averaged before they are ranked."""

    rows: Blame
    rows_random: Blame
    segments: Blame
    segments_random: Blame


class EntityAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's figures and over how many interpreted segments and rows they go."""

    entity: str
    segments: int
    rows: int
    attribution: Attribution


class AttributionReport(msgspec.Struct, frozen=True):
    """Figures of every interpreted entity, and their mean."""

    entity_mean: Attribution
    per_entity: list[EntityAttribution]


class Segment(NamedTuple):
    """Rows first to last (inclusive) of an entity and the numbers, from 1, of the channels that caused the anomaly."""

    first: int
    last: int
    numbers: list[int]


def read_interpretation(path: str | Path) -> dict[str, list[Segment]]:
    """Read `{entity: [[first row, last row, [channel numbers from 1]], ...]}`; raise UsageError if it is not that."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=dict[str, list[Segment]])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path} can't be read as interpretation of segments: {error}") from error


def attribute(
    series: Sequence[LabelledSeries], interpretation: Mapping[str, Sequence[Segment]], numbered: Sequence[str]
) -> AttributionReport:
    """Compare the series' residual shares with the interpretation, per entity that has one.

    numbered: names of the channels, the first one has number 1. Raises UsageError where nothing can be compared.
    """
    chosen = [s for s in series if interpretation.get(s.entity)]
    if not chosen:
        raise UsageError("no entity of the scores has an interpreted segment")
    per_entity = [_entity(s, interpretation[s.entity], numbered) for s in chosen]
    return AttributionReport(_mean([e.attribution for e in per_entity]), per_entity)


def blame(shares: Shares, guilty: Flags) -> Blame:
    """Return the mean figures of rows that have the same guilty channels. shares: (n, C); guilty: (C,)."""
    count = int(guilty.sum())
    order = np.argsort(-shares, axis=1, kind="stable")
    hit = guilty[order] & _has_shares(shares)[:, None]  # (n, C)
    return _figures(hit.mean(0), count)


def random_blame(channels: int, guilty: int) -> Blame:
    """Return the expected figures of a ranking drawn at random."""
    return _figures(np.full(channels, guilty / channels), guilty)


def _figures(hit_chance: NDArray[np.float64], guilty: int) -> Blame:
    """Return the figures of rankings whose k-th channel is guilty with the k-th probability."""
    cuts = (guilty, guilty * 3 // 2)
    rates = [float(hit_chance[:cut].sum() / guilty) for cut in cuts]
    discount = 1 / np.log2(np.arange(len(hit_chance)) + 2)
    gains = [float(hit_chance[:cut] @ discount[:cut] / discount[:guilty].sum()) for cut in cuts]
    return Blame(*rates, *gains)


def _entity(series: LabelledSeries, segments: Sequence[Segment], numbered: Sequence[str]) -> EntityAttribution:
    if series.residual is None:
        raise UsageError("the scores have no column residual; attribution wants the residual share of every channel")
    rows, each_rows, each_segment, randoms = [], [], [], []
    for segment in segments:
        guilty = _guilty(series, segment, numbered)
        own = np.flatnonzero(series.labels[segment.first : segment.last + 1]) + segment.first
        if not len(own):
            raise UsageError(f"{series.entity} has no labelled row from {segment.first} to {segment.last}")
        shares = _normalise(series.residual[own])
        rows.append(len(own))
        each_rows.append(blame(shares, guilty))
        each_segment.append(blame(shares[_has_shares(shares)].sum(0, keepdims=True), guilty))
        randoms.append(random_blame(len(guilty), int(guilty.sum())))
    attribution = Attribution(
        rows=_mean(each_rows, rows),
        rows_random=_mean(randoms, rows),
        segments=_mean(each_segment),
        segments_random=_mean(randoms),
    )
    return EntityAttribution(entity=series.entity, segments=len(rows), rows=sum(rows), attribution=attribution)


def _guilty(series: LabelledSeries, segment: Segment, numbered: Sequence[str]) -> Flags:
    wrong = [number for number in segment.numbers if not 1 <= number <= len(numbered)]
    names = {numbered[number - 1] for number in segment.numbers if number not in wrong}
    if wrong or not names or not names <= set(series.channels):
        raise UsageError(f"{series.entity} from {segment.first} blames channels {segment.numbers}, not all are scored")
    return np.array([name in names for name in series.channels])


def _normalise(shares: Shares) -> Shares:
    """Scale each row to sum 1, so that no row of a segment speaks louder than another."""
    total = shares.sum(1, keepdims=True)
    return np.asarray(np.divide(shares, total, out=np.zeros_like(shares), where=total > 0))


def _has_shares(shares: Shares) -> Flags:
    return np.asarray(shares.sum(1) > 0)  # not so if one is NaN


def _mean(each: Sequence[Struct], weights: Sequence[int] | None = None) -> Struct:
    """Average structs of numbers, or of such structs, field by field."""
    fields = {name: [getattr(one, name) for one in each] for name in each[0].__struct_fields__}
    return type(each[0])(
        **{
            name: _mean(values, weights)
            if isinstance(values[0], msgspec.Struct)
            else float(np.average(values, weights=weights))
            for name, values in fields.items()
        }
    )
