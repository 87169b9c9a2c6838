"""Who answers and does not let us in: TLS that does not come about, logins that are refused, and the setting to change.

Judged by the types of the errors that the clients raise, down the chain of their causes. gRPC's have no types, so there
the handshake is tried again with the same certificates, to see what it says.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from asyncmy.errors import OperationalError as DatabaseError
from redis.exceptions import AuthenticationError, NoPermissionError

from seckill.security import client_context, grpc_files
from seckill.settings import TlsSettings, variable

LOOK_TIMEOUT_S = 2.0
ALERT_TIMEOUT_S = 0.5  # TLS 1.3 tells of a client certificate that it misses only after the handshake

CHAIN_MAX = 20

NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"}
"""OpenSSL's reasons for an answer that is no TLS at all."""


@dataclass(frozen=True, slots=True)
class Door:
    """How one server is entered: its name for people, and the settings that decide about it."""

    what: str
    setting: str
    tls: str  # begins the names of its TLS settings: `redis.tls_`
    use_tls: str  # what turns TLS on
    login: str = ""  # the settings of user and password
    rights: str = ""  # where rights are given
    no_tls: str = ""  # what to do about a server that speaks no TLS


@dataclass(frozen=True, slots=True)
class Refusal:
    """What keeps us out, and what would let us in."""

    problem: str
    remedy: str


REDIS = Door(
    "Redis", "redis.url", "redis.tls_", "begin redis.url with rediss://", "redis.username and redis.password",
    "the user's ACL (ACL SETUSER)",
)  # fmt: skip
KAFKA = Door(
    "Kafka", "kafka.bootstrap", "kafka.tls_", "set kafka.security_protocol to SSL or SASL_SSL",
    "kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password", "the principal's ACLs (kafka-acls)",
)  # fmt: skip
FRONT = Door("the front", "front.http", "front.tls_", "set front.tls_ca")


def grpc_door(what: str, setting: str) -> Door:
    dtm = "set dtm.tls = false if it is a DTM server, which speaks none" if setting == "dtm.grpc" else ""
    return Door(what, setting, "tls.", "set tls.ca, tls.certificate and tls.key", no_tls=dtm)


def database_door(section: str) -> Door:
    return Door(
        "the database", f"{section}.database_url", f"{section}.database_tls_",
        f"set {section}.database_tls to verify-identity", f"user and password in {section}.database_url",
    )  # fmt: skip


def refusal(error: BaseException, door: Door) -> Refusal | None:
    """Why the server keeps us out; None when the error is of another kind."""
    certificate = variable(f"{door.tls}certificate")
    for cause in _chain(error):
        match cause:
            case ssl.SSLError():
                return _handshake(cause, door)
            case AuthenticationError() | AuthenticationFailedError() | SaslAuthenticationFailed():
                return Refusal(f"it refuses the login: {_words(cause)}", f"correct {door.login}")
            case UnsupportedSaslMechanismError():
                return Refusal(f"it takes no such login: {_words(cause)}", f"correct {door.login}")
            case (
                NoPermissionError()
                | TopicAuthorizationFailedError()
                | GroupAuthorizationFailedError()
                | ClusterAuthorizationFailedError()
            ):
                return Refusal(f"it forbids this to our user: {_words(cause)}", f"allow it in {door.rights}")
            case DatabaseError(args=(1044 | 1045 | 1698, str() as words, *_)):
                rights = f"correct {door.login}, or GRANT ALL on the database to the user"
                return Refusal(words, f"{rights}; if it REQUIREs X509, set {certificate}")
            case ConnectionResetError() | KafkaConnectionError() | DatabaseError(args=(2013, *_)):
                remedy = f"if it speaks TLS, {door.use_tls}; if it asks for a certificate, set {certificate}"
                return Refusal("it accepts the connection and closes it again", remedy)
    return None


def _handshake(error: ssl.SSLError, door: Door) -> Refusal:
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = f"name the authority that signed it with {variable(door.tls + 'ca')}, or dial a name that it holds"
        return Refusal(f"its certificate is refused: {error.verify_message.rstrip('.')}", remedy)
    if error.reason in NO_TLS:
        return Refusal("it speaks no TLS there", door.no_tls or f"dial its TLS port, or do not {door.use_tls}")
    return _unwelcome(door)


def _unwelcome(door: Door) -> Refusal:
    certificate, key = variable(f"{door.tls}certificate"), variable(f"{door.tls}key")
    remedy = f"set {certificate} and {key} to a certificate that its authority has signed"
    return Refusal("it refuses our certificate, or the lack of one", remedy)


async def grpc_refusal(address: str, tls: TlsSettings, door: Door) -> Refusal | None:
    """Why a gRPC server at `host:port` keeps us out; None when TLS, or its absence, is not the reason."""
    if tls.enabled:
        context = client_context(grpc_files(tls))
    else:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is said to it: only whether it speaks TLS at all
    context.set_alpn_protocols(["h2"])
    try:
        stayed = await _shake_hands(address, context)
    except ssl.SSLError as error:
        if tls.enabled:
            return _handshake(error, door)
        return None if error.reason in NO_TLS else Refusal("it speaks TLS only", door.use_tls)
    except (OSError, TimeoutError):
        return None
    if not tls.enabled:
        return Refusal("it speaks TLS only", door.use_tls)
    return None if stayed else _unwelcome(door)


async def _shake_hands(address: str, context: ssl.SSLContext) -> bool:
    """Whether the server keeps the connection after the handshake. Raises ssl.SSLError and OSError."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(LOOK_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(ALERT_TIMEOUT_S):
                return bool(await reader.read(1))
        return True
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(CHAIN_MAX):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _words(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
