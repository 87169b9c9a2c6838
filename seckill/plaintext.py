"""Which connections of a role go unencrypted, and what would change that: told once, when the role starts.

The embedded profile is plaintext within one process, and not spoken of. Nor are ops ports and the coordinator's HTTP,
which are plaintext by design, and what never leaves the machine's kernel: SQLite files and Unix sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import structlog

from seckill.settings import CoordinatorSettings, DeadLetterSettings, ServiceSettings, Settings

log = structlog.get_logger(__name__)

GRPC_REMEDY = "set tls.ca, tls.certificate and tls.key"


@dataclass(frozen=True, slots=True)
class Plaintext:
    """An unencrypted connection: the setting that names its address, and the one to change."""

    setting: str
    address: str
    remedy: str


def warn_of_plaintext(role: str, settings: Settings) -> None:
    """One warning for each unencrypted connection of the role; none in the embedded profile."""
    if settings.profile == "embedded":
        return
    for each in plaintext_connections(role, settings):
        log.warning("plaintext_connection", setting=each.setting, address=each.address, remedy=each.remedy)


def plaintext_connections(role: str, settings: Settings) -> list[Plaintext]:
    """Of what the role dials and of what it serves."""
    return [plain for kind in _OF_ROLE.get(role, ()) for plain in kind(settings)]


def _redis(settings: Settings) -> Iterator[Plaintext]:
    url = urlsplit(settings.redis.url.get_secret_value())
    if url.scheme == "redis":
        yield Plaintext("redis.url", f"{url.hostname}:{url.port or 6379}", "use rediss:// and redis.tls_ca")


def _kafka(settings: Settings) -> Iterator[Plaintext]:
    if not settings.kafka.tls:
        remedy = "set kafka.security_protocol to SSL or SASL_SSL, and kafka.tls_ca"
        yield Plaintext("kafka.bootstrap", settings.kafka.bootstrap, remedy)


def _front(settings: Settings) -> Iterator[Plaintext]:
    if settings.front.tls_certificate is None:
        yield Plaintext("front.http", settings.front.http, "set front.tls_certificate and front.tls_key")
    yield from _grpc("front", settings)


def _grpc(section: str, settings: Settings) -> Iterator[Plaintext]:
    if not settings.tls.enabled:
        yield Plaintext(f"{section}.grpc", getattr(settings, section).grpc, GRPC_REMEDY)


def _dtm(settings: Settings) -> Iterator[Plaintext]:
    if not settings.tls.enabled:
        yield Plaintext("dtm.grpc", settings.dtm.grpc, GRPC_REMEDY)
    elif not settings.dtm.tls:
        yield Plaintext("dtm.grpc", settings.dtm.grpc, "use our own coordinator with dtm.tls = true: DTM speaks no TLS")


def _service(section: str, settings: Settings) -> Iterator[Plaintext]:
    service: ServiceSettings = getattr(settings, section)
    yield from _grpc(section, settings)
    if service.branch_grpc is not None:
        remedy = "unset it, with our own coordinator; with DTM keep it on a private network"
        yield Plaintext(f"{section}.branch_grpc", service.branch_grpc, remedy)
    yield from _database(section, service)


def _coordinator(settings: Settings) -> Iterator[Plaintext]:
    yield from _grpc("coordinator", settings)
    yield from _database("coordinator", settings.coordinator)


def _dead_letters(settings: Settings) -> Iterator[Plaintext]:
    """Its HTTP API is open only to who sends a token."""
    if settings.dead_letters.operator_token is not None:
        remedy = "put what speaks TLS before it, or keep it on a private network"
        yield Plaintext("dead_letters.http", settings.dead_letters.http, remedy)
    yield from _database("dead_letters", settings.dead_letters)


def _database(
    section: str, settings: ServiceSettings | CoordinatorSettings | DeadLetterSettings
) -> Iterator[Plaintext]:
    url = urlsplit(settings.database_url.get_secret_value())
    if settings.database_tls == "off" and not url.scheme.startswith("sqlite"):
        remedy = f"set {section}.database_tls to verify-identity, and {section}.database_tls_ca"
        yield Plaintext(f"{section}.database_url", f"{url.hostname}:{url.port or 3306}", remedy)


_OF_ROLE: Mapping[str, tuple[Callable[[Settings], Iterator[Plaintext]], ...]] = {
    "front": (_front, _redis, _kafka, partial(_grpc, "product")),
    "reconcile": (_redis, _kafka, partial(_grpc, "product"), partial(_grpc, "order"), _dtm),
    "worker": (_redis, _kafka, partial(_grpc, "product"), partial(_grpc, "order"), _dtm),
    "product": (partial(_service, "product"),),
    "order": (partial(_service, "order"),),
    "coordinator": (_coordinator,),
    "dead_letters": (_dead_letters, _redis, _kafka, partial(_grpc, "product")),
}
