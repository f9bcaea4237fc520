"""Rounding of numbers for records: few digits, null for what is missing."""

import numpy as np
from numpy.typing import NDArray

# Smaller numbers are rounded as this one is.
_SMALLEST = 1e-12
# Powers of ten up to 1e22 are exact floats.
_POWERS = 10.0 ** np.arange(23)


def nullable(values: NDArray[np.float64], digits: int) -> list[float | None]:
    """Round to significant digits, which keeps records small, and turn NaN into null.

    A whole number over a power of ten up to 1e22 gives the float that is nearest to the decimal, so it prints short.
    """
    missing = np.isnan(values)
    known = np.where(missing, 1.0, values)
    places = digits - 1 - np.floor(np.log10(np.maximum(np.abs(known), _SMALLEST))).astype(np.int64)
    up, down = _POWERS[np.clip(places, 0, 22)], _POWERS[np.clip(-places, 0, 22)]
    rounded: list[float | None] = (np.rint(known * up / down) * down / up).tolist()
    for place in np.flatnonzero(missing).tolist():
        rounded[place] = None
    return rounded
