import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from detector.noise import normal_quantiles, slot_noise


def slots(end: int, length: int) -> np.ndarray:
    return np.arange(end - length + 1, end + 1, dtype=np.int64)[None]


@given(
    end=st.integers(-(2**62), 2**62),
    lag=st.integers(0, 31),
    channels=st.integers(1, 9),
    start=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_overlapping_windows_share_their_noise(end: int, lag: int, channels: int, start: int, seed: int) -> None:
    early = slot_noise(["P-1"], slots(end, 32), channels, start, seed)
    late = slot_noise(["P-1"], slots(end + lag, 32), channels, start, seed)
    np.testing.assert_array_equal(early[..., lag:], late[..., : 32 - lag])


def test_a_batch_is_its_windows_one_by_one_in_any_order() -> None:
    entities = ["a", "b", "c", "a"]
    windows = np.concatenate([slots(end, 40) for end in (100, 100, 7, 260)])
    together = slot_noise(entities, windows, 3, 20, 5)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        apart = [slot_noise([entities[i]], windows[i : i + 1], 3, 20, 5)[0] for i in order]
        np.testing.assert_array_equal(together[order], np.stack(apart))


def test_a_channel_keeps_its_noise_when_channels_are_added() -> None:
    np.testing.assert_array_equal(
        slot_noise(["a"], slots(99, 50), 3, 20, 0), slot_noise(["a"], slots(99, 50), 11, 20, 0)[:, :3]
    )


def test_noise_is_standard_normal() -> None:
    noise = slot_noise(["P-1"], slots(10**6, 50_000), 6, 20, 0)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.var() - 1) < 0.01
    assert stats.kstest(noise.ravel()[::7], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[0, 0, :-1], noise[0, 0, 1:])[0, 1]) < 0.02


def test_channels_starts_entities_and_seeds_are_independent() -> None:
    base = slot_noise(["P-1"], slots(60_000, 50_000), 9, 20, 0)[0]
    other = [
        slot_noise([entity], slots(60_000, 50_000), 1, start, seed)[0, 0]
        for entity, start, seed in (("P-1", 21, 0), ("P-1", 20, 1), ("P-2", 20, 0))
    ]
    correlation = np.corrcoef(np.vstack([base, *other]))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.025


def test_golden_values_hold_on_every_platform() -> None:
    noise = slot_noise(["P-1", "M-6"], np.concatenate([slots(29_453_760, 4), slots(-1, 4)]), 5, 20, 7)
    assert (
        hashlib.sha256(noise.tobytes()).hexdigest()
        == "6a27ffdd3e78bf281ecce77cb031a98f0e03e158b2c90d749660f3738a585250"
    )
    assert (
        hashlib.sha256(normal_quantiles().tobytes()).hexdigest()
        == "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"
    )
    np.testing.assert_array_equal(normal_quantiles(), -normal_quantiles()[::-1])
