"""Calling branches: identity in the metadata, the registered bytes as payload, and what their answers mean."""

from __future__ import annotations

from dataclasses import dataclass

from seckill.coordinator.metrics import BRANCH_CALLS
from seckill.coordinator.refusals import Refusal, branch_failed, is_ongoing, still_ongoing, why_refused
from seckill.coordinator.state import BranchOp, Transaction
from seckill.crashpoints import CrashPoint, reach
from seckill.dtm.channels import Channels
from seckill.dtm.errors import BadTarget, CallFailed, Refused
from seckill.dtm.protocol import (
    ACTION,
    CANCEL,
    COMMIT,
    COMPENSATE,
    CONFIRM,
    MSG_OP,
    ROLLBACK,
    SAGA,
    BranchContext,
    TransOptions,
    header_metadata,
)

CALLING = {
    CONFIRM: CrashPoint.CONFIRM_CALLING,
    CANCEL: CrashPoint.CANCEL_CALLING,
    ACTION: CrashPoint.ACTION_CALLING,
    COMPENSATE: CrashPoint.COMPENSATE_CALLING,
    COMMIT: CrashPoint.COMMIT_CALLING,
    ROLLBACK: CrashPoint.ROLLBACK_CALLING,
    MSG_OP: CrashPoint.QUERY_CALLING,
}
CALLED = {
    CONFIRM: CrashPoint.CONFIRM_CALLED,
    CANCEL: CrashPoint.CANCEL_CALLED,
    ACTION: CrashPoint.ACTION_CALLED,
    COMPENSATE: CrashPoint.COMPENSATE_CALLED,
    COMMIT: CrashPoint.COMMIT_CALLED,
    ROLLBACK: CrashPoint.ROLLBACK_CALLED,
    MSG_OP: CrashPoint.QUERY_CALLED,
}


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The operation took effect, now or before."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The operation did not take effect, and will not: an action of a saga, or a message's local part."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """To be called again, sooner when the branch asked for time. `refusal` is for one who waits for the result."""

    ongoing: bool
    refusal: Refusal
    error: str


Answer = Succeeded | Denied | Unfinished


class Dispatch:
    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def call(
        self, transaction: Transaction, branch: BranchOp, options: TransOptions, *, timeout_ms: int
    ) -> Answer:
        """Calls one operation once."""
        reach(CALLING[branch.op])
        answer = await self._call(transaction, branch, options, timeout_ms)
        reach(CALLED[branch.op])
        BRANCH_CALLS.labels(op=branch.op, result=_label(answer)).inc()
        return answer

    async def _call(self, transaction: Transaction, branch: BranchOp, options: TransOptions, timeout_ms: int) -> Answer:
        if not branch.url:
            return Succeeded()
        context = BranchContext(transaction.gid, transaction.trans_type, branch.branch_id, branch.op)
        metadata = context.metadata() + header_metadata(options.branch_headers)
        try:
            await self._channels.call(branch.url, branch.payload, metadata, timeout_ms=timeout_ms)
        except BadTarget as error:
            return Unfinished(False, branch_failed(error), str(error))
        except CallFailed as error:
            if is_ongoing(error):
                return Unfinished(True, still_ongoing(), str(error))
            if isinstance(error, Refused) and _may_deny(transaction, branch):
                return Denied(why_refused(branch.url, error))
            return Unfinished(False, branch_failed(error), str(error))
        return Succeeded()


def _may_deny(transaction: Transaction, branch: BranchOp) -> bool:
    """Whatever else is called is called because it was decided, and can only be repeated."""
    return branch.op == MSG_OP or (transaction.trans_type == SAGA and branch.op == ACTION)


def _label(answer: Answer) -> str:
    match answer:
        case Succeeded():
            return "ok"
        case Denied():
            return "refused"
        case Unfinished(ongoing=ongoing):
            return "ongoing" if ongoing else "failed"
