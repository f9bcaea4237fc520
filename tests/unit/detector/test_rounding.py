import numpy as np
import pytest

from detector.rounding import nullable


@pytest.mark.parametrize("digits", [4, 7])
def test_rounded_numbers_are_those_that_their_decimals_name(digits: int) -> None:
    generator = np.random.default_rng(0)
    values = 10 ** generator.uniform(-12, 9, 20_000) * generator.choice([-1, 1], 20_000)
    values = np.concatenate([values, [0, 1, 1e-12, 9.99999999, 99999995.0, 123456.75, 1e-5, 1000]])
    assert nullable(values, digits) == [float(f"{value:.{digits}g}") for value in values.tolist()]


def test_what_is_missing_is_null() -> None:
    assert nullable(np.array([np.nan, 0.5, np.nan]), 4) == [None, 0.5, None]
    assert nullable(np.empty(0), 4) == []
