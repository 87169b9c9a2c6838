"""What a kind of transactions has to say: its branch operations, and what comes next. Decided without I/O.

A pattern sees a decided transaction in the middle of an attempt, and answers with one step; whoever asked it takes
the step, and asks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from seckill.coordinator.refusals import Refusal
from seckill.coordinator.state import BranchOp, Transaction


@dataclass(frozen=True, slots=True)
class Contents:
    """What a Prepare or a Submit says about its branches, as it came. Empty for patterns that register them."""

    query_prepared: str = ""
    steps: str = ""  # JSON: [{"action": address, "compensate": address}, …]
    payloads: Sequence[bytes] = ()
    custom_data: str = ""  # JSON, by pattern


NO_CONTENTS = Contents()


@dataclass(frozen=True, slots=True)
class Progress:
    """A decided transaction as an attempt sees it: the log, and what has been answered since."""

    transaction: Transaction
    branches: tuple[BranchOp, ...]  # in the order of the log
    now_ms: int
    calling: frozenset[tuple[str, str]] = frozenset()  # keys of operations that have not answered yet
    unfinished: frozenset[tuple[str, str]] = frozenset()  # … that have answered in this attempt, and not for good
    repeats: int = 0  # calls of this attempt that were repeats
    called: frozenset[tuple[str, str]] = frozenset()  # keys of all operations that this attempt has called
    refused: str = "fail message lost"  # why the action that refused last did so; DTM's words when nobody knows


@dataclass(frozen=True, slots=True)
class Calls:
    """These can be called now, all at once."""

    branches: tuple[BranchOp, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing more can be called until something that is being called has answered, or until the next attempt."""


@dataclass(frozen=True, slots=True)
class Later:
    """It is not time yet."""

    delay_ms: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """What was submitted must be rolled back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Every operation that the decision asks for has taken effect."""


Step = Calls | Pause | Later | RollBack | Finished


class Pattern(Protocol):
    """What differs between kinds of transactions that are decided."""

    @property
    def trans_type(self) -> str: ...

    def next_step(self, progress: Progress) -> Step: ...

    def result(self, transaction: Transaction, refusal: Refusal | None) -> Refusal | None:
        """What one who waited for an attempt is told of it; `refusal` is what the last unfinished call led to."""
        ...


class RegisteringPattern(Pattern, Protocol):
    """Its branches are registered one by one while the transaction is prepared."""

    def operations(self, gid: str, branch_id: str, data: Mapping[str, str], payload: bytes) -> tuple[BranchOp, ...]: ...


class PlannedPattern(Pattern, Protocol):
    """Its branches come with Prepare or Submit."""

    def planned(self, gid: str, contents: Contents) -> tuple[BranchOp, ...]:
        """Raises Refusal for contents that cannot be used."""
        ...

    def delay_ms(self, contents: Contents) -> int:
        """How long its branches wait after Submit."""
        ...


def in_turn(remaining: Sequence[BranchOp], progress: Progress) -> Step:
    """One operation after the other; one that is not finished keeps back those after it."""
    if not remaining:
        return Finished()
    first = remaining[0]
    if first.key in progress.calling | progress.unfinished:
        return Pause()
    return Calls((first,))
