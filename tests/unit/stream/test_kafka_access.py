import datetime

import pytest
import trustme
from confluent_kafka import KafkaError

from stream.credentials import flaw_of
from stream.errors import AccessError, TransientError, UsageError
from stream.kafka import consumer_config, producer_config
from stream.kafka_access import Right, failure, login_refusal, security_config
from stream.settings import KafkaSettings

SECRET = "hunter2"  # noqa: S105 the word to look for
READ, WRITE = Right("Read", "topic", "telemetry"), Right("Write", "transactional id", "windower-0")
CONFIG = {"bootstrap.servers": "b:1", "sasl.username": "me", "sasl.mechanism": "PLAIN", "sasl.password": SECRET}


def secured(tmp_path, **more):
    (tmp_path / "ca.pem").write_text("ca")
    login = {"sasl_username": "me", "sasl_password": SECRET}
    given = {"bootstrap": "b:1", "security_protocol": "SASL_SSL", "ssl_ca": str(tmp_path / "ca.pem"), **login}
    return KafkaSettings(**{**given, **more})


def test_every_client_comes_in_the_same_way(tmp_path):
    settings = secured(tmp_path)
    wanted = security_config(settings)
    assert wanted["sasl.password"] == SECRET
    for config in (consumer_config(settings, "g"), producer_config(settings), producer_config(settings, "id")):
        assert wanted.items() <= config.items()


def test_plain_text_takes_neither_login_nor_certificate():
    assert security_config(KafkaSettings()) == {"security.protocol": "PLAINTEXT"}


def test_a_password_is_read_from_its_file_each_time(tmp_path):
    file = tmp_path / "password"
    settings = secured(tmp_path, sasl_password="", sasl_password_file=str(file))
    for password in ("first", "rotated"):
        file.write_text(f"{password}\n")
        assert security_config(settings)["sasl.password"] == password


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff\xfe"])
def test_a_password_file_that_is_of_no_use_is_bad_usage(tmp_path, content):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=r"password file .*password (can't be read: |is empty)"):
        security_config(secured(tmp_path, sasl_password="", sasl_password_file=str(file)))


def test_a_certificate_that_is_not_there_is_bad_usage(tmp_path):
    with pytest.raises(UsageError, match=r"kafka\.ssl_ca names /nowhere, which can't be read"):
        security_config(secured(tmp_path, ssl_ca="/nowhere"))


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "Read on topic telemetry"),
        (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "Write on transactional id windower-0"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "a right on a group"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, "a right on a cluster"),
    ],
)
def test_a_missing_right_is_named_and_not_retried(code, named):
    told = failure(KafkaError(code), "reading", [READ, WRITE])
    assert isinstance(told, AccessError)
    assert not isinstance(told, TransientError)
    assert named in str(told)


@pytest.mark.parametrize("code", [KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError.NOT_LEADER_FOR_PARTITION])
def test_a_broker_that_is_away_refuses_nothing(code):
    assert isinstance(failure(KafkaError(code), "reading", [READ]), TransientError)
    assert login_refusal(KafkaError(code), CONFIG) is None


def test_a_refused_login_names_user_and_broker_and_no_password():
    told = login_refusal(KafkaError(KafkaError._AUTHENTICATION, "invalid credentials"), CONFIG)
    assert "authentication failed for user me (PLAIN) at Kafka at b:1: invalid credentials" in str(told)
    assert SECRET not in str(told)


def test_a_broker_that_goes_away_during_the_login_refuses_nobody():
    text = "SASL SCRAM-SHA-512 mechanism handshake failed: Local: Broker transport failure: broker's mechanisms: "
    assert login_refusal(KafkaError(KafkaError._AUTHENTICATION, text), CONFIG) is None


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("SSL handshake failed: certificate verify failed", True),
        ("SSL handshake failed: ssl/record/rec_layer_s3.c: sslv3 alert bad certificate", True),
        ("SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?", False),
    ],
)
def test_only_a_certificate_ends_a_handshake_for_good(text, refused):
    """A broker that is killed in the middle of one is back soon."""
    assert (login_refusal(KafkaError(KafkaError._SSL, text), CONFIG) is not None) == refused


REQUIRED = "Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116"
UNKNOWN = "Receive failed: error:0A000416:SSL routines::ssl/tls alert certificate unknown: SSL alert number 46"
AWAY = "Receive failed: error:0A000438:SSL routines::tlsv1 alert internal error: SSL alert number 80"


def test_a_broker_that_wants_a_certificate_is_told_apart_from_one_that_is_away():
    told = login_refusal(KafkaError(KafkaError._TRANSPORT, REQUIRED), CONFIG)
    assert isinstance(told, AccessError)
    assert "Kafka at b:1 wants a client certificate, and kafka.ssl_certificate names none" in str(told)
    assert login_refusal(KafkaError(KafkaError._TRANSPORT, AWAY), CONFIG) is None


@pytest.fixture
def pair(tmp_path):
    """Write a client certificate of any age."""

    def write(**ages):
        issued = trustme.CA().issue_cert("me@here", **ages)
        paths = tmp_path / "me.pem", tmp_path / "me.key"
        issued.cert_chain_pems[0].write_to_path(str(paths[0]))
        issued.private_key_pem.write_to_path(str(paths[1]))
        return [str(path) for path in paths]

    return write


NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("ages", "said"),
    [
        ({}, "its authority may be none that the brokers trust"),
        ({"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}, "certificate has expired"),
        ({"not_before": NOW + DAY, "not_after": NOW + 9 * DAY}, "certificate is not yet valid"),
    ],
)
def test_a_refused_client_certificate_is_named_with_what_is_wrong(pair, ages, said):
    certificate, key = pair(**ages)
    config = {**CONFIG, "ssl.certificate.location": certificate, "ssl.key.location": key}
    told = str(login_refusal(KafkaError(KafkaError._TRANSPORT, UNKNOWN), config))
    assert f"kafka.ssl_certificate: {certificate}): {said}" in told


def test_a_certificate_that_cannot_be_read_here_has_no_known_flaw(pair, tmp_path):
    certificate, key = pair()
    assert flaw_of(certificate, key) == ""
    assert flaw_of(certificate, str(tmp_path / "nowhere")) == ""
    (tmp_path / "me.key").write_text("no key")
    assert flaw_of(certificate, key) == ""
