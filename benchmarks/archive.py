"""How fast the archiver's own work is: records decoded, kept, written, merged and read back, without a broker.

Process time on one core of a stage that is handed records as the loop would. Files go to a temporary folder and are
synced.
"""

import tempfile
import time
from collections.abc import Sequence

import msgspec
from rich.console import Console

from benchmarks.measure import Machine, Spread, describe_machine, spread
from benchmarks.workload import FIRST_SLOT, MANY_NUMERIC, make_family, make_values, to_blocks, to_samples
from stream.archive import Archive
from stream.archive_upkeep import SETTLED_S, Upkeep
from stream.archiver import Archiver
from stream.columns import COLUMNS
from stream.contracts import Sample, SampleColumns
from stream.kafka import Record
from stream.logs import configure_logging
from stream.metrics import Metrics
from stream.settings import ArchiveSettings, FamilySettings, Settings
from stream.topics import TELEMETRY
from training.archive import read_archive

_BATCH_RECORDS = 8000  # of one row; of records of many as many rows
_FILES = 4
_JSON, _MSGPACK = msgspec.json.Encoder(), msgspec.msgpack.Encoder()


class ArchiveReport(msgspec.Struct, frozen=True, kw_only=True):
    """Rows a CPU second of each kind of work, medians of `spreads`. bytes_per_row: as the files lie on disk."""

    json_rows_per_s_per_core: float
    columns_rows_per_s_per_core: float
    merged_rows_per_s_per_core: float
    read_rows_per_s_per_core: float
    bytes_per_row: float
    channels: int
    rows: int
    seed: int
    spreads: dict[str, Spread]
    machine: Machine


def run(console: Console, *, rows: int = 100_000, runs: int = 5, seed: int = 0) -> ArchiveReport:
    """Measure, print and return the archiver's figures on made-up rows."""
    configure_logging("error")
    entities, family, machine = 64, make_family(MANY_NUMERIC, slack=1024), describe_machine()
    values = make_values(MANY_NUMERIC, entities, -(-rows // entities), seed)
    count, first_ms = values.shape[0] * values.shape[1], FIRST_SLOT * family.interval_ms
    samples = [_record(i, one, _JSON.encode(one), first_ms) for i, one in enumerate(to_samples(family, values))]
    blocks = [_record(i, one, _MSGPACK.encode(one), first_ms) for i, one in enumerate(to_blocks(family, values))]
    figures: dict[str, list[float]] = {"json": [], "columns": [], "merged": [], "read": []}
    bytes_per_row = 0.0
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            figures["json"].append(count / _write(Archive(folder), family, samples, _BATCH_RECORDS))
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(folder)
            figures["columns"].append(count / _write(archive, family, blocks, _BATCH_RECORDS // family.hop))
            figures["merged"].append(count / _merge(archive))
            begin = time.process_time()
            figures["read"].append(read_archive(archive, family).rows / (time.process_time() - begin))
            bytes_per_row = sum(file.size for file in archive.files()) / count
    spreads = {name: spread(of_all) for name, of_all in figures.items()}
    for name, one in spreads.items():
        told = f"{one.median:,.0f} rows/s and core ({one.least:,.0f} to {one.most:,.0f})"
        console.print(f"{name}: {told}", highlight=False)
    return ArchiveReport(
        json_rows_per_s_per_core=spreads["json"].median,
        columns_rows_per_s_per_core=spreads["columns"].median,
        merged_rows_per_s_per_core=spreads["merged"].median,
        read_rows_per_s_per_core=spreads["read"].median,
        bytes_per_row=round(bytes_per_row, 2),
        channels=MANY_NUMERIC.channels,
        rows=count,
        seed=seed,
        spreads=spreads,
        machine=machine,
    )


def _record(offset: int, one: Sample | SampleColumns, value: bytes, sent_ms: int) -> Record:
    headers = (("content-type", COLUMNS.encode()),) if isinstance(one, SampleColumns) else ()
    return Record(TELEMETRY.name, 0, offset, one.entity.encode(), value, sent_ms, headers)


def _write(archive: Archive, family: FamilySettings, records: Sequence[Record], batch: int) -> float:
    """Return the CPU seconds of archiving records; they end in four files or more."""
    settings, ending = Settings(families=[family], archive=ArchiveSettings(flush_s=1e9)), list[bool]()
    stage = Archiver(settings, archive, lambda: "0" * 8, Metrics(), stopping=lambda: bool(ending))
    stage.restore(0, 0, 0)
    quarter = -(-len(records) // _FILES)
    begin = time.process_time()
    for number, first in enumerate(range(0, len(records), batch), 1):
        stage.process(records[first : first + batch])
        if number * batch % quarter < batch:
            ending.append(True)
            stage.process([])
            ending.clear()
    ending.append(True)
    stage.process([])
    return time.process_time() - begin


def _merge(archive: Archive) -> float:
    """Return the CPU seconds of merging what there is into as few files as may be."""
    upkeep = Upkeep(archive, ArchiveSettings(), Metrics())
    begin = time.process_time()
    upkeep.plan([0], time.time() + 2 * SETTLED_S)
    while upkeep.step():
        pass
    return time.process_time() - begin
