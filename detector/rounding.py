"""Rounding of numbers for records: few digits, null for what is missing."""

import numpy as np
from numpy.typing import NDArray

# Smaller numbers are rounded as this one is.
_SMALLEST = 1e-12


def nullable(values: NDArray[np.float64], digits: int) -> list[float | None]:
    """Round to significant digits, which keeps records small, and turn NaN into null.

    A whole number over a power of ten up to 1e22 gives the float that is nearest to the decimal, so it prints short.
    """
    known = np.where(np.isnan(values), 1.0, values)
    places = digits - 1 - np.floor(np.log10(np.maximum(np.abs(known), _SMALLEST)))
    up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
    rounded = (np.rint(known * up / down) * down / up).tolist()
    return [None if missing else value for value, missing in zip(rounded, np.isnan(values).tolist(), strict=True)]
