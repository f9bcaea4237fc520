import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.layers import compare, scan_both_ways, scan_causal
from benchmarks.turns import BOTH, FORWARD, in_turns, passes
from detector.s4 import BidirectionalS4, CausalS4, S4DKernel

SHAPES = {"batch": st.integers(1, 3), "width": st.integers(1, 4), "length": st.integers(1, 70)}


@settings(deadline=None, max_examples=25)
@given(**SHAPES)
def test_the_opposing_scan_gives_what_the_causal_layer_gives(batch: int, width: int, length: int) -> None:
    layer = CausalS4(S4DKernel(width, 8)).double()
    u = torch.randn(batch, width, length, dtype=torch.float64)
    torch.testing.assert_close(scan_causal(layer, u), layer(u))


@settings(deadline=None, max_examples=25)
@given(**SHAPES)
def test_the_opposing_scan_gives_what_the_layer_that_sees_both_ways_gives(batch: int, width: int, length: int) -> None:
    layer = BidirectionalS4("s4d", width, 8).double()
    u = torch.randn(batch, width, length, dtype=torch.float64)
    torch.testing.assert_close(scan_both_ways(layer, u), layer(u))


def test_both_passes_of_layer_and_scan_have_the_same_gradients() -> None:
    layer = CausalS4(S4DKernel(2, 8)).double()
    u, weights = torch.randn(2, 2, 30, dtype=torch.float64), list(layer.parameters())
    ours, other = (passes(call, u, weights)[BOTH]() for call in (layer, lambda u: scan_causal(layer, u)))
    torch.testing.assert_close(ours, other)
    assert len(ours) == 1 + len(weights)
    assert not passes(layer, u, weights)[FORWARD]().requires_grad


def test_calls_alternate_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    found = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in found.values()] == [3, 3]


@pytest.mark.parametrize(("ours", "other", "ratio"), [([0.1, 0.2, 9], [0.4, 0.4, 0.1], 2), ([0.4], [0.1], 0.25)])
def test_the_ratio_is_that_of_medians_and_above_one_where_ours_is_faster(
    ours: list[float], other: list[float], ratio: float
) -> None:
    found = compare("scan", "causal", FORWARD, 64, {f"ours {FORWARD}": ours, f"scan {FORWARD}": other}, 0.0)
    assert found.ratio == ratio
    assert found.ours_ms.count == len(ours)
