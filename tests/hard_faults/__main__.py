"""The faults that take too long for `make test`: one row each, with its outcome and how long it took to recover.

`make faults [JSON=out.json] [ARGS="--only NAME …"]`. A promise is `kept`, `broken`, or kept
`late`, beyond the time stated for it, which a busy machine alone may do. Exits with 1 unless all are kept.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from benchmarks.rig import unwinding_on_sigterm
from tests.hard_faults import brokers, disks, floods, processes, registries, restores, stores, takeovers
from tests.hard_faults.scene import Row, Stage, stage

Fault = Callable[[Stage, Row], None]
FAULTS: dict[str, Fault] = {
    "none": processes.nothing,
    "worker killed": processes.killed_worker,
    "windower killed": processes.killed_windower,
    "takeover of a worker": takeovers.worker_takeover,
    "takeover of a windower": takeovers.windower_takeover,
    "dead transaction": takeovers.dead_transaction,
    "worker zombie": processes.zombie_worker,
    "windower zombie": processes.zombie_windower,
    "slow worker": processes.slow_worker,
    "late poll": processes.late_poll,
    "scaling 1-4-2": processes.scaling,
    "Redis slow": stores.redis_slow,
    "Redis partition": stores.redis_partition,
    "Redis out of memory": stores.redis_out_of_memory,
    "Redis down 2 min": stores.redis_down,
    "partition leader killed": brokers.leader_killed,
    "transaction coordinator killed": brokers.transaction_coordinator_killed,
    "group coordinator killed": brokers.group_coordinator_killed,
    "network slow": brokers.network_slow,
    "network reset": brokers.network_reset,
    "network partition": brokers.network_partition,
    "restore of 1,000 entities": restores.restore,
    "entity flood": floods.entity_flood,
    "newcomer flood": floods.newcomer_flood,
    "partition added": floods.partition_added,
    "alias flapping": registries.alias_flapping,
    "three trainers at once": registries.racing_trainers,
    "disk full": registries.disk_full,
    "disk of a broker full": disks.broker_disk_full,
    "disk of Redis full": disks.redis_disk_full,
}


def main() -> int:
    """Do the faults one after the other and print a line for each."""
    options = _options()
    rows: list[Row] = []
    with stage() as scenes:
        for name in options.only or FAULTS:
            rows.append(_row(name, scenes))
            print(_line(rows[-1]), flush=True)
            if options.json:
                options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"faults": rows})))
    return 0 if all(row.passed for row in rows) else 1


def _row(name: str, scenes: Stage) -> Row:
    row, began = Row(fault=name, details={}), time.monotonic()
    try:
        FAULTS[name](scenes, row)
    except Exception as error:
        traceback.print_exc()
        row.outcome = f"broken: {error}"
    row.seconds = round(time.monotonic() - began, 1)
    row.machine_load = round(psutil.getloadavg()[0], 1)
    return row


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="these faults instead of all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def _line(row: Row) -> str:
    limit = f" (limit {row.limit_s:.0f})" if row.limit_s is not None else ""
    told = f"{row.samples} samples, {row.missing} missing, {row.repeated} repeated, {row.wrong} wrong"
    return f"{row.fault}: {row.outcome}; recovered in {row.recovery_s} s{limit}; {told}; {row.details} {row.seconds} s"


if __name__ == "__main__":
    with unwinding_on_sigterm():
        sys.exit(main())
