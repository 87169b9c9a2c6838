"""What the probes learn and the judgements judge. Plain values; None stands for what could not be learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from seckill.messaging.topics import TopicState


@dataclass(frozen=True, slots=True)
class Clock:
    """A server's time minus this machine's, and how far off that reading can be, both in milliseconds."""

    ahead_ms: float
    uncertain_ms: float


@dataclass(frozen=True, slots=True)
class KafkaFacts:
    """`apis` are the versions of each request (by Kafka's number for it) that the broker takes.

    `left_behind`: retry topics that no setting asks for, and how many of their records nobody has carried.
    """

    brokers: int
    apis: Mapping[int, tuple[int, int]]
    topics: Mapping[str, TopicState]
    auto_create: bool | None
    left_behind: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """`info` are the fields of INFO, empty where the server has no such command."""

    info: Mapping[str, str]
    appendfsync: str | None
    clock: Clock | None = None


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a connection of ours really got, whatever it asked for."""

    sql_mode: frozenset[str]
    isolation: str  # as the server spells it, with hyphens
    max_allowed_packet: int
    lock_wait_s: int


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """A MariaDB or MySQL database."""

    version: str
    session: SessionFacts
    charset: str
    collation: str
    flush_log_at_commit: int
    max_connections: int
    engines: Mapping[str, str]  # by table
    collations: Mapping[tuple[str, str], str]  # by table and column
    clock: Clock | None = None


@dataclass(frozen=True, slots=True)
class CoordinatorFacts:
    """What its HTTP side tells. `store`: `sql`, `redis`, `boltdb`, or None when it does not let itself be told."""

    version: str | None
    own: bool
    store: str | None
    clock: Clock | None = None


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """A role's own word on its readiness."""

    role: str
    ready: bool
    checks: Mapping[str, str] = field(default_factory=dict)
    clock: Clock | None = None
