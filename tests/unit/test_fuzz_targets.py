"""The fuzz targets hold for a moment here; `make fuzz MINUTES=n` drives them by coverage for as long as you like."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import TARGETS
from tests.fuzz.targets import targets

NAMES = sorted(targets())


@st.composite
def damaged(draw, seeds):
    """Draw any bytes, or a seed with some bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        width = draw(st.sampled_from([0, 1, 8, len(data)]))
        data[place : place + width] = draw(st.binary(max_size=8) | st.just(bytes(data[place : place + 2 * width])))
    return bytes(data)


def test_every_target_is_driven():
    assert sorted(TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_of_a_target_are_understood(name):
    target = targets()[name]
    for seed in target.seeds():
        target.run(seed)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=60)
def test_a_target_holds_for_bytes_of_any_kind(name, data):
    target = targets()[name]
    target.run(data.draw(st.binary(max_size=400) | damaged(list(target.seeds()))))
