"""Kafka that wants a certificate of every client and takes its name for the principal's: TLS both ways, no password."""

import datetime
import threading

import msgspec
import pytest

from deploy.access import principal
from deploy.replay import send
from stream.settings import KafkaSettings, TopicSettings
from stream.topics import USES
from tests.builders import untrained
from tests.commands import CommandLine
from tests.faults.live import Processes, forked
from tests.faults.recorded import GEOMETRY, answer_of, assert_is_offline, recordings, telemetry, wait_for_rows
from tests.pipeline import make_settings, publish
from tests.secured import ADMIN, SecuredKafka, keep, make_authorities, secured_kafka

TOPICS = TopicSettings(prefix="mutual.", partitions=2)
BROKER = {
    "listener.security.protocol.map": "SECURE:SSL,CONTROLLER:PLAINTEXT",
    "ssl.client.auth": "required",
    "ssl.principal.mapping.rules": "RULE:^CN=([^,]+),.*$/$1/,DEFAULT",
}
DAY = datetime.timedelta(days=1)


class ByCertificate(SecuredKafka):
    """Its users are known by the certificates in `home`, each named after its user."""

    def settings(self, user, **more):
        home = self.certificates.server.parent
        name = "server" if user == ADMIN else user
        pair = {"ssl_certificate": str(home / f"{name}.pem"), "ssl_key": str(home / f"{name}.key")}
        secured = {"security_protocol": "SSL", "ssl_ca": str(self.certificates.authority)}
        return {"bootstrap": self.bootstrap, **secured, **pair, **more}


@pytest.fixture(scope="module")
def kafka(_stack_folder):
    forked()
    home = _stack_folder / "mutual"
    home.mkdir()
    certificates, authority, stranger = make_authorities(home)
    now, windower = datetime.datetime.now(datetime.UTC), principal(TOPICS, "windower")
    issued = {
        principal(TOPICS, service): authority.issue_cert("a@b", common_name=principal(TOPICS, service))
        for service in USES
    }
    issued["foreign"] = stranger.issue_cert("a@b", common_name=windower)
    issued["expired"] = authority.issue_cert("a@b", common_name=windower, not_before=now - 9 * DAY, not_after=now - DAY)
    for name, certificate in issued.items():
        keep(certificate, home / f"{name}.pem", home / f"{name}.key")
    with secured_kafka(home, certificates, ByCertificate, BROKER) as broker:
        broker.load(TOPICS)
        yield broker


@pytest.fixture
def settings(kafka, redis_url, tmp_path):
    manifest, weights = untrained(geometry=GEOMETRY)
    publish(tmp_path / "registry", manifest, weights)
    worker = {"model_poll_s": 0.1, "batch_windows": 16, "threads": 1}
    more = {"kafka": kafka.settings(ADMIN), "worker": worker}
    return make_settings(manifest, tmp_path / "registry", "", redis_url, TOPICS.prefix, **more)


def test_the_pipeline_gives_the_offline_answer_where_certificates_are_the_only_login(kafka, settings, tmp_path):
    manifest, weights = untrained(geometry=GEOMETRY)
    model = publish(tmp_path / "copy", manifest, weights)
    series = recordings(model, 260)
    answer = answer_of(model, settings, series)

    def under(service):
        certified = KafkaSettings(**kafka.settings(principal(TOPICS, service)))
        return settings.model_copy(update={"kafka": certified})

    services = []
    try:
        for name in ("windower", "worker"):
            (tmp_path / name).mkdir()
            services.append(Processes(under(name), tmp_path / name))
            services[-1].start(name)
        send(under("replay"), telemetry(model, series), rows_per_s=None, stop=threading.Event())
        wait_for_rows(settings, answer.final_rows())
        for one in services:
            one.stop()
    finally:
        for one in services:
            one.kill_all()
    assert_is_offline(settings, answer)


REFUSED = {
    "none": "wants a client certificate, and kafka.ssl_certificate names none",
    "foreign": "foreign.pem): its authority may be none that the brokers trust",
    "expired": "expired.pem): certificate has expired",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_client_whose_certificate_is_refused_ends_at_once_with_one_line_that_says_why(
    kafka, settings, tmp_path, case
):
    given = kafka.settings(case, **({"ssl_certificate": "", "ssl_key": ""} if case == "none" else {}))
    families = [family.model_dump() for family in settings.families]
    telltale = CommandLine(
        tmp_path,
        TELLTALE_FAMILIES=msgspec.json.encode(families).decode(),
        TELLTALE_REDIS__URL=settings.redis.url.get_secret_value(),
        TELLTALE_TOPICS__PREFIX=TOPICS.prefix,
        TELLTALE_METRICS__PORT="0",
        **{f"TELLTALE_KAFKA__{name.upper()}": value for name, value in given.items()},
    )
    ended = telltale("windower")
    assert (ended.code, f"{kafka.bootstrap} " in ended.complaint()) == (1, True), ended.err
    assert REFUSED[case] in ended.complaint()
