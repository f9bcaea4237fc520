from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream.errors import AccessError, TransientError, UsageError
from stream.settings import TopicSettings
from stream.topics import (
    ALERTS,
    ALL,
    DECISIONS,
    MODELS,
    TELEMETRY,
    USES,
    WINDOWS,
    ensure_topics,
    group_name,
    topic_name,
)

SETTINGS = TopicSettings(prefix="prod.", partitions=3, replication=2)


class Admin:
    """A broker as an AdminClient sees it: topics and their numbers of partitions."""

    def __init__(self, topics=(), failing_with=None):
        self.topics = dict(topics)
        self.made = {}
        self._failing_with = failing_with

    def create_topics(self, new, **_):
        return {topic.topic: self._create(topic) for topic in new}

    def _create(self, topic):
        future = Future()
        error = self._failing_with
        if topic.topic in self.topics:
            error = KafkaError.TOPIC_ALREADY_EXISTS
        if error is None:
            self.topics[topic.topic] = topic.num_partitions
            self.made[topic.topic] = topic
            future.set_result(None)
        else:
            future.set_exception(KafkaException(KafkaError(error)))
        return future

    def list_topics(self, **_):
        if self._failing_with:
            raise KafkaException(KafkaError(self._failing_with))
        found = {name: SimpleNamespace(partitions=dict.fromkeys(range(n))) for name, n in self.topics.items()}
        return SimpleNamespace(topics=found)


def test_every_topic_has_a_name_of_its_own_under_the_prefix():
    names = [topic_name(SETTINGS, topic) for topic in ALL]
    assert len(set(names)) == len(ALL)
    assert all(name.startswith("prod.") for name in names)
    assert topic_name(TopicSettings(), TELEMETRY) == "telemetry"


def test_services_of_two_installations_are_in_different_groups():
    groups = {group_name(TopicSettings(prefix=p), service) for p in ("", "a.") for service in ("worker", "windower")}
    assert len(groups) == 4


def test_what_is_missing_is_made_as_the_settings_say():
    admin = Admin({"prod.telemetry": 3})
    ensure_topics(admin, SETTINGS)
    assert set(admin.made) == {topic_name(SETTINGS, topic) for topic in ALL} - {"prod.telemetry"}
    assert {(t.num_partitions, t.replication_factor) for t in admin.made.values()} == {(3, 2)}


def test_state_is_compacted_and_events_are_kept_for_a_time():
    admin = Admin()
    ensure_topics(admin, SETTINGS)
    for topic in ALL:
        config = admin.made[topic_name(SETTINGS, topic)].config
        wanted = (
            {"cleanup.policy": "compact"} if topic in (DECISIONS, MODELS) else {"retention.ms": str(topic.retention_ms)}
        )
        assert config == wanted


def test_telemetry_is_kept_at_least_as_long_as_what_is_rebuilt_from_it():
    assert WINDOWS.retention_ms <= TELEMETRY.retention_ms <= ALERTS.retention_ms


def test_making_topics_again_changes_nothing():
    admin = Admin()
    ensure_topics(admin, SETTINGS)
    before = dict(admin.made)
    ensure_topics(admin, SETTINGS)
    assert admin.made == before


def test_entities_keep_their_partition_from_topic_to_topic():
    admin = Admin({"prod.telemetry": 8, "unrelated": 1})
    with pytest.raises(UsageError, match=r"want the same number of partitions, but .*prod\.telemetry has 8"):
        ensure_topics(admin, SETTINGS)


def test_other_peoples_topics_do_not_count():
    ensure_topics(Admin({"unrelated": 1, "telemetry": 9}), SETTINGS)


def test_a_broker_that_is_away_is_not_our_fault():
    with pytest.raises(TransientError, match="can't list topics"):
        ensure_topics(Admin(failing_with=KafkaError._TIMED_OUT), SETTINGS)


class StrictAdmin(Admin):
    """A broker that lets this principal see some topics, and make none."""

    def _create(self, topic):
        future = Future()
        future.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
        self.made[topic.topic] = topic
        return future


@pytest.mark.parametrize("service", USES)
def test_a_service_that_sees_its_own_topics_asks_for_nothing_more(service):
    own = {topic_name(SETTINGS, topic): 3 for topic in (*USES[service].reads, *USES[service].writes)}
    admin = StrictAdmin(own)
    ensure_topics(admin, SETTINGS, service=service)
    assert admin.made == {}


@pytest.mark.parametrize(("topic", "right"), [(TELEMETRY, "Read"), (WINDOWS, "Write")])
def test_a_topic_that_a_service_neither_sees_nor_may_make_is_named_with_the_right(topic, right):
    name = topic_name(SETTINGS, topic)
    own = {topic_name(SETTINGS, one): 3 for one in (*USES["windower"].reads, *USES["windower"].writes)}
    del own[name]
    with pytest.raises(AccessError, match=rf"{right} on topic {name}.* or Create on topic {name}"):
        ensure_topics(StrictAdmin(own), SETTINGS, service="windower")


def test_whoever_may_make_topics_makes_all_of_them():
    admin = Admin()
    ensure_topics(admin, SETTINGS, service="replay")
    assert len(admin.made) == len(ALL)


def test_every_topic_is_used_by_somebody():
    assert {topic for use in USES.values() for topic in (*use.reads, *use.writes)} == set(ALL)


def test_a_broker_that_does_not_answer_in_time_may_answer_later():
    admin = Admin()
    admin.create_topics = lambda new, **_: {topic.topic: Future() for topic in new}
    with pytest.raises(TransientError, match=r"can't create topic prod\.\w+: no answer within 0 s"):
        ensure_topics(admin, SETTINGS, timeout_s=0.01)
