"""The least rights of each service, as files an administrator loads: topics and ACLs for Kafka, ACL users for Redis.

Made of the names and scripts in the code, so that they follow it. Knows no password: those are the administrator's.
"""

import shlex
from collections.abc import Iterable, Iterator

from stream.kafka_access import Right
from stream.settings import RedisSettings, TopicSettings
from stream.topics import ALL, USES, group_name, topic_config, topic_name
from stream.window_store import READER_COMMANDS, WRITER_COMMANDS

# Services that join a group under its name and commit transactions.
_TRANSACTIONAL = ("windower", "worker", "archiver", "drift")
_REDIS_COMMANDS = {"windower": WRITER_COMMANDS, "worker": READER_COMMANDS}
_OPTIONS = {"topic": "--topic", "group": "--group", "transactional id": "--transactional-id"}


def principal(topics: TopicSettings, service: str) -> str:
    """Return the Kafka user of a service: the name of its group."""
    return group_name(topics, service)


def kafka_rights(topics: TopicSettings, service: str) -> list[Right]:
    """Return what a service must be allowed on the brokers, no more: Read and Write bring Describe with them."""
    use = USES[service]
    rights = [Right("Read", "topic", topic_name(topics, topic)) for topic in use.reads]
    rights += [Right("Write", "topic", topic_name(topics, topic)) for topic in use.writes]
    if service in _TRANSACTIONAL:
        group = group_name(topics, service)
        rights.append(Right("Read", "group", group))
        # Every instance has an id of its own that begins so.
        rights.append(Right("Write", "transactional id", f"{group}-", prefixed=True))
    if service == "retrainer":
        # Membership says which families are its own.
        rights.append(Right("Read", "group", group_name(topics, service)))
    if service == "windower":
        # It waits where it would overwrite what the worker has not scored.
        rights.append(Right("Describe", "group", group_name(topics, "worker")))
    return rights


def redis_user(redis: RedisSettings, service: str) -> str:
    """Return the ACL user of a service."""
    return f"{redis.prefix}-{service}"


def redis_rules(redis: RedisSettings, service: str) -> list[str]:
    """Return the rules of a service's ACL user, without a password."""
    keys = "%RW" if service == "windower" else "%R"
    commands = [f"+{command.lower().replace(' ', '|')}" for command in _REDIS_COMMANDS[service]]
    return ["resetchannels", f"{keys}~{{{redis.prefix}:*", *commands]


def render_redis(redis: RedisSettings) -> str:
    """Return an ACL file: no user can log in until it is given a password, and the default user never."""
    users = [["user", redis_user(redis, s), "reset", "on", *redis_rules(redis, s)] for s in _REDIS_COMMANDS]
    return "\n".join(["user default off", *map(" ".join, users)]) + "\n"


def render_kafka(topics: TopicSettings) -> str:
    """Return a shell script of Kafka's own tools that makes the topics and gives the rights."""
    return "\n".join([_HEAD, *_topic_lines(topics), *_acl_lines(topics)]) + "\n"


_HEAD = """\
#!/bin/sh
# Makes the topics and gives each service its rights. Make the users' passwords with kafka-configs.sh.
set -eu
: "${BOOTSTRAP:?brokers, host:port}" "${ADMIN_CONFIG:?file with the client settings of an administrator}"
run() { tool=$1; shift; "$tool" --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN_CONFIG" "$@"; }
topic() { run kafka-topics.sh --create --if-not-exists "$@"; }
allow() { run kafka-acls.sh --add --allow-principal "$@"; }
"""


def _topic_lines(topics: TopicSettings) -> Iterator[str]:
    counts = ["--partitions", str(topics.partitions), "--replication-factor", str(topics.replication)]
    for topic in ALL:
        config = [word for name, value in topic_config(topic).items() for word in ("--config", f"{name}={value}")]
        yield _line("topic", ["--topic", topic_name(topics, topic), *counts, *config])


def _acl_lines(topics: TopicSettings) -> Iterator[str]:
    for service in USES:
        for right in kafka_rights(topics, service):
            pattern = ["--resource-pattern-type", "prefixed"] if right.prefixed else []
            resource = [_OPTIONS[right.kind], right.name]
            user = f"User:{principal(topics, service)}"
            yield _line("allow", [user, "--operation", right.operation, *pattern, *resource])


def _line(command: str, words: Iterable[str]) -> str:
    return f"{command} {shlex.join(words)}"
