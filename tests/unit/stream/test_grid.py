import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.errors import ContractError
from stream.grid import MAX_TS_MS, MIN_TS_MS, Geometry, slot_of

NOW_MS = 1_780_000_000_000
TIMES = st.integers(MIN_TS_MS, MAX_TS_MS - 1)
INTERVALS = st.integers(1, 86_400_000)


@given(TIMES, INTERVALS)
def test_the_slot_is_the_nearest_one_and_halves_go_up(ts_ms, interval_ms):
    distance = ts_ms - slot_of(ts_ms, interval_ms) * interval_ms
    assert -interval_ms <= 2 * distance < interval_ms


@given(TIMES, TIMES, INTERVALS)
def test_later_rows_never_have_earlier_slots(one, other, interval_ms):
    early, late = sorted((one, other))
    assert slot_of(early, interval_ms) <= slot_of(late, interval_ms)


@given(st.integers(MIN_TS_MS // 1000 + 1, MAX_TS_MS // 1000 - 1))
def test_jitter_below_half_an_interval_does_not_move_a_row(slot):
    assert {slot_of(slot * 1000 + jitter, 1000) for jitter in (-500, -1, 0, 1, 499)} == {slot}


@pytest.mark.parametrize(
    ("ts", "unit"),
    [(NOW_MS // 1000, "seconds"), (NOW_MS * 1000, "microseconds"), (NOW_MS * 1_000_000, "nanoseconds")],
)
def test_a_time_stamp_in_another_unit_is_refused_by_name(ts, unit):
    with pytest.raises(ContractError, match=rf"got {ts} \(it looks like {unit}\)") as caught:
        slot_of(ts, 1000)
    assert caught.value.reason == "timestamp"


@given(st.integers())
@example(10**400)
@example(-(10**400))
@example(MIN_TS_MS - 1)
@example(MAX_TS_MS)
def test_any_number_is_a_slot_or_a_broken_contract(ts):
    try:
        slot_of(ts, 1000)
    except ContractError:
        assert not MIN_TS_MS <= ts < MAX_TS_MS
    else:
        assert MIN_TS_MS <= ts < MAX_TS_MS


@given(st.integers(1, 64), st.integers(-(10**6), 10**12))
def test_the_last_boundary_is_the_newest_end_that_the_watermark_has_passed(hop, watermark):
    geometry = Geometry(length=8 * hop, hop=hop, final_delay=hop, slack=8 * hop)
    end = geometry.last_boundary(watermark)
    assert (end + 1) % hop == 0
    assert end <= watermark < end + hop


@given(
    length=st.integers(-5, 40),
    hop=st.integers(-5, 40),
    lateness=st.integers(-5, 20),
    final_delay=st.integers(-5, 40),
    slack=st.integers(-5, 120),
)
def test_a_geometry_is_consistent_or_refused(length, hop, lateness, final_delay, slack):
    good = (
        length >= 8
        and 1 <= hop <= length
        and length % hop == 0
        and min(lateness, final_delay) >= 0
        and hop + final_delay <= length
        and slack >= 2 * (hop + lateness) + final_delay
    )
    try:
        geometry = Geometry(length=length, hop=hop, lateness=lateness, final_delay=final_delay, slack=slack)
    except ValueError:
        assert not good
    else:
        assert good
        assert geometry.capacity == length + slack
        assert geometry.max_gap >= hop + lateness + final_delay


def test_all_inconsistencies_are_named_at_once():
    with pytest.raises(ValueError, match="length wants at least 8") as caught:
        Geometry(length=7, hop=9, lateness=-1, final_delay=-1, slack=0)
    for name in ("hop wants 1 to length", "lateness wants", "final_delay wants", "slack wants at least"):
        assert name in str(caught.value)


def test_the_defaults_are_consistent():
    assert Geometry().capacity == 512 + 1024
