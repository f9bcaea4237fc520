"""Who we are to the Kafka brokers, and what their refusals mean. Opens no connection.

A refusal is told at once and is never retried: librdkafka itself would try a wrong password for ever.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaError

from stream.credentials import flaw_of, read_password, readable_files
from stream.errors import AccessError, TelltaleError, TransientError
from stream.settings import KafkaSettings

_KINDS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
}

_ALERT = re.compile(r"SSL alert number (\d+)")
# What a peer says that wants another certificate of us, or one at all (RFC 8446, 6.2): bad, unsupported, revoked,
# expired, unknown, of an unknown authority, required.
_OURS = {42, 43, 44, 45, 46, 48, 116}


class Right(NamedTuple):
    """An operation on a topic, group or transactional id, in the broker's words. prefixed: on all names so begun."""

    operation: str
    kind: str
    name: str
    prefixed: bool = False

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}"


def security_config(settings: KafkaSettings) -> dict[str, Any]:
    """Return what every client needs to come in: protocol, certificates, login.

    Raises UsageError for a file that can't be read.
    """
    config: dict[str, Any] = {"security.protocol": settings.security_protocol}
    if "SSL" in settings.security_protocol:
        files = {
            "ssl.ca.location": ("ssl_ca", settings.ssl_ca),
            "ssl.certificate.location": ("ssl_certificate", settings.ssl_certificate),
            "ssl.key.location": ("ssl_key", settings.ssl_key),
        }
        config |= readable_files("kafka", files)
    if "SASL" in settings.security_protocol:
        config["sasl.mechanism"] = settings.sasl_mechanism
        config["sasl.username"] = settings.sasl_username
        config["sasl.password"] = read_password(settings.sasl_password, settings.sasl_password_file)
    return config


def login_refusal(error: KafkaError, config: Mapping[str, Any]) -> AccessError | None:
    """Return what a client's error says about login or certificate, None if it is about neither."""
    where = f"Kafka at {config.get('bootstrap.servers')}"
    # "Local:" begins the client's own errors: the broker went away while it was being talked to.
    if error.code() == KafkaError._AUTHENTICATION and "Local:" not in error.str():  # noqa: SLF001 the client's constant
        user, how = config.get("sasl.username"), config.get("sasl.mechanism")
        return AccessError(f"authentication failed for user {user} ({how}) at {where}: {error.str()}")
    # Since TLS 1.3 it comes after the handshake, as an error of the connection.
    if (alert := _ALERT.search(error.str())) and int(alert[1]) in _OURS:
        return AccessError(f"{where} {_unwanted(config)}: {error.str()}")
    # A broker that goes away in the middle of a handshake is an error of the same code.
    if error.code() == KafkaError._SSL and any(word in error.str() for word in ("certificate", "alert")):  # noqa: SLF001
        trusted = config.get("ssl.ca.location", "the system's authorities")
        return AccessError(f"no trust between this client and {where} (kafka.ssl_ca: {trusted}): {error.str()}")
    return None


def _unwanted(config: Mapping[str, Any]) -> str:
    """Say what is wrong with the certificate that we showed."""
    certificate = config.get("ssl.certificate.location")
    if not certificate:
        return "wants a client certificate, and kafka.ssl_certificate names none"
    flaw = flaw_of(certificate, config.get("ssl.key.location", ""))
    why = flaw or "its authority may be none that the brokers trust"
    return f"refuses the client certificate (kafka.ssl_certificate: {certificate}): {why}"


def failure(error: KafkaError, doing: str, needed: Iterable[Right] = ()) -> TelltaleError:
    """Return AccessError if a broker does not authorise a call, else TransientError.

    needed: the rights that the call needs; that of the kind the error is about is named.
    """
    kind = _KINDS.get(error.code())
    if kind is None:
        return TransientError(f"{doing}: {error.str()}")
    missing = " or ".join(str(right) for right in needed if right.kind == kind) or f"a right on a {kind}"
    return AccessError(f"not authorised: this principal lacks {missing} ({doing}): {error.str()}")
