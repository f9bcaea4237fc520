from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from stream.contracts import DeadLetter, DroppedLetters
from stream.dead_letters import HEADER
from stream.errors import ContractError
from stream.metrics import Metrics
from stream.refusals import BURST_S, Refusals
from tests.fakes import record

REASONS = ("malformed", "late")
TIMES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.3, 5.0]), st.sampled_from(REASONS), st.integers(0, 1)), max_size=200
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def reason_of(letter):
    return msgspec.json.decode(dict(letter.headers)[HEADER], type=DeadLetter).reason


def refuse(refusals, clock, times, batch):
    """Refuse records, in batches of so many, and return the letters and when each was written."""
    letters = []
    for offset, (pause_s, reason, partition) in enumerate(times):
        clock.now += pause_s
        one = record(b"{", offset, partition=partition)
        letters.append((clock.now, refusals.letter(one, ContractError(reason, "bad"))))
        if offset % batch == batch - 1 or offset == len(times) - 1:
            letters += [(clock.now, refusals.summary(p)) for p in (0, 1)]
    return [(at, letter) for at, letter in letters if letter is not None]


@given(TIMES, st.integers(1, 50))
def test_every_refused_record_has_a_letter_or_is_in_one(times, batch):
    clock = Clock()
    letters = [letter for _, letter in refuse(Refusals("dead-letters", 1.0, Metrics(), clock), clock, times, batch)]
    told = Counter()
    for letter in letters:
        if reason_of(letter) == "dropped":
            dropped = msgspec.json.decode(letter.value, type=DroppedLetters)
            assert dropped.partition == letter.partition
            told.update({(letter.partition, reason): count for reason, count in dropped.reasons.items()})
            inside = times[dropped.first_offset : dropped.last_offset + 1]
            for reason, count in dropped.reasons.items():
                assert sum((r, p) == (reason, letter.partition) for _, r, p in inside) >= count
        else:
            told[letter.partition, reason_of(letter)] += 1
    assert told == Counter((partition, reason) for _, reason, partition in times)


@given(TIMES, st.sampled_from([0.1, 1.0, 7.0]))
def test_no_reason_has_more_letters_than_its_rate_and_burst_allow_in_any_stretch_of_time(times, per_s):
    clock = Clock()
    letters = refuse(Refusals("dead-letters", per_s, Metrics(), clock), clock, times, 10)
    for reason in REASONS:
        written = [at for at, letter in letters if reason_of(letter) == reason]
        for i, first in enumerate(written):
            for j, last in enumerate(written[i:], 1):
                assert j <= per_s * (BURST_S + last - first) + 1e-6


@given(st.lists(st.sampled_from(REASONS), max_size=30))
def test_a_reason_within_its_rate_is_never_dropped_whatever_the_others_do(reasons):
    clock = Clock()
    refusals = Refusals("dead-letters", 1.0, Metrics(), clock)
    for offset, flood in enumerate(reasons):
        clock.now += 1.0
        for _ in range(50):
            refusals.letter(record(b"{", offset), ContractError(f"flood of {flood}", "bad"))
        assert refusals.letter(record(b"{", offset), ContractError("range", "bad")) is not None


def test_what_was_dropped_is_logged_once_a_second_and_all_of_it():
    clock = Clock()
    refusals = Refusals("dead-letters", 0.1, Metrics(), clock)
    with capture_logs() as lines:
        for offset in range(100):
            clock.now += 0.05
            refusals.letter(record(b"{", offset), ContractError("malformed", "bad"))
            refusals.summary(0)
        clock.now += 1.0
        refusals.tell()
    assert 5 <= len(lines) <= 7
    assert sum(one["reasons"]["malformed"] for line in lines for one in line["dropped"]) == 99
