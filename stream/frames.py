"""Windows cut from recorded rows: the offline twin of the ring. Knows no store."""

import numpy as np
from numpy.typing import NDArray


def frame(
    slots: NDArray[np.int64], values: NDArray[np.float32], end_slots: NDArray[np.int64], length: int
) -> NDArray[np.float32]:
    """Cut the windows (B, C, L) that end at these slots; slots without a row are NaN.

    slots: (n,) ascending, each once. values: (n, C). In memory a slot's channels lie side by side, as they do there.
    """
    wanted = end_slots[:, None] + np.arange(1 - length, 1)  # (B, L)
    row = np.searchsorted(slots, wanted).clip(max=len(slots) - 1)
    windows: NDArray[np.float32] = values[row]  # (B, L, C)
    windows[slots[row] != wanted] = np.nan
    return windows.transpose(0, 2, 1)
