import threading

import pytest
import torch

from detector.threads import mapped, side_by_side


def test_results_come_in_order_and_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    results = mapped(lambda number: number * number, items(), 3)
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == [number * number for number in range(1, 10)]


def test_as_many_items_are_in_progress_as_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=20)
    assert len(list(mapped(lambda _: together.wait(), range(6), 3))) == 6


def test_an_error_reaches_whoever_waits_for_the_result() -> None:
    results = mapped(lambda number: 1 // number, [1, 0], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_operations_of_the_threads_stay_in_them_and_those_of_others_do_not() -> None:
    before = torch.get_num_threads()
    with side_by_side(2) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(4))) == {1}
    assert torch.get_num_threads() == before
