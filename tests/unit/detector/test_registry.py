"""Laws of the registry that need no storage of several kinds: names, atomicity on disk, the fate of failures."""

import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector import registry as registry_module
from detector.checkpoint import verify_golden
from detector.denoiser import Denoiser
from detector.manifest import DenoiserConfig
from detector.registry import MAX_ALIAS_BYTES, MAX_PREVIOUS, Registry, check_name, weights_layout
from stream.errors import TransientError, UsageError
from tests.bundles import golden_score, make_golden, make_layout, make_manifest, make_weights


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path, layout=make_layout)


def publish(registry, seed=0):
    return registry.publish("rover", make_manifest(), make_weights(seed), make_golden())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "-a", "a.", "a b", "a@b", "a\n", "é", "x" * 129, "a\0b"]
)
def test_names_that_are_no_plain_folder_are_refused_everywhere(registry, name):
    calls = [
        lambda: registry.versions(name),
        lambda: registry.publish(name, make_manifest(), make_weights(), make_golden()),
        lambda: registry.alias(name, "champion"),
        lambda: registry.read(name, "v20260131T120000000-0123ab"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="family wants"):
            call()


@given(st.text(st.characters(codec="ascii"), max_size=12))
def test_a_name_that_passes_stays_inside_the_registry(name):
    try:
        check_name(name)
    except UsageError:
        return
    assert os.path.normpath(f"/registry/{name}") == f"/registry/{name}"
    assert "@" not in name


@pytest.mark.parametrize("version", ["", "v1", "../v20260131T120000000-0123ab", "v20260231T120000000-0123ab", "latest"])
def test_versions_that_are_no_versions_are_refused(registry, version):
    with pytest.raises(UsageError, match="version wants"):
        registry.read("rover", version)


def test_an_unknown_alias_is_refused(registry):
    with pytest.raises(UsageError, match="alias wants one of champion, challenger, got 'best'"):
        registry.alias("rover", "best")


def test_an_unknown_url_is_refused_without_its_secret():
    with pytest.raises(UsageError, match="ftp://") as caught:
        Registry("ftp://user:secret@host/models")
    assert "secret" not in str(caught.value)


def test_publishers_that_draw_the_same_token_still_get_different_versions(registry, monkeypatch):
    """The one that comes second finds the folder taken, draws again and overwrites nothing."""
    draws = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(registry_module.secrets, "token_hex", lambda size: next(draws) if size == 3 else "partial")
    monkeypatch.setattr(Registry, "versions", lambda self, name: [])  # both looked before either wrote
    registry._clock = lambda: 1_790_000_000.0
    first, second = publish(registry, 0), publish(registry, 1)
    assert first != second
    assert torch.equal(registry.read("rover", first).weights["entity"], make_weights(0)["entity"])
    assert torch.equal(registry.read("rover", second).weights["entity"], make_weights(1)["entity"])


def test_readers_see_the_old_or_the_new_alias_while_it_is_replaced(registry):
    versions = [publish(registry) for _ in range(2)]
    registry.set_alias("rover", "champion", versions[0])
    seen, done = set(), threading.Event()

    def poll():
        while not done.is_set():
            seen.add(registry.alias("rover", "champion"))

    reader = threading.Thread(target=poll)
    reader.start()
    for turn in range(60):
        registry.set_alias("rover", "champion", versions[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(versions)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_alias_that_could_not_be_replaced_names_what_it_named(registry, monkeypatch, failing):
    first, second = publish(registry), publish(registry)
    registry.set_alias("rover", "champion", first)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if failing == "fsync" else "pathlib.Path.replace", full)
        with pytest.raises(TransientError, match="No space left"):
            registry.set_alias("rover", "champion", second)
    assert registry.alias("rover", "champion") == first
    assert {p.name for p in (registry_root(registry) / "rover").iterdir()} == {first, second, "champion.json"}


def registry_root(registry):
    return registry_module.Path(registry._root)


def test_a_full_disk_while_publishing_leaves_no_version(registry, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(TransientError, match="No space left"):
            publish(registry)
    assert list((registry_root(registry) / "rover").iterdir()) == []
    version = publish(registry)
    assert registry.versions("rover") == [version]


def test_the_memory_of_an_alias_stays_readable_for_ever(registry):
    versions = [publish(registry) for _ in range(2)]
    for turn in range(MAX_PREVIOUS + 8):
        registry.set_alias("rover", "champion", versions[turn % 2])
    record = registry.alias_record("rover", "champion")
    assert len(record.previous) == MAX_PREVIOUS
    assert record.previous[-1].version == versions[0]
    assert (registry_root(registry) / "rover" / "champion.json").stat().st_size < MAX_ALIAS_BYTES / 2


def test_storage_that_fails_is_transient_and_not_an_empty_registry(registry, monkeypatch):
    version = publish(registry)
    registry.set_alias("rover", "champion", version)
    monkeypatch.setattr(registry, "_filesystem", BrokenFileSystem())
    calls = [
        registry.families,
        lambda: registry.versions("rover"),
        lambda: registry.read("rover", version),
        lambda: registry.alias("rover", "champion"),
        lambda: registry.resolve("rover"),
        lambda: registry.set_alias("rover", "champion", version),
    ]
    for call in calls:
        with pytest.raises(TransientError, match="timed out"):
            call()


class BrokenFileSystem:
    def __getattr__(self, name):
        def broken(*_, **__):
            raise OSError(110, "connection timed out")

        return broken


def test_golden_scores_survive_the_registry(registry):
    verify_golden(registry.read("rover", publish(registry)), golden_score)


@pytest.mark.parametrize("config", [
    DenoiserConfig(numeric=2, commands=1, entities=3, width=4, layers=2, state=4),
    DenoiserConfig(numeric=1, commands=0, entities=0, width=6, layers=1, state=2, use_entity=False),
])  # fmt: skip
def test_the_layout_is_that_of_a_denoiser_without_its_values(config):
    layout, wanted = weights_layout(make_manifest(denoiser=config)), Denoiser(config).state_dict()
    assert {k: (w.shape, w.dtype) for k, w in layout.items()} == {k: (w.shape, w.dtype) for k, w in wanted.items()}
    assert {w.device.type for w in layout.values()} == {"meta"}
