import msgspec
import numpy as np
import pytest

from detector.engine import Detector, WindowBatch
from detector.manifest import COMPANION_VIEWS, Manifest
from stream.frames import frame
from stream.grid import Geometry
from tests.unit.training.made_up import TINY, waves
from training.calibration import SCALE_FLOOR, UNSEEN, calibrate, golden_windows
from training.datasets import Dataset, window_ends
from training.presets import Preset
from training.threshold import measure_peaks
from training.trainer import TrainedModel, train

ALONE = msgspec.structs.replace(TINY, companions=None)


def fit(dataset: Dataset, geometry: Geometry | None = None, preset: Preset = TINY) -> TrainedModel:
    return train(dataset, name="test", preset=preset, train_steps=40, geometry=geometry)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return fit(waves((600, 500)), preset=ALONE)


@pytest.fixture(scope="module")
def manifest(trained: TrainedModel) -> Manifest:
    return calibrate(trained)


def live_scores(detector: Detector, dataset: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Score a series window by window as the live path does: last hop provisional, the hop final_delay before final."""
    geometry, series = detector.manifest.geometry, dataset.series[index]
    provisional, final = [], []
    for end in window_ends(series, geometry.hop):
        values = frame(series.slots, series.values, np.array([end]), geometry.length)
        scores = detector.score(WindowBatch([series.entity], np.array([end]), values))
        provisional.append(scores.provisional[0, -geometry.hop :])
        cut = geometry.length - geometry.final_delay
        final.append(scores.final[0, cut - geometry.hop : cut])
    return np.concatenate(provisional), np.concatenate(final)


def test_moments_and_tails_are_those_of_the_live_scores(trained: TrainedModel, manifest: Manifest) -> None:
    detector = Detector(manifest, trained.weights)
    z: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for index, entry in enumerate(manifest.entities):
        stages = zip(live_scores(detector, trained.dataset, index), (entry.provisional, entry.final), z, strict=True)
        for scores, moments, pooled in stages:
            scores = scores[~np.isnan(scores)]
            assert moments.count == len(scores)
            assert moments.mean == pytest.approx(scores.mean(), rel=1e-4)
            assert moments.variance == pytest.approx(scores.var(), rel=1e-3)
            pooled.append((scores - moments.mean) / moments.variance**0.5)
    for tail, pooled in zip((manifest.provisional_tail, manifest.final_tail), z, strict=True):
        np.testing.assert_allclose(tail.values, np.quantile(np.concatenate(pooled), tail.levels), atol=1e-2)
        assert tail.values == sorted(tail.values)


def test_a_budget_starts_from_the_peaks_of_training_scores_and_changes_nothing_else(
    trained: TrainedModel, manifest: Manifest
) -> None:
    found = calibrate(trained, alarms_per_week=2.0)
    rule = found.decision
    assert rule.budget is not None
    assert rule.budget.alarms_per_week == 2.0
    detector = Detector(manifest, trained.weights)
    scores = [live_scores(detector, trained.dataset, index) for index in range(len(manifest.entities))]
    for stage, peaks in enumerate((rule.budget.provisional, rule.budget.final)):
        moments = [(entry.provisional, entry.final)[stage] for entry in manifest.entities]
        z = [(own[stage] - m.mean) / m.deviation for own, m in zip(scores, moments, strict=True)]
        wanted = measure_peaks([one[~np.isnan(one)] for one in z], rule.resolve_after)
        assert peaks.slots == wanted.slots
        assert peaks.level == pytest.approx(wanted.level, rel=1e-2)
        assert peaks.excesses.mean == pytest.approx(wanted.excesses.mean, rel=0.05)
    assert msgspec.structs.replace(found, decision=msgspec.structs.replace(rule, budget=None)) == manifest
    assert msgspec.json.decode(msgspec.json.encode(found), type=Manifest) == found


def test_normal_residuals_lie_around_their_scale(trained: TrainedModel, manifest: Manifest) -> None:
    detector = Detector(manifest, trained.weights)
    for index, series in enumerate(trained.dataset.series):
        ends = window_ends(series, 32)
        x, expected = detector.reconstruct(
            WindowBatch([series.entity] * len(ends), ends, frame(series.slots, series.values, ends, 64))
        )
        residual = np.abs(x - expected)[..., -52:]
        usual = np.nanmean(residual, (1, 3)) + np.nanstd(residual, (1, 3)) + SCALE_FLOOR
        np.testing.assert_allclose(manifest.entities[index].residual_scale, usual, rtol=1e-3)


def test_an_unseen_entity_is_calibrated_without_a_name(trained: TrainedModel, manifest: Manifest) -> None:
    assert (manifest.unseen.name, manifest.unseen.index) == (UNSEEN, 0)
    assert [entry.index for entry in manifest.entities] == [1, 2]
    assert manifest.unseen.provisional.count > 0
    series = trained.dataset.series[0]
    ends = window_ends(series, 32)
    windows = WindowBatch(["who"] * len(ends), ends, frame(series.slots, series.values, ends, 64))
    assert 0 < np.nanmean(Detector(manifest, trained.weights).score(windows).final) < 3


def test_moments_come_from_held_out_rows_where_there_are_enough() -> None:
    dataset = waves((6000, 500))
    manifest = calibrate(fit(dataset))
    assert manifest.entities[0].provisional.count == 300
    assert manifest.entities[1].provisional.count == 500


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(length=64, hop=1, final_delay=20, slack=64),
        Geometry(length=32, hop=32, final_delay=0, slack=64),
        Geometry(length=128, hop=64, final_delay=64, slack=256),
    ],
)
def test_other_geometries_calibrate_too(geometry: Geometry) -> None:
    manifest = calibrate(fit(waves((300, 200)), geometry))
    for entry in (manifest.unseen, *manifest.entities):
        assert min(entry.provisional.count, entry.final.count) > 0


def test_a_manifest_survives_its_encoding(manifest: Manifest) -> None:
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


def test_golden_windows_hold_a_gap_an_unseen_entity_and_the_scores_they_get(
    trained: TrainedModel, manifest: Manifest
) -> None:
    detector = Detector(manifest, trained.weights)
    golden = golden_windows(detector, trained.dataset)
    scores = detector.score(WindowBatch(golden.entities, golden.end_slots, golden.values))
    np.testing.assert_array_equal(scores.final, golden.final)
    np.testing.assert_array_equal(scores.provisional, golden.provisional)
    assert golden.entities[-1] == UNSEEN
    assert np.isnan(golden.final).any()
    assert (~np.isnan(golden.final)).any(1).all()


def test_one_in_a_hundred_normal_scores_of_every_view_lies_above_its_level() -> None:
    trained = fit(waves((600, 500)))
    manifest = calibrate(trained)
    detector = Detector(manifest, trained.weights)
    for entry, series in zip(manifest.entities, trained.dataset.series, strict=True):
        ends = window_ends(series, 32)
        windows = WindowBatch([entry.name] * len(ends), ends, frame(series.slots, series.values, ends, 64))
        provisional, _ = detector.training_scores(windows)
        new = provisional[:, :, -32:]
        above = new[:, ~np.isnan(new[0])] > np.array(entry.provisional_levels)[:, None]
        np.testing.assert_allclose(above.mean(1), 0.01, atol=0.01)
        assert len(entry.residual_scale) == len(manifest.scoring.starts) + COMPANION_VIEWS


def test_a_companion_does_not_remember_the_training_rows_it_is_calibrated_on() -> None:
    trained = fit(waves((600, 500)))
    detector = Detector(calibrate(trained), trained.weights)
    series = trained.dataset.series[0]
    ends = window_ends(series, 32)[5:6]
    windows = WindowBatch([series.entity], ends, frame(series.slots, series.values, ends, 64))
    honest = detector.training_residuals(windows)[-2]
    remembered = detector.score(windows)
    assert np.nanmin(honest[0, :, 10:-10]) > 0
    assert np.nanmedian(honest) > 0.01
    assert remembered.residual.shape == honest.shape
