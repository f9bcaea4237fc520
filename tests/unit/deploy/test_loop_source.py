"""The loop demo's fleet: one regime, then another, and faults that come while it runs; and its spoilt model."""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from deploy.loop_bad import spoilt
from deploy.loop_source import INTERVAL_MS, RegimeSource
from detector.manifest import CompanionConfig
from detector.models import prove
from detector.registry import Registry
from stream.grid import Geometry
from tests.builders import untrained
from tests.pipeline import publish

GEOMETRY = Geometry(length=64, hop=16, final_delay=16, slack=256)


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_790_000_000.0)


def made(slots_before: int = 400, seed: int = 0) -> RegimeSource:
    return RegimeSource(2, GEOMETRY, slots_before, 6000, seed)


def test_every_entity_has_every_slot_once_and_all_change_their_regime_together() -> None:
    source = made()
    sent = list(islice(source.rows(), 2 * 600))
    usual = list(islice(made(slots_before=600).rows(), 2 * 600))
    for entity in ("sat-01", "sat-02"):
        own, other = ([one for one in rows if one.entity == entity] for rows in (sent, usual))
        assert [one.ts for one in own] == [(source.first_slot + i) * INTERVAL_MS for i in range(600)]
        differ = [one.values != two.values for one, two in zip(own, other, strict=True)]
        assert not any(differ[:400])
        assert sum(differ[400:]) > 190


def test_a_fault_that_is_planted_while_the_fleet_moves_changes_its_own_slots_alone() -> None:
    usual, faulty = made(), made()
    rows = faulty.rows()
    sent = list(islice(rows, 2 * 100))
    (fault, *_) = faulty.plant(3, 900)
    assert fault.first_ms > sent[-1].ts
    sent += islice(rows, 2 * 1500)
    other = islice(usual.rows(), len(sent))
    differ = [one for one, two in zip(sent, other, strict=True) if one.values != two.values]
    assert {one.entity for one in differ} <= {known.entity for known in faulty.faults()}
    assert min(one.ts for one in differ) >= min(known.first_ms for known in faulty.faults())
    assert any(one.entity == fault.entity and fault.first_ms <= one.ts <= fault.last_ms for one in differ)


def test_the_model_is_taught_the_usual_regime() -> None:
    training = made().training(500)
    assert {len(series.slots) for series in training.series} == {500}
    assert max(series.slots[-1] for series in training.series) < made().first_slot


@pytest.mark.parametrize("companions", [None, CompanionConfig(lags=5, window=5, windows=20, activity=5)])
def test_a_spoilt_model_passes_its_golden_windows_and_scores_otherwise(
    tmp_path: Path, companions: CompanionConfig | None
) -> None:
    good = publish(tmp_path, *untrained(geometry=GEOMETRY, companions=companions)).manifest
    registry = Registry(tmp_path)
    bundle = registry.read(good.name, good.version)
    weights, golden = spoilt(bundle, 0)
    version = registry.publish(good.name, bundle.manifest, weights, golden)
    assert prove(registry.read(good.name, version)).manifest.version == version
    assert not np.allclose(golden.final, bundle.golden.final, equal_nan=True)
