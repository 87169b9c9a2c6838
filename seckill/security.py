"""TLS: certificate files that settings name become contexts and gRPC credentials, or an error that says what is wrong.

Every file is read and judged when a connection is prepared, at start: missing, no PEM, not in force, a key that belongs
to another certificate. They are not read again. May touch files only; opens no connection.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from seckill.settings import (
    DatabaseTls,
    FrontSettings,
    KafkaSettings,
    RedisSettings,
    Settings,
    SettingsError,
    TlsSettings,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate


class CertificateProblem(SettingsError):
    """A certificate, key or authority that cannot be used; names the setting, the path and what is wrong."""

    def __init__(self, setting: str, path: str | None, problem: str) -> None:
        super().__init__(f"{setting} = {path}: {problem}" if path else f"{setting}: {problem}")
        self.setting = setting
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True)
class PemFiles:
    """The files of one connection. `prefix` begins the names of their settings: `redis.tls_`, `tls.`."""

    prefix: str
    ca: str | None
    certificate: str | None
    key: str | None

    def check(self) -> None:
        """Raises CertificateProblem for the first file that cannot be used."""
        if self.ca is not None:
            _certificates(f"{self.prefix}ca", self.ca)
        if self.certificate is None or self.key is None:
            return
        [own, *_] = _certificates(f"{self.prefix}certificate", self.certificate)
        key = _private_key(f"{self.prefix}key", self.key)
        if _public(key.public_key()) != _public(own.public_key()):
            raise CertificateProblem(
                f"{self.prefix}key", self.key, f"it is not the key of {self.prefix}certificate ({self.certificate})"
            )


def redis_files(settings: RedisSettings) -> PemFiles:
    return PemFiles("redis.tls_", settings.tls_ca, settings.tls_certificate, settings.tls_key)


def kafka_files(settings: KafkaSettings) -> PemFiles:
    return PemFiles("kafka.tls_", settings.tls_ca, settings.tls_certificate, settings.tls_key)


def front_files(settings: FrontSettings) -> PemFiles:
    return PemFiles("front.tls_", settings.tls_ca, settings.tls_certificate, settings.tls_key)


def database_files(section: str, settings: DatabaseTls) -> PemFiles:
    return PemFiles(
        f"{section}.database_tls_",
        settings.database_tls_ca,
        settings.database_tls_certificate,
        settings.database_tls_key,
    )


def grpc_files(tls: TlsSettings) -> PemFiles:
    return PemFiles("tls.", tls.ca, tls.certificate, tls.key)


def check_files(settings: Settings) -> None:
    """Reads every file that the settings name, of whatever role. Raises SettingsError with a line for each problem."""
    databases = {name: getattr(settings, name) for name in ("product", "order", "coordinator", "dead_letters")}
    problems = []
    for files in (
        grpc_files(settings.tls),
        front_files(settings.front),
        redis_files(settings.redis),
        kafka_files(settings.kafka),
        *(database_files(name, section) for name, section in databases.items()),
    ):
        try:
            files.check()
        except CertificateProblem as problem:
            problems.append(f"  {problem}")
    if problems:
        raise SettingsError("\n".join(["certificates that cannot be used:", *problems]))


# --- contexts --------------------------------------------------------------------------------------------------------


def client_context(files: PemFiles, *, check_hostname: bool = True) -> ssl.SSLContext:
    """For one who dials: the server must be vouched for by `files.ca`, or by the system's authorities without it."""
    files.check()
    context = ssl.create_default_context(cafile=files.ca)
    context.check_hostname = check_hostname
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


def kafka_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """None: this connection is made without TLS."""
    if not settings.tls:
        return None
    return client_context(kafka_files(settings), check_hostname=settings.tls_check_hostname)


def database_context(section: str, settings: DatabaseTls) -> ssl.SSLContext | None:
    """None: this connection is made without TLS. `section` is named in errors."""
    if settings.database_tls == "off":
        return None
    return client_context(database_files(section, settings), check_hostname=settings.database_tls == "verify-identity")


def front_context(settings: FrontSettings) -> ssl.SSLContext | None:
    """For one who dials the front's HTTP; None: it is plain HTTP."""
    if not settings.https:
        return None
    ours = PemFiles("front.tls_", settings.tls_ca, None, None)  # the front asks its clients for no certificate
    return client_context(ours)


# --- gRPC ------------------------------------------------------------------------------------------------------------


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials | None:
    """For one who dials our roles; None: without TLS."""
    if tls.ca is None:
        return None
    grpc_files(tls).check()
    certificate, key = _chain(tls)
    return grpc.ssl_channel_credentials(Path(tls.ca).read_bytes(), key, certificate)


def server_credentials(tls: TlsSettings) -> grpc.ServerCredentials | None:
    """For one who serves gRPC; None: without TLS. Raises CertificateProblem when there is no certificate to show."""
    if tls.ca is None:
        return None
    grpc_files(tls).check()
    certificate, key = _chain(tls)
    if certificate is None or key is None:
        raise CertificateProblem("tls.certificate", None, "a role that serves gRPC needs one when tls.ca is set")
    return grpc.ssl_server_credentials(
        [(key, certificate)], Path(tls.ca).read_bytes(), require_client_auth=tls.client_auth
    )


def _chain(tls: TlsSettings) -> tuple[bytes | None, bytes | None]:
    if tls.certificate is None or tls.key is None:
        return None, None
    return Path(tls.certificate).read_bytes(), Path(tls.key).read_bytes()


# --- files -----------------------------------------------------------------------------------------------------------


def _certificates(setting: str, path: str) -> list[Certificate]:
    """All certificates of a file. The first must be in force; of a bundle of authorities, one."""
    from cryptography import x509  # noqa: PLC0415 - costs 40 ms, which plaintext need not pay

    try:
        found = x509.load_pem_x509_certificates(_read(setting, path))
    except ValueError as error:
        raise CertificateProblem(setting, path, "it holds no certificate in PEM form") from error
    judged = found if setting.endswith("ca") else found[:1]
    problems = [_out_of_force(each) for each in judged]
    if all(problems):
        raise CertificateProblem(setting, path, problems[0])
    return found


def _out_of_force(certificate: Certificate) -> str:
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        return f"it expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_before_utc > now:
        return f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return ""


def _private_key(setting: str, path: str) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above

    try:
        return load_pem_private_key(_read(setting, path), password=None)
    except TypeError as error:
        raise CertificateProblem(setting, path, "the key has a passphrase; it must be stored without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateProblem(setting, path, "it holds no private key in PEM form") from error


def _public(key: object) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415 - as above

    written: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return written


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CertificateProblem(setting, path, error.strerror or str(error)) from error
