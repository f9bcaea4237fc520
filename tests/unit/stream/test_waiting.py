import itertools

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream import waiting
from stream.errors import TransientError
from stream.waiting import in_slices, never, wait_until


class Clock:
    """Time passes only while a call waits or somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def silent(clock, waits):
    def call(timeout_s):
        waits.append(timeout_s)
        clock.now += timeout_s
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    return call


@pytest.mark.parametrize("timeout_s", [0.5, 5.0, 12.0, 60.0])
def test_a_call_without_an_answer_waits_as_long_as_it_may_in_short_waits(clock, timeout_s):
    waits = []
    with pytest.raises(KafkaException):
        in_slices(silent(clock, waits), timeout_s, "an answer", never)
    assert timeout_s <= sum(waits) < timeout_s + 5.0
    assert max(waits) <= 5.0


def test_a_wait_is_broken_off_when_the_service_is_to_stop(clock):
    waits = []
    with pytest.raises(TransientError, match="asked to stop while waiting for an answer"):
        in_slices(silent(clock, waits), 60.0, "an answer", lambda: clock.now >= 10)
    assert clock.now == 10


def test_an_answer_is_returned_whenever_it_comes(clock):
    answers = itertools.chain([None] * 3, ["here"])
    silence = silent(clock, [])
    assert in_slices(lambda timeout_s: next(answers) or silence(timeout_s), 60.0, "an answer", never) == "here"
    assert clock.now == 15


def test_another_error_than_silence_is_raised_at_once(clock):
    def refused(timeout_s):
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))

    with pytest.raises(KafkaException):
        in_slices(refused, 60.0, "an answer", never)
    assert clock.now == 0


def away():
    raise TransientError("away")


def test_what_is_away_is_asked_again_until_the_deadline(clock):
    with pytest.raises(TransientError, match="away"):
        wait_until(away, 10.0, "it", never)
    assert 10.0 <= clock.now < 11.0


def test_what_is_away_is_not_waited_for_by_a_service_that_is_to_stop(clock):
    with pytest.raises(TransientError, match="asked to stop while waiting for it"):
        wait_until(away, 10.0, "it", lambda: clock.now >= 2)
    assert clock.now == 2
