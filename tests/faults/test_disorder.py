"""Rows that come twice or out of order within the lateness are scored as if they had come once and in order."""

import numpy as np

from tests.faults.live import sending
from tests.faults.recorded import GEOMETRY, answer_of, assert_is_offline, recordings, to_sample, wait_for_rows
from tests.pipeline import running


def disordered(model, series, seed):
    """Order the rows of a series by time stamps off by up to the lateness, a third of them twice."""
    generator = np.random.default_rng(seed)
    again = np.flatnonzero(generator.random(len(series.slots)) < 1 / 3)
    rows = np.concatenate([np.arange(len(series.slots)), again])
    arrival = series.slots[rows] + generator.uniform(0, GEOMETRY.lateness, len(rows))
    return [to_sample(model, series, int(row)) for row in rows[np.argsort(arrival, kind="stable")]]


def test_rows_that_come_twice_and_out_of_order_change_no_score(model, settings):
    series = recordings(model, 400)
    answer = answer_of(model, settings, series)
    samples = [sample for seed, one in enumerate(series) for sample in disordered(model, one, seed)]
    with running(settings):
        with sending(settings, samples, rows_per_s=2000):
            pass
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_a_row_sent_again_with_other_values_counts_as_it_came_last(model, settings):
    """The last row of a slot within the lateness is the one that is scored, whatever came before."""
    series = recordings(model, 400)
    answer = answer_of(model, settings, series)
    samples = []
    for one in series:
        for row in range(len(one.slots)):
            right = to_sample(model, one, row)
            wrong = {name: 0.5 if isinstance(value, float) else value for name, value in right.values.items()}
            samples += [type(right)(right.entity, right.ts, wrong), right]
    with running(settings):
        with sending(settings, samples, rows_per_s=2000):
            pass
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)
