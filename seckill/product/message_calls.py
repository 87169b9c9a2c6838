"""The product service's calls of a two-phase message, and what sells the holds of finished sagas and messages."""

from __future__ import annotations

import time
from typing import Any

import grpc
import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.dtm import message_branch
from seckill.dtm.barrier import InvalidMetadata, in_transaction
from seckill.dtm.protocol import BRANCH_ID, CANCEL, MSG, MSG_BRANCH, MSG_OP, BranchContext
from seckill.dtm.serving import UNDECIDABLE, branch_context
from seckill.dtm.tcc_branch import InvalidRequest, decision_of
from seckill.product import holding
from seckill.product.messages import encode_outcomes, group_of, hold_ids, reservation_message
from seckill.wire import product_pb2

CONFIRM_HOLDS = "/product.Product/ConfirmHolds"

Context = grpc.aio.ServicerContext[Any, Any]
Sessions = async_sessionmaker[AsyncSession]

log = structlog.get_logger(__name__)


async def take_stock(sessions: Sessions, request: product_pb2.UpdateProductStockRequest, context: Context) -> bytes:
    """The local transaction: freezes the one order, or says what keeps it from that; the serialized reply."""
    branch, now_ms = _local(context), _now_ms()
    group = group_of(request, sale_id_min=1)
    if len(group.orders) != 1:
        raise InvalidRequest("items", f"{len(group.orders)} orders, a message carries one")
    reply = await holding.taken_or_refused(
        sessions, branch, group, lambda session: holding.take(session, branch, group, now_ms=now_ms), now_ms=now_ms
    )
    if not isinstance(reply, bytes):
        return encode_outcomes([reply])
    reach(CrashPoint.MESSAGE_TAKEN_COMMITTED)
    return reply


async def query_prepared(sessions: Sessions, context: Context) -> None:
    """Whether the message is to be sent. Raises RolledBack when it is not: its units were not frozen, or given back."""
    branch = _local(context)
    await message_branch.query_prepared(sessions, branch)
    if await in_transaction(sessions, lambda session: decision_of(session, branch)) == CANCEL:
        raise message_branch.RolledBack(branch)


async def confirm_holds(sessions: Sessions, request: product_pb2.ConfirmHoldsRequest) -> product_pb2.ConfirmHoldsReply:
    """Sells what they hold; what contradicts a decision stays as it is, and is told as a Confirm's contradiction is."""
    holds = hold_ids(request)
    ended = await in_transaction(sessions, lambda session: holding.confirm_holds(session, holds, now_ms=_now_ms()))
    reach(CrashPoint.HOLDS_CONFIRM_COMMITTED)
    for hold in ended.contradicted:
        UNDECIDABLE.labels(CONFIRM_HOLDS).inc()
        log.error("branch_contradicted", method=CONFIRM_HOLDS, gid=hold.gid, branch_id=hold.branch_id)
    return product_pb2.ConfirmHoldsReply(reservations=map(reservation_message, ended.reservations))


def _local(context: Context) -> BranchContext:
    branch = branch_context(context, op=MSG_OP, trans_type=MSG)
    if branch.branch_id != MSG_BRANCH:
        raise InvalidMetadata(BRANCH_ID, f"{branch.branch_id[:45]!r}, a message's local transaction is {MSG_BRANCH!r}")
    return branch


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
