"""Faults of the telemetry itself: a flood of entities, and a partition more than there was."""

import time

import msgspec
import redis
from confluent_kafka.admin import NewPartitions

from stream.contracts import DeadLetter, DroppedLetters
from stream.dead_letters import HEADER
from stream.kafka import Record, make_admin, make_producer, producer_config
from stream.topics import DEAD_LETTERS, TELEMETRY, topic_name
from tests.chaos.oracle import Found
from tests.chaos.workload import COMMAND, FIRST_SLOT, INTERVAL_MS, NUMERIC
from tests.hard_faults.processes import judge, memory_mib
from tests.hard_faults.scene import ENTITIES, Row, Scene, Stage
from tests.pipeline import WAIT_S, read_all, wait_for

FLOOD, LIMIT, PER_MINUTE, PARTITIONS = 100_000, 200, 50, 2
_GROWTH_MIB = 80.0


def entity_flood(stage: Stage, row: Row) -> None:
    """A hundred thousand random entities come in at once: those known go on, memory stays, and Redis stays small."""
    _flooded(stage, row, {"max_entities_per_partition": LIMIT})


def newcomer_flood(stage: Stage, row: Row) -> None:
    """The same where there is room for all of them: so many a minute are taken, and their dead letters are few."""
    _flooded(stage, row, {"new_entities_per_minute": PER_MINUTE, "max_entities_per_partition": FLOOD})


def _flooded(stage: Stage, row: Row, limits: dict[str, object]) -> None:
    with stage.scene(limits=limits) as scene:
        before, began = memory_mib(scene), time.time()
        _flood(scene)
        minutes = time.time() // 60 - began // 60 + 1
        time.sleep(5.0)
        row.recovery_s = scene.recovery()
        row.details["memory_growth_mib"] = round(memory_mib(scene) - before, 1)
        row.details["rings"] = _rings(scene)
        most = LIMIT if "new_entities_per_minute" not in limits else PER_MINUTE * minutes
        assert _rings(scene) <= PARTITIONS * most + 40 * ENTITIES, row.details
        assert memory_mib(scene) - before < _GROWTH_MIB, row.details
        letters = read_all(scene.settings, DEAD_LETTERS)
        row.details["letters"] = len(letters)
        row.details["told"] = told = sum(map(_refused, letters))
        assert len(letters) < told / 10, row.details
        assert told >= FLOOD - PARTITIONS * most, row.details
        judge(scene, row, select=_known_entities)


def _refused(letter: Record) -> int:
    """Return how many records of the flood a dead letter tells of."""
    if opened(letter).reason != "dropped":
        return int(b'"flood-' in (letter.value or b""))
    return sum(msgspec.json.decode(letter.value or b"", type=DroppedLetters).reasons.values())


def opened(letter: Record) -> DeadLetter:
    """Return why a record was refused."""
    return msgspec.json.decode(letter.header(HEADER) or "", type=DeadLetter)


def _flood(scene: Scene) -> None:
    producer = make_producer(producer_config(scene.settings.kafka))
    topic = topic_name(scene.settings.topics, TELEMETRY)
    for number in range(FLOOD):
        entity = f"flood-{number}"
        sample = {"entity": entity, "ts": FIRST_SLOT * INTERVAL_MS, "values": {NUMERIC: 1.0, COMMAND: True}}
        producer.produce(topic, msgspec.json.encode(sample), entity.encode())
        producer.poll(0)
    assert producer.flush(WAIT_S) == 0


def _rings(scene: Scene) -> int:
    with redis.Redis.from_url(scene.settings.redis.url.get_secret_value()) as client:
        return sum(1 for _ in client.scan_iter(f"{{{scene.settings.redis.prefix}:*:w:*", count=1000))


def _known_entities(found: Found) -> Found:
    return Found(
        [block for block in found.blocks if not block.entity.startswith("flood-")],
        [alert for alert in found.alerts if not alert.entity.startswith("flood-")],
        [letter for letter in found.dead_letters if b'"flood-' not in letter and b'"reasons"' not in letter],
    )


def partition_added(stage: Stage, row: Row) -> None:
    """Telemetry gets a partition more, which moves entities: the service stops loudly instead of scoring halves."""
    with stage.scene() as scene:
        scene.load.stop()
        time.sleep(5.0)
        admin = make_admin(scene.settings.kafka)
        topic = topic_name(scene.settings.topics, TELEMETRY)
        admin.create_partitions([NewPartitions(topic, 3)])[topic].result(WAIT_S)
        scene.services.terminate("windower")
        scene.services.start("windower")
        row.details["exit_code"] = str(scene.services.wait_for_end("windower"))
        said = "all topics want the same number of partitions"
        wait_for(lambda: said in scene.services.log("windower"), "the windower to refuse")
        judge(scene, row)
