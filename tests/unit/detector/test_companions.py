import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.companions import Companions
from detector.manifest import CompanionConfig

CONFIG = CompanionConfig()
LENGTH = 64


def fitted(channels: int) -> Companions:
    generator = torch.Generator().manual_seed(0)
    companions = Companions(CONFIG, channels, 2)
    companions.windows.normal_(0, 0.7, generator=generator)
    return companions


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([-8, 0, 1, 8, 16, 32, 80])), min_size=2, max_size=5),
    st.sampled_from([0, 16, 40]),
    st.sampled_from([1, 3]),
)
def test_what_overlapping_windows_share_is_found_as_in_each_alone(steps, first, channels):
    """Windows of one recording, of the entities in turn, with values missing; they may end anywhere."""
    companions, generator = fitted(channels), np.random.default_rng(0)
    recording = torch.from_numpy(generator.normal(size=(3, channels, 1000)).astype(np.float32))
    known = torch.from_numpy(generator.random((3, channels, 1000)) > 0.2)
    row = torch.tensor([entity for entity, _ in steps])
    ends = (400 + np.cumsum([step for _, step in steps])).tolist()
    cut = [(entity, slice(end - LENGTH, end)) for entity, end in zip(row.tolist(), ends, strict=True)]
    valid = torch.stack([known[entity, :, own] for entity, own in cut])
    x = torch.stack([recording[entity, :, own] for entity, own in cut]).where(valid, 0)
    together = companions(x, valid, row, first=first, ends=ends)
    apart = [companions(x[i : i + 1], valid[i : i + 1], row[i : i + 1], first=first) for i in range(len(row))]
    for found, alone in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ends", [[100, 108], [100, 100], [100, 90], ()])
def test_equal_queries_elsewhere_are_not_taken_for_shared_ones(ends):
    """Only values decide: windows that claim to overlap, and don't, are searched for in full."""
    companions = fitted(1)
    x = torch.randn(2, 1, LENGTH, generator=torch.Generator().manual_seed(1))
    valid, row = torch.ones_like(x, dtype=torch.bool), torch.tensor([1, 1])
    for found, wanted in zip(companions(x, valid, row, ends=ends), companions(x, valid, row), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
