"""The writes of the coordinator's log, decided in memory: whatever their order, a transaction keeps its rules."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from seckill.coordinator.commands import (
    BranchDone,
    Claim,
    Command,
    Decide,
    Finish,
    Insert,
    Known,
    Postpone,
    Register,
    Registered,
    Reset,
    TurnBack,
)
from seckill.coordinator.state import DECIDED, UNFINISHED, BranchOp, Status, Transaction, now_ms
from seckill.coordinator.tcc import Tcc
from seckill.dtm.protocol import TransOptions

GID = "g"
OWNERS = st.sampled_from(["one", "two"])
LEASES_MS = st.sampled_from([0, 60_000])  # over at once, or held to the end of the run
NEXT = {
    Status.PREPARED: {Status.SUBMITTED, Status.ABORTING, Status.FAILED},
    Status.SUBMITTED: {Status.SUCCEED, Status.ABORTING},
    Status.ABORTING: {Status.FAILED},
    Status.SUCCEED: set[Status](),
    Status.FAILED: set[Status](),
}


class OneTransaction(RuleBasedStateMachine):
    """Two coordinators write about one transaction in any order; each write is a batch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.transaction: Transaction | None = None
        self.branches: list[BranchOp] = []
        self.registered: list[str] = []
        self.history: list[Status] = []

    def write(self, command: Command[Any]) -> Any:
        known = Known(self.transaction, list(self.branches) if command.needs_branches else [])
        outcome = command.apply(known)
        if (known.inserted or known.changed) and known.transaction is not None:
            self.transaction = known.transaction
            if self.history[-1:] != [known.transaction.status]:
                self.history.append(known.transaction.status)
        done = {(branch.branch_id, branch.op): branch for branch in known.done_branches}
        self.branches = [done.get((each.branch_id, each.op), each) for each in self.branches + known.new_branches]
        return outcome

    def status(self) -> Status | None:
        return self.transaction.status if self.transaction else None

    @rule()
    def prepare(self) -> None:
        now = now_ms()
        before = self.transaction
        assert self.write(Insert(Transaction(GID, "tcc", Status.PREPARED, TransOptions(), now, now, now, 1))) == before

    @rule(branch_id=st.sampled_from(["01", "02", "03"]))
    def register(self, branch_id: str) -> None:
        before = self.status()
        told = self.write(Register(GID, Tcc().operations(GID, branch_id, {}, b"")))
        if before is not Status.PREPARED:
            assert told is Registered.NOT_PREPARED
        elif branch_id in self.registered:
            assert told is Registered.TWICE
        else:
            assert told is Registered.YES
            self.registered.append(branch_id)

    @rule(to=st.sampled_from(DECIDED), owner=OWNERS, lease_ms=LEASES_MS)
    def decide(self, to: Status, owner: str, lease_ms: int) -> None:
        before = self.transaction
        only_from = (Status.PREPARED,) if to is Status.SUBMITTED else (Status.PREPARED, Status.ABORTING)
        decided = self.write(Decide(GID, only_from, to, owner, lease_ms, interval_s=1))
        if before is None:
            assert decided is None
            return
        free = before.status is Status.PREPARED or before.owner in {"", owner} or before.next_cron_ms <= now_ms()
        assert decided.ours is (before.status in only_from and free)
        if decided.ours:
            assert [branch.branch_id for branch in decided.branches[::2]] == self.registered
        else:
            assert self.transaction == before

    @rule(owner=OWNERS, lease_ms=LEASES_MS)
    def claim(self, owner: str, lease_ms: int) -> None:
        before = self.transaction
        claimed = self.write(Claim(GID, owner, lease_ms))
        due = before is not None and before.status in UNFINISHED and before.next_cron_ms <= now_ms()
        assert (claimed is not None) is due

    @precondition(lambda self: self.status() in DECIDED)
    @rule(owner=OWNERS, lease_ms=LEASES_MS)
    def call_a_branch(self, owner: str, lease_ms: int) -> None:
        """The owner calls what is left, one branch or the end; somebody who lost the transaction learns so."""
        assert self.transaction is not None
        before = self.transaction
        remaining = Tcc().remaining(before.status, self.branches)
        if remaining:
            ours = self.write(BranchDone(GID, owner, lease_ms, 1, (remaining[0].answered(Status.SUCCEED),)))
            assert ours is (before.owner == owner)
            return
        end = Status.SUCCEED if before.status is Status.SUBMITTED else Status.FAILED
        assert self.write(Finish(GID, before.status, end))

    @rule()
    def drop(self) -> None:
        """A message that is not to be sent ends at once, unless it was decided."""
        before = self.status()
        assert self.write(Finish(GID, Status.PREPARED, Status.FAILED)) is (before is Status.PREPARED)

    @rule(owner=OWNERS, lease_ms=LEASES_MS)
    def turn_back(self, owner: str, lease_ms: int) -> None:
        """Only its owner rolls back what was submitted, and goes on owning it."""
        before = self.transaction
        after = self.write(TurnBack(GID, owner, lease_ms, 1, "refused"))
        can = before is not None and before.status is Status.SUBMITTED and before.owner == owner
        assert (after is not None) is can
        if after is not None:
            assert (after.status, after.owner, after.rollback_reason) == (Status.ABORTING, owner, "refused")

    @rule(owner=OWNERS, delay_ms=LEASES_MS)
    def put_off(self, owner: str, delay_ms: int) -> None:
        """What was asked about while it was prepared is left alone once it is decided."""
        before = self.transaction
        told = self.write(Postpone(GID, owner, delay_ms, interval_s=2, only_from=(Status.PREPARED,)))
        assert told is (before is not None and before.status is Status.PREPARED and before.owner == owner)
        if not told:
            assert self.transaction == before

    @rule(owner=OWNERS, delay_ms=LEASES_MS)
    def postpone(self, owner: str, delay_ms: int) -> None:
        before = self.transaction
        ours = self.write(Postpone(GID, owner, delay_ms, interval_s=2))
        assert ours is (before is not None and before.owner == owner)
        if ours:
            assert self.transaction is not None
            assert self.transaction.owner == ""

    @rule()
    def reset(self) -> None:
        before = self.status()
        assert self.write(Reset(GID)) is (before in UNFINISHED)

    @invariant()
    def it_is_decided_once(self) -> None:
        """The status goes forward, and never from one decision to the other."""
        assert self.history[:1] in ([], [Status.PREPARED])
        assert all(after in NEXT[before] for before, after in zip(self.history, self.history[1:], strict=False))

    @invariant()
    def an_ended_transaction_has_no_owner_and_nothing_left(self) -> None:
        if self.transaction is not None and self.transaction.status not in UNFINISHED:
            decided = self.history[-2]
            assert self.transaction.owner == ""
            assert decided is Status.PREPARED or Tcc().remaining(decided, self.branches) == []


OneTransaction.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOneTransaction = OneTransaction.TestCase
