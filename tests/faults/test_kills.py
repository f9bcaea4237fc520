"""Services killed by SIGKILL: readers of committed records can't tell."""

import time

import numpy as np
import pytest

from tests.faults.live import Crash, processes, sending
from tests.faults.recorded import answer_of, assert_is_offline, recordings, telemetry, wait_for_rows
from tests.pipeline import blocks, wait_for

POINTS = ("before the transaction", "inside the transaction", "after the commit")


@pytest.mark.parametrize(("victim", "other"), [("worker", "windower"), ("windower", "worker")])
def test_a_service_that_dies_anywhere_in_a_batch_loses_and_repeats_nothing(model, settings, tmp_path, victim, other):
    series = recordings(model, 400)
    answer = answer_of(model, settings, series)
    with processes(settings, tmp_path) as services:
        services.start(other)
        with sending(settings, telemetry(model, series), rows_per_s=300):
            for batch, point in enumerate(POINTS, start=2):
                services.start(victim, Crash(point, batch))
                services.wait_for_crash(victim)
            services.start(victim)
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_kills_at_random_moments_under_load_lose_and_repeat_nothing(model, settings, tmp_path):
    series = recordings(model, 1200)
    answer = answer_of(model, settings, series)
    moments = np.random.default_rng(7)
    with processes(settings, tmp_path) as services:
        services.start("windower")
        services.start("worker")
        with sending(settings, telemetry(model, series), rows_per_s=400):
            for victim in ("worker", "windower", "worker", "windower", "worker"):
                time.sleep(moments.uniform(0.5, 2.0))
                services.kill(victim)
                services.start(victim)
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_a_service_that_comes_back_from_the_dead_finds_that_it_was_replaced(model, settings, tmp_path):
    """Paused for longer than its session lasts, it goes on with what it had in hand; all of that is void."""
    series = recordings(model, 1000)
    answer = answer_of(model, settings, series)
    with processes(settings, tmp_path) as services:
        services.start("windower")
        services.start("worker")
        with sending(settings, telemetry(model, series), rows_per_s=300):
            for zombie in ("worker", "windower"):
                seen = wait_for_more(settings, 20, beyond=0)
                services.pause(zombie)
                services.start(f"{zombie}-1")
                wait_for_more(settings, 40, beyond=seen)
                services.resume(zombie)
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def wait_for_more(settings, count, beyond):
    wait_for(lambda: len(blocks(settings)) >= beyond + count, f"{count} blocks more than {beyond}")
    return len(blocks(settings))
