"""What is known of the pipeline at one moment, as the rules see it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels, sorted by name."""


class Source(StrEnum):
    """Where a snapshot comes from. The values are what people are told."""

    LETTERS = "the dead-letter index"
    LAG = "Kafka"
    TRANSACTIONS = "the coordinator"
    ROLES = "the roles"
    AUDIT = "the audit"


@dataclass(frozen=True, slots=True)
class OpenLetters:
    """Letters of one reason that nobody has ended yet. `example`: the newest one's order id, or its number."""

    reason: str
    count: int
    since_ms: int  # the first failure of the oldest
    example: str


@dataclass(frozen=True, slots=True)
class Letters:
    open: tuple[OpenLetters, ...] = ()
    last_minute: int = 0  # letters whose last failure lies within it
    newest: str = ""  # order id or number of the newest one


@dataclass(frozen=True, slots=True)
class TopicLag:
    """Records of a topic that its group has not committed. `holds_letters`: the group is that of their index."""

    topic: str
    records: int
    is_retry: bool = False
    holds_letters: bool = False


@dataclass(frozen=True, slots=True)
class Transaction:
    """A global transaction that has not ended. `failed_calls`: of its Confirm or Cancel, so far."""

    gid: str
    status: str
    created_ms: int
    failed_calls: int = 0


@dataclass(frozen=True, slots=True)
class Roles:
    """What the metrics of all roles say: gauges, the highest of all roles, and what counters have grown by since the
    look before.
    """

    gauges: Mapping[Sample, float] = field(default_factory=dict)
    grown: Mapping[Sample, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """An invariant that is false, in `count` places. `scope`: the options that have `seckill audit` look there."""

    invariant: str
    count: int
    example: str
    problem: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Audited:
    """The newest audit. `slow`: orders that are pending for longer than they should be, and the oldest of them."""

    broken: tuple[Broken, ...] = ()
    slow: int = 0
    slowest: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`silent`: who did not answer, with what is wrong, by a name for people; `unread`: the sources of which nothing or
    only a part could be read, so that what is missing in them may stand all the same; `unasked`: those that nobody has
    asked yet, so that nobody knows whether they would answer.
    """

    at_ms: int
    letters: Letters = Letters()
    lag: tuple[TopicLag, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    roles: Roles = Roles()
    audited: Audited = Audited()
    silent: Mapping[str, str] = field(default_factory=dict)
    unread: frozenset[Source] = frozenset()
    unasked: frozenset[Source] = frozenset()
