import msgspec
import numpy as np
import pytest

from benchmarks.workload import (
    FAMILY,
    FEW_NUMERIC,
    FIRST_SLOT,
    MANY_NUMERIC,
    SPIKE_SLOTS,
    add_spikes,
    make_family,
    make_values,
    publish_model,
    to_blocks,
    to_samples,
)
from detector.models import fit_columns, prove
from detector.registry import Registry
from stream.columns import COLUMNS
from stream.decoding import SampleDecoder, to_float32
from stream.grid import slot_of
from stream.kafka import Record
from stream.rows import decode_records
from stream.settings import load_settings


@pytest.fixture(params=[FEW_NUMERIC, MANY_NUMERIC], ids=["few", "many"])
def shape(request):
    return request.param


@pytest.fixture
def family(shape):
    return make_family(shape, slack=1024)


def test_the_services_read_back_every_value_that_was_made(shape, family):
    values = make_values(shape, 3, 40, seed=1)
    decoder = SampleDecoder(load_settings(families=[family.model_dump()]))
    rows = [decoder.decode(s.entity.encode(), msgspec.json.encode(s)) for s in to_samples(family, values)]
    read, fits = to_float32([row.values for row in rows], shape.channels)
    assert fits.all()
    np.testing.assert_array_equal(read.reshape(40, 3, -1).transpose(1, 0, 2), values)


def test_rows_come_slot_by_slot_and_begin_with_a_whole_hop(shape, family):
    slots = [slot_of(s.ts, family.interval_ms) for s in to_samples(family, make_values(shape, 3, 40, seed=1))]
    assert slots == sorted(slots)
    assert slots[::3] == list(range(FIRST_SLOT, FIRST_SLOT + 40))
    assert FIRST_SLOT % family.hop == 0


def test_blocks_hold_the_rows_that_samples_hold(shape, family):
    values = make_values(shape, 3, 150, seed=1)
    records = [
        Record("t", 0, 0, b.entity.encode(), msgspec.msgpack.encode(b), 0, [("content-type", COLUMNS.encode())])
        for b in to_blocks(family, values)
    ]
    (rows,), refused = decode_records(SampleDecoder(load_settings(families=[family.model_dump()])), records)
    assert (len(records), refused) == (3 * 3, {})
    np.testing.assert_array_equal(rows.values.reshape(3, 150, -1), values)
    np.testing.assert_array_equal(rows.slots.reshape(3, 150), np.tile(FIRST_SLOT + np.arange(150), (3, 1)))


def test_telemetry_is_a_function_of_its_seed(shape):
    np.testing.assert_array_equal(make_values(shape, 2, 100, seed=7), make_values(shape, 2, 100, seed=7))
    assert not np.array_equal(make_values(shape, 2, 100, seed=7), make_values(shape, 2, 100, seed=8))


def test_spikes_leave_the_range_of_normal_rows_and_touch_nothing_else(shape):
    normal = make_values(shape, 4, 2000, seed=3)
    spiked = normal.copy()
    add_spikes(spiked, shape, every=250, seed=3)
    hit = (spiked != normal).any(-1)  # (E, rows)
    assert (hit.sum(1) == SPIKE_SLOTS * 6).all()
    assert spiked[hit][:, : shape.numeric].min() > normal[..., : shape.numeric].max()
    np.testing.assert_array_equal(spiked[..., shape.numeric :], normal[..., shape.numeric :])


def test_the_model_fits_the_family_and_keeps_its_promises(tmp_path, shape, family):
    registry = Registry(tmp_path)
    manifest = publish_model(registry, shape, (20,), seed=0)
    bundle = registry.read(FAMILY, registry.alias(FAMILY, "champion"))
    assert bundle.manifest.version == manifest.version
    assert fit_columns(family, bundle.manifest).tolist() == list(range(shape.channels))
    prove(bundle)
