"""What reads bytes that others wrote, each with what it may do with any bytes; a target raises where it breaks that.

Knows no fuzzer: `tests/fuzz/__main__.py` drives targets for minutes, `tests/unit/test_fuzz_targets.py` for a moment.
"""

import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from pyarrow import fs

from detector import checkpoint
from detector.checkpoint import Golden, read_manifest, write_bundle
from detector.worker import EntityState
from stream.columns import COLUMNS, to_columns
from stream.contracts import Alert, DeadLetter, DroppedLetters, ScoreBlock, WindowNotice
from stream.decoding import MSGPACK, SampleDecoder, to_float32
from stream.errors import CheckpointError, ContractError
from stream.grid import slot_of
from stream.heads import HeadRecord
from stream.ring import Layout
from stream.settings import FamilySettings, Settings
from tests.builders import untrained

FAMILY = FamilySettings(name="rover", entities="e*", numeric=["a", "b"], commands=["c"])
LAYOUT = Layout(capacity=24, channels=3)
WINDOW = 8
# What a broken record or file may make a typed decoder raise; anything else is a bug in it or in how it is used.
_NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Target(NamedTuple):
    """A decoder under fuzzing: what it is called with, and bytes to begin from."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


@cache
def _samples() -> SampleDecoder:
    return SampleDecoder(Settings(families=[FAMILY]))


def sample(data: bytes) -> None:
    """A record is a row of finite float32 at a slot of the grid, or refused."""
    kind, data = data[:1], data[1:]
    content_type = MSGPACK if kind == b"m" else None
    try:
        row = _samples().decode(b"e1", data, content_type)
        slot = slot_of(row.ts_ms, row.family.interval_ms)
    except ContractError:
        return
    assert row.entity == "e1"
    assert slot > 0
    values, (fits,) = to_float32([row.values], 3)
    assert np.isfinite(values[0][[value is not None for value in row.values]]).all() or not fits


def _sample_seeds() -> Iterable[bytes]:
    plain = {"entity": "e1", "ts": 1_767_225_600_000, "values": {"a": 1.5, "b": None, "c": True}}
    yield b"j" + msgspec.json.encode(plain)
    yield b"m" + msgspec.msgpack.encode(plain)
    yield b'j{"entity": "e1", "ts": 1, "values": {"a": 1e308, "b": -0}}'


def columns(data: bytes) -> None:
    """A record of many rows is finite float32 rows at ascending slots, close enough to each other, or refused."""
    try:
        reader = _samples().reader(b"e1", _samples().check(data), COLUMNS)
        ts_ms, values = reader.read_columns(data)
    except ContractError:
        return
    slots = [slot_of(ts, FAMILY.interval_ms) for ts in ts_ms]
    assert slots == sorted(set(slots))
    assert 0 <= slots[-1] - slots[0] <= FAMILY.hop
    assert values.shape == (len(slots), len(FAMILY.channels))
    assert not np.isinf(values).any()


def _columns_seeds() -> Iterable[bytes]:
    ts_ms = 1_767_225_600_000 + 1000 * np.arange(5)
    for names in (["a", "b", "c"], ["c", "a"], ["b"]):
        values = np.where(np.arange(5 * len(names)) % 4 == 1, np.nan, 1.5).reshape(5, -1)
        yield msgspec.msgpack.encode(to_columns("e1", names, ts_ms, values.astype(np.float32)))


def ring(data: bytes) -> None:
    """A ring of any bytes, cut anywhere, is a window with the rows whose slots are right."""
    cut, end, data = data[:1], data[1:2], data[2:]
    end_slot = 1_767_225_600 + int.from_bytes(end, "little")
    place = int.from_bytes(cut, "little") % (len(data) + 1)
    ranges = LAYOUT.window_ranges(end_slot, WINDOW)
    whole = [data[one.first : one.last + 1] for one in ranges]
    for parts in (whole, [data[:place]] * len(ranges), [data[place:], *[b""] * (len(ranges) - 1)]):
        values, rows = LAYOUT.decode_window(parts, end_slot, WINDOW)
        assert values.shape == (LAYOUT.channels, WINDOW)
        assert 0 <= rows <= WINDOW
        assert (~np.isnan(values)).any(axis=0).sum() <= rows
    slots, offsets = LAYOUT.decode_index(data)
    assert len(slots) == len(offsets) <= LAYOUT.capacity
    assert (slots[1:] >= slots[:-1]).all()  # their difference may be beyond int64
    assert (slots != 0).all()


def _ring_seeds() -> Iterable[bytes]:
    store = bytearray(LAYOUT.size)
    slots = np.arange(1_767_225_600, 1_767_225_600 + 20, dtype=np.int64)
    rows = np.ones((20, 3), np.float32)
    LAYOUT.put([store], LAYOUT.encode(np.zeros_like(slots), slots, slots - slots[0], rows))
    yield b"\x05\x08" + store
    yield b"\x05\x08" + store[:100]


def _typed(record: Any, codec: Any = msgspec.json) -> Target:
    """A record of ours is decoded and says the same when it is encoded again, or is told not to be one."""
    kind = type(record)
    decoder, encoder = codec.Decoder(kind), codec.Encoder()

    def run(data: bytes) -> None:
        try:
            decoded = decoder.decode(data)
        except _NOT_DECODED:
            return
        written = encoder.encode(decoded)
        assert encoder.encode(decoder.decode(written)) == written

    return Target(run, lambda: [codec.encode(record)])


def _example(kind: Any, **given: Any) -> Any:
    """Make up a record: every field without a default gets the simplest value of its type."""
    simple = {str: "x", int: 1, float: 0.5, bool: False}
    fields = {f.name: f.type for f in msgspec.structs.fields(kind) if f.required and f.name not in given}
    return kind(**given, **{name: simple.get(of, []) for name, of in fields.items()})


def manifest(data: bytes) -> None:
    """A manifest is consistent in itself, or refused."""
    path = _folder() / checkpoint.MANIFEST
    path.write_bytes(data)
    try:
        found = read_manifest(fs.LocalFileSystem(), str(_folder()))
    except CheckpointError:
        return
    assert len(found.channels) == found.denoiser.numeric + found.denoiser.commands


def weights(data: bytes) -> None:
    """Weights are tensors by name, or refused."""
    try:
        found = checkpoint._decode_weights(data)
    except CheckpointError:
        return
    assert all(isinstance(name, str) for name in found)


def golden(data: bytes) -> None:
    """Golden windows are as the manifest wants them, or refused."""
    try:
        checkpoint._check_golden(checkpoint._decode_golden(data), untrained_manifest())
    except CheckpointError:
        return


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="telltale-fuzz-"))


@cache
def untrained_manifest() -> Any:
    return untrained()[0]


@cache
def _bundle() -> dict[str, bytes]:
    described, tensors = untrained()
    length, count = described.geometry.length, len(described.channels)
    scores = np.zeros((1, length), np.float32)
    values = np.zeros((1, count, length), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        kept = Golden(["P-1"], np.array([10**9 - 1]), values, scores, scores)
        write_bundle(fs.LocalFileSystem(), f"{folder}/1", described, tensors, kept)
        return {path.name: path.read_bytes() for path in (Path(folder) / "1").iterdir()}


def _file(name: str) -> Callable[[], Iterable[bytes]]:
    return lambda: [_bundle()[name]]


def _state() -> EntityState:
    from detector.decision import initial_moments

    described = untrained_manifest()
    return EntityState(initial_moments(described, described.unseen))


@cache
def targets() -> dict[str, Target]:
    """Return all targets by name."""
    source = {"topic": "t", "partition": 0, "first_offset": 0, "last_offset": 1}
    model = {"name": "m", "version": "1"}

    def record(kind: Any, **given: Any) -> Target:
        return _typed(msgspec.convert(msgspec.to_builtins(_example(kind, **given)), kind))

    return {
        "sample": Target(sample, _sample_seeds),
        "columns": Target(columns, _columns_seeds),
        "ring": Target(ring, _ring_seeds),
        "notice": record(WindowNotice, source=source),
        "block": record(ScoreBlock, stage="final", model=model, scores=[1.0, None], preds=[True, False]),
        "alert": record(
            Alert, state="firing", severity="error", rests_on="final", ends_at_ms=None, model=model, source=source
        ),
        "state": _typed(_state()),
        "head": _typed(HeadRecord(1, 2, 3, 4, 5), msgspec.msgpack),
        "dead letter": record(DeadLetter),
        "dropped letters": record(DroppedLetters, reasons={"late": 1}),
        "manifest": Target(manifest, _file(checkpoint.MANIFEST)),
        "weights": Target(weights, _file(checkpoint.WEIGHTS)),
        "golden": Target(golden, _file(checkpoint.GOLDEN)),
    }
