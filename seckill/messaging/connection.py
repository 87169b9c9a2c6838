"""How any client of ours reaches Kafka: addresses, security, and why a broker did not let it in.

Publisher, consumer, onlooker and administration take the same arguments from here, so that none of them is forgotten.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError

from seckill.domain.errors import PublishUnknown
from seckill.security import kafka_context
from seckill.settings import KafkaSettings

PROBE_TIMEOUT_MS = 3_000


class Startable(Protocol):
    """A client of aiokafka."""

    async def start(self) -> None: ...


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """The arguments of every aiokafka client. Raises CertificateProblem."""
    return {"bootstrap_servers": settings.bootstrap, **_security(settings)}


def _security(settings: KafkaSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.tls:
        arguments["ssl_context"] = kafka_context(settings)
    if settings.sasl:
        assert settings.sasl_password is not None, "the settings see to it"
        arguments |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return arguments


async def start(client: Startable, settings: KafkaSettings) -> None:
    """Starts a client within the request time-out. Raises PublishUnknown; its cause is what a broker really answered.

    After an error the client still has to be stopped.
    """
    with suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(settings.request_timeout_ms / 1000):
            await client.start()
            return
    why = await _refusal(settings)
    raise PublishUnknown(settings.bootstrap, _in_words(why) if why else "no answer in time") from why


async def _refusal(settings: KafkaSettings) -> Exception | None:
    """aiokafka tries one broker after another and keeps to itself why each refused; so this asks the first again."""
    host, _, port = settings.bootstrap.partition(",")[0].strip().rpartition(":")
    security = _security(settings)
    try:
        found = await create_conn(host.strip("[]"), int(port), request_timeout_ms=PROBE_TIMEOUT_MS, **security)
    except (OSError, TimeoutError, KafkaError) as error:
        return error
    found.close()
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, KafkaConnectionError):
        return "no broker answers"
    if isinstance(error, KafkaError):
        return str(error)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
