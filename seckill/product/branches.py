"""Branch 01 of a global transaction: Try freezes units, Confirm sells them, Cancel releases them.

Works on the session that it is given, inside the caller's transaction; knows SQL and nothing of gRPC. The row of an
order in `stock_reservation` is the only place where the order's fate is decided. The sale's row is locked first by
everything that touches it, so that two transactions never wait for each other crosswise.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.order import derived_order_id, order_key
from seckill.dtm.barrier import Passage, Raced
from seckill.dtm.protocol import BranchContext
from seckill.dtm.tcc_branch import TryRefused, run_cancel, run_confirm, run_try
from seckill.product import products, sales
from seckill.product.decide import Freeze, Group, Reject, Reservation, State, Terms, Verdict, Wanted, decide, standing
from seckill.product.messages import encode_outcomes
from seckill.product.reservations import (
    Frozen,
    end_frozen,
    frozen_by,
    reservations_of_orders,
    units_held,
    write_verdicts,
)

OWN_STOCK = 0
"""The sale id of reservations that take units from the product row: callers that know nothing of sales."""


async def try_group(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> bytes:
    """Freezes what each order of the group may have; the serialized outcomes, the same bytes for every repeat."""

    async def reserve(session: AsyncSession) -> bytes:
        return await freeze(session, context, group, await verdicts_of(session, group), now_ms=now_ms)

    reply = await run_try(session, context, reserve)
    reach(CrashPoint.PRODUCT_TRY_WRITTEN)
    return reply


async def verdicts_of(session: AsyncSession, group: Group) -> list[Verdict]:
    """What may be done with each order now; nothing is written. The sale's row is locked until the transaction ends."""
    sale = await sales.lock(session, group.sale_id)
    of_product = sale is not None and sale.product_id == group.product_id
    terms = Terms(sale.stock, sale.per_user_limit) if sale is not None and of_product else None
    existing = await reservations_of_orders(session, [order.order_id for order in group.orders])
    held = await units_held(session, group.sale_id, list({order.user_id for order in group.orders}))
    return decide(terms, group, existing=existing, held=held)


async def freeze(
    session: AsyncSession, context: BranchContext, group: Group, verdicts: Sequence[Verdict], *, now_ms: int
) -> bytes:
    """Writes the verdicts for this gid and branch; the serialized outcomes."""
    outcomes = await _write(session, context, group, verdicts, now_ms=now_ms)
    await sales.shift(session, group.sale_id, frozen=units_of(verdicts), stock=-units_of(verdicts))
    return encode_outcomes(outcomes)


async def try_own_stock(
    session: AsyncSession, context: BranchContext, product_id: int, units: int, *, now_ms: int
) -> bytes:
    """Freezes units of the product that are on no sale, under an id that the gid and branch give."""
    order_id = order_key(derived_order_id(product_id, context.gid, context.branch_id, at_ms=0))
    group = Group(product_id, OWN_STOCK, [Wanted(order_id, user_id=0, quantity=units)])

    async def reserve(session: AsyncSession) -> bytes:
        stock = await products.lock_stock(session, product_id)
        if stock is None or stock < units:
            left = "does not exist" if stock is None else f"has {stock} units left"
            raise TryRefused(f"product {product_id} {left}, {units} were asked for")
        outcomes = await _write(session, context, group, [Freeze(group.orders[0])], now_ms=now_ms)
        await products.add_stock(session, product_id, -units, now_ms=now_ms)
        return encode_outcomes(outcomes)

    return await run_try(session, context, reserve)


async def confirm(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Sells what this gid and branch have frozen, whatever the payload says."""

    async def sell(session: AsyncSession) -> None:
        await sell_frozen(session, [context.gid], context.branch_id, now_ms=now_ms)

    passage = await run_confirm(session, context, sell)
    reach(CrashPoint.PRODUCT_CONFIRM_WRITTEN)
    return passage


async def cancel(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Releases what this gid and branch have frozen; the units are there for others again."""

    async def release(session: AsyncSession) -> None:
        await release_frozen(session, context, now_ms=now_ms)

    passage = await run_cancel(session, context, release)
    reach(CrashPoint.PRODUCT_CANCEL_WRITTEN)
    return passage


async def sell_frozen(session: AsyncSession, gids: Sequence[str], branch_id: str, *, now_ms: int) -> None:
    """Sells what this branch of these gids (as many as one IN list takes) holds."""
    for frozen in await _end(session, gids, branch_id, State.SOLD, now_ms=now_ms):
        if frozen.sale_id != OWN_STOCK:  # the product row counts only what is left
            await sales.shift(session, frozen.sale_id, frozen=-frozen.units, sold=frozen.units)


async def release_frozen(session: AsyncSession, context: BranchContext, *, now_ms: int) -> None:
    """Releases what this gid and branch hold."""
    for frozen in await _end(session, [context.gid], context.branch_id, State.RELEASED, now_ms=now_ms):
        if frozen.sale_id == OWN_STOCK:
            await products.add_stock(session, frozen.product_id, frozen.units, now_ms=now_ms)
        else:
            await sales.shift(session, frozen.sale_id, frozen=-frozen.units, stock=frozen.units)


async def reject(
    session: AsyncSession, group: Group, reason: str, *, now_ms: int, gid: str = "", branch_id: str = ""
) -> list[Reservation]:
    """Writes `rejected(reason)` where no row or a released one stands; what then stands, one per order.

    `gid` and `branch_id` are those of the branch that found the reason; empty: it was found outside a transaction.
    """
    await sales.lock(session, group.sale_id)
    existing = await reservations_of_orders(session, [order.order_id for order in group.orders])
    verdicts: list[Verdict] = []
    for order in group.orders:
        row = existing.get(order.order_id)
        stands = standing(row, group, order) if row is not None else None
        verdicts.append(stands or Reject(order, reason, over=row))
    rows = await write_verdicts(session, group, verdicts, gid=gid, branch_id=branch_id, now_ms=now_ms)
    reach(CrashPoint.PRODUCT_REJECT_WRITTEN)
    return rows


async def _write(
    session: AsyncSession, context: BranchContext, group: Group, verdicts: Sequence[Verdict], *, now_ms: int
) -> list[Reservation]:
    return await write_verdicts(session, group, verdicts, gid=context.gid, branch_id=context.branch_id, now_ms=now_ms)


async def _end(
    session: AsyncSession, gids: Sequence[str], branch_id: str, state: State, *, now_ms: int
) -> list[Frozen]:
    # Only this branch's own Confirm or Cancel changes these rows, and the decision row lets one of them through:
    # what is read here still holds once the sale is locked.
    held = await frozen_by(session, gids, branch_id)
    for frozen in held:
        if frozen.sale_id != OWN_STOCK:
            await sales.lock(session, frozen.sale_id)
    ended = await end_frozen(session, gids, branch_id, state, now_ms=now_ms) if held else 0
    if ended != sum(frozen.orders for frozen in held):
        raise Raced("reservations of this branch changed meanwhile")
    return held


def units_of(verdicts: Sequence[Verdict]) -> int:
    """Units that these verdicts take."""
    return sum(verdict.order.quantity for verdict in verdicts if isinstance(verdict, Freeze))
