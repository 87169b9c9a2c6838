"""The writes of the log: each looks at one transaction and says what changes. Decided in memory, without I/O.

A batch of them is applied under the row locks of their transactions, so a decision and a registration can never
miss each other: a branch is registered only while its transaction is prepared, and whoever changes the status gets
the branches as they are after the change.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, Protocol, TypeVar

from seckill.coordinator.state import UNFINISHED, BranchOp, Status, Transaction, now_ms

OutcomeT_co = TypeVar("OutcomeT_co", covariant=True)


@dataclass(slots=True)
class Known:
    """A transaction as a batch sees it: what was read, and what the batch has changed so far."""

    transaction: Transaction | None = None
    branches: list[BranchOp] = field(default_factory=list)  # read only for commands with `needs_branches`
    inserted: bool = False
    changed: bool = False
    new_branches: list[BranchOp] = field(default_factory=list)
    done_branches: list[BranchOp] = field(default_factory=list)

    def change(self, transaction: Transaction) -> None:
        self.transaction = replace(transaction, updated_ms=now_ms())
        self.changed = True


class Command(Protocol[OutcomeT_co]):
    @property
    def gid(self) -> str: ...

    @property
    def needs_branches(self) -> bool: ...

    def apply(self, known: Known) -> OutcomeT_co: ...


@dataclass(frozen=True, slots=True)
class Insert:
    """Opens a transaction, with the branches that it has from the start. The outcome is the one that is there
    already, or None.
    """

    transaction: Transaction
    branches: tuple[BranchOp, ...] = ()
    needs_branches: ClassVar[bool] = False

    @property
    def gid(self) -> str:
        return self.transaction.gid

    def apply(self, known: Known) -> Transaction | None:
        if known.transaction is not None:
            return known.transaction
        known.transaction = self.transaction
        known.inserted = True
        known.branches.extend(self.branches)
        known.new_branches.extend(self.branches)
        return None


class Registered(Enum):
    YES = "yes"
    NOT_PREPARED = "not prepared"
    TWICE = "twice"


@dataclass(frozen=True, slots=True)
class Register:
    """Adds the operations of a branch while its transaction is prepared."""

    gid: str
    branches: tuple[BranchOp, ...]
    needs_branches: ClassVar[bool] = True

    def apply(self, known: Known) -> Registered:
        if known.transaction is None or known.transaction.status is not Status.PREPARED:
            return Registered.NOT_PREPARED
        present = {branch.key for branch in known.branches}
        if any(branch.key in present for branch in self.branches):
            return Registered.TWICE
        known.branches.extend(self.branches)
        known.new_branches.extend(self.branches)
        return Registered.YES


@dataclass(frozen=True, slots=True)
class Decided:
    """The transaction after a decision was asked for; `ours`: it took effect, and its branches are ours to call."""

    transaction: Transaction
    branches: tuple[BranchOp, ...]
    ours: bool


@dataclass(frozen=True, slots=True)
class Decide:
    """Moves a transaction to `to` if its status is one of `only_from` and no other coordinator is at work on it.

    The outcome is None for an unknown gid. An empty `owner` leaves the branches to the first cron run after `delay_ms`.
    """

    gid: str
    only_from: Collection[Status]
    to: Status
    owner: str
    lease_ms: int
    interval_s: int
    reason: str = ""
    delay_ms: int = 0
    needs_branches: ClassVar[bool] = True

    def apply(self, known: Known) -> Decided | None:
        before = known.transaction
        if before is None:
            return None
        now = now_ms()
        taken = before.owner not in {"", self.owner} and before.next_cron_ms > now
        if before.status not in self.only_from or (taken and before.status is not Status.PREPARED):
            return Decided(before, (), ours=False)
        after = replace(
            before,
            status=self.to,
            owner=self.owner,
            next_cron_ms=now + (self.lease_ms if self.owner else self.delay_ms),
            next_cron_interval_s=self.interval_s,
            rollback_reason=self.reason or before.rollback_reason,
        )
        known.change(after)
        return Decided(after, tuple(known.branches), ours=True)


@dataclass(frozen=True, slots=True)
class TurnBack:
    """Its owner rolls back what was submitted. The outcome is the transaction after that; None: not ours any more."""

    gid: str
    owner: str
    lease_ms: int
    interval_s: int
    reason: str
    answered: tuple[BranchOp, ...] = ()  # with the status that each has now
    needs_branches: ClassVar[bool] = False

    def apply(self, known: Known) -> Transaction | None:
        before = known.transaction
        if before is None or before.owner != self.owner or before.status is not Status.SUBMITTED:
            return None
        after = replace(
            before,
            status=Status.ABORTING,
            next_cron_ms=now_ms() + self.lease_ms,
            next_cron_interval_s=self.interval_s,
            rollback_reason=self.reason,
        )
        known.done_branches.extend(self.answered)
        known.change(after)
        return after


@dataclass(frozen=True, slots=True)
class BranchDone:
    """Operations have their final answers; without any, only the lease is renewed, for what is called next.

    The outcome says whether the transaction is still ours. If it is not, what has succeeded is kept all the same.
    """

    gid: str
    owner: str
    lease_ms: int
    interval_s: int
    answered: tuple[BranchOp, ...] = ()  # with the status that each has now
    needs_branches: ClassVar[bool] = False

    def apply(self, known: Known) -> bool:
        transaction = known.transaction
        ours = transaction is not None and transaction.owner == self.owner
        known.done_branches.extend(each for each in self.answered if ours or each.status is Status.SUCCEED)
        if transaction is None or not ours:
            return False
        due = now_ms() + self.lease_ms
        known.change(replace(transaction, next_cron_ms=due, next_cron_interval_s=self.interval_s))
        return True


@dataclass(frozen=True, slots=True)
class Postpone:
    """Gives a transaction back until its next cron time. The outcome says whether it was still ours."""

    gid: str
    owner: str
    delay_ms: int
    interval_s: int
    only_from: Collection[Status] = UNFINISHED
    needs_branches: ClassVar[bool] = False

    def apply(self, known: Known) -> bool:
        transaction = known.transaction
        if transaction is None or transaction.owner != self.owner or transaction.status not in self.only_from:
            return False
        due = now_ms() + self.delay_ms
        known.change(replace(transaction, owner="", next_cron_ms=due, next_cron_interval_s=self.interval_s))
        return True


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to call. The outcome says whether the status was still the one that led there."""

    gid: str
    only_from: Status
    to: Status
    answered: tuple[BranchOp, ...] = ()  # operations whose success is not written yet
    needs_branches: ClassVar[bool] = False

    def apply(self, known: Known) -> bool:
        known.done_branches.extend(self.answered)
        transaction = known.transaction
        if transaction is None or transaction.status is not self.only_from:
            return False
        known.change(replace(transaction, status=self.to, owner="", finished_ms=now_ms()))
        return True


@dataclass(frozen=True, slots=True)
class Claim:
    """A cron run takes up a transaction that is due. The outcome is None when it is not due any more."""

    gid: str
    owner: str
    lease_ms: int
    needs_branches: ClassVar[bool] = True

    def apply(self, known: Known) -> Decided | None:
        before = known.transaction
        now = now_ms()
        if before is None or before.status not in UNFINISHED or before.next_cron_ms > now:
            return None
        after = replace(before, owner=self.owner, next_cron_ms=now + self.lease_ms)
        known.change(after)
        return Decided(after, tuple(known.branches), ours=True)


@dataclass(frozen=True, slots=True)
class Reset:
    """Makes a transaction due now, whoever owns it. The outcome says whether it was unfinished."""

    gid: str
    needs_branches: ClassVar[bool] = False

    def apply(self, known: Known) -> bool:
        transaction = known.transaction
        if transaction is None or transaction.status not in UNFINISHED:
            return False
        known.change(replace(transaction, next_cron_ms=now_ms()))
        return True
