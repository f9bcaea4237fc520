"""Threads that compute side by side, each torch operation in one of them.

Windows and entities are independent, so whole passes share the cores better than single operations do: most of those
are too short to be worth the hand-over. Torch lets go of the interpreter while it computes.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(count: int) -> ThreadPoolExecutor:
    """Return a pool of threads whose torch operations don't split up any further."""
    return ThreadPoolExecutor(count, thread_name_prefix="compute", initializer=torch.set_num_threads, initargs=(1,))


def mapped(work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """Yield `work` of each item in order; `count` are in progress at a time, and one more may wait to be taken."""
    with side_by_side(count) as pool:
        rest = iter(items)
        begun = [pool.submit(work, item) for item in islice(rest, count + 1)]
        while begun:
            result = begun.pop(0).result()
            begun += [pool.submit(work, item) for item in islice(rest, 1)]
            yield result
