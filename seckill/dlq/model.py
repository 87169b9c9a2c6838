"""What the dead-letter tool talks about: letters, what people did with them, and what came of it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from seckill.audit.timeline import Event
from seckill.domain.errors import SeckillError
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import Record


class LetterState(StrEnum):
    NEW = "new"
    REPLAYING = "replaying"  # published again, or about to be, and not ended yet
    RESOLVED = "resolved"  # its order has ended, by a replay or by itself
    DISCARDED = "discarded"


OPEN_STATES = (LetterState.NEW, LetterState.REPLAYING)
"""Those in which something still has to become of a letter."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; an empty field means any. Times are those of the last failure, `until_ms` excluded.

    They come newest first. `before_id`: only letters with lower numbers than that, for the next page.
    """

    since_ms: int | None = None
    until_ms: int | None = None
    reasons: frozenset[DeadLetterReason] = frozenset()
    product_id: int | None = None
    user_id: int | None = None
    order_id: str | None = None
    states: frozenset[LetterState] = frozenset()
    limit: int = 100
    before_id: int | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A row of the index: one order, or one record that holds none.

    `subject` is the order's id, else where the record first arrived (`topic/partition/offset`). `order_id` None: the
    record holds no order, or several, or an impostor of another order. `sale_id` 0: the order names none. `record` is
    where the record was read, `letter` where it lies now. `outcome` is how the order ended: `confirmed`,
    `rejected:CODE`, or nothing. `open_intent`: `replay` or `discard` was written down and is not finished.
    """

    letter_id: int
    subject: str
    order_id: str | None
    product_id: int | None
    sale_id: int | None
    user_id: int | None
    state: LetterState
    reason: DeadLetterReason
    error: str
    exception: str
    record: Place
    letter: Place
    first_failed_ms: int
    last_failed_ms: int
    attempts: int
    replays: int
    outcome: str
    open_intent: str
    created_ms: int
    updated_ms: int

    @property
    def looping(self) -> bool:
        """It was replayed, and came back."""
        return self.replays > 0 and self.state is LetterState.NEW


@dataclass(frozen=True, slots=True)
class Action:
    """A line of the log of what was done to a letter, by whom and why. Lines are only ever added.

    `payload`: the edited value that a replay published; None: the record's own.
    """

    action_id: int
    letter_id: int
    operator: str
    action: str
    note: str
    at_ms: int
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is known of a letter. `record` None: the topic does not hold it any more."""

    letter: Letter
    record: Record | None
    actions: tuple[Action, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """`last_minute`: letters whose last failure is not older. `looping`: replayed, and back again.

    `oldest_ms`: the first failure of the oldest letter that is open; None: none is.
    """

    total: int
    by_state: Mapping[LetterState, int] = field(default_factory=dict)
    by_reason: Mapping[DeadLetterReason, int] = field(default_factory=dict)
    by_product: Mapping[int, int] = field(default_factory=dict)
    oldest_ms: int | None = None
    last_minute: int = 0
    looping: int = 0


@dataclass(frozen=True, slots=True)
class By:
    """Who does it, and why."""

    operator: str
    note: str


@dataclass(frozen=True, slots=True)
class Considered:
    """What a replay would do. `refused`: why it would not publish; empty: it would publish `payload`.

    `payload` None: the topic does not hold the record, or it has no value.
    """

    letter: Letter
    refused: str
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it, and the letter as it is now.

    Of a replay `published`; `confirmed` or `rejected:CODE` (the order had ended, nothing was published); `held` (a
    transaction has the order: it is published again if that releases it). Of a discard `discarded`, or as above when
    the order had ended. Of both `refused: …`.
    """

    letter: Letter
    what: str

    @property
    def refused(self) -> str:
        """Why nothing was done; empty when something was."""
        told, _, why = self.what.partition("refused: ")
        return why if not told else ""


@dataclass(frozen=True, slots=True)
class RebuiltIndex:
    """`read`: letters in the topic. Of the index' rows: `added`, set to new again, and seen to have ended."""

    read: int
    added: int
    reopened: int
    resolved: int


class UnknownLetter(SeckillError):
    """No letter has this number, order id or subject."""

    def __init__(self, ident: str) -> None:
        super().__init__(f"there is no dead letter {ident}")
        self.ident = ident


class InvalidEdit(SeckillError):
    """An edited payload that cannot be published in the letter's place: `field` names what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
