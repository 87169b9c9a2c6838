"""Every dependency at once: asked within a time-out, judged, and told in one list.

A dependency that does not answer is a finding, never an error of the doctor's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from seckill.client import front_url
from seckill.doctor.access import FRONT, KAFKA, REDIS, Door, database_door, grpc_door, grpc_refusal, refusal
from seckill.doctor.databases import AnyDatabase, examine_database
from seckill.doctor.findings import Examined, Finding, ok, problem, unreachable
from seckill.doctor.judgements.clock import judge_clock
from seckill.doctor.judgements.coordinator import judge_coordinator
from seckill.doctor.judgements.kafka import KafkaWants, judge_kafka
from seckill.doctor.judgements.plain import judge_encryption
from seckill.doctor.judgements.redis import judge_redis
from seckill.doctor.judgements.services import judge_operator_token, judge_role
from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.grpc import ask_coordinator, ask_service
from seckill.doctor.probes.http import ask_coordinator_http, ask_role
from seckill.doctor.probes.kafka import ask_kafka
from seckill.doctor.probes.redis import ask_redis
from seckill.messaging.retry_topics import retry_tiers
from seckill.plaintext import plaintext_connections
from seckill.security import CertificateProblem, channel_credentials, front_context
from seckill.settings import (
    NO_TLS,
    OrderSettings,
    ProductSettings,
    RetrySettings,
    Settings,
    TlsSettings,
    variable,
)

CHECK_TIMEOUT_S = 13.0
"""A database driver waits eight seconds for the first word of a server that says none; then somebody else looks."""

KAFKA_TIMEOUT_MS = 4_000

WARNED = ("front", "worker", "reconcile", "product", "order", "coordinator")
"""The roles, each of which dials and serves some of the connections."""

DEPENDENCIES = (
    "settings", "kafka", "redis", "product-db", "order-db", "coordinator-db", "dead-letters-db",
    "coordinator", "product", "order", "worker", "reconcile", "dead-letters", "front", "alerts",
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
        case "worker" | "reconcile" | "dead-letters" | "alerts":
            return [_role_subject(name, settings)]
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
    tiers = retry_tiers(settings.kafka, settings.retry)
    facts = await ask_kafka(kafka, tiers)
    wants = KafkaWants(
        kafka.topic,
        kafka.dead_letter_topic,
        kafka.record_bytes_max,
        longest_wait_ms=longest_wait_ms(settings),
        embedded=_embedded(settings),
        retry_topics=tuple(tier.topic for tier in tiers),
    )
    plain = _encryption(settings, "kafka.bootstrap")
    return [ok("reachable", "yes"), *judge_kafka(facts, wants), *plain]


def longest_wait_ms(settings: Settings) -> int:
    """How long an order may be under way: all its attempts, a while in the ledger, as long as its result is kept."""
    republished_ms = 10 * settings.ledger.republish_after_ms
    return max(longest_retry_ms(settings.retry) + republished_ms, settings.ledger.result_ttl_s * 1000)


def longest_retry_ms(retry: RetrySettings) -> int:
    """How long an order that fails again and again takes to its letter: all its attempts, and the waits between."""
    delays_ms = retry.topic_delays_ms
    attempts_ms = (1 + len(delays_ms)) * retry.attempts_max * retry.cap_ms
    return attempts_ms + sum(delays_ms) * 6 // 5  # no record waits longer than that for its delay


async def _redis(settings: Settings) -> list[Finding]:
    facts = await ask_redis(settings.redis)
    plain = _encryption(settings, "redis.url")
    judged = judge_redis(facts, run_id_check=settings.redis.run_id_check, embedded=_embedded(settings))
    return [ok("reachable", "yes"), *judged, *judge_clock(facts.clock), *plain]


# --- databases -------------------------------------------------------------------------------------------------------


def _database_subjects(dependency: str, settings: Settings) -> list[_Subject]:
    name = dependency.removesuffix("-db").replace("-", "_")
    section: AnyDatabase = getattr(settings, name)
    optional = name in {"coordinator", "dead_letters"}
    if optional and section.database_url == type(section)().database_url:
        return []  # nobody has said where it is, so nobody uses it
    url = section.database_url.get_secret_value()
    address = make_url(url).set(query={}).render_as_string(hide_password=True)
    asking = examine_database(name, section, embedded=_embedded(settings))
    return [_Subject(dependency, f"{name}.database_url", address, asking, database_door(name))]


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
        _role_subject(name, settings),
    ]


async def _service(settings: Settings, name: str, address: str, service: str) -> list[Finding]:
    reached = front_url(address).removeprefix("http://")
    await ask_service(reached, service, channel_credentials(settings.tls))
    return [ok("serving", service), *_encryption(settings, f"{name}.grpc")]


def _role_subject(dependency: str, settings: Settings) -> _Subject:
    """By the page that tells its readiness, which is another one where the role serves HTTP anyway."""
    section = dependency.replace("-", "_")
    key = "http" if section == "dead_letters" else "ops"
    setting, address = f"{section}.{key}", getattr(getattr(settings, section), key)
    return _Subject(dependency, setting, address, _role(section, setting, address))


async def _role(name: str, setting: str, address: str) -> list[Finding]:
    facts = await ask_role(front_url(address))
    return [ok("reachable", "yes"), *judge_role(facts, name, setting), *judge_clock(facts.clock)]


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
