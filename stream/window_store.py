"""Windows in Redis: fenced writes, snapshots of the windower's heads, pipelined reads. Knows no Kafka.

Redis is a rebuildable snapshot, never the truth. All keys of a partition share a hash tag, so a script touches one
Redis Cluster slot. Every write carries the epoch its writer acquired; a writer whose epoch is no longer the stored one
(a zombie, or Redis lost everything) is refused as a whole.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import redis
from numpy.typing import NDArray
from redis.exceptions import ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError

from stream.errors import FencedError, TransientError, UsageError
from stream.redis_access import redis_client, refusal
from stream.ring import INDEX_BYTES, RING_FORMAT, Layout, Runs
from stream.settings import RedisSettings

_ACQUIRE = """
local stored = tonumber(redis.call('GET', KEYS[1]) or '0')
local now = redis.call('TIME')
local epoch = math.max(stored + 1, now[1] * 1000000 + now[2])
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
return {string.format('%.0f', epoch), redis.call('GET', KEYS[2]) or ''}
"""
_LOAD = "return {redis.call('GET', KEYS[1]), redis.call('HGETALL', KEYS[2])}"
# KEYS: epoch, and for each run of rows its ring. ARGV: epoch, then for each layout: number of runs, size of a ring,
# where its values begin, bytes of a row's values, time to live in ms; position and number of rows of each run, packed;
# and slots and values of all of them. A ring gets its size first: a string that grows is given twice what it needs.
# PEXPIRE comes last: a full server refuses SETRANGE, but only as the first thing that a script writes.
_WRITE_ROWS = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local k = 2
for a = 2, #ARGV, 8 do
  local size, values_at, row, ttl = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local runs, slots, values = ARGV[a + 5], ARGV[a + 6], ARGV[a + 7]
  local at, s, v = 1, 1, 1
  for _ = 1, ARGV[a] do
    local position, count
    position, count, at = struct.unpack('<I4I4', runs, at)
    local s_end, v_end = s + count * INDEX_BYTES, v + count * row
    if redis.call('EXISTS', KEYS[k]) == 0 then redis.call('SETRANGE', KEYS[k], size - 1, '\\0') end
    redis.call('SETRANGE', KEYS[k], position * INDEX_BYTES, string.sub(slots, s, s_end - 1))
    redis.call('SETRANGE', KEYS[k], values_at + position * row, string.sub(values, v, v_end - 1))
    redis.call('PEXPIRE', KEYS[k], ttl)
    k, s, v = k + 1, s_end, v_end
  end
end
return 1
""".replace("INDEX_BYTES", str(INDEX_BYTES))
# ARGV: epoch, the next offset that must be stored, the new one, then field and value of each head.
_SAVE_HEADS = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or (redis.call('GET', KEYS[3]) or '') ~= ARGV[2] then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[3], ARGV[3])
return 1
"""

# What an ACL user must be allowed: the commands of the scripts, and those that are called from here.
_SCRIPTED = re.findall(r"redis\.call\('(\w+)'", _ACQUIRE + _LOAD + _WRITE_ROWS + _SAVE_HEADS)
READER_COMMANDS = ("INFO", "GETRANGE")
WRITER_COMMANDS = tuple(dict.fromkeys((*READER_COMMANDS, "EVALSHA", "SCRIPT LOAD", *_SCRIPTED)))

_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)
# Refusals that end when memory is free, or when a failover is over.
_PASSING = (OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError, TryAgainError)

_PACKED = np.dtype("<u4")

Timer = Callable[[str], AbstractContextManager[object]]


class RingRef(NamedTuple):
    """Names one ring: `ring` is the slot of the first row of this life of the entity."""

    entity: str
    ring: int
    layout: Layout


class RingWrite(NamedTuple):
    """Rows to put into rings of one layout. refs: the rings that `runs` numbers as owners."""

    layout: Layout
    ttl_ms: int
    refs: Sequence[RingRef]
    runs: Runs


class Snapshot(NamedTuple):
    """What Redis remembers of a partition: the next offset to apply and the windower's heads by entity."""

    next_offset: int | None
    heads: dict[str, bytes]


RingIndex = tuple[NDArray[np.int64], NDArray[np.int64]]  # slots and source offsets, in slot order


class WindowRequest(NamedTuple):
    """A window to read, as of its end slot."""

    partition: int
    ref: RingRef
    end_slot: int
    length: int


class Window(NamedTuple):
    """values: (C, L) float32, NaN where missing. rows: how many of its slots hold a row."""

    values: NDArray[np.float32]
    rows: int


class WindowStore(Protocol):
    """The seam between the services and what keeps the windows; errors as in `RedisWindowStore`."""

    def acquire(self, partition: int) -> int:
        """Take over a partition and return the new epoch."""

    def load(self, partition: int) -> Snapshot:
        """Return the last snapshot of a partition."""

    def write_rows(self, partition: int, epoch: int, rings: Sequence[RingWrite]) -> None:
        """Put rows into rings, all or none."""

    def save_heads(self, partition: int, epoch: int, next_offset: int, heads: Mapping[str, bytes]) -> None:
        """Store changed heads with the next offset to apply."""

    def read_windows(self, requests: Sequence[WindowRequest]) -> list[Window]:
        """Read windows."""

    def read_indexes(self, partition: int, refs: Iterable[RingRef]) -> list[RingIndex]:
        """Return which rows each ring holds."""


class RedisWindowStore:
    """Windows of all partitions in one Redis."""

    def __init__(self, client: redis.Redis, prefix: str, timer: Timer | None = None) -> None:
        """Use a connected client; `timer(op)` measures each operation."""
        self._redis = client
        self._prefix = prefix
        self._timer: Timer = timer or (lambda _: nullcontext())
        self._acquire = client.register_script(_ACQUIRE)
        self._load = client.register_script(_LOAD)
        self._write_rows = client.register_script(_WRITE_ROWS)
        self._save_heads = client.register_script(_SAVE_HEADS)
        self._stored: dict[int, str] = {}  # the next offset of each partition's snapshot; empty before the first

    def check(self) -> None:
        """Raise UsageError if the server may evict windows by itself, TransientError if it can't be reached."""
        policy = str(self._call("info", lambda: self._redis.info("memory")).get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            raise UsageError(f"Redis wants maxmemory-policy noeviction, got {policy}: it would drop windows silently")

    def acquire(self, partition: int) -> int:
        """Take over a partition and return the epoch that fences out every earlier owner, also after a wiped Redis."""
        keys = [self._key(partition, name) for name in ("epoch", "next")]
        epoch, stored = self._call("acquire", lambda: self._acquire(keys=keys))
        self._stored[partition] = stored.decode()
        return int(epoch)

    def load(self, partition: int) -> Snapshot:
        """Return the last snapshot of a partition."""
        keys = [self._key(partition, name) for name in ("next", "heads")]
        offset, heads = self._call("load", lambda: self._load(keys=keys))
        names = (entity.decode() for entity in heads[::2])
        return Snapshot(None if offset is None else int(offset), dict(zip(names, heads[1::2], strict=True)))

    def write_rows(self, partition: int, epoch: int, rings: Sequence[RingWrite]) -> None:
        """Put rows into rings, all or none. Raises FencedError if the epoch is not the stored one."""
        if not rings:
            return
        keys = [self._key(partition, "epoch")]
        arguments: list[Any] = [epoch]
        for layout, ttl_ms, refs, runs in rings:
            names = self._ring_keys(partition, refs)
            keys += [names[owner] for owner in runs.owners.tolist()]
            where = np.stack([runs.positions, runs.counts], axis=1).astype(_PACKED).tobytes()
            arguments += len(runs.counts), layout.size, layout.values_at, layout.row_bytes, ttl_ms
            arguments += where, runs.slots, runs.values
        self._fenced(partition, self._call("write_rows", lambda: self._write_rows(keys=keys, args=arguments)))

    def save_heads(self, partition: int, epoch: int, next_offset: int, heads: Mapping[str, bytes]) -> None:
        """Store changed heads with the next offset to apply.

        Raises FencedError if the epoch is not the stored one, or if the snapshot is not the last one that was saved
        here: a Redis that came back with older data lacks the rows written since.
        """
        keys = [self._key(partition, name) for name in ("epoch", "heads", "next")]
        arguments: list[Any] = [epoch, self._stored.get(partition, ""), next_offset]
        for head in heads.items():
            arguments += head
        self._fenced(partition, self._call("save_heads", lambda: self._save_heads(keys=keys, args=arguments)))
        self._stored[partition] = str(next_offset)

    def read_windows(self, requests: Sequence[WindowRequest]) -> list[Window]:
        """Read windows in one round trip."""
        ranges = [request.ref.layout.window_ranges(request.end_slot, request.length) for request in requests]

        def read() -> list[bytes]:
            pipe = self._redis.pipeline(transaction=False)
            for request, wanted in zip(requests, ranges, strict=True):
                (key,) = self._ring_keys(request.partition, [request.ref])
                for part in wanted:
                    pipe.getrange(key, part.first, part.last)
            return list(pipe.execute())

        answers = iter(self._call("read_windows", read))
        return [
            Window(*request.ref.layout.decode_window([next(answers) for _ in wanted], request.end_slot, request.length))
            for request, wanted in zip(requests, ranges, strict=True)
        ]

    def read_indexes(self, partition: int, refs: Iterable[RingRef]) -> list[RingIndex]:
        """Return slots and source offsets of the rows of each ring, in slot order."""
        wanted = list(refs)

        def read() -> list[bytes]:
            pipe = self._redis.pipeline(transaction=False)
            for ref, key in zip(wanted, self._ring_keys(partition, wanted), strict=True):
                pipe.getrange(key, *ref.layout.index_range())
            return list(pipe.execute())

        parts = self._call("read_indexes", read)
        return [ref.layout.decode_index(part) for ref, part in zip(wanted, parts, strict=True)]

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def _key(self, partition: int, name: str) -> str:
        return f"{{{self._prefix}:{partition}}}:{name}"

    def _ring_keys(self, partition: int, refs: Iterable[RingRef]) -> list[str]:
        start = self._key(partition, "w")
        return [f"{start}:{_digest(ref.entity)}:{ref.ring}" for ref in refs]

    def _fenced(self, partition: int, accepted: int) -> None:
        if not accepted:
            raise FencedError(f"partition {partition} of the window store has another owner, or Redis lost its data")

    def _call(self, operation: str, command: Callable[[], Any]) -> Any:
        try:
            with self._timer(operation):
                return command()
        except redis.RedisError as error:
            if (refused := refusal(error, f"{operation} on keys {{{self._prefix}:…", self._redis)) is not None:
                raise refused from error
            if isinstance(error, _AWAY):
                raise TransientError(f"Redis did not answer {operation}: {error}") from error
            # MISCONF: its disk is full or away.
            if isinstance(error, _PASSING) or str(error).startswith("MISCONF"):
                raise TransientError(f"Redis refused {operation}: {error}") from error
            raise


@lru_cache(maxsize=65_536)
def _digest(entity: str) -> str:
    return hashlib.blake2b(entity.encode(), digest_size=16).hexdigest()


def connect(settings: RedisSettings, timer: Timer | None = None, *, layout: str = "") -> RedisWindowStore:
    """Return the window store of the configured Redis; connects on first use. Raises UsageError for no usable URL.

    layout: what is stored under one is invisible under another.
    """
    client = redis_client(settings)
    prefix = f"{settings.prefix}:{layout}.{RING_FORMAT}" if layout else settings.prefix
    return RedisWindowStore(client, prefix, timer)
