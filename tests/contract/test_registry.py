"""What a registry promises on every kind of storage: a local disk, a URL, memory, a foreign object store."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import msgspec
import pytest
import torch
from pyarrow import fs

from detector.checkpoint import GOLDEN, WEIGHTS
from detector.history import MAX_DECISION_BYTES, MAX_DECISIONS
from detector.registry import Registry
from stream.contracts import Gate, ModelEvent
from stream.errors import CheckpointError, UsageError
from stream.sketch import MANIFEST
from tests.bundles import make_golden, make_layout, make_manifest, make_weights


class Clock:
    """Stands still until moved by hand."""

    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["path", "url", "subtree", "memory", "fsspec"])
def registry(request, tmp_path, clock):
    url, filesystem = {
        "path": lambda: (tmp_path / "registry", None),
        "url": lambda: ((tmp_path / "registry").as_uri(), None),
        "subtree": lambda: ("registry", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())),
        "memory": lambda: ("registry", fs._MockFileSystem()),
        "fsspec": lambda: (f"/{uuid.uuid4()}", fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))),
    }[request.param]()
    return Registry(url, layout=make_layout, filesystem=filesystem, clock=clock)


def publish(registry, name="rover", seed=0):
    return registry.publish(name, make_manifest(), make_weights(seed), make_golden())


def damage(registry, version, name="rover"):
    with registry._filesystem.open_output_stream(f"{registry._root}/{name}/{version}/{WEIGHTS}") as stream:
        stream.write(b"damaged")


def test_an_empty_registry_has_nothing_and_says_so(registry):
    assert registry.families() == []
    assert registry.versions("rover") == []
    assert registry.alias("rover", "champion") is None
    with pytest.raises(UsageError, match=r"no family rover in .*there are: none"):
        registry.resolve("rover")


def test_a_published_version_is_read_back(registry, clock):
    version = publish(registry, seed=3)
    bundle = registry.read("rover", version)
    assert (bundle.manifest.name, bundle.manifest.version) == ("rover", version)
    assert bundle.manifest.created_ms == clock.now * 1000
    assert registry.manifest("rover", version) == bundle.manifest
    assert all(torch.equal(bundle.weights[name], tensor) for name, tensor in make_weights(3).items())
    assert registry.families() == ["rover"]


@pytest.mark.parametrize("drift_s", [0.0, 0.001, 1.0, -3600.0])
def test_versions_are_listed_in_the_order_of_publishing_whatever_the_clock_does(registry, clock, drift_s):
    published = []
    for _ in range(5):
        published.append(publish(registry))
        clock.now += drift_s
    assert registry.versions("rover") == published
    assert len(set(published)) == 5


def test_publishers_at_the_same_moment_get_different_versions(registry):
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda seed: publish(registry, seed=seed), range(8)))
    assert sorted(versions) == registry.versions("rover")
    assert len(set(versions)) == 8
    for seed, version in enumerate(versions):
        assert torch.equal(registry.read("rover", version).weights["entity"], make_weights(seed)["entity"])


@pytest.mark.parametrize("written", [[], [WEIGHTS], [WEIGHTS, GOLDEN]])
def test_a_half_written_version_is_never_listed(registry, written):
    version = publish(registry)
    path = f"{registry._root}/rover/{version}"
    for name in {WEIGHTS, GOLDEN, MANIFEST} - set(written):
        registry._filesystem.delete_file(f"{path}/{name}")
    assert registry.versions("rover") == []
    assert registry.families() == []
    with pytest.raises(UsageError, match="no version"):
        registry.set_alias("rover", "champion", version)
    with pytest.raises(CheckpointError, match="missing"):
        registry.read("rover", version)


def test_foreign_files_and_folders_are_no_versions(registry):
    version = publish(registry)
    for folder in ("v20269999T000000000-000000", f".{version}.0123abcd.partial", "notes", "v1"):
        registry._filesystem.create_dir(f"{registry._root}/rover/{folder}")
        with registry._filesystem.open_output_stream(f"{registry._root}/rover/{folder}/{MANIFEST}") as stream:
            stream.write(b"{}")
    assert registry.versions("rover") == [version]
    assert publish(registry) > version


def test_families_do_not_see_each_other(registry):
    version = publish(registry, "rover")
    publish(registry, "servers-2")
    registry.set_alias("rover", "champion", version)
    assert registry.families() == ["rover", "servers-2"]
    assert registry.alias("servers-2", "champion") is None
    with pytest.raises(UsageError, match="no version"):
        registry.resolve(f"servers-2@{version}")


def test_resolve_knows_champion_alias_and_version_and_guesses_nothing(registry):
    first, second, third = (publish(registry) for _ in range(3))
    with pytest.raises(UsageError, match=f"rover has no champion.*{first}.*{third}"):
        registry.resolve("rover")
    registry.set_alias("rover", "champion", first)
    registry.set_alias("rover", "challenger", second)
    assert registry.resolve("rover") == ("rover", first)
    assert registry.resolve("rover@champion") == ("rover", first)
    assert registry.resolve("rover@challenger") == ("rover", second)
    assert registry.resolve(f"rover@{third}") == ("rover", third)
    with pytest.raises(UsageError, match=r"no family lander in .*there are: rover"):
        registry.resolve("lander")


def test_an_alias_moves_only_to_a_version_that_verifies(registry):
    good, bad = publish(registry), publish(registry)
    registry.set_alias("rover", "champion", good)
    damage(registry, bad)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        registry.set_alias("rover", "champion", bad)
    with pytest.raises(UsageError, match=f"no version.*{good}"):
        registry.set_alias("rover", "champion", "v20260131T120000000-0123ab")
    assert registry.alias("rover", "champion") == good
    assert registry.alias_record("rover", "champion").previous == []


def test_promotion_moves_the_challenger_up(registry):
    first, second = publish(registry), publish(registry)
    registry.set_alias("rover", "champion", first)
    registry.set_alias("rover", "challenger", second)
    assert registry.promote("rover") == second
    assert registry.alias("rover", "champion") == second
    assert registry.alias("rover", "challenger") is None
    with pytest.raises(UsageError, match="no challenger"):
        registry.promote("rover")


def test_promoting_a_named_version_leaves_another_challenger_alone(registry):
    first, second = publish(registry), publish(registry)
    registry.set_alias("rover", "challenger", second)
    assert registry.promote("rover", first) == first
    assert registry.alias("rover", "challenger") == second


def test_rollbacks_undo_promotions_one_by_one(registry, clock):
    versions = [publish(registry) for _ in range(4)]
    for version in versions:
        clock.now += 60
        registry.promote("rover", version)
        registry.promote("rover", version)  # promoting the champion again is no change
    assert [registry.rollback("rover") for _ in range(3)] == versions[2::-1]
    assert registry.alias("rover", "champion") == versions[0]
    with pytest.raises(UsageError, match="no earlier champion"):
        registry.rollback("rover")


def test_a_rollback_to_a_damaged_version_changes_nothing(registry):
    first, second = publish(registry), publish(registry)
    registry.promote("rover", first)
    registry.promote("rover", second)
    damage(registry, first)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        registry.rollback("rover")
    assert registry.alias("rover", "champion") == second


def test_an_alias_remembers_what_it_named_and_since_when(registry, clock):
    first, second = publish(registry), publish(registry)
    registry.promote("rover", first)
    clock.now += 60
    registry.promote("rover", second)
    record = registry.alias_record("rover", "champion")
    assert (record.current.version, record.current.since_ms) == (second, clock.now * 1000)
    assert [(p.version, p.since_ms) for p in record.previous] == [(first, clock.now * 1000 - 60_000)]


def test_a_bundle_in_the_folder_of_another_version_is_refused(registry):
    first, second = publish(registry), publish(registry)
    for name in (WEIGHTS, GOLDEN, MANIFEST):
        with registry._filesystem.open_input_stream(f"{registry._root}/rover/{first}/{name}") as stream:
            data = stream.read()
        with registry._filesystem.open_output_stream(f"{registry._root}/rover/{second}/{name}") as stream:
            stream.write(data)
    with pytest.raises(CheckpointError, match=f"{second} says that it is rover@{first}"):
        registry.read("rover", second)


def test_a_damaged_alias_is_refused_and_not_taken_for_unset(registry):
    publish(registry)
    with registry._filesystem.open_output_stream(f"{registry._root}/rover/champion.json") as stream:
        stream.write(b"{")
    with pytest.raises(CheckpointError, match=r"champion\.json can't be decoded"):
        registry.alias("rover", "champion")


def decided(kind="promoted", **more):
    return ModelEvent(**{"kind": kind, "family": "rover", "at_ms": 1_790_000_000_000, **more})


def test_decisions_are_read_back_in_their_order_whatever_the_clock_says(registry):
    assert registry.history("rover") == []
    gate = Gate("alarm_rate", passed=False, value=0.25, bound=0.05, champion=None)
    wanted = [decided("announced", version="v1", gates=[gate]), decided("rejected", at_ms=1), decided("kept")]
    written = [registry.record(one) for one in wanted]
    assert registry.history("rover") == written
    assert [one.at_ms for one in written] == [wanted[0].at_ms + i for i in range(3)]
    assert [(one.kind, one.version, one.gates) for one in written] == [(w.kind, w.version, w.gates) for w in wanted]


def test_decisions_are_no_versions_and_no_family_sees_anothers(registry):
    version = publish(registry)
    registry.record(decided(version=version))
    registry.record(decided(family="lander"))
    assert registry.versions("rover") == [version]
    assert registry.families() == ["rover"]
    assert [one.family for one in registry.history("rover")] == ["rover"]


def test_two_who_decide_at_once_lose_nothing(registry):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda who: registry.record(decided(who=who)), "abcdefgh"))
    assert sorted(one.who for one in registry.history("rover")) == list("abcdefgh")


def test_a_damaged_decision_and_a_foreign_file_hide_no_other(registry):
    first, second = registry.record(decided("promoted")), registry.record(decided("kept"))
    folder = f"{registry._root}/rover/decisions"
    for name, content in (
        ("000000000000001-01234567.json", b"{"),
        ("000000000000002-01234567.json", b" " * (MAX_DECISION_BYTES + 1)),
        ("notes.txt", b"hello"),
    ):
        with registry._filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(content)
    assert registry.history("rover") == [first, second]


def test_a_decision_too_large_to_be_read_back_is_not_written(registry):
    with pytest.raises(CheckpointError, match="allowed are"):
        registry.record(decided(detail="x" * MAX_DECISION_BYTES))
    assert registry.history("rover") == []


def test_a_history_tells_its_newest_decisions(registry):
    folder = f"{registry._root}/rover/decisions"
    registry._filesystem.create_dir(folder, recursive=True)
    for at_ms in range(MAX_DECISIONS + 3):
        with registry._filesystem.open_output_stream(f"{folder}/{at_ms:015d}-00000000.json") as stream:
            stream.write(msgspec.json.encode(decided(at_ms=at_ms)))
    assert [one.at_ms for one in registry.history("rover")] == list(range(3, MAX_DECISIONS + 3))


@pytest.mark.parametrize("family", ["..", "a/b", ""])
def test_decisions_stay_inside_the_registry(registry, family):
    with pytest.raises(UsageError, match="family wants"):
        registry.record(decided(family=family))
    with pytest.raises(UsageError, match="family wants"):
        registry.history(family)
