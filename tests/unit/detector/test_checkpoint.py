"""Laws of the bundle: what is written is read back, and anything else is refused with its cause."""

import hashlib
import io
import json
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from pyarrow import fs

from detector import checkpoint
from detector.checkpoint import GOLDEN, WEIGHTS, model_sha256, read_bundle, verify_golden, write_bundle
from stream.errors import CheckpointError
from stream.sketch import MANIFEST
from tests.bundles import golden_score, make_calibration, make_golden, make_layout, make_manifest, make_weights

DISK = fs.LocalFileSystem()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "family" / "version"
    write_bundle(DISK, str(path), make_manifest(), make_weights(), make_golden())
    return path


def read(path):
    return read_bundle(DISK, str(path), make_layout)


def test_a_bundle_is_read_back_as_it_was_written(tmp_path):
    manifest = write_bundle(DISK, f"{tmp_path}/x", make_manifest(), make_weights(), make_golden())
    bundle = read(tmp_path / "x")
    assert bundle.manifest == manifest
    assert msgspec.structs.replace(manifest, files={}) == make_manifest()
    assert bundle.weights.keys() == make_weights().keys()
    assert all(torch.equal(bundle.weights[name], tensor) for name, tensor in make_weights().items())
    assert bundle.golden.entities == make_golden().entities
    for name in ("end_slots", "values", "provisional", "final"):
        np.testing.assert_array_equal(getattr(bundle.golden, name), getattr(make_golden(), name))
    assert model_sha256(manifest) == hashlib.sha256((tmp_path / "x" / WEIGHTS).read_bytes()).hexdigest()


def test_views_and_shared_tensors_are_written_by_value(tmp_path):
    base = torch.arange(16.0).reshape(2, 8)
    weights = {"input.weight": base.T[:4], "entity": base[0, :4]}
    write_bundle(DISK, f"{tmp_path}/x", make_manifest(), weights, make_golden())
    assert all(torch.equal(read(tmp_path / "x").weights[name], weights[name]) for name in weights)


def test_golden_scores_of_the_same_model_pass_on_another_device(path):
    def nearly(*windows):
        return tuple(scores * np.float32(1 + 1e-5) for scores in golden_score(*windows))

    verify_golden(read(path), golden_score)
    verify_golden(read(path), nearly)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("damage", [lambda s: s * 1.1, lambda s: np.full_like(s, np.nan), lambda s: s[:, 1:]])
def test_golden_scores_of_another_model_are_refused(path, stage, damage):
    def other(*windows):
        scores = list(golden_score(*windows))
        scores[stage] = damage(scores[stage])
        return tuple(scores)

    with pytest.raises(CheckpointError, match=f"golden {('provisional', 'final')[stage]} scores"):
        verify_golden(read(path), other)


def edit(path, change):
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def put(path, name, data):
    """Replace a file and its entry in the manifest, as one who forges a bundle would."""
    (path / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit(path, lambda manifest: manifest["files"].update({name: entry}))


def put_weights(path, weights):
    put(path, WEIGHTS, checkpoint._encode_weights(weights))


def flip_bit(path, name):
    data = bytearray((path / name).read_bytes())
    data[-5] ^= 1
    (path / name).write_bytes(data)


def link(path, name):
    target = path.with_name(name)
    (path / name).rename(target)
    (path / name).symlink_to(target)


def with_nan(name):
    weights = make_weights()
    weights[name].view(-1)[1] = torch.nan
    return weights


def torch_save():
    stream = io.BytesIO()
    torch.save(make_weights(), stream)
    return stream.getvalue()


def swap_weights(path):
    write_bundle(DISK, f"{path}-other", make_manifest(), make_weights(seed=1), make_golden())
    path.with_name(f"{path.name}-other").joinpath(WEIGHTS).replace(path / WEIGHTS)


def nest(path):
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text('{"extra": ' + "[" * 100_000 + "]" * 100_000 + "," + text[1:])


CORRUPTIONS = {
    "weights bit": (lambda p: flip_bit(p, WEIGHTS), f"{WEIGHTS} has another sha256"),
    "golden bit": (lambda p: flip_bit(p, GOLDEN), f"{GOLDEN} has another sha256"),
    "weights truncated": (lambda p: os.truncate(p / WEIGHTS, 50), f"{WEIGHTS} has 50 bytes, wanted .* truncated"),
    "weights extended": (
        lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes() + b"\0"),
        f"{WEIGHTS} has .* bytes, allowed are",
    ),
    "weights missing": (lambda p: (p / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "golden missing": (lambda p: (p / GOLDEN).unlink(), f"{GOLDEN} is missing"),
    "manifest missing": (lambda p: (p / MANIFEST).unlink(), f"{MANIFEST} is missing"),
    "weights a folder": (lambda p: ((p / WEIGHTS).unlink(), (p / WEIGHTS).mkdir()), f"{WEIGHTS} is no file"),
    "weights of another version": (swap_weights, f"{WEIGHTS} has another sha256"),
    "wrong sha256": (lambda p: edit(p, lambda m: m["files"][WEIGHTS].update(sha256="0" * 64)), "another sha256"),
    "wrong size": (lambda p: edit(p, lambda m: m["files"][WEIGHTS].update(size=9999)), "bytes, wanted 9999"),
    "symbolic link": (lambda p: link(p, WEIGHTS), f"{WEIGHTS} is a symbolic link"),
    "manifest a link": (lambda p: link(p, MANIFEST), f"{MANIFEST} is a symbolic link"),
    "path trick": (
        lambda p: edit(p, lambda m: m["files"].update({"../../x": m["files"].pop(GOLDEN)})),
        r"plain file names, got '\.\./\.\./x'",
    ),
    "absolute path": (
        lambda p: edit(p, lambda m: m["files"].update({"/etc/passwd": {"sha256": "0", "size": 1}})),
        "plain file names, got '/etc/passwd'",
    ),
    "golden not listed": (lambda p: edit(p, lambda m: m["files"].pop(GOLDEN)), f"files wants {WEIGHTS} and {GOLDEN}"),
    "manifest oversized": (lambda p: os.truncate(p / MANIFEST, 65 * 2**20), "allowed are 67108864"),
    "malformed JSON": (lambda p: (p / MANIFEST).write_bytes((p / MANIFEST).read_bytes()[:-9]), "can't be decoded"),
    "not UTF-8": (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe\x00"), "can't be decoded"),
    "nested JSON": (nest, "can't be decoded.* recursion"),
    "unknown schema version": (lambda p: edit(p, lambda m: m.update(schema_version=2)), "schema version 2 is unknown"),
    "schema version a text": (lambda p: edit(p, lambda m: m.update(schema_version="1")), "Expected `int`, got `str`"),
    "infinity": (lambda p: edit(p, lambda m: m["training"].update(minutes=float("inf"))), "no NaN or Infinity"),
    "number too large": (
        lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text().replace('"minutes": 1.0', '"minutes": 1e999')),
        r"out of range - at `\$\.training\.minutes`",
    ),
    "null for a number": (lambda p: edit(p, lambda m: m["unseen"]["minimum"].insert(0, None)), "got `null`"),
    "field missing": (lambda p: edit(p, lambda m: m.pop("scoring")), "missing required field `scoring`"),
    "impossible geometry": (lambda p: edit(p, lambda m: m["geometry"].update(hop=0)), "hop wants 1 to length"),
    "unknown hyper-parameter": (lambda p: edit(p, lambda m: m["denoiser"].update(heads=8)), "unknown field `heads`"),
    "network too large": (lambda p: edit(p, lambda m: m["denoiser"].update(width=10**9)), "denoiser.width wants 1 to"),
    "channel too many": (
        lambda p: edit(p, lambda m: m["channels"].append({"name": "c", "kind": "numeric"})),
        "channels: numeric wants 2 entries, got 3",
    ),
    "scale of a start missing": (
        lambda p: edit(p, lambda m: m["entities"][1]["residual_scale"].pop()),
        "residual_scale of e-2 wants 2 entries, got 1",
    ),
    "scale of a channel missing": (
        lambda p: edit(p, lambda m: m["entities"][1]["residual_scale"][0].pop()),
        "residual_scale of e-2, one start, wants 2 entries, got 1",
    ),
    "embedding row that isn't there": (
        lambda p: edit(p, lambda m: m["entities"][0].update(index=4)),
        "index of e-1 wants 0 to 3, got 4",
    ),
    "start after the last timestep": (
        lambda p: edit(p, lambda m: m["scoring"].update(starts=[5, 201])),
        "scoring.starts wants 1 to 200, got 201",
    ),
    "pickle renamed": (lambda p: put(p, WEIGHTS, torch_save()), f"{WEIGHTS} is no safetensors file"),
    "pickle renamed golden": (lambda p: put(p, GOLDEN, b"\x80\x04]\x94."), f"{GOLDEN} holds no golden windows"),
    "NaN weights": (lambda p: put_weights(p, with_nan("entity")), "entity is not finite"),
    "infinite weights": (
        lambda p: put_weights(p, {**make_weights(), "entity": torch.full((4,), torch.inf)}),
        "entity is not finite",
    ),
    "wrong shape": (
        lambda p: put_weights(p, {**make_weights(), "entity": torch.zeros(5)}),
        r"entity wants \(4,\) torch.float32, got \(5,\)",
    ),
    "wrong dtype": (
        lambda p: put_weights(p, {**make_weights(), "entity": torch.zeros(4, dtype=torch.float64)}),
        "entity wants .* got .* torch.float64",
    ),
    "tensor missing": (lambda p: put_weights(p, {"entity": torch.zeros(4)}), r"tensors missing \['input.weight'\]"),
    "tensor unknown": (
        lambda p: put_weights(p, {**make_weights(), "hook": torch.zeros(1)}),
        r"tensors unknown \['hook'\]",
    ),
    "golden of another geometry": (
        lambda p: edit(p, lambda m: m["geometry"].update(length=32)),
        f"{GOLDEN}: values wants",
    ),
    "golden is the weights": (
        lambda p: put(p, GOLDEN, (p / WEIGHTS).read_bytes()),
        f"{GOLDEN} holds no golden windows",
    ),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_bundle_is_refused_with_its_cause(path, corruption):
    read(path)
    corrupt, cause = CORRUPTIONS[corruption]
    corrupt(path)
    with pytest.raises(CheckpointError, match=cause):
        read(path)


@pytest.mark.parametrize("name", [WEIGHTS, GOLDEN])
def test_any_single_flipped_bit_in_a_tensor_file_is_refused(path, name):
    data = (path / name).read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(data), 50):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="sha256"):
            read(path)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"weights": {**make_weights(), "entity": torch.full((4,), torch.nan)}}, "entity is not finite"),
        ({"golden": make_golden(0)}, "at least one window"),
        ({"manifest": make_manifest(unseen=msgspec.structs.replace(make_calibration("u", 0), minimum=[0.0, np.nan]))},
         r"manifest\.unseen\.minimum\[1\] is not a finite number"),
        ({"manifest": make_manifest(channels=[])}, "channels: numeric wants 2 entries, got 0"),
    ],
)  # fmt: skip
def test_what_would_not_be_read_is_not_written(tmp_path, changes, cause):
    contents = {"manifest": make_manifest(), "weights": make_weights(), "golden": make_golden(), **changes}
    with pytest.raises(CheckpointError, match=cause):
        write_bundle(DISK, f"{tmp_path}/family/x", **contents)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_path_is_never_overwritten(path):
    before = (path / MANIFEST).read_bytes()
    with pytest.raises(FileExistsError):
        write_bundle(DISK, str(path), make_manifest(), make_weights(seed=1), make_golden())
    assert (path / MANIFEST).read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("failing", range(5))
def test_a_write_that_fails_anywhere_leaves_nothing_or_all(tmp_path, monkeypatch, failing):
    """The five syncs are three files, their folder and, after the rename, the parent."""
    calls = iter(range(100))
    fsync = os.fsync

    def full(descriptor):
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(DISK, f"{tmp_path}/x", make_manifest(), make_weights(), make_golden())
    if failing < 4:
        assert list(tmp_path.iterdir()) == []
    else:
        read(tmp_path / "x")


def test_importing_the_registry_costs_no_torch():
    code = "import sys, detector.checkpoint, detector.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
