"""Behind closed doors: TLS, logins and least rights, on a real broker and a real Redis-protocol server."""

import io
import tempfile
import threading
from typing import NamedTuple

import msgspec
import pytest
import torch
from confluent_kafka import TopicPartition
from rich.console import Console

from deploy.access import kafka_rights, principal, redis_user
from deploy.alert_reader import read_alerts
from deploy.replay import send
from detector.models import Model
from detector.worker import run_worker
from stream.archiver import run_archiver
from stream.contracts import ModelEvent, Sample
from stream.drift import run_drift
from stream.errors import AccessError, TelltaleError
from stream.kafka import consumer_config, make_consumer, watermarks
from stream.kafka_rights import lacking
from stream.model_events import announce
from stream.settings import ArchiveSettings, KafkaSettings, RedisSettings, Settings, TopicSettings
from stream.topics import ALL, TELEMETRY, USES, WINDOWS, topic_name
from stream.windower import run_windower
from tests.builders import untrained
from tests.commands import CommandLine
from tests.faults.live import Processes, forked
from tests.faults.recorded import GEOMETRY, answer_of, assert_is_offline, recordings, telemetry, wait_for_rows
from tests.pipeline import WAIT_S, make_settings, publish, running, wait_for
from tests.secured import ADMIN, CANARY, SecuredKafka, make_certificates, secured_kafka
from tests.secured_redis import SecuredRedis, secured_redis
from training.retrainer_service import run_retrainer

TOPICS = TopicSettings(prefix="door.", partitions=2)
REDIS = RedisSettings(prefix="door")
SERVICES = {"windower": run_windower, "worker": run_worker}
RIGHTS = [(service, right) for service in USES for right in kafka_rights(TOPICS, service)]
ROWS = 260


class House(NamedTuple):
    """Both servers, a model, and what the administrator is told of them."""

    kafka: SecuredKafka
    redis: SecuredRedis
    model: Model
    base: Settings

    def settings(self, service, **kafka):
        """Return the settings with which a service comes in."""
        user = principal(TOPICS, service)
        store = redis_user(REDIS, service if service in SERVICES else "worker")
        sections = {
            "kafka": KafkaSettings(**{**self.kafka.settings(user), **kafka}),
            "redis": RedisSettings(**self.redis.settings(store), prefix=REDIS.prefix),
        }
        return self.base.model_copy(update=sections)

    def send(self, samples):
        send(self.settings("replay"), samples, rows_per_s=None, stop=threading.Event())


@pytest.fixture(scope="module")
def house(tmp_path_factory, _stack_folder):
    forked()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, home = tmp_path_factory.mktemp("house"), _stack_folder / "doors"
    home.mkdir()
    certificates = make_certificates(home)
    manifest, weights = untrained(geometry=GEOMETRY)
    model = publish(folder / "registry", manifest, weights)
    with secured_kafka(home, certificates) as kafka, secured_redis(home, certificates) as store:
        kafka.add_users(TOPICS)
        kafka.load(TOPICS)
        store.load(REDIS)
        sections = {"kafka": kafka.settings(ADMIN), "redis": store.settings(ADMIN, prefix=REDIS.prefix)}
        worker = {"model_poll_s": 0.1, "batch_windows": 16, "threads": 1}
        base = make_settings(manifest, folder / "registry", "", "", TOPICS.prefix, **sections, worker=worker)
        yield House(kafka, store, model, base)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def answered(house, tmp_path_factory):
    """Run both services under the least rights over some telemetry; yield what was expected, and what they logged."""
    series = recordings(house.model, ROWS)
    answer = answer_of(house.model, house.base, series)
    services = [Processes(house.settings(name), tmp_path_factory.mktemp(name)) for name in SERVICES]
    try:
        for name, one in zip(SERVICES, services, strict=True):
            one.start(name)
        house.send(telemetry(house.model, series))
        wait_for_rows(house.base, answer.final_rows())
        for one in services:
            one.stop()
    finally:
        for one in services:
            one.kill_all()
    return answer, {name: one.log(name) for name, one in zip(SERVICES, services, strict=True)}


def test_under_the_least_rights_the_pipeline_gives_the_offline_answer(house, answered):
    answer, logs = answered
    assert_is_offline(house.base, answer)
    assert [log.count('"stopped"') for log in logs.values()] == [1, 1]
    assert all("not authorised" not in log for log in logs.values())


def test_services_log_no_secret(answered):
    _, logs = answered
    assert all(CANARY not in log for log in logs.values())


def test_nothing_was_refused_that_the_services_asked_for(house, answered):
    """A right that is lacking but does not show, as one to a nicety, would fill the server's log of refusals."""
    _, logs = answered
    assert [line for log in logs.values() for line in log.splitlines() if "uthori" in line] == []
    with house.redis.admin() as admin:
        refused = [entry["object"] for entry in admin.acl_log() if entry["username"] != ADMIN]
    assert refused == []


@pytest.fixture(scope="module")
def backlog(house, answered):
    """Leave something to do for both: notices that no worker has scored, and telemetry that no windower has read."""
    rows = telemetry(house.model, recordings(house.model, ROWS))
    later = [Sample(row.entity, row.ts + 10**8, row.values) for row in rows]
    house.send(later[:90])  # few enough that the windower need not wait for the worker
    with running(house.settings("windower"), run_windower):
        wait_for(lambda: lag(house, "windower", TELEMETRY) == 0, "the windower")
    house.send(later[90:150])
    assert lag(house, "windower", TELEMETRY) > 0
    assert lag(house, "worker", WINDOWS) > 0
    return house


def lag(house, service, topic):
    """Return how many records of a topic a service has not done."""
    places = [TopicPartition(topic_name(TOPICS, topic), partition) for partition in range(TOPICS.partitions)]
    consumer = make_consumer(consumer_config(house.base.kafka, principal(TOPICS, service)))
    try:
        done = consumer.committed(places, timeout=WAIT_S)
        return sum(watermarks(consumer, place, WAIT_S)[1] - max(place.offset, 0) for place in done)
    finally:
        consumer.close()


def end_of(run, settings):
    """Run a service that is to end by itself and return the error it ended with."""
    stop, ended = threading.Event(), []

    def work():
        try:
            run(settings, stop)
        except TelltaleError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(WAIT_S / 2)
    hung = thread.is_alive()
    stop.set()
    thread.join(WAIT_S)
    assert not hung, "it goes on"
    assert len(ended) == 1, "it ended as if nothing was wrong"
    return ended[0]


def replayed(settings, stop):
    send(settings, [Sample("x-1", 0, {})], rows_per_s=None, stop=stop)


def archived(settings, stop):
    with tempfile.TemporaryDirectory() as folder:
        run_archiver(settings.model_copy(update={"archive": ArchiveSettings(url=folder)}), stop)


def alerts_read(settings, stop):
    read_alerts(settings, Console(file=io.StringIO()), follow=False, json_lines=False, stop=stop)


def announced(settings, stop):
    announce(settings, ModelEvent(kind="requested", family="test", at_ms=0))


VERBS = {
    "archiver": archived,
    "drift": run_drift,
    "replay": replayed,
    "alerts": alerts_read,
    "models": announced,
    "retrainer": run_retrainer,
}


@pytest.mark.parametrize(("service", "right"), RIGHTS, ids=lambda one: str(one).replace("door.", ""))
def test_a_service_without_one_of_its_kafka_rights_ends_at_once_and_names_it(backlog, service, right):
    run = {**SERVICES, **VERBS}[service]
    settings = backlog.settings(service)
    with backlog.kafka.without(principal(TOPICS, service), right):
        error = end_of(run, settings)
    assert isinstance(error, AccessError)
    assert str(right) in str(error)


@pytest.mark.parametrize("service", USES)
def test_a_service_may_read_and_write_its_own_topics_and_no_other(house, service):
    kafka = house.settings(service).kafka
    names = [topic_name(TOPICS, topic) for topic in ALL]
    for operation, own in (("Read", USES[service].reads), ("Write", USES[service].writes)):
        others = sorted(set(names) - {topic_name(TOPICS, topic) for topic in own})
        assert [right.name for right in lacking(kafka, operation, names)] == others
    assert len(lacking(kafka, "Create", names)) == len(lacking(kafka, "Delete", names)) == len(names)


@pytest.fixture
def telltale(house, tmp_path):
    """Run the command line as the windower that logs everything; every secret is in its environment."""
    kafka, store = house.settings("windower").kafka, house.settings("windower").redis
    families = [family.model_dump() for family in house.base.families]
    return CommandLine(
        tmp_path,
        TELLTALE_LOG_LEVEL="debug",
        TELLTALE_REGISTRY=f"nowhere://{CANARY}-id:{CANARY}/key@bucket/models?secret_key={CANARY}",
        TELLTALE_FAMILIES=msgspec.json.encode(families).decode(),
        TELLTALE_TOPICS__PREFIX=TOPICS.prefix,
        TELLTALE_METRICS__PORT="0",
        TELLTALE_KAFKA__BOOTSTRAP=kafka.bootstrap,
        TELLTALE_KAFKA__SECURITY_PROTOCOL="SASL_SSL",
        TELLTALE_KAFKA__SSL_CA=kafka.ssl_ca,
        TELLTALE_KAFKA__SASL_USERNAME=kafka.sasl_username,
        TELLTALE_KAFKA__SASL_PASSWORD=house.kafka.password(kafka.sasl_username),
        TELLTALE_REDIS__URL=store.url.get_secret_value(),
        TELLTALE_REDIS__CA=store.ca,
        TELLTALE_REDIS__PREFIX=REDIS.prefix,
    )


WINDOWER = "user door.telltale-windower (SCRAM-SHA-512) at Kafka at localhost"
REFUSED = {
    "a wrong password": ({"KAFKA__SASL_PASSWORD": f"{CANARY}-wrong"}, f"authentication failed for {WINDOWER}"),
    "a user nobody knows": ({"KAFKA__SASL_USERNAME": "nobody"}, "authentication failed for user nobody"),
    "another mechanism": ({"KAFKA__SASL_MECHANISM": "SCRAM-SHA-256"}, "Unsupported SASL mechanism"),
    "an untrusted broker": ({"KAFKA__SSL_CA": "stranger.pem"}, "no trust between this client and Kafka at localhost"),
    "a wrong Redis password": ({"REDIS__URL": ""}, "authentication failed for user door-windower at Redis"),
    "an untrusted Redis": ({"REDIS__CA": "stranger.pem"}, "no trust between this client and Redis at localhost"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_login_ends_at_once_with_one_line_that_shows_no_secret(house, telltale, case):
    changes, said = REFUSED[case]
    stranger = str(house.kafka.certificates.stranger)
    url = f"rediss://door-windower:{CANARY}-wrong@localhost:{house.redis.tls_port}/0"
    values = {name: value.replace("stranger.pem", stranger) or url for name, value in changes.items()}
    ended = telltale("windower", **{f"TELLTALE_{name}": value for name, value in values.items()})
    assert (ended.code, said in ended.complaint()) == (1, True), ended.err
    assert CANARY not in ended.out + ended.err


@pytest.mark.parametrize(
    "command", ["config show", "doctor", "worker", "config access --redis", "config access --kafka"]
)
def test_no_command_shows_a_secret(telltale, command):
    done = telltale(command)
    assert done.out + done.err
    assert CANARY not in done.out + done.err


def test_the_doctor_tells_what_is_refused(telltale):
    seen = telltale("doctor", TELLTALE_KAFKA__SASL_PASSWORD=f"{CANARY}-wrong")
    assert seen.code == 1
    assert f"✗ Kafka: authentication failed for {WINDOWER}" in seen.out
    assert "✓ Redis" in seen.out
