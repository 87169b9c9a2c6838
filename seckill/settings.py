"""Settings: one TOML file plus `SECKILL__SECTION__KEY` from the environment, read once at start.

Order of precedence: environment, then the file given (`--config` or `SECKILL_CONFIG`), then the defaults below.
Without a file the embedded profile that ships with the package is used. Every wrong value is named with its key,
the value and what is allowed.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SettingsSourceError

ENV_PREFIX = "SECKILL__"
ENV_DELIMITER = "__"
CONFIG_VARIABLE = "SECKILL_CONFIG"

_HOST = re.compile(r"[0-9a-fA-F:]+:[0-9a-fA-F:.]*|[A-Za-z0-9._-]+")
_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


_DATABASE_FORMS = "must be sqlite+aiosqlite:///PATH or mysql+asyncmy://USER:PASSWORD@HOST:PORT/DATABASE"
_DATABASE_OPTIONS: tuple[dict[str, str], ...] = ({}, {"charset": "utf8mb4"})


class SettingsError(Exception):
    """The settings cannot be used; the message has one line per problem."""


def _host_port(value: str) -> str:
    match = _HOST_PORT.fullmatch(value)
    if match is None or int(match[2]) > 65535:
        raise ValueError("must be host:port, for example 127.0.0.1:8080")
    return value


def _bootstrap(value: str) -> str:
    for part in value.split(","):
        _host_port(part.strip())
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if url.partition("://")[0] not in {"redis", "rediss", "unix"} or not _has_possible_port(url):
        raise ValueError("must be redis://HOST:PORT/0, or redis://:PASSWORD@HOST:PORT/0 (rediss:// for TLS)")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    driver, separator, rest = url.partition("://")
    if not separator or driver not in {"sqlite+aiosqlite", "mysql+asyncmy", "mariadb+asyncmy"}:
        raise ValueError(_DATABASE_FORMS)
    problem = _wrong_file(rest) if driver.startswith("sqlite") else _wrong_server(url)
    if problem:
        raise ValueError(f"{_DATABASE_FORMS}: {problem}")
    return value


def _wrong_file(rest: str) -> str:
    """What is wrong with a SQLite URL after `://`; empty when nothing is. Never repeats any of it."""
    path = rest.removeprefix("/")
    if path == rest or path in {"", ":memory:"}:
        return "it names no file (a path begins after three slashes)"
    return "it takes no options (? …)" if "?" in path else ""


def _wrong_server(url: str) -> str:
    """The same of a whole MySQL or MariaDB URL, read as the driver will read it."""
    from sqlalchemy.engine.url import make_url  # noqa: PLC0415 - 100 ms that SQLite's users need not pay here
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - as above

    escaped = "write @, : and / in a user or password as %40, %3A and %2F"
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        return f"its port is no number, or it cannot be read at all ({escaped})"
    if not _HOST.fullmatch(parts.host or ""):
        return f"it names no host, or none that is possible ({escaped})"
    if parts.port is not None and not 0 < parts.port <= 65535:
        return "its port is not from 1 to 65535"
    if not parts.database:
        return "it names no database"
    return "" if dict(parts.query) in _DATABASE_OPTIONS else "it takes no option (? …) but charset=utf8mb4"


def _has_possible_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


Address = Annotated[str, AfterValidator(_host_port)]
"""`host:port`; port 0 takes a free one where the address is one to listen on."""

RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
Addresses = Annotated[str, AfterValidator(_bootstrap)]
Milliseconds = Annotated[int, Field(gt=0, le=86_400_000)]
Seconds = Annotated[int, Field(gt=0, le=31_536_000)]
Count = Annotated[int, Field(gt=0, le=100_000_000)]
ListenHost = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)$")]
"""The host on which a role listens, where others dial it by another name: 0.0.0.0 in a container. Ports stay."""

DrainDelay = Annotated[int, Field(ge=0, le=600_000)]
"""How long a role serves on after it says that it is unready: until whoever sends requests here has seen it."""

PemFile = Annotated[str, Field(min_length=1)]
"""Path of a PEM file. Read once, at start: a renewed certificate takes a restart."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _pair(prefix: str, certificate: str | None, key: str | None) -> None:
    if (certificate is None) != (key is None):
        given, missing = ("certificate", "key") if key is None else ("key", "certificate")
        raise ValueError(f"{prefix}{given} is set without {prefix}{missing}")


class TlsSettings(Section):
    """Certificates of every gRPC connection between our own roles, and of the front's gRPC port. Unset: plaintext.

    One authority vouches for all of them; each role may have a certificate of its own, valid for the name or IP address
    by which others dial it, and for both uses (server and client). HTTP has settings of its own (`front.tls_…`); ops
    ports and the coordinator's HTTP are plaintext by design, for a private network.
    """

    ca: PemFile | None = None
    certificate: PemFile | None = None
    key: PemFile | None = None
    client_auth: bool = True  # servers take only callers whose certificate the CA has signed (mutual TLS)

    @property
    def enabled(self) -> bool:
        return self.ca is not None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _pair("", self.certificate, self.key)
        if self.certificate is not None and self.ca is None:
            raise ValueError("certificate is set without ca")
        return self


NO_TLS = TlsSettings()
"""gRPC in plaintext."""


class FrontSettings(Section):
    """Where buyers' orders come in."""

    http: Address = "127.0.0.1:8080"
    grpc: Address = "127.0.0.1:9090"
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    tls_certificate: PemFile | None = None  # with tls_key: front.http is HTTPS
    tls_key: PemFile | None = None
    tls_ca: PemFile | None = None  # whom our own commands trust at an HTTPS front; unset: the system's authorities
    connections_max: Annotated[int, Field(ge=16, le=1_000_000)] = 20_000  # HTTP; beyond them 503
    operator_token: SecretStr | None = None  # unset: everything that changes a sale is closed
    body_bytes_max: Annotated[int, Field(ge=256, le=16_777_216)] = 16_384
    admission_batch_max: Annotated[int, Field(gt=0, le=1_000)] = 200
    admission_queue_max: Count = 10_000
    # Rate limits, counted in each front process for itself; 0: none. A buyer above the first is answered 429, and
    # everybody together above the second 503; a burst of a second's worth is let through at once.
    orders_per_user_per_s: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    orders_per_user_burst: Annotated[int, Field(gt=0, le=1_000_000)] = 20
    orders_per_s: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    publish_timeout_ms: Milliseconds = 5_000
    publish_stalled_ms: Milliseconds = 1_000  # while an order waits longer for Kafka, further ones are OVERLOADED
    # So many publishes failed in a row: orders are UNAVAILABLE, before admission, until Kafka answers again.
    circuit_failures_max: Annotated[int, Field(gt=0, le=1_000)] = 5
    circuit_pause_ms: Milliseconds = 1_000  # between two probes of what is down
    wait_max_ms: Milliseconds = 30_000  # longest GET /v1/orders/{id}?wait=
    drain_delay_ms: DrainDelay = 500  # at the end: unready, and serving on
    drain_timeout_ms: Milliseconds = 10_000  # after the delay, for everything; what is left is told, exit code 1

    @property
    def https(self) -> bool:
        """Whether front.http speaks HTTPS, for who serves it and for who dials it."""
        return self.tls_certificate is not None or self.tls_ca is not None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _pair("tls_", self.tls_certificate, self.tls_key)
        return self


class KafkaSettings(Section):
    bootstrap: Addresses = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    tls_ca: PemFile | None = None  # unset: the system's authorities
    tls_certificate: PemFile | None = None  # where the brokers ask clients for one
    tls_key: PemFile | None = None
    tls_check_hostname: bool = True
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "seckill-topic"
    group: Annotated[str, Field(min_length=1, max_length=249)] = "seckill-group"
    # Topics of their own: `{topic}-retry-0` …, one for each delay of retry.topic_delays_ms, read by `{group}-retry`.
    dead_letter_topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "seckill-topic-dlt"
    request_timeout_ms: Milliseconds = 10_000
    session_timeout_ms: Milliseconds = 30_000
    linger_ms: Annotated[int, Field(ge=0, le=1_000)] = 2
    record_bytes_max: Annotated[int, Field(ge=1_024, le=10_485_760)] = 1_048_576

    @property
    def retry_group(self) -> str:
        return f"{self.group}-retry"

    @property
    def dead_letter_group(self) -> str:
        return f"{self.group}-dead-letters"

    @property
    def tls(self) -> bool:
        return self.security_protocol in {"SSL", "SASL_SSL"}

    @property
    def sasl(self) -> bool:
        return self.security_protocol in {"SASL_PLAINTEXT", "SASL_SSL"}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _pair("tls_", self.tls_certificate, self.tls_key)
        if (self.tls_ca or self.tls_certificate) and not self.tls:
            raise ValueError("tls_… is set, but security_protocol is neither SSL nor SASL_SSL")
        given = self.sasl_username is not None and self.sasl_password is not None
        if self.sasl and not given:
            raise ValueError(f"sasl_username and sasl_password are needed with {self.security_protocol}")
        if not self.sasl and (self.sasl_username or self.sasl_password):
            raise ValueError("sasl_… is set, but security_protocol is neither SASL_PLAINTEXT nor SASL_SSL")
        return self


class RedisSettings(Section):
    url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")  # rediss:// for TLS
    username: str | None = None  # of an ACL user; here or in the URL
    password: SecretStr | None = None
    tls_ca: PemFile | None = None  # unset: the system's authorities
    tls_certificate: PemFile | None = None  # where the server asks clients for one
    tls_key: PemFile | None = None
    tls_check_hostname: bool = True
    command_timeout_ms: Milliseconds = 2_000
    connections_max: Annotated[int, Field(gt=1, le=1_000)] = 16
    # Admission compares the server's run_id with the one stored with the sale, and pauses when Redis was restarted.
    # Off only where the server cannot tell it (the embedded one, whose data dies with it anyway).
    run_id_check: bool = True

    @property
    def tls(self) -> bool:
        return self.url.get_secret_value().startswith("rediss://")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _pair("tls_", self.tls_certificate, self.tls_key)
        if (self.tls_ca or self.tls_certificate) and not self.tls:
            raise ValueError("tls_… is set, but url does not begin with rediss://")
        if self.username is not None and self.password is None:
            raise ValueError("username is set without password")
        if self.password is not None and "@" in self.url.get_secret_value():
            raise ValueError("password is set, and url holds a user or password as well: use one of them")
        return self


class LedgerSettings(Section):
    """The list, kept in Redis, of orders that were accepted and have not ended."""

    entries_max: Count = 100_000  # per sale; admission answers OVERLOADED above it
    republish_after_ms: Milliseconds = 30_000
    undecided_wait_ms: Milliseconds = 20_000
    result_ttl_s: Seconds = 86_400  # counted from the end of the sale


class DatabaseTls(Section):
    """TLS to the database of a section, in the words of MySQL's own clients."""

    database_tls: Literal["off", "verify-ca", "verify-identity"] = "off"
    database_tls_ca: PemFile | None = None  # unset: the system's authorities
    database_tls_certificate: PemFile | None = None  # where the server asks clients for one
    database_tls_key: PemFile | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _pair("database_tls_", self.database_tls_certificate, self.database_tls_key)
        if (self.database_tls_ca or self.database_tls_certificate) and self.database_tls == "off":
            raise ValueError("database_tls_ca or database_tls_certificate is set, but database_tls is off")
        return self


class ServiceSettings(DatabaseTls):
    """A gRPC service with a database of its own."""

    grpc: Address
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    # One more gRPC port, without TLS and for branch calls only: a DTM server dials branches in plaintext. Where it is
    # set, it is the address that is registered with the coordinator, unless the coordinator speaks TLS itself. Keep it
    # on a network that only DTM can reach.
    branch_grpc: Address | None = None
    ops: Address  # HTTP: /healthz /readyz /metrics
    database_url: DatabaseUrl
    pool_size: Annotated[int, Field(gt=0, le=200)] = 8
    lock_wait_s: Annotated[int, Field(gt=0, le=3)] = 3
    drain_delay_ms: DrainDelay = 500
    drain_timeout_ms: Milliseconds = 10_000


class ProductSettings(ServiceSettings):
    grpc: Address = "127.0.0.1:9101"
    ops: Address = "127.0.0.1:9111"
    database_url: DatabaseUrl = SecretStr("sqlite+aiosqlite:///product.db")


class OrderSettings(ServiceSettings):
    grpc: Address = "127.0.0.1:9102"
    ops: Address = "127.0.0.1:9112"
    database_url: DatabaseUrl = SecretStr("sqlite+aiosqlite:///order.db")


class DeadLetterSettings(DatabaseTls):
    """The index of the dead-letter topic, in a database of its own, and who serves it."""

    http: Address = "127.0.0.1:9115"  # the letters' HTTP API, and /healthz /readyz /metrics
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    operator_token: SecretStr | None = None  # unset: the HTTP API is closed
    database_url: DatabaseUrl = SecretStr("sqlite+aiosqlite:///dead_letters.db")
    pool_size: Annotated[int, Field(gt=0, le=200)] = 4
    lock_wait_s: Annotated[int, Field(gt=0, le=3)] = 3
    replays_max: Annotated[int, Field(gt=0, le=1_000)] = 3  # of one letter, unless the operator insists
    replays_per_s: Annotated[int, Field(gt=0, le=10_000)] = 50
    look_every_ms: Milliseconds = 1_000  # after the ends of replayed orders, and interrupted replays
    drain_delay_ms: DrainDelay = 500
    drain_timeout_ms: Milliseconds = 10_000


class DtmSettings(Section):
    """The coordinator as its clients see it: a DTM server, or ours."""

    grpc: Address = "127.0.0.1:36790"
    http: Address = "127.0.0.1:36789"
    tls: bool = True  # with [tls]: our coordinator speaks it; false for a DTM server, which cannot
    request_timeout_ms: Milliseconds = 5_000
    try_timeout_ms: Annotated[int, Field(gt=0, le=3_000)] = 3_000
    submit_timeout_ms: Milliseconds = 10_000
    timeout_to_fail_s: Seconds = 10  # a prepared transaction that nobody submits is cancelled after it
    retry_interval_s: Seconds = 10
    branch_timeout_s: Seconds = 3


Pattern = Literal["tcc", "saga", "xa", "message"]


class TransactionSettings(Section):
    """How a worker keeps an order and its stock consistent. Services, reconcile and coordinator serve every pattern."""

    pattern: Pattern = "tcc"  # xa: product and order need MariaDB or MySQL
    # A saga or message carries one order (tcc and xa a whole group): so many of a worker's are under way at a time.
    concurrency_max: Annotated[int, Field(gt=0, le=1_000)] = 16


class CoordinatorSettings(DatabaseTls):
    """Our own DTM-compatible coordinator."""

    grpc: Address = "127.0.0.1:36790"
    http: Address = "127.0.0.1:36789"  # query API, /healthz /readyz /metrics
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    database_url: DatabaseUrl = SecretStr("sqlite+aiosqlite:///coordinator.db")
    cron_interval_ms: Milliseconds = 1_000
    branch_timeout_s: Seconds = 3
    retry_interval_s: Seconds = 10
    timeout_to_fail_s: Seconds = 35  # when a transaction names none
    drain_delay_ms: DrainDelay = 500
    drain_timeout_ms: Milliseconds = 10_000


class WorkerSettings(Section):
    """The consumer of `seckill-topic`."""

    ops: Address = "127.0.0.1:9113"
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    batch_max: Annotated[int, Field(gt=0, le=500)] = (
        500  # orders per global transaction; 1: one message, one transaction
    )
    batch_bytes_max: Annotated[int, Field(ge=1_024, le=60_000)] = 60_000  # DTM's payload column takes 65,535
    groups_per_sale_max: Annotated[int, Field(gt=0, le=64)] = 3
    inflight_max: Count = 5_000  # orders fetched and not yet committed
    # So many failures in a row, each with a dependency that does not answer when it is asked either: nothing is carried
    # until it answers again. Waiting for that is no attempt.
    circuit_failures_max: Annotated[int, Field(gt=0, le=1_000)] = 1
    circuit_pause_ms: Milliseconds = 1_000  # between two probes of what is down
    poll_timeout_ms: Milliseconds = 200
    drain_timeout_ms: Milliseconds = 15_000


class ReconcileSettings(Section):
    """What looks after accepted orders and undecided transactions when somebody has died in between."""

    ops: Address = "127.0.0.1:9114"
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    every_ms: Milliseconds = 1_000
    batch_max: Annotated[int, Field(gt=0, le=500)] = 500  # ledger entries of a product in one look
    orphan_after_ms: Milliseconds = 60_000  # undecided for so long, a transaction is asked for at its coordinator
    orphans_max: Annotated[int, Field(gt=0, le=1_000)] = 100  # in one look
    # From closing admission of a sale that Redis lost to reading the stores. Longer than a publish takes to reach
    # Kafka, or not to: an order that comes later still is admitted anew, or refused.
    rebuild_wait_ms: Milliseconds = 20_000
    drain_timeout_ms: Milliseconds = 10_000


class RetrySettings(Section):
    """What becomes of an order that failed: tried again in place, then put off from topic to topic, then a letter."""

    # In place, each time that the order's record is read. The first carries its whole group, the last the order alone.
    attempts_max: Annotated[int, Field(gt=1, le=100)] = 3
    base_ms: Milliseconds = 100
    cap_ms: Milliseconds = 2_000
    # One retry topic for each: how long an order waits in it. None at all: a letter after the attempts in place.
    topic_delays_ms: Annotated[tuple[Milliseconds, ...], Field(max_length=10)] = (5_000, 30_000, 300_000)
    inflight_max: Count = 1_000  # orders fetched from the retry topics and not yet committed


class AlertSettings(Section):
    """Who is told of what does not heal by itself, and when. Thresholds are of a look; each finding is told once."""

    ops: Address = "127.0.0.1:9116"
    listen: ListenHost | None = None  # unset: the role listens where its addresses say
    # Apprise URLs (dingtalk://…, feishu://…, wecombot://…, slack://…, mailto://…, json://…); none: the log alone.
    targets: Annotated[tuple[SecretStr, ...], Field(max_length=50)] = ()
    # host:port of every role whose metrics are looked at; none: the addresses that the sections of these settings name.
    metrics_from: Annotated[tuple[Address, ...], Field(max_length=200)] = ()
    every_ms: Milliseconds = 5_000
    quiet_period_ms: Milliseconds = 1_800_000  # until a finding that goes on is told again
    resolved_after_ms: Milliseconds = 30_000  # without the finding, before it is told as resolved
    letters_per_minute_max: Count = 10
    retry_backlog_max: Count = 1_000
    lag_max: Count = 50_000
    branch_attempts_max: Count = 5  # of a Confirm or Cancel
    stuck_after_ms: Milliseconds = 120_000  # a global transaction that has not ended
    audit_every_ms: Milliseconds = 300_000
    # A target that takes longer is counted as slow, and waited for: nothing is sent to it twice. `seckill alerts test`
    # gives it up.
    send_timeout_ms: Milliseconds = 10_000
    queue_max: Annotated[int, Field(gt=0, le=100_000)] = 1_000  # messages that wait for targets
    drain_timeout_ms: Milliseconds = 10_000


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    json_lines: bool = False


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
    )

    profile: Literal["embedded", "real"] = "real"
    front: FrontSettings = FrontSettings()
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    ledger: LedgerSettings = LedgerSettings()
    product: ProductSettings = ProductSettings()
    order: OrderSettings = OrderSettings()
    transaction: TransactionSettings = TransactionSettings()
    dtm: DtmSettings = DtmSettings()
    coordinator: CoordinatorSettings = CoordinatorSettings()
    worker: WorkerSettings = WorkerSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    retry: RetrySettings = RetrySettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    alerts: AlertSettings = AlertSettings()
    tls: TlsSettings = TlsSettings()
    log: LogSettings = LogSettings()

    SECTIONS: ClassVar[tuple[str, ...]] = (
        "front", "kafka", "redis", "ledger", "product", "order", "transaction", "dtm", "coordinator", "worker",
        "reconcile", "retry", "dead_letters", "alerts", "tls", "log",
    )  # fmt: skip

    @model_validator(mode="after")
    def _letters_have_a_topic_of_their_own(self) -> Self:
        retry_topics = [f"{self.kafka.topic}-retry-{number}" for number in range(len(self.retry.topic_delays_ms))]
        if self.kafka.dead_letter_topic in (self.kafka.topic, *retry_topics):
            topic = self.kafka.dead_letter_topic
            raise ValueError(f"kafka.dead_letter_topic ({topic}) must not be kafka.topic or one of its retry topics")
        return self

    @model_validator(mode="after")
    def _rebuild_waits_for_publishes(self) -> Self:
        bounds = {"front.publish_timeout_ms": self.front.publish_timeout_ms}
        bounds["kafka.request_timeout_ms"] = self.kafka.request_timeout_ms
        for name, bound_ms in bounds.items():
            if self.reconcile.rebuild_wait_ms <= bound_ms:
                raise ValueError(f"reconcile.rebuild_wait_ms must be above {name} ({bound_ms})")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def with_values(settings: Settings, values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings with some values of some sections replaced."""
    sections = {name: getattr(settings, name).model_copy(update=dict(over)) for name, over in values.items()}
    return settings.model_copy(update=sections)


def listening(settings: Settings, role: str) -> Settings:
    """The settings for the role itself: where its section says `listen`, its own addresses have that host."""
    section = getattr(settings, role)
    if section.listen is None:
        return settings
    dialled = {name: getattr(section, name, None) for name in ("http", "grpc", "branch_grpc", "ops")}
    own = {name: f"{section.listen}:{address.rpartition(':')[2]}" for name, address in dialled.items() if address}
    return settings.model_copy(update={role: section.model_copy(update=own)})


def embedded_profile() -> str:
    """The text of `config/embedded.toml`: from the wheel, or from the checkout that the package is run from."""
    packaged = resources.files("seckill") / "profiles" / "embedded.toml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    checkout = Path(__file__).resolve().parent.parent / "config" / "embedded.toml"
    return checkout.read_text(encoding="utf-8")


def load_settings(config: Path | None = None, *, overrides: dict[str, Any] | None = None) -> Settings:
    """Reads the file (or the embedded profile) and the environment. Raises SettingsError naming every problem.

    `overrides` is a nested dictionary laid over the file: what `seckill up` tells later commands about itself.
    """
    chosen = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    source = str(chosen) if chosen else "the embedded profile"
    values = _merged(_parse(chosen, source), overrides or {})
    variables = _unknown_variables()
    problems = [f"{name}: no such setting" for name in variables]
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_describe(problem) for problem in error.errors() if not _is_of(problem, variables)]
    except SettingsSourceError as error:  # it names no more than the section
        problems += _not_json() or ([] if variables else [str(error)])
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise SettingsError(f"wrong settings (from {source} and {ENV_PREFIX}… variables):\n{lines}")
    return settings


def _parse(path: Path | None, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(embedded_profile() if path is None else path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings file {source}: {_cause(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source} is not valid TOML: {error}") from error


def _cause(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else f"not UTF-8: {error}"


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def variable(setting: str) -> str:
    """The environment variable of a setting: `redis.url` is `SECKILL__REDIS__URL`."""
    return ENV_PREFIX + setting.upper().replace(".", ENV_DELIMITER)


def _unknown_variables() -> list[str]:
    """Variables with our prefix that name no section or key: a typing error that would otherwise go unseen."""
    known = {"PROFILE"}
    for section in Settings.SECTIONS:
        model = Settings.model_fields[section].annotation
        assert model is not None
        known |= {f"{section}{ENV_DELIMITER}{key}".upper() for key in model.model_fields}
    names = (name for name in os.environ if name.upper().startswith(ENV_PREFIX))
    return sorted(name for name in names if name.upper().removeprefix(ENV_PREFIX) not in known)


def _not_json() -> list[str]:
    """Variables of keys that hold several values, and are no JSON."""
    problems = []
    for name, value in sorted(os.environ.items()):
        section, _, key = name.upper().removeprefix(ENV_PREFIX).lower().partition(ENV_DELIMITER)
        examples = _lists(section) if section in Settings.SECTIONS else {}
        if key not in examples:
            continue
        try:
            json.loads(value)
        except ValueError:
            problems.append(f"{name}: must be a JSON list, for example {examples[key]}")
    return problems


def _lists(section: str) -> dict[str, str]:
    """The section's keys that hold several values, each with how such a list is written."""
    model = Settings.model_fields[section].annotation
    assert model is not None
    lists = {key: field for key, field in model.model_fields.items() if get_origin(field.annotation) is tuple}
    return {key: _example(get_args(field.annotation)[0]) for key, field in lists.items()}


def _example(kind: Any) -> str:
    """A list of such values, as JSON; `kind` may be annotated."""
    return "[1000, 5000]" if int in (kind, *get_args(kind)) else '["first", "second"]'


def _is_of(problem: Any, variables: list[str]) -> bool:
    """Whether it is about a key that one of these variables, which have been told already, has brought in."""
    names = [name.upper().removeprefix(ENV_PREFIX).split(ENV_DELIMITER) for name in variables]
    location = [str(part).upper() for part in problem["loc"]]
    return problem["type"] == "extra_forbidden" and any(name[: len(location)] == location for name in names)


def _describe(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"{location}: no such setting"
    secret = any(word in location for word in ("token", "url", "password", "targets"))
    shown = "" if secret or isinstance(value, dict) else f" = {value!r}"
    return f"{location}{shown}: {message}" if location else message
