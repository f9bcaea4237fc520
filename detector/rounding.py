"""Rounding of numbers for records: few digits, null for what is missing."""

import numpy as np
from numpy.typing import NDArray

# Smaller numbers are rounded as this one is.
_SMALLEST = 1e-12
# Powers of ten up to 1e22 are exact floats.
_POWERS = 10.0 ** np.arange(23)


def rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Round to significant digits; NaN stays NaN.

    A whole number over a power of ten up to 1e22 gives the float that is nearest to the decimal, so it prints short.
    """
    known = np.where(np.isnan(values), 1.0, values)
    places = digits - 1 - np.floor(np.log10(np.maximum(np.abs(known), _SMALLEST))).astype(np.int64)
    up = _POWERS[np.minimum(np.maximum(places, 0), 22)]  # np.clip takes several times as long on short arrays
    down = _POWERS[np.minimum(np.maximum(-places, 0), 22)]
    return np.where(np.isnan(values), np.nan, np.rint(known * up / down) * down / up)


def nullable(values: NDArray[np.float64], digits: int) -> list[float | None]:
    """Round to significant digits, which keeps records small, and turn NaN into null."""
    found: list[float | None] = rounded(values, digits).tolist()
    for place in np.flatnonzero(np.isnan(values)).tolist():
        found[place] = None
    return found
