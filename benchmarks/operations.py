"""On which operations of torch a call spends its time, and how near its products come to the processor's best."""

import time
from collections.abc import Callable

import msgspec
import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS, FFT, ELEMENTWISE, PYTHON = "matrix products", "FFT", "elementwise", "Python and numpy"
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear")
_PEAK_SIZE, _PEAK_CALLS = 1024, 5


class OperationShares(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a call goes, on one thread.

    shares: of the wall time. products_gflops: floating point operations of matrix products a second spent in them,
    convolutions left out; peak_gflops: what a product of two large square matrices reaches.
    """

    name: str
    shares: dict[str, float]
    products_gflops: float
    peak_gflops: float


def operation_shares(name: str, work: Callable[[], object]) -> OperationShares:
    """Profile a call on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work()
        begin = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as profiled:
            begin = time.perf_counter()
            work()
            wall_s = time.perf_counter() - begin
        peak = _peak_gflops()
    finally:
        torch.set_num_threads(before)
    seconds, flops, product_s = dict.fromkeys((PRODUCTS, FFT, ELEMENTWISE), 0.0), 0.0, 0.0
    for event in profiled.key_averages():
        seconds[_kind(event.key)] += event.self_cpu_time_total / 1e6
        if event.flops and event.key in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"):
            flops += event.flops
            product_s += event.self_cpu_time_total / 1e6
    known = {kind: seconds[kind] for kind in (PRODUCTS, FFT, ELEMENTWISE)}
    known[PYTHON] = max(wall_s - sum(known.values()), 0.0)
    total = sum(known.values())
    return OperationShares(
        name=name,
        shares={kind: round(spent / total, 3) for kind, spent in known.items()},
        products_gflops=round(flops / max(product_s, 1e-9) / 1e9, 1),
        peak_gflops=round(peak, 1),
    )


def _kind(key: str) -> str:
    operation = key.removeprefix("aten::").strip("_")
    if operation in _PRODUCTS or operation.endswith("convolution"):
        return PRODUCTS
    return FFT if "fft" in operation else ELEMENTWISE


def _peak_gflops() -> float:
    square = torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    best_s = float("inf")
    for _ in range(_PEAK_CALLS):
        begin = time.perf_counter()
        square @ square
        best_s = min(best_s, time.perf_counter() - begin)
    return 2 * _PEAK_SIZE**3 / best_s / 1e9
