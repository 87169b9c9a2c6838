"""TCC: Confirm of every branch after Submit, Cancel of every branch after Abort, the last registered branch first.

Source of the order: github.com/dtm-labs/dtm v1.19, dtmsvr/trans_type_tcc.go and svcRegisterBranch of dtmsvr/api.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seckill.coordinator.pattern import Progress, Step, in_turn
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.dtm.protocol import CANCEL, CONFIRM


class Tcc:
    """Which operations a branch has, and which of them are still to be called."""

    trans_type = "tcc"

    def operations(self, gid: str, branch_id: str, data: Mapping[str, str], payload: bytes) -> tuple[BranchOp, ...]:
        """A branch as its registration describes it. An operation without an address needs no call."""
        now = now_ms()
        return tuple(BranchOp(gid, branch_id, op, data.get(op, ""), payload, now) for op in (CANCEL, CONFIRM))

    def remaining(self, decision: Status, branches: Sequence[BranchOp]) -> list[BranchOp]:
        """What is left to call, in this order, for a transaction that is SUBMITTED or ABORTING."""
        op = CONFIRM if decision is Status.SUBMITTED else CANCEL
        return [branch for branch in reversed(branches) if branch.op == op and branch.status is Status.PREPARED]

    def next_step(self, progress: Progress) -> Step:
        return in_turn(self.remaining(progress.transaction.status, progress.branches), progress)

    def result(self, transaction: Transaction, refusal: Refusal | None) -> Refusal | None:
        return refusal
