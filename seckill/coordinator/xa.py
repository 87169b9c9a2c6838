"""XA: COMMIT of every branch after Submit, ROLLBACK of every branch after Abort, in the order of their registration.

Source of the order: github.com/dtm-labs/dtm v1.19, dtmsvr/trans_type_xa.go and svcRegisterBranch of dtmsvr/api.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seckill.coordinator.pattern import Progress, Step, in_turn
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.dtm.protocol import COMMIT, ROLLBACK, XA


class Xa:
    """Each branch has one address, which is called with the operation that was decided."""

    trans_type = XA

    def operations(self, gid: str, branch_id: str, data: Mapping[str, str], payload: bytes) -> tuple[BranchOp, ...]:
        """A branch as its registration describes it; without an address it needs no call."""
        now = now_ms()
        return tuple(BranchOp(gid, branch_id, op, data.get("url", ""), payload, now) for op in (ROLLBACK, COMMIT))

    def remaining(self, decision: Status, branches: Sequence[BranchOp]) -> list[BranchOp]:
        """What is left to call, in this order, for a transaction that is SUBMITTED or ABORTING."""
        op = COMMIT if decision is Status.SUBMITTED else ROLLBACK
        return [branch for branch in branches if branch.op == op and branch.status is Status.PREPARED]

    def next_step(self, progress: Progress) -> Step:
        return in_turn(self.remaining(progress.transaction.status, progress.branches), progress)

    def result(self, transaction: Transaction, refusal: Refusal | None) -> Refusal | None:
        return refusal
