import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.access import kafka_rights, principal, redis_rules, render_kafka, render_redis
from stream.kafka_access import Right
from stream.settings import RedisSettings, TopicSettings
from stream.topics import ALL, MODELS, USES, topic_name
from tests.secured import tool_calls

TOPICS = TopicSettings(prefix="prod.", partitions=3, replication=2)
KINDS = {"--topic": "topic", "--group": "group", "--transactional-id": "transactional id"}


def rights_of(calls):
    """Return user and right of each call of kafka-acls.sh."""
    for tool, options in calls:
        if tool == "kafka-acls.sh":
            option = next(option for option in KINDS if option in options)
            prefixed = options.get("--resource-pattern-type") == "prefixed"
            right = Right(options["--operation"], KINDS[option], options[option], prefixed)
            yield options["--allow-principal"], right


def test_the_script_gives_every_right_and_no_other(tmp_path):
    calls = tool_calls(render_kafka(TOPICS), tmp_path)
    wanted = [(f"User:{principal(TOPICS, s)}", right) for s in USES for right in kafka_rights(TOPICS, s)]
    assert list(rights_of(calls)) == wanted
    assert all(
        {"--bootstrap-server", "--command-config", "--add"} <= o.keys() for t, o in calls if t == "kafka-acls.sh"
    )


def test_the_script_makes_every_topic_as_the_services_would(tmp_path):
    made = [options for tool, options in tool_calls(render_kafka(TOPICS), tmp_path) if tool == "kafka-topics.sh"]
    assert [options["--topic"] for options in made] == [topic_name(TOPICS, topic) for topic in ALL]
    assert {(options["--partitions"], options["--replication-factor"]) for options in made} == {("3", "2")}


@pytest.mark.parametrize("service", USES)
def test_nobody_may_create_delete_alter_or_everything(service):
    rights = kafka_rights(TOPICS, service)
    assert {right.operation for right in rights} <= {"Read", "Write", "Describe"}
    assert all(right.name.startswith("prod.") for right in rights)
    assert [right for right in rights if right.prefixed and right.kind != "transactional id"] == []


def test_each_topic_is_written_by_one_service():
    for topic in set(ALL):  # whose writer is the drift service
        assert len([service for service, use in USES.items() if topic in use.writes]) == (2 if topic is MODELS else 1)


@given(prefix=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True))
def test_the_acl_file_lets_nobody_in_before_a_password_is_given(prefix):
    lines = render_redis(RedisSettings(prefix=prefix)).splitlines()
    assert lines[0] == "user default off"
    for line in lines[1:]:
        word, _, first, *rules = line.split(" ")
        assert (word, first) == ("user", "reset")
        assert not any(rule.startswith((">", "#", "nopass", "allkeys", "allcommands", "+@")) for rule in rules)


def test_users_are_kept_to_the_keys_of_the_store():
    keys = {service: redis_rules(RedisSettings(prefix="a"), service)[1] for service in ("windower", "worker")}
    assert keys == {"windower": "%RW~{a:*", "worker": "%R~{a:*"}


def test_no_user_is_given_a_dangerous_command():
    dangerous = r"\+(keys|flush|config|acl|debug|shutdown|eval |script |script$|eval$|client|save|del|monitor)"
    assert re.search(dangerous, render_redis(RedisSettings())) is None
