"""What a figure rests on: repeated values, the machine, and what a process took of it. Knows nothing of telemetry."""

import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Self

import confluent_kafka
import msgspec
import psutil
import torch

_LIBRARIES = ("torch", "numpy", "confluent-kafka", "redis", "msgspec")
_SAMPLE_S = 0.1


class Spread(msgspec.Struct, frozen=True):
    """Repeated measurements: their median, the extremes, and how many there were."""

    median: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float], digits: int = 1) -> Spread:
    """Summarise repeated measurements, rounded."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return Spread(round(middle, digits), round(least, digits), round(most, digits), len(values))


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where a benchmark ran. load: mean number of processes that wanted a core in the minute before."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    load: float
    torch_threads: int
    versions: dict[str, str]


def describe_machine() -> Machine:
    """Describe this machine as it is now."""
    libraries = {name: version(name) for name in _LIBRARIES}
    own = {"python": platform.python_version(), "librdkafka": confluent_kafka.libversion()[0]}
    return Machine(
        cpu=_cpu_name(),
        cores=psutil.cpu_count() or 0,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=platform.platform(),
        load=round(psutil.getloadavg()[0], 2),
        torch_threads=torch.get_num_threads(),
        versions=own | libraries,
    )


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class Watch:
    """Follows a process: the CPU time it has used, and the most memory it held while it was watched."""

    def __init__(self, pid: int) -> None:
        """Start following a running process with `with`."""
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self.peak_mib = 0.0

    def cpu_s(self) -> float:
        """Return the CPU seconds of all threads so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def resident_mib(self) -> float:
        """Return the memory it holds now."""
        return round(self._process.memory_info().rss / 2**20, 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                self.peak_mib = max(self.peak_mib, self.resident_mib())
            except psutil.NoSuchProcess:
                return
            self._ended.wait(_SAMPLE_S)


class Timing(msgspec.Struct, frozen=True):
    """One measured call: seconds on the clock, and CPU seconds of this process."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object]) -> Timing:
    """Call once and say how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def bucket_quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """Return the value below which a share of a histogram's observations lies, interpolated inside its bucket.

    buckets: upper bound and cumulative count, ascending, the last bound infinite; there the bound before it is given.
    """
    wanted, lower, below = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            if bound == float("inf"):
                return lower
            return min(bound, lower + (bound - lower) * (wanted - below) / (count - below))  # rounding may go beyond
        lower, below = bound, count
    return lower
