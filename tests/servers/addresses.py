"""Where real servers answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DtmAddress:
    """`host:port` of DTM's gRPC service and of its HTTP service."""

    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Servers:
    """A Kafka, a Redis, a MariaDB and a DTM on its SQL store."""

    source: str  # "environment", "compose" or "native"; "environment + native" for a mix
    kafka: str  # bootstrap host:port
    redis: str  # redis:// URL
    mariadb: str  # mysql+asyncmy://USER:PASSWORD@HOST:PORT/ of somebody who may create databases and users
    dtm: DtmAddress


class ServersMissing(Exception):
    """Some servers cannot be had here; `reasons` says why, by server."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.reasons = dict(reasons)
