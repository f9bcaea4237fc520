import os
from typing import get_args

import pytest
from pydantic import BaseModel

from stream.errors import UsageError
from stream.grid import Geometry
from stream.settings import FamilySettings, Settings, load_settings

SECRET = "hunter2"  # noqa: S105 the word to look for
FAMILY = {"name": "rover", "numeric": ["a", "b"], "commands": ["c"]}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("TELLTALE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toml(tmp_path):
    def write(text):
        (tmp_path / "telltale.toml").write_text(text)

    return write


def sections(model=Settings):
    """Yield every settings class of the tree."""
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


def test_the_tree_has_the_sections_this_file_thinks_it_has():
    assert len(list(sections())) == 12


@pytest.mark.parametrize("model", list(sections()), ids=lambda model: model.__name__)
def test_every_setting_is_described(model):
    undescribed = [
        name
        for name, field in model.model_fields.items()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    assert undescribed == []
    assert model.__doc__


@pytest.mark.parametrize("model", list(sections()), ids=lambda model: model.__name__)
def test_no_setting_can_be_misspelt_or_changed_while_running(model):
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]


def test_flags_beat_environment_beats_toml_beats_defaults(toml, monkeypatch):
    default = load_settings().kafka
    toml("[kafka]\nbootstrap = 'file:1'\nqueue_mib = 7\nreconnect_deadline_s = 8\n")
    monkeypatch.setenv("TELLTALE_KAFKA__BOOTSTRAP", "environment:1")
    monkeypatch.setenv("TELLTALE_KAFKA__QUEUE_MIB", "9")
    kafka = load_settings(kafka={"bootstrap": "flag:1"}).kafka
    assert (kafka.bootstrap, kafka.queue_mib, kafka.reconnect_deadline_s) == ("flag:1", 9, 8.0)
    assert kafka.transaction_timeout_ms == default.transaction_timeout_ms
    assert load_settings().kafka.bootstrap == "environment:1"
    monkeypatch.delenv("TELLTALE_KAFKA__BOOTSTRAP")
    assert load_settings().kafka.bootstrap == "file:1"


def test_an_empty_variable_is_no_setting(toml, monkeypatch):
    toml("deployment = 'prod'\n")
    monkeypatch.setenv("TELLTALE_DEPLOYMENT", "")
    assert load_settings().deployment == "prod"


def test_the_file_that_is_named_is_read_and_must_be_there(tmp_path, toml, monkeypatch):
    toml("deployment = 'default-file'\n")
    named = tmp_path / "other.toml"
    monkeypatch.setenv("TELLTALE_CONFIG", str(named))
    with pytest.raises(UsageError, match=r"TELLTALE_CONFIG names .*other\.toml, which is not a file"):
        load_settings()
    named.write_text("deployment = 'named'\n")
    assert load_settings().deployment == "named"


def test_families_come_from_the_file_or_as_json(toml, monkeypatch):
    toml("[[families]]\nname = 'rover'\nnumeric = ['a']\n[[families]]\nname = 'server'\nnumeric = ['b']\n")
    assert [family.name for family in load_settings().families] == ["rover", "server"]
    monkeypatch.setenv("TELLTALE_FAMILIES", '[{"name": "probe", "numeric": ["x"], "hop": 32}]')
    assert load_settings().families[0].geometry == Geometry(hop=32)


def test_every_problem_is_named_in_one_message(toml, monkeypatch):
    toml("[kafka]\ngroup_protocol = 'new'\n[[families]]\nname = 'a b'\nnumeric = []\n")
    monkeypatch.setenv("TELLTALE_METRICS__PORT", "99999")
    monkeypatch.setenv("TELLTALE_KAFKA__BOOTSTRAPS", "x:1")
    with pytest.raises(UsageError) as caught:
        load_settings(worker={"device": "tpu"}, limits={"max_record_bytes": "many"})
    text = str(caught.value)
    assert text.startswith("7 wrong setting(s):\n")
    for place in (
        "kafka.group_protocol",
        "kafka.bootstraps",
        "families.0.name",
        "families.0.numeric",
        "metrics.port",
        "worker.device",
        "limits.max_record_bytes",
    ):
        assert f"  {place}: " in text
    assert "(got 'tpu')" in text
    assert "(got 'many')" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"numeric": ["a", "c"]}, "channels named twice: c"),
        ({"hop": 0}, "hop wants 1 to length"),
        ({"hop": 100}, "length wants a multiple of hop"),
        ({"length": 4, "slack": 1}, "length wants at least 8"),
        ({"slack": 10}, "slack wants at least"),
    ],
)
def test_a_family_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(UsageError, match=f"families.0: .*{said}"):
        load_settings(families=[{**FAMILY, **changes}])


def test_two_families_with_one_name_are_refused():
    with pytest.raises(UsageError, match="family names repeat: rover, rover"):
        load_settings(families=[FAMILY, FAMILY])


@pytest.mark.parametrize("text", ["[kafka", "deployment = 'a'\ndeployment = 'b'\n", "deployment = \xff"])
def test_a_file_that_is_not_toml_is_bad_usage(tmp_path, text):
    (tmp_path / "telltale.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="settings can't be read"):
        load_settings()


def test_a_variable_that_is_not_json_is_bad_usage(monkeypatch):
    monkeypatch.setenv("TELLTALE_FAMILIES", "rover")
    with pytest.raises(UsageError, match="settings can't be read"):
        load_settings()


URL = f"redis://user:{SECRET}@host:6379/0"


@pytest.mark.parametrize(
    ("environment", "flags"),
    [
        ({"TELLTALE_REDIS": URL}, {}),
        ({"TELLTALE_REDIS__PASSWORD": SECRET}, {}),
        ({"TELLTALE_KAFKA__SASL_PASSWORD": SECRET}, {}),
        ({}, {"redis": URL}),
        ({}, {"redis": {"url": [SECRET]}}),
        ({}, {"redis": {"url": URL, "prefix": "a b"}}),
        ({}, {"password": SECRET}),
        ({"TELLTALE_REDIS__URL": URL, "TELLTALE_REDIS__TIMEOUT_S": "0"}, {}),
    ],
)
def test_no_message_shows_a_secret(monkeypatch, environment, flags):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        load_settings(**flags)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_rendering_of_the_settings_shows_a_secret(monkeypatch):
    monkeypatch.setenv("TELLTALE_REDIS__URL", URL)
    settings = load_settings()
    assert settings.redis.url.get_secret_value() == URL
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in text


def test_a_rows_order_is_numeric_channels_then_commands():
    assert FamilySettings(**FAMILY).channels == ("a", "b", "c")


def test_the_first_family_whose_pattern_fits_has_the_entity():
    settings = load_settings(
        families=[
            {**FAMILY, "name": "probe", "entities": "probe-[0-9]*"},
            {**FAMILY, "name": "rest"},
        ]
    )
    named = {entity: settings.family_of(entity).name for entity in ("probe-1", "probe-x", "Probe-1", "any/thing")}
    assert named == {"probe-1": "probe", "probe-x": "rest", "Probe-1": "rest", "any/thing": "rest"}
    assert load_settings(families=[{**FAMILY, "entities": "x*"}]).family_of("y") is None


@pytest.mark.parametrize(
    "change",
    [{"numeric": ["b", "a"]}, {"commands": []}, {"slack": 2048}, {"hop": 32}, {"interval_ms": 500}, {"lateness": 3}],
)
def test_what_lies_differently_in_the_store_has_another_layout(change):
    assert load_settings(families=[{**FAMILY, **change}]).layout != load_settings(families=[FAMILY]).layout


def test_the_layout_is_the_same_wherever_it_is_asked_for(monkeypatch):
    here = load_settings(families=[FAMILY]).layout
    monkeypatch.setenv("TELLTALE_INSTANCE", "7")
    assert load_settings(families=[{**FAMILY, "entities": "rover-*"}]).layout == here


LOGIN = {"sasl_username": "me", "sasl_password": SECRET}


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("kafka", {"security_protocol": "SASL_SSL"}, "security_protocol SASL_SSL wants sasl_username and its password"),
        ("kafka", {"security_protocol": "SASL_SSL", "sasl_username": "me"}, "sasl_username is set without a password"),
        ("kafka", {"security_protocol": "SASL_SSL", "sasl_password": SECRET}, "set without sasl_username"),
        (
            "kafka",
            {"security_protocol": "SASL_SSL", **LOGIN, "sasl_password_file": "f"},
            "sasl_password and sasl_password_file are both set: keep one",
        ),
        ("kafka", LOGIN, "with security_protocol PLAINTEXT nobody logs in: set SASL_SSL"),
        ("kafka", {"security_protocol": "SSL", **LOGIN}, "with security_protocol SSL nobody logs in"),
        ("kafka", {"ssl_ca": "ca.pem"}, "ssl_ca is set, but security_protocol PLAINTEXT has no TLS"),
        ("kafka", {"security_protocol": "SASL_PLAINTEXT", **LOGIN, "ssl_ca": "ca.pem"}, "has no TLS"),
        ("kafka", {"security_protocol": "SSL", "ssl_key": "k"}, "ssl_certificate and ssl_key want each other"),
        ("kafka", {"security_protocol": "TLS"}, "should match pattern"),
        ("kafka", {"sasl_mechanism": "SCRAM"}, "should match pattern"),
        ("redis", {"url": "redis://h", "ca": "ca.pem"}, "ca is set, but url is no rediss:// URL"),
        ("redis", {"url": "rediss://h", "certificate": "c"}, "certificate and key want each other"),
        (
            "redis",
            {"url": f"redis://u:{SECRET}@h", "username": "u", "password": SECRET},
            "url has a user too: name one",
        ),
        ("redis", {"url": "redis://h", "username": "u"}, "username is set without a password"),
        ("redis", {"url": "redis://h", "password": SECRET}, "password is set without username"),
    ],
)
def test_a_login_that_makes_no_sense_is_refused_in_one_sentence(section, values, said):
    with pytest.raises(UsageError) as caught:
        load_settings(**{section: values})
    text = str(caught.value)
    assert text.startswith("1 wrong setting(s):\n")
    assert len(text.splitlines()) == 2
    assert said in text
    assert SECRET not in text


@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"])
def test_every_login_that_makes_sense_is_taken(protocol, mechanism):
    kafka = load_settings(kafka={"security_protocol": protocol, "sasl_mechanism": mechanism, **LOGIN}).kafka
    assert (kafka.sasl_username, kafka.sasl_password.get_secret_value()) == ("me", SECRET)


def test_what_is_shown_of_a_wrong_setting_has_no_secret_of_a_url():
    with pytest.raises(UsageError) as caught:
        load_settings(kafka={"group_protocol": f"s3://me:{SECRET}@bucket"})
    assert SECRET not in str(caught.value)
