"""The decisions about a family's versions, one small file each, beside the versions. Decides nothing.

A file is written once and never changed: the retrainer and a person who decide at the same moment lose nothing, which
one file with a line for each could not promise, and storages without append can hold it. Manifests stay as they were
published, so that they can be verified. Names sort by the time of the decision.
"""

import re
import secrets

import msgspec
import structlog
from pyarrow import fs

from stream.contracts import ModelEvent
from stream.errors import CheckpointError
from stream.storage import read_file, replace_file

# So many of the newest are read: years of a model that is trained once a week.
MAX_DECISIONS = 512
MAX_DECISION_BYTES = 64 * 1024

_NAME = re.compile(r"(\d{15})-[0-9a-f]{8}\.json")

_log = structlog.get_logger()


def write_decision(filesystem: fs.FileSystem, folder: str, decision: ModelEvent) -> ModelEvent:
    """Write a decision so that it is seen whole or not at all; its time is moved behind those there are.

    Raises CheckpointError for one that would not be read back.
    """
    newest_ms = max((int(name[:15]) for name in _names(filesystem, folder)), default=-1)
    decision = msgspec.structs.replace(decision, at_ms=max(decision.at_ms, newest_ms + 1))
    data = msgspec.json.encode(decision)
    if len(data) > MAX_DECISION_BYTES:
        raise CheckpointError(f"a decision takes {len(data)} bytes, allowed are {MAX_DECISION_BYTES}")
    filesystem.create_dir(folder, recursive=True)
    replace_file(filesystem, f"{folder}/{decision.at_ms:015d}-{secrets.token_hex(4)}.json", data)
    return decision


def read_history(filesystem: fs.FileSystem, folder: str) -> list[ModelEvent]:
    """Return the newest decisions, oldest first; one that is damaged is told in the log and left out."""
    found = []
    for name in _names(filesystem, folder)[-MAX_DECISIONS:]:
        try:
            data = read_file(filesystem, f"{folder}/{name}", MAX_DECISION_BYTES)
            found.append(msgspec.json.decode(data, type=ModelEvent))
        except (CheckpointError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.error("a decision can't be read; it is left out", path=f"{folder}/{name}", reason=str(error))
    return found


def _names(filesystem: fs.FileSystem, folder: str) -> list[str]:
    infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.is_file and _NAME.fullmatch(info.base_name))
