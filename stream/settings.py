"""The settings tree: defaults < TOML file < environment < flags. Owns validation; opens no connection.

The TOML file is named by TELLTALE_CONFIG (default `telltale.toml` in the working directory, if it is there).
Environment variables are `TELLTALE_` and the path joined by `__`: `TELLTALE_KAFKA__BOOTSTRAP`.
"""

import fnmatch
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from stream.credentials import check_login, check_pair, refuse_nonsense
from stream.errors import UsageError
from stream.grid import Geometry
from stream.logs import redacted
from stream.retraining_settings import RetrainingSettings
from stream.section import Section

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class KafkaSettings(Section):
    """The brokers. An empty bootstrap means: use the local stack that is running."""

    bootstrap: str = Field("", description="host:port of one or more brokers, comma separated")
    reconnect_deadline_s: float = Field(60.0, gt=0, description="give up after so long without a broker")
    session_timeout_ms: int | None = Field(
        None, gt=0, description="classic protocol only; the broker's default if unset"
    )
    group_protocol: str = Field(
        "consumer", pattern="^(consumer|classic)$", description="KIP-848 or the classic protocol"
    )
    transaction_timeout_ms: int = Field(15_000, ge=1000, description="an orphaned transaction blocks readers so long")
    queue_mib: int = Field(64, ge=1, description="memory for records fetched ahead, per consumer")
    security_protocol: str = Field(
        "PLAINTEXT", pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$", description="TLS by SSL, a login by SASL"
    )
    sasl_mechanism: str = Field(
        "SCRAM-SHA-512", pattern="^(SCRAM-SHA-256|SCRAM-SHA-512|PLAIN)$", description="how the password is shown"
    )
    sasl_username: str = Field("", description="the principal that the broker's rights are given to")
    sasl_password: SecretStr = Field(SecretStr(""), description="its password")
    sasl_password_file: str = Field("", description="file with the password, instead of sasl_password")
    ssl_ca: str = Field("", description="PEM file of the authorities to trust; the system's if empty")
    ssl_certificate: str = Field("", description="PEM file of a client certificate, if the broker wants one")
    ssl_key: str = Field("", description="PEM file of its private key")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        refuse_nonsense(
            check_login(self.sasl_username, self.sasl_password, self.sasl_password_file, "sasl_"),
            check_pair(self.ssl_certificate, self.ssl_key, "ssl_"),
            *_check_protocol(self),
        )
        return self


class RedisSettings(Section):
    """The window store. An empty URL means: use the local stack that is running."""

    url: SecretStr = Field(SecretStr(""), description="redis[s]://[user:password@]host:port/db; rediss:// is TLS")
    username: str = Field("", description="ACL user, if the URL names none")
    password: SecretStr = Field(SecretStr(""), description="its password")
    password_file: str = Field("", description="file with the password, instead of password")
    ca: str = Field("", description="PEM file of the authorities to trust; the system's if empty")
    certificate: str = Field("", description="PEM file of a client certificate, if the server wants one")
    key: str = Field("", description="PEM file of its private key")
    prefix: str = Field("telltale", pattern=_NAME, description="start of every key")
    timeout_s: float = Field(5.0, gt=0, description="a command that takes longer counts as failed")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        refuse_nonsense(
            check_login(self.username, self.password, self.password_file, ""),
            check_pair(self.certificate, self.key, ""),
            *_check_url(self),
        )
        return self


def _check_protocol(kafka: KafkaSettings) -> Iterator[str]:
    protocol = kafka.security_protocol
    logs_in = "sasl_username" if kafka.sasl_username else "sasl_password" if _has_password(kafka) else ""
    if "SASL" in protocol and not kafka.sasl_username:
        yield f"security_protocol {protocol} wants sasl_username and its password"
    if "SASL" not in protocol and logs_in:
        yield f"{logs_in} is set, but with security_protocol {protocol} nobody logs in: set SASL_SSL"
    files = next((name for name in ("ssl_ca", "ssl_certificate", "ssl_key") if getattr(kafka, name)), "")
    if "SSL" not in protocol and files:
        yield f"{files} is set, but security_protocol {protocol} has no TLS: set SSL or SASL_SSL"


def _has_password(kafka: KafkaSettings) -> bool:
    return bool(kafka.sasl_password.get_secret_value() or kafka.sasl_password_file)


def _check_url(settings: RedisSettings) -> Iterator[str]:
    url = settings.url.get_secret_value()
    named = next((name for name in ("ca", "certificate", "key") if getattr(settings, name)), "")
    if named and not url.startswith("rediss://"):
        yield f"{named} is set, but url is no rediss:// URL: nothing would be encrypted"
    if settings.username and "@" in url:
        yield "username is set, and url has a user too: name one"


class TopicSettings(Section):
    """How the topics are named and made."""

    prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="put before every topic and group name")
    partitions: int = Field(4, ge=1, description="partitions of telemetry, windows, scores and alerts")
    replication: int = Field(1, ge=1, description="replication factor of topics made by telltale")


class LimitSettings(Section):
    """What is refused at the door."""

    max_record_bytes: int = Field(262_144, ge=64, description="a larger telemetry record is dead-lettered undecoded")
    max_entities_per_partition: int = Field(25_000, ge=1, description="records of entities beyond are dead-lettered")
    new_entities_per_minute: int = Field(
        5000, ge=1, description="of a partition, by the records' Kafka time stamps; records beyond are dead-lettered"
    )
    dead_letters_per_s: float = Field(
        100.0, gt=0, description="for each reason and windower; refused records beyond are counted and told together"
    )
    refused_share: float = Field(
        0.2, gt=0, le=1, description="of a family's records; more than this refused is an error in log and metrics"
    )


class MetricsSettings(Section):
    """Where Prometheus metrics and health probes are served."""

    host: str = Field("127.0.0.1", description="loopback unless you say otherwise: the endpoint has no login")
    port: int = Field(9464, ge=0, le=65_535, description="0 takes a free port")
    liveness_s: float = Field(30.0, gt=0, description="/livez fails when the loop has not ticked for so long")


class WorkerSettings(Section):
    """The scoring worker."""

    batch_windows: int = Field(64, ge=1, description="windows in one pass of the network")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes a GPU where there is one")
    threads: int = Field(0, ge=0, description="CPU threads of the network; 0 leaves the choice to torch")
    model_poll_s: float = Field(1.0, gt=0, description="how often the registry is asked for a new champion")


class ArchiveSettings(Section):
    """The telemetry archive: where it lies, how it is written and how much of it is kept."""

    url: str = Field("archive", min_length=1, description="folder or URL of the archive")
    flush_s: float = Field(60.0, gt=0, description="rows are in a file, and their offsets committed, after so long")
    buffer_mib: int = Field(32, ge=1, description="or as soon as so much of them waits in memory")
    file_mib: int = Field(
        128, ge=1, description="files are merged up to so much, as they lie in memory; a merge takes thrice that"
    )
    upkeep_s: float = Field(60.0, gt=0, description="how often files are merged and old ones removed")
    keep_days: int = Field(0, ge=0, description="days of telemetry to keep, by the rows' own time; 0 is all of them")
    keep_gib: float = Field(100.0, ge=0, description="size above which the oldest days are removed; 0 is no limit")


class DriftSettings(Section):
    """When a family's level counts as moved. A block is a model's window of slots, or several where rows remember."""

    window_blocks: int = Field(32, ge=4, description="newest blocks whose mean is compared with training")
    min_blocks: int = Field(
        8, ge=2, description="fewer blocks than these say nothing, nor does a shift that lasts less"
    )
    sigmas: float = Field(5.0, gt=0, description="standard errors from the training mean that the comparison wants")
    min_shift: float = Field(0.25, gt=0, description="deviations of rows; a smaller shift is none, however sure")
    delta: float = Field(0.002, gt=0, lt=1, description="how easily ADWIN sees a change in a series of block means")
    persist_blocks: int = Field(96, ge=1, description="blocks after which one test alone is believed")
    share: float = Field(0.2, gt=0, le=1, description="of a family's entities; if so many moved, it is drift")
    min_entities: int = Field(2, ge=1, description="moved entities that drift takes at least: one is an anomaly")
    cooldown_s: float = Field(86_400.0, ge=0, description="event time after an event in which its family has no other")
    max_merged: int = Field(16, ge=1, description="windows at most that are taken together as one block")


class FamilySettings(Section):
    """A set of entities with the same channels; one model per family."""

    name: str = Field(pattern=_NAME, description="also the name of its model in the registry")
    entities: str = Field("*", min_length=1, description="shell pattern of the entities' names; the first family wins")
    interval_ms: int = Field(1000, ge=1, description="distance of two slots of the event-time grid")
    numeric: list[str] = Field(min_length=1, description="channels that are reconstructed")
    commands: list[str] = Field(default=[], description="boolean channels that are the condition")
    length: int = Field(512, description="rows the model sees")
    hop: int = Field(64, description="new rows between two windows: the delay of a provisional score")
    lateness: int = Field(0, description="how many slots a row may lag behind the newest one")
    final_delay: int = Field(100, description="slots after which a score is final")
    slack: int = Field(1024, description="rows the windower may run ahead of the worker")
    max_jump: int = Field(86_400, description="slots from the newest row beyond which a time stamp is doubted")
    jump_rows: int = Field(5, description="doubted rows in a row that make a jump of the clock believed")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        repeated = sorted({c for c in self.channels if self.channels.count(c) > 1})
        if repeated:
            raise ValueError(f"channels named twice: {', '.join(repeated)}")
        _ = self.geometry
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """Order of a row in the window store: numeric channels, then commands."""
        return (*self.numeric, *self.commands)

    def matches(self, entity: str) -> bool:
        """Say whether the entity's name fits the pattern."""
        return fnmatch.fnmatchcase(entity, self.entities)

    @property
    def geometry(self) -> Geometry:
        """How this family's windows lie on the grid; raises ValueError where the numbers contradict each other."""
        return Geometry(
            length=self.length,
            hop=self.hop,
            lateness=self.lateness,
            final_delay=self.final_delay,
            slack=self.slack,
            max_jump=self.max_jump,
            jump_rows=self.jump_rows,
        )


class Settings(BaseSettings):
    """Everything a service needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="TELLTALE_", env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    deployment: str = Field("telltale", pattern=_NAME, description="names this installation in every alert")
    instance: str = Field("0", pattern=_NAME, description="names this process among those of its service")
    stop_deadline_s: float = Field(25.0, gt=0, description="a service asked to end has ended after so long, or exits")
    registry: str = Field("registry", min_length=1, description="folder or URL of the model registry")
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    topics: TopicSettings = TopicSettings()
    limits: LimitSettings = LimitSettings()
    metrics: MetricsSettings = MetricsSettings()
    worker: WorkerSettings = WorkerSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    archive: ArchiveSettings = ArchiveSettings()
    drift: DriftSettings = DriftSettings()
    families: Annotated[list[FamilySettings], Field(description="declared families, first match wins")] = []

    @field_validator("families")
    @classmethod
    def _distinct(cls, families: list[FamilySettings]) -> list[FamilySettings]:
        names = [family.name for family in families]
        if len(set(names)) < len(names):
            raise ValueError(f"family names repeat: {', '.join(sorted(names))}")
        return families

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, then environment, then the TOML file."""
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        return init_settings, env_settings, toml

    @property
    def layout(self) -> str:
        """A short name for how the declared families lie in the window store.

        What was stored under other channels or another geometry must not be read as if it were these.
        """
        families = [
            [f.name, f.interval_ms, f.channels, f.length, f.hop, f.lateness, f.final_delay, f.slack]
            for f in self.families
        ]
        return hashlib.blake2b(msgspec.json.encode(families), digest_size=6).hexdigest()

    def family_of(self, entity: str) -> FamilySettings | None:
        """Return the first declared family whose pattern fits the entity."""
        return next((family for family in self.families if family.matches(entity)), None)


def config_file() -> Path:
    """Return the TOML file in force: TELLTALE_CONFIG or `telltale.toml`; it need not exist unless named."""
    return Path(os.environ.get("TELLTALE_CONFIG") or "telltale.toml")


def load_settings(**flags: Any) -> Settings:
    """Read settings from all sources; flags win.

    Raises UsageError that lists every problem at once.
    """
    named = os.environ.get("TELLTALE_CONFIG")
    if named and not Path(named).is_file():
        raise UsageError(f"TELLTALE_CONFIG names {named}, which is not a file")
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None
    except (SettingsError, ValueError, OSError) as error:
        raise UsageError(f"settings can't be read: {error}") from None


def _explain(error: ValidationError) -> str:
    lines = [_problem(e) for e in error.errors(include_url=False)]
    return "\n".join([f"{len(lines)} wrong setting(s):", *lines])


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"]) or "settings"
    # What stands in an unknown field or for Redis may be a password, and a whole section may hold one.
    secret = error["loc"][:1] == ("redis",) or path == "kafka" or "password" in path
    hidden = secret or error["type"] == "extra_forbidden" or isinstance(error["input"], dict | list)
    got = "" if hidden else f" (got {redacted(error['input'])!r})"
    return f"  {path}: {error['msg'].removeprefix('Value error, ')}{got}"
