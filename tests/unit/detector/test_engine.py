from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest
import torch

from detector.engine import Detector, WindowBatch, WindowScores
from detector.manifest import CompanionConfig, ScoringConfig
from tests.builders import random_windows, untrained

COMPANIONS = CompanionConfig(lags=7, window=5, windows=40)
ENTITIES = ["M-6", "P-1", "never-seen", "P-1", "M-6", "P-1", "P-1"]


@pytest.fixture(scope="module", params=["alone", "with companions"])
def detector(request: pytest.FixtureRequest) -> Detector:
    return Detector(*untrained(companions=None if request.param == "alone" else COMPANIONS))


@pytest.fixture(scope="module")
def alone() -> Detector:
    return Detector(*untrained())


@pytest.fixture(scope="module")
def windows() -> WindowBatch:
    return random_windows(untrained()[0], ENTITIES)


def select(windows: WindowBatch, order: list[int]) -> WindowBatch:
    return WindowBatch([windows.entities[i] for i in order], windows.end_slots[order], windows.values[order])


def assert_same(found: WindowScores, expected: WindowScores, order: list[int] | slice = slice(None)) -> None:
    for field in fields(WindowScores):
        np.testing.assert_allclose(
            getattr(found, field.name), getattr(expected, field.name)[order], rtol=1e-5, atol=1e-5, err_msg=field.name
        )


def with_values(windows: WindowBatch, values: np.ndarray) -> WindowBatch:
    return replace(windows, values=values)


@pytest.mark.parametrize("companions", [None, COMPANIONS])
@pytest.mark.parametrize(
    "scoring",
    [
        ScoringConfig(smoothing_size=31),
        ScoringConfig(smoothing_size=31, smoothing_power=2),
        ScoringConfig(smoothing_size=31, starts=(20,), sampler_steps=4, top_channels=1, smoothing="bartlett"),
    ],
)
def test_fast_engine_is_the_plain_one(scoring: ScoringConfig, companions: CompanionConfig | None) -> None:
    detector = Detector(*untrained(scoring=scoring, companions=companions))
    windows = random_windows(detector.manifest, ENTITIES)
    assert_same(detector.score(windows), detector.score_plainly(windows))


def test_a_batch_is_its_windows_one_by_one_in_any_order(detector: Detector, windows: WindowBatch) -> None:
    together = detector.score(windows)
    for order in ([3], [6], [2], [5, 0, 1], list(range(6, -1, -1))):
        assert_same(detector.score(select(windows, order)), together, order)


def test_a_large_batch_is_its_parts(detector: Detector, windows: WindowBatch) -> None:
    order = list(range(7)) * 9
    assert_same(detector.score(select(windows, order)), detector.score(windows), order)


@pytest.mark.parametrize("recent", [1, 36, 37, 81, 95, 96, 500])
def test_the_newest_slots_alone_score_as_in_the_whole_window(
    detector: Detector, windows: WindowBatch, recent: int
) -> None:
    whole, newest = detector.score_plainly(windows), detector.score(windows, recent)
    for field in fields(WindowScores):
        found, wanted = getattr(newest, field.name), getattr(whole, field.name)
        np.testing.assert_allclose(found[..., -recent:], wanted[..., -recent:], rtol=1e-5, atol=1e-5)
        assert np.isnan(found[..., :-recent]).all()


def test_a_batch_shared_by_threads_scores_the_same(
    detector: Detector, windows: WindowBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = detector.score_plainly(windows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_same(detector.score(windows), wanted)


def test_no_windows_give_no_scores(detector: Detector, windows: WindowBatch) -> None:
    assert detector.score(select(windows, [])).final.shape == (0, 96)


def test_the_same_window_scores_the_same_twice(detector: Detector, windows: WindowBatch) -> None:
    np.testing.assert_array_equal(detector.score(windows).final, detector.score(windows).final)


def test_read_only_values_are_accepted_and_left_alone(detector: Detector, windows: WindowBatch) -> None:
    values = np.frombuffer(windows.values.tobytes(), np.float32).reshape(windows.values.shape)
    assert_same(detector.score(with_values(windows, values)), detector.score(windows))
    np.testing.assert_array_equal(values, windows.values)


def test_slots_without_numeric_channels_have_no_score(detector: Detector, windows: WindowBatch) -> None:
    numeric = [i for i, channel in enumerate(detector.manifest.channels) if channel.kind == "numeric"]
    absent = np.isnan(windows.values[:, numeric]).all(1)
    assert absent.any()
    scores = detector.score(windows)
    for series in (scores.provisional, scores.final):
        np.testing.assert_array_equal(np.isnan(series), absent)


def test_a_window_without_any_row_has_no_scores(detector: Detector, windows: WindowBatch) -> None:
    scores = detector.score(with_values(windows, np.full_like(windows.values, np.nan)))
    assert np.isnan(scores.final).all()
    assert np.isfinite(scores.expected).all()


def test_what_is_missing_leaves_no_trace_of_what_stood_there(detector: Detector, windows: WindowBatch) -> None:
    """A missing row is only missing: there is no value that the result could depend on but the mask."""
    values = windows.values.copy()
    values[..., :40] = np.nan
    scores = detector.score(with_values(windows, values))
    np.testing.assert_array_equal(scores.residual[..., :40], 0)
    assert np.isnan(scores.final[:, :40]).all()
    assert np.isfinite(scores.final[:, 40:][~np.isnan(values[:, [0, 4]]).all(1)[:, 40:]]).all()


def test_a_larger_deviation_never_scores_less(detector: Detector, windows: WindowBatch) -> None:
    """Up to infinity, and without a crash."""
    peaks = []
    for value in (30, 258, 1e6, 1e20, np.float32(3e38), np.inf):
        values = windows.values.copy()
        values[:, 0, 50] = value
        peaks.append(detector.score(with_values(windows, values)).final[:, 50])
    assert np.isfinite(peaks).all()
    assert (np.diff(peaks, axis=0) >= 0).all()
    assert (peaks[1] > peaks[0]).all()


def test_nothing_outside_the_training_range_is_expected(alone: Detector, windows: WindowBatch) -> None:
    manifest = alone.manifest
    entries = {entry.name: entry for entry in manifest.entities}
    scores = alone.score(with_values(windows, windows.values * 50))
    for entity, expected in zip(windows.entities, scores.expected, strict=True):
        entry = entries.get(entity, manifest.unseen)
        assert (expected >= np.array(entry.minimum)[:, None] - 1e-4).all()
        assert (expected <= np.array(entry.maximum)[:, None] + 1e-4).all()


def test_the_provisional_score_is_causal_in_the_residual(alone: Detector, windows: WindowBatch) -> None:
    """At the last slot nothing later is known, so both scores are one."""
    scores = alone.score(windows)
    np.testing.assert_allclose(scores.provisional[:, -1], scores.final[:, -1], rtol=1e-6)


def test_expected_values_follow_the_units(alone: Detector, windows: WindowBatch) -> None:
    """Telemetry in other units, calibrated in them, gives the same scores and expected values in those units."""
    manifest, weights = untrained()

    def scaled(values: list[float]) -> list[float]:
        return [1000 * value + 7 for value in values]

    entries = [
        msgspec.structs.replace(entry, minimum=scaled(entry.minimum), maximum=scaled(entry.maximum))
        for entry in (manifest.unseen, *manifest.entities)
    ]
    other = Detector(msgspec.structs.replace(manifest, unseen=entries[0], entities=entries[1:]), weights)
    values = windows.values.copy()
    values[:, [0, 4]] = 1000 * values[:, [0, 4]] + 7
    before, after = alone.score(windows), other.score(with_values(windows, values))
    np.testing.assert_allclose(after.final, before.final, rtol=1e-3)
    np.testing.assert_allclose(after.expected, 1000 * before.expected + 7, rtol=1e-3, atol=1)
    np.testing.assert_allclose(after.band, 1000 * before.band, rtol=1e-3)


def test_the_noise_seed_and_the_slot_decide_the_noise(alone: Detector, windows: WindowBatch) -> None:
    moved = replace(windows, end_slots=windows.end_slots + 1)
    assert not np.allclose(alone.score(moved).final, alone.score(windows).final, equal_nan=True)


@pytest.mark.parametrize("shape", [(7, 5, 95), (7, 4, 96), (6, 5, 96)])
def test_windows_of_another_shape_are_refused(detector: Detector, windows: WindowBatch, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="windows want values"):
        detector.score(with_values(windows, np.zeros(shape, np.float32)))


def test_a_non_finite_score_is_an_error(windows: WindowBatch) -> None:
    manifest, weights = untrained()
    weights["output.bias"] = weights["output.bias"] * np.nan
    with pytest.raises(FloatingPointError, match="score of M-6 at slot"):
        Detector(manifest, weights).score(windows)


def test_a_score_is_the_mean_root_of_the_views_on_their_own_levels() -> None:
    detector = Detector(*untrained(companions=COMPANIONS))
    windows = random_windows(detector.manifest, ["P-1"])
    groups = detector.training_scores(windows)
    levels = (detector.manifest.entities[0].provisional_levels, detector.manifest.entities[0].final_levels)
    scores = detector.score(windows)
    for stage, group, level in zip((scores.provisional, scores.final), groups, levels, strict=True):
        np.testing.assert_allclose(stage, np.sqrt(group / np.array(level)[:, None, None]).mean(0) ** 2, rtol=1e-5)


def test_a_root_mean_square_is_never_below_the_mean() -> None:
    plain, squared = (Detector(*untrained(scoring=ScoringConfig(smoothing_power=power))) for power in (1, 2))
    windows = random_windows(plain.manifest, ENTITIES)
    assert (squared.score(windows).final >= plain.score(windows).final - 1e-5)[
        ~np.isnan(plain.score(windows).final)
    ].all()
