import threading

import msgspec
import numpy as np
import pytest
import torch

from detector.checkpoint import Golden
from detector.engine import Detector
from detector.models import Models, choose_device, fit_columns
from detector.registry import ALIASES, Registry
from stream.errors import CheckpointError, TransientError
from stream.grid import Geometry
from stream.metrics import Metrics
from stream.settings import FamilySettings
from tests.builders import random_windows, untrained

GEOMETRY = Geometry(length=16, hop=4, final_delay=4, slack=16)
MANIFEST, WEIGHTS = untrained(geometry=GEOMETRY)
FAMILY = FamilySettings(
    name="test", numeric=["m1", "m0"], commands=["c2", "c0", "c1"], length=16, hop=4, final_delay=4, slack=16
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class CountingRegistry(Registry):
    """A registry that can be away, and that knows how often it was asked."""

    asked = loaded = 0
    away = False

    def alias(self, name, alias):
        self.asked += 1
        if self.away:
            raise TransientError("the storage is away")
        return super().alias(name, alias)

    def read(self, name, version):
        self.loaded += 1
        return super().read(name, version)


def publish(registry, *, manifest=MANIFEST, weights=WEIGHTS, golden=None, seed=0):
    """Publish a version as champion, by default with the scores it really has."""
    windows = random_windows(manifest, ["P-1", "new"], seed=seed)
    if golden is None:
        scores = Detector(manifest, weights).score(windows)
        golden = scores.provisional, scores.final
    made = Golden(list(windows.entities), windows.end_slots, windows.values, *golden)
    version = registry.publish("test", manifest, weights, made)
    registry.promote("test", version)
    return version


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(tmp_path):
    return CountingRegistry(tmp_path)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def models(registry, metrics, clock):
    models = Models(registry, [FAMILY], metrics, poll_s=10, clock=clock)
    yield models
    models.close()


def version(models):
    model = models.current("test")
    return model and model.manifest.version


def swaps(metrics, result):
    return metrics.registry.get_sample_value("telltale_model_swaps_total", {"result": result}) or 0


def in_use(metrics):
    return {
        sample.labels["version"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "telltale_model_info" and sample.value == 1
    }


def test_without_a_champion_there_is_no_model(models, metrics):
    models.refresh(wait=True)
    assert models.current("test") is None
    assert (swaps(metrics, "done"), in_use(metrics)) == (0, set())


def test_a_family_that_is_not_declared_has_no_model(models, registry):
    publish(registry)
    models.refresh(wait=True)
    assert models.current("other") is None


def test_the_champion_is_taken_and_scores_as_it_was_published(models, registry, metrics):
    champion = publish(registry)
    models.refresh(wait=True)
    assert version(models) == champion
    assert (swaps(metrics, "done"), in_use(metrics)) == (1, {champion})
    windows = random_windows(MANIFEST, ["M-6"])
    found, wanted = models.current("test").detector.score(windows), Detector(MANIFEST, WEIGHTS).score(windows)
    np.testing.assert_array_equal(found.final, wanted.final)


def test_a_new_champion_is_taken_between_batches_and_not_before_it_is_ready(models, registry, metrics, clock):
    """refresh: starts to load | refresh: not ready | ready | refresh: swapped"""
    old = publish(registry)
    models.refresh(wait=True)
    new = publish(registry)
    clock.now += 10
    models.refresh()
    models._look.result(60)
    assert version(models) == old
    models.refresh()
    assert version(models) == new
    assert (swaps(metrics, "done"), in_use(metrics)) == (2, {new})


def test_going_back_is_a_swap_like_any_other(models, registry, metrics, clock):
    old = publish(registry)
    publish(registry)
    models.refresh(wait=True)
    registry.rollback("test")
    models.refresh(wait=True)
    assert (version(models), in_use(metrics)) == (old, {old})


def test_the_registry_is_asked_once_in_a_while_and_read_once_a_version(models, registry, clock):
    publish(registry)
    registry.asked = registry.loaded = 0  # publishing asks and reads too
    models.refresh(wait=True)
    for _ in range(5):
        models.refresh()
    assert registry.asked == len(ALIASES)
    for _ in range(5):
        clock.now += 10
        models.refresh()
        models._look.result(60)
    assert (registry.asked, registry.loaded) == (6 * len(ALIASES), 1)


def damage_weights(registry, tmp_path):
    bad = publish(registry)
    path = tmp_path / "test" / bad / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lose_the_manifest(registry, tmp_path):
    (tmp_path / "test" / publish(registry) / "manifest.json").unlink()


def other_scores(registry, tmp_path):
    shape = (2, GEOMETRY.length)
    publish(registry, golden=(np.ones(shape, np.float32), np.ones(shape, np.float32)))


def overflowing_weights(registry, tmp_path):
    shape = (2, GEOMETRY.length)
    huge = {name: torch.full_like(tensor, 1e30) for name, tensor in WEIGHTS.items()}
    publish(registry, weights=huge, golden=(np.ones(shape, np.float32), np.ones(shape, np.float32)))


def other_channels(registry, tmp_path):
    channels = [msgspec.structs.replace(c, name=c.name.replace("m1", "pressure")) for c in MANIFEST.channels]
    publish(registry, manifest=msgspec.structs.replace(MANIFEST, channels=channels))


def other_length(registry, tmp_path):
    manifest, weights = untrained(geometry=msgspec.structs.replace(GEOMETRY, length=32))
    publish(registry, manifest=manifest, weights=weights)


def other_interval(registry, tmp_path):
    publish(registry, manifest=msgspec.structs.replace(MANIFEST, interval_ms=60_000))


def other_final_delay(registry, tmp_path):
    manifest, weights = untrained(geometry=msgspec.structs.replace(GEOMETRY, final_delay=2))
    publish(registry, manifest=manifest, weights=weights)


def alias_of_no_version(registry, tmp_path):
    path = tmp_path / "test" / "champion.json"
    path.write_text(path.read_text().replace(registry.alias("test", "champion"), "../../etc"))


@pytest.mark.parametrize(
    "spoil",
    [
        damage_weights,
        lose_the_manifest,
        other_scores,
        overflowing_weights,
        other_channels,
        other_length,
        other_interval,
        other_final_delay,
        alias_of_no_version,
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_or_does_not_fit_is_refused_once(
    models, registry, metrics, clock, tmp_path, spoil
):
    old = publish(registry)
    models.refresh(wait=True)
    spoil(registry, tmp_path)
    for _ in range(3):
        models.refresh(wait=True)
    assert (version(models), in_use(metrics)) == (old, {old})
    assert (swaps(metrics, "refused"), swaps(metrics, "done")) == (1, 1)
    good = publish(registry)
    models.refresh(wait=True)
    assert version(models) == good


def test_a_damaged_alias_keeps_the_old_model_until_it_is_mended(models, registry, tmp_path):
    old = publish(registry)
    models.refresh(wait=True)
    alias = tmp_path / "test" / "champion.json"
    whole = alias.read_bytes()
    alias.write_bytes(b"{")
    models.refresh(wait=True)
    assert version(models) == old
    alias.write_bytes(whole)
    new = publish(registry)
    models.refresh(wait=True)
    assert version(models) == new


def test_a_registry_that_is_away_keeps_the_old_model_and_is_asked_again(models, registry, metrics):
    old = publish(registry)
    models.refresh(wait=True)
    new = publish(registry)
    registry.away = True
    models.refresh(wait=True)
    assert version(models) == old
    registry.away = False
    models.refresh(wait=True)
    assert version(models) == new
    assert swaps(metrics, "refused") == 0


@pytest.mark.parametrize("call", ["alias", "read"])
def test_a_registry_that_hangs_holds_nobody_up(models, registry, monkeypatch, clock, call):
    old = publish(registry)
    models.refresh(wait=True)
    new = publish(registry)
    there, usual = threading.Event(), getattr(registry, call)
    monkeypatch.setattr(registry, call, lambda *names: there.wait() and usual(*names))
    for _ in range(3):
        clock.now += 10
        models.refresh()
    assert version(models) == old
    with pytest.raises(TransientError, match="asked to stop while waiting for the model registry"):
        models.refresh(wait=True, stopping=lambda: True)
    there.set()
    models.refresh(wait=True)
    assert version(models) == new


def test_a_checkpoint_that_cannot_be_read_yet_is_tried_again(models, registry, metrics, monkeypatch):
    new = publish(registry)
    read = registry.read
    monkeypatch.setattr(registry, "read", lambda *_: (_ for _ in ()).throw(TransientError("half way")))
    models.refresh(wait=True)
    assert models.current("test") is None
    monkeypatch.setattr(registry, "read", read)
    models.refresh(wait=True)
    assert version(models) == new
    assert swaps(metrics, "refused") == 0


def test_a_family_without_a_usable_model_does_not_hold_up_another(registry, metrics, clock):
    champion = publish(registry)
    families = [FAMILY.model_copy(update={"name": "other"}), FAMILY]
    models = Models(registry, families, metrics, clock=clock)
    models.refresh(wait=True)
    assert (models.current("other"), version(models)) == (None, champion)
    models.close()


def test_the_models_channels_are_found_by_name_in_the_familys_rows():
    columns = fit_columns(FAMILY, MANIFEST)
    assert [FAMILY.channels[column] for column in columns] == [channel.name for channel in MANIFEST.channels]


def test_a_family_may_have_other_hops_and_more_slack_than_training_had():
    """They say when windows are cut and how long they are kept, not what the network sees."""
    fit_columns(FAMILY.model_copy(update={"hop": 8, "slack": 400, "lateness": 3}), MANIFEST)


def test_a_refusal_names_the_odd_channels():
    with pytest.raises(CheckpointError, match=r"family test differ in channels: m0, x$"):
        fit_columns(FAMILY.model_copy(update={"numeric": ["m1", "x"]}), MANIFEST)


def test_an_entity_without_a_calibration_has_that_of_unseen_ones(models, registry):
    publish(registry)
    models.refresh(wait=True)
    model = models.current("test")
    assert model.calibration("P-1").name == "P-1"
    assert model.calibration("never seen") == MANIFEST.unseen
    assert [MANIFEST.channels[i].name for i in model.numeric] == model.numeric_names == ["m0", "m1"]


def test_a_device_is_what_was_asked_for_or_what_there_is(monkeypatch):
    assert (choose_device("cpu"), choose_device("cuda:1")) == ("cpu", "cuda:1")
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert choose_device("auto") == device


def challenge(registry, **more):
    """Publish a version as challenger, leaving the champion what it is."""
    champion, new = registry.alias("test", "champion"), publish(registry, **more)
    registry.set_alias("test", "challenger", new)
    if champion:
        registry.promote("test", champion)
    return new


def test_a_challenger_stands_beside_the_champion_and_takes_over_without_being_loaded_again(models, registry, metrics):
    old = publish(registry)
    new = challenge(registry)
    models.refresh(wait=True)
    assert (version(models), models.challenger("test").manifest.version) == (old, new)
    assert in_use(metrics) == {old}
    registry.promote("test")
    loaded = registry.loaded
    tried = models.challenger("test")
    models.refresh(wait=True)
    assert models.current("test") is tried
    assert models.challenger("test") is None
    assert registry.loaded == loaded
    assert in_use(metrics) == {new}


def test_a_challenger_that_was_dropped_comes_back_only_as_another_version(models, registry):
    publish(registry)
    challenge(registry)
    models.refresh(wait=True)
    models.drop_challenger("test", "it is slow")
    models.refresh(wait=True)
    assert models.challenger("test") is None
    another = challenge(registry)
    models.refresh(wait=True)
    assert models.challenger("test").manifest.version == another


@pytest.mark.parametrize("spoil", [other_scores, overflowing_weights, other_length])
def test_a_challenger_that_cannot_be_trusted_never_gets_a_window(models, registry, tmp_path, spoil):
    old = publish(registry)
    spoil(registry, tmp_path)
    bad = registry.alias("test", "champion")
    registry.set_alias("test", "challenger", bad)
    registry.promote("test", old)
    models.refresh(wait=True)
    assert (version(models), models.challenger("test")) == (old, None)


def test_without_a_shadow_nobody_asks_for_challengers(registry, metrics):
    publish(registry)
    challenge(registry)
    alone = Models(registry, [FAMILY], metrics, shadow=False)
    alone.refresh(wait=True)
    alone.close()
    assert alone.challenger("test") is None
