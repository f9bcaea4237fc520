"""What is counted of scores: every slot once, alarms of normal slots only, a swap when the last partition has it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo_sources import KnownFault
from deploy.loop_tally import LoopTally
from stream.contracts import ScoreBlock
from stream.grid import Geometry
from tests.unit.training.test_gates import block

GEOMETRY = Geometry(length=32, hop=8, final_delay=8, slack=64)
FIRST = 1000


def judged(start_slot: int, preds: list[bool], **changes: object) -> ScoreBlock:
    scores = [1.0] * len(preds)
    return block(start_slot=start_slot, preds=preds, scores=scores, p_values=scores, **changes)


def tally_of(*blocks: ScoreBlock, partition: int = 0, timestamp_ms: int = 0) -> LoopTally:
    tally = LoopTally(FIRST)
    for one in blocks:
        tally.add(one, partition, timestamp_ms)
    return tally


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_a_slot_is_missed_or_repeated_as_often_as_its_block(sizes: list[int], data: st.DataObject) -> None:
    ends = FIRST + np.cumsum(sizes)
    blocks = [judged(int(end) - size, [False] * size) for end, size in zip(ends, sizes, strict=True)]
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    tally = LoopTally(FIRST)
    for one, count in zip(blocks, times, strict=True):
        for _ in range(count):
            tally.add(one, 0, 0)
    assert tally.repeated == sum(size * max(count - 1, 0) for size, count in zip(sizes, times, strict=True))
    last = int(ends[-1]) + GEOMETRY.final_delay - 1
    wanted = GEOMETRY.last_boundary(last) - FIRST + 1
    final = sum(count > 0 for count, size in zip(times, sizes, strict=True) for _ in range(size))
    reached = sum(
        count > 0 and end - size + i < FIRST + wanted - GEOMETRY.final_delay
        for count, size, end in zip(times, sizes, ends.tolist(), strict=True)
        for i in range(size)
    )
    assert reached <= final
    assert tally.unscored({"e": last}, GEOMETRY) == wanted + max(wanted - GEOMETRY.final_delay, 0) - reached


def test_a_gap_is_not_scored_and_provisional_scores_are_counted_apart() -> None:
    tally = tally_of(block(start_slot=FIRST), block(start_slot=FIRST, stage="provisional"))
    assert tally.repeated == 0
    last = FIRST + 7 if GEOMETRY.last_boundary(FIRST + 7) == FIRST + 7 else GEOMETRY.last_boundary(FIRST + 8)
    assert tally.unscored({"e": last}, GEOMETRY) == last - FIRST + 1 - 2


def test_alarms_count_where_no_fault_is_and_nobody_is_learned_about() -> None:
    tally = tally_of(
        judged(FIRST, [True, False, True, False]),
        judged(FIRST + 4, [True, True, False, False]),
        judged(FIRST, [True] * 4, entity="new", learning=True),
        judged(FIRST, [True] * 4, stage="provisional"),
    )
    fault = KnownFault("e", "stuck", (), (FIRST + 2) * 1000, (FIRST + 3) * 1000)
    assert tally.alarm_rate(FIRST, FIRST + 7, [], 0) == 4 / 8
    assert tally.alarm_rate(FIRST, FIRST + 7, [fault], 0) == 3 / 6
    assert tally.alarm_rate(FIRST, FIRST + 7, [fault], 2) == 1 / 4
    assert tally.alarm_rate(FIRST + 6, FIRST + 7, [fault._replace(entity="other")], 9) == 0.0
    assert tally.alarm_rate(FIRST + 8, FIRST + 9, [], 0) is None


def test_a_swap_is_over_when_the_last_partition_has_scores_of_the_version() -> None:
    tally = LoopTally(FIRST)
    for partition, timestamp_ms in ((0, 1000), (1, 1500), (0, 9000)):
        tally.add(judged(FIRST + timestamp_ms, [False]), partition, timestamp_ms)
    assert tally.swap_s("v", 800, 3) is None
    assert tally.swap_s("v", 800, 2) == 0.7
    assert tally.swap_s("other", 800, 2) is None


def test_an_entity_is_judged_by_a_version_from_its_first_block_on() -> None:
    tally = tally_of(judged(FIRST, [False]), judged(FIRST + 5, [False]), judged(FIRST + 3, [False], entity="f"))
    assert tally.first_slot_of("v") == FIRST + 3
    assert tally.first_slot_of("other") is None
    assert tally.newest_slot == FIRST + 3
