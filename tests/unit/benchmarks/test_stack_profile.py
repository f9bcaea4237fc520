import threading
import time

import pytest

from benchmarks.stack_profile import OTHER, StackProfile


def short_work():
    time.sleep(0.05)


def long_work():
    time.sleep(0.2)


def outer_work():
    short_work()
    long_work()


def shares(parts, work):
    profile = StackProfile(parts)
    with profile.watching(threading.get_ident()):
        work()
    return profile.shares()


def test_shares_follow_the_time_and_make_up_the_whole():
    found = shares({"short_work": "short", "long_work": "long"}, outer_work)
    assert found["long"] > found["short"] > 0
    assert sum(found.values()) == pytest.approx(1, abs=0.01)


def test_the_innermost_named_function_counts():
    assert set(shares({"outer_work": "outer", "long_work": "long", "short_work": "short"}, outer_work)) <= {
        "long",
        "short",
        "outer",
        OTHER,
    }
    assert shares({"outer_work": "outer", "long_work": "long"}, outer_work)["long"] > 0.5


def test_what_has_no_name_is_other():
    assert shares({}, short_work) == {OTHER: 1.0}
