from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from detector.checkpoint import Bundle
from detector.engine import Detector, WindowBatch
from detector.models import prove
from detector.registry import Registry
from stream.errors import UsageError
from stream.frames import frame
from tests.unit.training.made_up import TINY, waves
from training.calibration import UNSEEN
from training.context import ENTITY_VECTORS
from training.datasets import Dataset, Series, window_ends
from training.enrol import enrol, enrol_and_publish
from training.presets import Preset
from training.publish import publish_trained
from training.trainer import train

KNOWN = waves((600, 500))
# Training rows of a known entity under another name, and rows of an entity that resembles none.
SAME = replace(KNOWN, series=[replace(KNOWN.series[1], entity="again")])
OTHER = replace(
    KNOWN, series=[replace(s, entity=f"new-{s.entity}", values=s.values * 2) for s in waves((400, 300), 5).series]
)
SOURCES = ("id", "context")


def published(registry: Registry, source: str) -> str:
    preset: Preset = msgspec.structs.replace(TINY, entity_source=source)
    return publish_trained(registry, train(KNOWN, name=source, preset=preset, train_steps=30)).version


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def bundles(registry: Registry) -> dict[str, Bundle]:
    return {source: registry.read(source, published(registry, source)) for source in SOURCES}


@pytest.fixture(params=SOURCES)
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Bundle:
    return bundles[request.param]


def detector_of(bundle: Bundle, dataset: Dataset) -> Detector:
    enrolled = enrol(bundle, dataset)
    return Detector(enrolled.manifest, enrolled.weights)


def windows(series: Series, name: str | None = None) -> WindowBatch:
    ends = window_ends(series, 32)[:6]
    return WindowBatch([name or series.entity] * len(ends), ends, frame(series.slots, series.values, ends, 64))


def reconstructed(detector: Detector, series: Series, name: str) -> Tensor:
    """Reconstruct windows under an entity's name with noise that doesn't depend on it."""
    inputs = detector.inputs(windows(series, name))
    with torch.inference_mode():
        return detector._reconstruct(replace(inputs, noise=torch.zeros_like(inputs.noise)))


def test_a_known_entitys_rows_under_another_name_are_that_entity(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["context"]
    detector = detector_of(bundle, SAME)
    vectors = detector.denoiser.condition.entity.weight
    torch.testing.assert_close(vectors[3], vectors[2], atol=1e-5, rtol=1e-4)
    known, again = (reconstructed(detector, KNOWN.series[1], name) for name in ("e-1", "again"))
    torch.testing.assert_close(again, known, atol=1e-4, rtol=1e-3)
    _, known_entry, entry = detector.manifest.entities
    for field in ("minimum", "maximum"):
        np.testing.assert_allclose(getattr(entry, field), getattr(known_entry, field), rtol=1e-5)
    for field in ("residual_scale", "provisional_levels", "final_levels"):  # noise and kept windows are others
        np.testing.assert_allclose(getattr(entry, field), getattr(known_entry, field), rtol=0.2)
    assert entry.final.mean == pytest.approx(known_entry.final.mean, rel=0.2)


def test_known_and_unseen_entities_score_as_before(bundle: Bundle) -> None:
    before, after = Detector(bundle.manifest, bundle.weights), detector_of(bundle, OTHER)
    for series in KNOWN.series:
        for name in (series.entity, "never seen"):
            one, other = (detector.score(windows(series, name)) for detector in (before, after))
            for field in ("provisional", "final", "residual", "expected", "band"):
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_newcomers_are_scored_on_their_own_scale(bundle: Bundle) -> None:
    detector = detector_of(bundle, OTHER)
    for number, series in enumerate(OTHER.series):
        entry = detector.manifest.entities[2 + number]
        assert (entry.name, entry.index) == (series.entity, 3 + number)
        assert entry.minimum[0] == pytest.approx(np.nanmin(series.values[:, 0]))
        own, unseen = (np.nanmean(detector.score(windows(series, name)).final) for name in (series.entity, "who"))
        assert own < 1 < unseen


def test_without_a_context_encoder_a_newcomer_has_the_unseen_ones_vector(bundles: dict[str, Bundle]) -> None:
    vectors = enrol(bundles["id"], OTHER).weights[ENTITY_VECTORS]
    assert torch.equal(vectors[3:], vectors[:1].expand(2, -1))


def test_one_by_one_is_all_at_once(bundle: Bundle) -> None:
    together = enrol(bundle, OTHER)
    apart = bundle
    for series in OTHER.series:
        step = enrol(apart, replace(OTHER, series=[series]))
        apart = Bundle(step.manifest, step.weights, step.golden)
    assert torch.equal(together.weights[ENTITY_VECTORS], apart.weights[ENTITY_VECTORS])
    assert [e.name for e in together.manifest.entities] == [e.name for e in apart.manifest.entities]
    assert together.manifest.denoiser == apart.manifest.denoiser


def test_what_is_published_loads_and_proves_itself(registry: Registry, bundle: Bundle) -> None:
    name, first = bundle.manifest.name, bundle.manifest.version
    version = enrol_and_publish(registry, name, first, OTHER)
    read = registry.read(name, version)
    prove(read)
    assert (registry.alias(name, "champion"), read.manifest.denoiser.entities) == (None, 4)
    assert {"e-0", "e-1", UNSEEN, "new-e-0", "new-e-1"} <= set(read.golden.entities)
    prove(registry.read(name, enrol_and_publish(registry, name, version, SAME)))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (KNOWN, "knows e-0, e-1 already"),
        (waves((60,), 5), "knows e-0"),
        (
            replace(SAME, series=[Series("short", np.arange(63), np.ones((63, 3), np.float32), None)]),
            "at least 64 rows",
        ),
        (
            replace(SAME, series=[Series("empty", np.arange(99), np.full((99, 3), np.nan, np.float32), None)]),
            "too few: empty",
        ),
        (replace(SAME, channels=SAME.channels[:2]), r"other \(numeric\) is missing"),
    ],
)
def test_what_can_not_be_enrolled_is_refused(bundles: dict[str, Bundle], dataset: Dataset, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        enrol(bundles["id"], dataset)
