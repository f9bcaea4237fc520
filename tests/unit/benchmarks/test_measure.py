import gc
import os
from math import inf, nextafter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.measure import Watch, bucket_quantile, describe_machine, spread

BOUNDS = [0.001, 0.01, 0.1, 1.0]
TIMES = st.floats(0.0001, 0.9999)


def histogram(values):
    return [(bound, sum(value <= bound for value in values)) for bound in [*BOUNDS, inf]]


@given(st.lists(TIMES, min_size=1), st.floats(0.01, 1))
@example([0.5, 0.5, 0.0078125], 1 / 3)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, share):
    edges = [0, *BOUNDS]
    true = np.quantile(values, share, method="inverted_cdf")
    bucket = np.searchsorted(edges, true)
    found = bucket_quantile(histogram(values), share)
    assert edges[bucket - 1] <= found <= edges[bucket]


@given(st.lists(TIMES, min_size=1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_quantiles_ascend_with_their_share(values, one, other):
    low, high = sorted((one, other))
    buckets = histogram(values)
    assert bucket_quantile(buckets, low) <= nextafter(bucket_quantile(buckets, high), inf)


def test_what_is_beyond_the_last_bound_is_told_as_that_bound():
    assert bucket_quantile(histogram([5.0, 6.0]), 0.5) == BOUNDS[-1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_spread_holds_its_median_and_counts_all(values):
    found = spread(values)
    assert found.least <= found.median <= found.most
    assert found.count == len(values)
    assert found == spread(values[::-1])


def test_a_watch_sees_the_memory_and_the_work_of_a_process():
    with Watch(os.getpid()) as watch:
        gc.collect()
        memory, cpu = watch.resident_mib(), watch.cpu_s()
        held = [np.ones(40_000_000)]
        while watch.peak_mib < memory + held[0].nbytes / 2**20 - 1 or watch.cpu_s() <= cpu:
            if len(held) < 4:  # what other tests left may be given back meanwhile
                held.append(np.ones_like(held[0]))
            held[0].sum()  # for as long as the whole test may take
        peak = watch.peak_mib
        del held
    assert watch.peak_mib >= peak


def test_the_machine_is_described_without_a_gap():
    machine = describe_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert {"python", "torch", "librdkafka"} <= set(machine.versions)
    assert all(machine.versions.values())


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_one_value_is_every_quantile_of_itself(share):
    assert 0.01 <= bucket_quantile(histogram([0.05]), share) <= 0.1
