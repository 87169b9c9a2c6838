"""Every dependency at once: asked within a time-out, judged, and told in one list.

A dependency that does not answer is a finding, never an error of the doctor's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import MetaData
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.client import front_url
from seckill.coordinator.tables import metadata as coordinator_tables
from seckill.doctor.access import FRONT, KAFKA, REDIS, Door, database_door, grpc_door, grpc_refusal, refusal
from seckill.doctor.findings import Examined, Finding, ok, problem, unreachable, warning
from seckill.doctor.judgements.clock import judge_clock
from seckill.doctor.judgements.coordinator import judge_coordinator
from seckill.doctor.judgements.kafka import KafkaWants, judge_kafka
from seckill.doctor.judgements.plain import judge_encryption
from seckill.doctor.judgements.redis import judge_redis
from seckill.doctor.judgements.services import judge_operator_token, judge_role
from seckill.doctor.judgements.sql import DatabaseWants, judge_database
from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.grpc import ask_coordinator, ask_service
from seckill.doctor.probes.http import ask_coordinator_http, ask_role
from seckill.doctor.probes.kafka import ask_kafka
from seckill.doctor.probes.redis import ask_redis
from seckill.doctor.probes.sql import ask_database, connected
from seckill.dtm.database import create_engine
from seckill.messaging.letters import metadata as letter_tables
from seckill.order.tables import metadata as order_tables
from seckill.plaintext import Plaintext, plaintext_connections
from seckill.product.tables import metadata as product_tables
from seckill.schema import SchemaOutdated, require
from seckill.schema.revisions import argument_of, is_absent
from seckill.security import CertificateProblem, channel_credentials, database_context, front_context
from seckill.settings import (
    NO_TLS,
    CoordinatorSettings,
    DeadLetterSettings,
    OrderSettings,
    ProductSettings,
    Settings,
    TlsSettings,
    variable,
)

CHECK_TIMEOUT_S = 13.0
"""A database driver waits eight seconds for the first word of a server that says none; then somebody else looks."""

KAFKA_TIMEOUT_MS = 4_000
POOL_SIZE = 4
"""Of the coordinator, which has no setting for it."""

WARNED = ("front", "worker", "reconcile", "product", "order", "coordinator")
"""The roles, each of which dials and serves some of the connections."""

DEPENDENCIES = (
    "settings", "kafka", "redis", "product-db", "order-db", "coordinator-db", "dead-letters-db",
    "coordinator", "product", "order", "worker", "reconcile", "front",
)  # fmt: skip
SQL = tuple(name for name in DEPENDENCIES if name.endswith("-db"))
"""What `--only sql` stands for."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """Something to examine: where its address comes from, and how it is asked and judged."""

    dependency: str
    setting: str
    address: str
    asking: Coroutine[Any, Any, list[Finding]]
    door: Door | None = None
    grpc_tls: TlsSettings | None = None  # of a gRPC address: how we dial it


async def examine(settings: Settings, *, only: Collection[str] = DEPENDENCIES) -> list[Examined]:
    """Everything of `only`, in the order of DEPENDENCIES; no longer than CHECK_TIMEOUT_S in all."""
    subjects = [subject for name in DEPENDENCIES if name in only for subject in _subjects(name, settings)]
    return list(await asyncio.gather(*(_examined(subject) for subject in subjects)))


async def _examined(subject: _Subject) -> Examined:
    start_it = f"start it, or name another with {variable(subject.setting)}"
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            findings = await subject.asking
    except TimeoutError:
        findings = [unreachable(f"no answer within {CHECK_TIMEOUT_S:g} s", start_it)]
    except (Silent, Stranger) as error:
        findings = [await _unreachable(subject, error)]
    except CertificateProblem as error:
        findings = [problem("certificate", str(error), "correct the file or the setting that names it")]
    return Examined(subject.dependency, subject.setting, subject.address, tuple(findings))


async def _unreachable(subject: _Subject, error: Silent | Stranger) -> Finding:
    """Another server in its place, TLS or a login that is refused, or silence."""
    if isinstance(error, Stranger) and not error.remedy:
        found = await _kept_out(subject)
        return found or unreachable(f"{error} in its place", f"correct {variable(subject.setting)}")
    kept_out = refusal(error, subject.door) if subject.door else None
    if kept_out:
        return unreachable(kept_out.problem, kept_out.remedy)
    own = error.remedy if isinstance(error, Stranger) else ""
    remedy = own or f"start it, or name another with {variable(subject.setting)}"
    return await _kept_out(subject) or unreachable(str(error), remedy)


async def _kept_out(subject: _Subject) -> Finding | None:
    """What TLS, or its absence, has to do with a gRPC server that does not answer."""
    if subject.grpc_tls is None:
        return None
    found = await grpc_refusal(subject.address, subject.grpc_tls, grpc_door(subject.dependency, subject.setting))
    return unreachable(found.problem, found.remedy) if found else None


def _subjects(name: str, settings: Settings) -> list[_Subject]:
    match name:
        case "settings":
            return [_Subject(name, "front.operator_token", "-", _settings(settings))]
        case "kafka":
            return [_Subject(name, "kafka.bootstrap", settings.kafka.bootstrap, _kafka(settings), KAFKA)]
        case "redis":
            return [_Subject(name, "redis.url", _redis_address(settings), _redis(settings), REDIS)]
        case "coordinator":
            dtm_tls = settings.tls if settings.dtm.tls else NO_TLS
            return [
                _Subject(name, "dtm.grpc", settings.dtm.grpc, _coordinator_grpc(settings), None, dtm_tls),
                _Subject(name, "dtm.http", settings.dtm.http, _coordinator_http(settings)),
            ]
        case "worker" | "reconcile":
            ops = getattr(settings, name).ops
            return [_Subject(name, f"{name}.ops", ops, _role(name, ops))]
        case "front":
            front = settings.front
            return [
                _Subject(name, "front.http", front.http, _front(settings), FRONT),
                _Subject(
                    name,
                    "front.grpc",
                    front.grpc,
                    _service(settings, "front", front.grpc, "seckill.Seckill"),
                    None,
                    settings.tls,
                ),
            ]
        case "product" | "order":
            return _service_subjects(name, settings)
        case _:
            return _database_subjects(name, settings)


# --- what the pipeline stands on -------------------------------------------------------------------------------------


async def _settings(settings: Settings) -> list[Finding]:
    return [judge_operator_token(settings.front.operator_token is not None)]


async def _kafka(settings: Settings) -> list[Finding]:
    kafka = settings.kafka.model_copy(
        update={"request_timeout_ms": min(KAFKA_TIMEOUT_MS, settings.kafka.request_timeout_ms)}
    )
    facts = await ask_kafka(kafka, [kafka.topic, kafka.dead_letter_topic])
    wants = KafkaWants(
        kafka.topic,
        kafka.dead_letter_topic,
        kafka.record_bytes_max,
        longest_wait_ms=longest_wait_ms(settings),
        embedded=_embedded(settings),
    )
    plain = _encryption(settings, "kafka.bootstrap")
    return [ok("reachable", "yes"), *judge_kafka(facts, wants), *plain]


def longest_wait_ms(settings: Settings) -> int:
    """How long an order may be under way: all its attempts, a while in the ledger, as long as its result is kept."""
    attempts_ms = settings.retry.attempts_max * settings.retry.cap_ms
    return max(attempts_ms + 10 * settings.ledger.republish_after_ms, settings.ledger.result_ttl_s * 1000)


async def _redis(settings: Settings) -> list[Finding]:
    facts = await ask_redis(settings.redis)
    plain = _encryption(settings, "redis.url")
    judged = judge_redis(facts, run_id_check=settings.redis.run_id_check, embedded=_embedded(settings))
    return [ok("reachable", "yes"), *judged, *judge_clock(facts.clock), *plain]


# --- databases -------------------------------------------------------------------------------------------------------

AnyDatabase = ProductSettings | OrderSettings | CoordinatorSettings | DeadLetterSettings

_TABLES: Mapping[str, MetaData] = {
    "product": product_tables,
    "order": order_tables,
    "coordinator": coordinator_tables,
    "dead_letters": letter_tables,
}


def _database_subjects(dependency: str, settings: Settings) -> list[_Subject]:
    name = dependency.removesuffix("-db").replace("-", "_")
    section: AnyDatabase = getattr(settings, name)
    optional = name in {"coordinator", "dead_letters"}
    if optional and section.database_url == type(section)().database_url:
        return []  # nobody has said where it is, so nobody uses it
    url = section.database_url.get_secret_value()
    address = make_url(url).set(query={}).render_as_string(hide_password=True)
    return [
        _Subject(dependency, f"{name}.database_url", address, _database(settings, name, section), database_door(name))
    ]


async def _database(settings: Settings, name: str, section: AnyDatabase) -> list[Finding]:
    url = section.database_url.get_secret_value()
    engine = create_engine(url, pool_size=1, lock_wait_s=3, tls=database_context(name, section))
    try:
        if engine.url.get_backend_name() == "sqlite":
            return await _sqlite(settings, name, engine)
        async with connected(engine) as connection:
            facts = await ask_database(connection)
        wants = DatabaseWants(getattr(section, "pool_size", POOL_SIZE), byte_wise_columns(_TABLES[name]))
        plain = [] if _embedded(settings) else [judge_encryption(_plain_database(name, section))]
        return [
            ok("reachable", "yes"), *judge_database(facts, wants), await _schema(name, engine),
            *judge_clock(facts.clock), *plain,
        ]  # fmt: skip
    finally:
        await engine.dispose()


def _plain_database(name: str, section: AnyDatabase) -> Plaintext | None:
    if section.database_tls != "off":
        return None
    remedy = f"set {name}.database_tls to verify-identity, and {name}.database_tls_ca"
    return Plaintext(f"{name}.database_url", "", remedy)


async def _sqlite(settings: Settings, name: str, engine: AsyncEngine) -> list[Finding]:
    if is_absent(engine):
        make_it = (
            f"name a MariaDB with {variable(f'{name}.database_url')}, or run `seckill db upgrade {argument_of(name)}`"
        )
        return [unreachable(f"there is no file {engine.url.database}", make_it)]
    findings = [ok("reachable", "yes"), await _schema(name, engine)]
    if not _embedded(settings):
        remedy = f"name a MariaDB with {variable(f'{name}.database_url')}"
        findings.append(warning("version", "SQLite: one machine, one writer at a time", remedy))
    return findings


async def _schema(name: str, engine: AsyncEngine) -> Finding:
    try:
        await require(name, engine)
    except SchemaOutdated as error:
        found = f"{error.found or 'none'}, {error.wanted} is wanted"
        return problem("schema", found, f"run `seckill db upgrade {argument_of(name)}`")
    return ok("schema", "the newest")


def byte_wise_columns(tables: MetaData) -> dict[tuple[str, str], str]:
    """The columns that are defined with a collation of their own, and that collation."""
    found = {}
    for table in tables.tables.values():
        for column in table.columns:
            variant = column.type._variant_mapping.get("mysql")
            collation = getattr(variant, "collation", None)
            if collation is not None:
                found[table.name, column.name] = str(collation)
    return found


# --- coordinator and roles -------------------------------------------------------------------------------------------


async def _coordinator_grpc(settings: Settings) -> list[Finding]:
    encrypted = settings.tls.enabled and settings.dtm.tls
    await ask_coordinator(settings.dtm.grpc, channel_credentials(settings.tls) if encrypted else None)
    return [ok("protocol", "dtmgimp.Dtm answers")]


async def _coordinator_http(settings: Settings) -> list[Finding]:
    facts = await ask_coordinator_http(front_url(settings.dtm.http))
    by_design = [ok("encryption", "plaintext: a DTM server speaks no TLS; keep it on a private network")]
    plain = _encryption(settings, "dtm.grpc") if facts.own else by_design
    judged = judge_coordinator(facts, embedded=_embedded(settings))
    return [ok("reachable", "yes"), *judged, *judge_clock(facts.clock), *plain]


def _service_subjects(name: str, settings: Settings) -> list[_Subject]:
    section: ProductSettings | OrderSettings = getattr(settings, name)
    service = {"product": "product.Product", "order": "order.Order"}[name]
    return [
        _Subject(
            name, f"{name}.grpc", section.grpc, _service(settings, name, section.grpc, service), None, settings.tls
        ),
        _Subject(name, f"{name}.ops", section.ops, _role(name, section.ops)),
    ]


async def _service(settings: Settings, name: str, address: str, service: str) -> list[Finding]:
    reached = front_url(address).removeprefix("http://")
    await ask_service(reached, service, channel_credentials(settings.tls))
    return [ok("serving", service), *_encryption(settings, f"{name}.grpc")]


async def _role(name: str, address: str) -> list[Finding]:
    facts = await ask_role(front_url(address))
    return [ok("reachable", "yes"), *judge_role(facts, name, f"{name}.ops"), *judge_clock(facts.clock)]


async def _front(settings: Settings) -> list[Finding]:
    https = settings.front.https
    facts = await ask_role(front_url(settings.front.http, https=https), front_context(settings.front))
    plain = _encryption(settings, "front.http")
    return [ok("reachable", "yes"), *judge_role(facts, "front", "front.http"), *judge_clock(facts.clock), *plain]


# --- helpers ---------------------------------------------------------------------------------------------------------


def _redis_address(settings: Settings) -> str:
    parts = urlsplit(settings.redis.url.get_secret_value())
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _embedded(settings: Settings) -> bool:
    return settings.profile == "embedded"


def _encryption(settings: Settings, setting: str) -> list[Finding]:
    """Whether the connection that `setting` names is plaintext, as the roles see it."""
    if _embedded(settings):
        return []
    plain = [each for role in WARNED for each in plaintext_connections(role, settings) if each.setting == setting]
    return [judge_encryption(plain[0] if plain else None)]
