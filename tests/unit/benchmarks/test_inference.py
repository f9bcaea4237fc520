import msgspec
import numpy as np
import pytest
import torch

from benchmarks.inference_cases import SHIPPED, mean_precision, measure, reconstruction_l1, variants
from benchmarks.operations import operation_shares
from benchmarks.paper_sampler import PAPER_START, PaperSampler, part
from benchmarks.subjects import Subject, with_hop, with_scoring
from detector.engine import Detector
from detector.manifest import CompanionConfig, Manifest, ScoringConfig
from detector.offline import SeriesScores
from tests.builders import random_windows, untrained
from training.datasets import Series

MANIFEST, WEIGHTS = untrained(
    scoring=ScoringConfig(starts=(10, 40), smoothing_size=31), companions=CompanionConfig(lags=7, window=5, windows=40)
)


def series(rows: int = 300, labels: int | None = None) -> Series:
    values = np.random.default_rng(0).uniform(0, 2, (rows, len(MANIFEST.channels))).astype(np.float32)
    flags = np.zeros(rows, np.uint8)
    flags[100:labels] = 1
    return Series("P-1", 10**9 + np.arange(rows), values, None if labels is None else flags)


def test_every_way_to_score_fits_the_checkpoint() -> None:
    subject = Subject("test", MANIFEST, WEIGHTS, [series()], [series(labels=140)])
    found = [measure(subject, variant, 1) for variant in variants(MANIFEST)]
    assert found[0].name == SHIPPED
    assert len({(case.starts, case.companions, case.sampler_steps, case.hop, case.precision) for case in found}) == 8
    assert all(case.rows == 300 and case.ap is not None and 0 < case.ap <= 1 and case.l1 > 0 for case in found)


def test_the_reconstruction_alone_keeps_the_ranking_of_one_channel() -> None:
    """Whatever the scale: it is the same for all rows of an entity."""
    manifest, weights = untrained(numeric=1, scoring=ScoringConfig(starts=(20,), smoothing_size=31))
    windows = random_windows(manifest, ["P-1"], missing=0)
    scores = [Detector(m, weights).score(windows).final[0] for m in (manifest, with_scoring(manifest, starts=(20,)))]
    np.testing.assert_array_equal(*(np.argsort(score) for score in scores))


@pytest.mark.parametrize("hop", [16, 48, 96])
def test_another_hop_changes_nothing_else(hop: int) -> None:
    geometry = msgspec.structs.replace(MANIFEST.geometry, final_delay=0)
    manifest: Manifest = msgspec.structs.replace(MANIFEST, geometry=geometry)
    changed = with_hop(manifest, hop)
    assert changed.geometry.hop == hop
    assert with_hop(changed, geometry.hop).geometry.length == geometry.length


def test_the_papers_sampler_is_near_one_call_and_depends_on_its_window_alone() -> None:
    alone = with_scoring(MANIFEST, starts=(PAPER_START,))
    paper, windows = PaperSampler(alone, WEIGHTS), random_windows(MANIFEST, ["P-1", "M-6", "P-1"])
    together = paper.score(windows, 30).final
    np.testing.assert_allclose(paper.score(part(windows, slice(1, 2)), 30).final, together[1:2], rtol=1e-4)
    x, sampled = paper.reconstruct(windows)
    _, at_once = Detector(alone, WEIGHTS).reconstruct(windows)
    assert sampled.shape == at_once.shape == (1, *x.shape)
    assert 0 < np.abs(sampled - at_once).mean() < 0.2


def test_the_l1_of_a_reconstruction_is_its_distance_from_what_was_there() -> None:
    subject = Subject("test", MANIFEST, WEIGHTS, [series()], [])
    assert 0 < reconstruction_l1(Detector(MANIFEST, WEIGHTS), subject) < 2


def test_entities_of_one_kind_of_rows_do_not_count() -> None:
    ranked, flat = series(labels=140), series()
    score = ranked.labels.astype(float) + 1 if ranked.labels is not None else np.empty(0)
    score[0] = np.nan
    no = np.zeros(300, bool)
    found = SeriesScores("P-1", score, score, no, score, score, no, no)
    assert mean_precision([ranked, flat], [found, found]) == 1
    assert mean_precision([flat], [found]) is None


def test_products_are_told_from_the_rest() -> None:
    a = torch.randn(300, 300)
    threads = torch.get_num_threads()
    found = operation_shares("test", lambda: [a @ a for _ in range(20)])
    assert sum(found.shares.values()) == pytest.approx(1, abs=0.01)
    assert found.shares["matrix products"] > found.shares["elementwise"]
    assert found.products_gflops > 0
    assert torch.get_num_threads() == threads
