"""Calling branches: identity in the metadata, the registered bytes as payload, and what their answers mean."""

from __future__ import annotations

from dataclasses import dataclass

from seckill.coordinator.metrics import BRANCH_CALLS
from seckill.coordinator.refusals import Refusal, branch_failed, is_ongoing, still_ongoing
from seckill.coordinator.state import BranchOp, Transaction
from seckill.dtm.channels import Channels
from seckill.dtm.errors import BadTarget, CallFailed
from seckill.dtm.protocol import BranchContext, TransOptions, header_metadata


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The operation took effect, now or before."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """To be called again, sooner when the branch asked for time. `refusal` is for one who waits for the result."""

    ongoing: bool
    refusal: Refusal
    error: str


class Dispatch:
    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def call(
        self, transaction: Transaction, branch: BranchOp, options: TransOptions, *, timeout_ms: int
    ) -> Succeeded | Unfinished:
        """Calls one operation once."""
        result = await self._call(transaction, branch, options, timeout_ms)
        label = "ok" if isinstance(result, Succeeded) else "ongoing" if result.ongoing else "failed"
        BRANCH_CALLS.labels(op=branch.op, result=label).inc()
        return result

    async def _call(
        self, transaction: Transaction, branch: BranchOp, options: TransOptions, timeout_ms: int
    ) -> Succeeded | Unfinished:
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
            return Unfinished(False, branch_failed(error), str(error))
        return Succeeded()
