"""Kafka behind closed doors, for tests: TLS by certificates made here, users with passwords, least rights."""

import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization

from deploy import local_kafka, processes
from deploy.access import principal, render_kafka
from deploy.kafka_jars import default_cache_dir, ensure_jars
from stream.kafka import make_admin, wait_for_broker
from stream.kafka_access import Right
from stream.settings import KafkaSettings, TopicSettings
from stream.topics import USES
from tests.pipeline import wait_for

ADMIN = "admin"
# Any of them in an output is a leak.
CANARY = "canary"
READY_S = 60.0
_ANSWER_S = 20.0
# A broker hears of a change of its ACLs after the change is answered.
_HEARD_S = 0.2
_KINDS = {
    "--topic": "topic",
    "--group": "group",
    "--transactional-id": "transactional id",
}


def password() -> str:
    """Return a new password that a search for canaries finds."""
    return f"{CANARY}-{secrets.token_hex(8)}"


class Certificates(NamedTuple):
    """PEM files: an authority, a server at localhost it vouches for, and an authority that vouches for nobody."""

    authority: Path
    stranger: Path
    server: Path
    server_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make certificates."""
    return make_authorities(folder)[0]


def make_authorities(folder: Path) -> tuple[Certificates, trustme.CA, trustme.CA]:
    """Make certificates; return those who vouch too: the authority and the stranger."""
    made = Certificates(*(folder / name for name in ("ca.pem", "stranger.pem", "server.pem", "server.key")))
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(made.authority))
    stranger.cert_pem.write_to_path(str(made.stranger))
    keep(authority.issue_cert("localhost", "127.0.0.1", common_name=ADMIN), made.server, made.server_key)
    return made, authority, stranger


def keep(issued: trustme.LeafCert, certificate: Path, key: Path) -> None:
    """Write a certificate and its key."""
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    private = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    # The one format that Kafka reads.
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(pem, pkcs8, plain))


class Tool(NamedTuple):
    """A call of one of Kafka's own tools: its name and its options with their values."""

    name: str
    options: dict[str, str]


def tool_calls(script: str, folder: Path) -> list[Tool]:
    """Run a shell script with stand-ins for Kafka's tools and return how it called them."""
    record, file = folder / "calls", folder / "access.sh"
    file.write_text(script)
    for name in ("kafka-topics.sh", "kafka-acls.sh"):
        tool = folder / name
        tool.write_text('#!/bin/sh\n{ basename "$0"; printf "%s\\n" "$@"; echo; } >> "$RECORD"\n')
        tool.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(record)}
    given = {"BOOTSTRAP": "localhost:1", "ADMIN_CONFIG": "admin.properties"}
    subprocess.run(["sh", str(file)], env={**environment, **given}, check=True)
    return [_tool(call.split("\n")) for call in record.read_text().removesuffix("\n\n").split("\n\n")]


def _tool(words: list[str]) -> Tool:
    options: dict[str, str] = {}
    for word in words[1:]:
        if word.startswith("--"):
            last = word
            options[last] = ""
        else:
            options[last] = word
    return Tool(words[0], options)


class SecuredKafka:
    """A broker that speaks TLS only, wants SCRAM logins, and allows nothing that no ACL allows."""

    def __init__(self, bootstrap: str, certificates: Certificates, folder: Path, admin_password: str) -> None:
        self.certificates = certificates
        self.bootstrap = bootstrap
        self._folder = folder
        self._passwords = {ADMIN: admin_password}

    def password(self, user: str) -> str:
        return self._passwords[user]

    def password_file(self, user: str) -> Path:
        file = self._folder / f"{user}.password"
        file.write_text(self.password(user) + "\n")
        return file

    def settings(self, user: str, **more: Any) -> dict[str, Any]:
        """Return the section `kafka` of a user's settings."""
        login = {"sasl_username": user, "sasl_password_file": str(self.password_file(user))}
        secured = {"security_protocol": "SASL_SSL", "ssl_ca": str(self.certificates.authority)}
        return {"bootstrap": self.bootstrap, **secured, **login, **more}

    @cached_property
    def admin(self) -> AdminClient:
        return make_admin(KafkaSettings(**self.settings(ADMIN)))

    def add_users(self, topics: TopicSettings) -> None:
        """Make the users of all services."""
        users = [principal(topics, service) for service in USES]
        self._passwords |= {user: password() for user in users}
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        made = [UserScramCredentialUpsertion(user, info, self.password(user).encode()) for user in users]
        for done in self.admin.alter_user_scram_credentials(made).values():
            done.result(_ANSWER_S)

    def load(self, topics: TopicSettings) -> None:
        """Do what the rendered script says, as an administrator who runs it would."""
        calls, admin = tool_calls(render_kafka(topics), self._folder), self.admin
        new = [
            NewTopic(options["--topic"], int(options["--partitions"]), int(options["--replication-factor"]))
            for tool, options in calls
            if tool == "kafka-topics.sh"
        ]
        for done in admin.create_topics(new).values():
            done.result(_ANSWER_S)
        bindings = [_of_call(options) for tool, options in calls if tool == "kafka-acls.sh"]
        for done in admin.create_acls(bindings).values():
            done.result(_ANSWER_S)

    @contextmanager
    def without(self, user: str, right: Right) -> Iterator[None]:
        """Take one right from a user while the block runs."""
        admin, binding = self.admin, _binding(user, right)
        wanted = AclBindingFilter(*binding._to_tuple())
        taken = next(iter(admin.delete_acls([wanted]).values())).result(_ANSWER_S)
        assert len(taken) == 1, f"{user} had no {right}"
        time.sleep(_HEARD_S)
        try:
            yield
        finally:
            for done in admin.create_acls([binding]).values():
                done.result(_ANSWER_S)
            time.sleep(_HEARD_S)


def _binding(user: str, right: Right) -> AclBinding:
    return AclBinding(
        right.kind.replace(" ", "_"),
        right.name,
        ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        right.operation,
        AclPermissionType.ALLOW,
    )


def _of_call(options: dict[str, str]) -> AclBinding:
    kind, name = next((kind, options[option]) for option, kind in _KINDS.items() if option in options)
    right = Right(options["--operation"], kind, name, options.get("--resource-pattern-type") == "prefixed")
    return _binding(options["--allow-principal"].removeprefix("User:"), right)


@contextmanager
def secured_kafka(
    folder: Path,
    certificates: Certificates,
    kind: type[SecuredKafka] = SecuredKafka,
    more_settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[SecuredKafka]:
    """Run a broker of this block's own. A run of the tests that is killed leaves its folder's `stack.json` behind."""
    port, controller_port, admin_password = processes.free_port(), processes.free_port(), password()
    process = local_kafka.launch(
        folder / "kafka",
        port,
        controller_port,
        ensure_jars(default_cache_dir()),
        more_settings={**_doors(port, controller_port, certificates, admin_password), **more_settings},
        format_arguments=["--add-scram", f"SCRAM-SHA-512=[name={ADMIN},password={admin_password}]"],
    )
    known = {"port": port, "controller_port": controller_port, "process": process}
    (folder / "stack.json").write_bytes(msgspec.json.encode({"kafka": known}))
    try:
        kafka = kind(f"localhost:{port}", certificates, folder, admin_password)
        _wait_until_ready(kafka, port)
        yield kafka
    finally:
        processes.stop(process, grace_s=0)


def _wait_until_ready(kafka: SecuredKafka, port: int) -> None:
    wait_for(lambda: processes.accepts_connections(port), "a broker that listens", READY_S)
    wait_for_broker(KafkaSettings(**kafka.settings(ADMIN)), READY_S)


def _doors(port: int, controller_port: int, certificates: Certificates, admin_password: str) -> dict[str, str]:
    """Return what of `server.properties` closes the doors; the controller's port is only the broker's own."""
    chain = certificates.server.with_suffix(".chain.pem")
    chain.write_text(certificates.server_key.read_text() + certificates.server.read_text())
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return {
        "listeners": f"SECURE://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"SECURE://localhost:{port}",
        "listener.security.protocol.map": "SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "SECURE",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": (
            f'{module} required username="{ADMIN}" password="{admin_password}";'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(chain),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.authority),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN};User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }
