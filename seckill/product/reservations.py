"""Reads and writes of `stock_reservation`, a group at a time. The caller holds the sale's row lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Select, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.barrier import Raced
from seckill.dtm.database import affected, in_chunks
from seckill.product.decide import Freeze, Group, Reject, Reservation, Stands, State, Verdict, Wanted
from seckill.product.tables import stock_reservation as rows

_COLUMNS = (
    rows.c.order_id, rows.c.product_id, rows.c.sale_id, rows.c.user_id, rows.c.quantity,
    rows.c.state, rows.c.reason, rows.c.gid, rows.c.branch_id, rows.c.updated_at_ms,
)  # fmt: skip
_HELD = (State.FROZEN.value, State.SOLD.value)
_OPEN = (State.FROZEN.value, State.RELEASED.value)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What one branch holds of one sale."""

    sale_id: int
    product_id: int
    units: int
    orders: int


async def reservations_of_orders(session: AsyncSession, order_ids: Sequence[bytes]) -> dict[bytes, Reservation]:
    found: dict[bytes, Reservation] = {}
    for chunk in in_chunks(order_ids):
        some = await _fetch(session, select(*_COLUMNS).where(rows.c.order_id.in_(chunk)))
        found.update((row.order_id, row) for row in some)
    return found


async def reservations_of_gid(session: AsyncSession, gid: str) -> list[Reservation]:
    return await _fetch(session, select(*_COLUMNS).where(rows.c.gid == gid).order_by(rows.c.order_id))


async def reservations_of_branches(session: AsyncSession, gids: Sequence[str], branch_id: str) -> list[Reservation]:
    """What this branch of these gids holds or has ended."""
    found: list[Reservation] = []
    for chunk in in_chunks(gids):
        found += await _fetch(session, select(*_COLUMNS).where(rows.c.gid.in_(chunk), rows.c.branch_id == branch_id))
    return found


async def reservations_of_sale(
    session: AsyncSession, sale_id: int, *, after: tuple[int, bytes], limit: int, open_only: bool
) -> list[Reservation]:
    """The next page of a sale's rows, by buyer and order id; `after` is the last one of the page before.

    With `open_only` those that have not ended.
    """
    user_id, order_id = after
    further = or_(rows.c.user_id > user_id, and_(rows.c.user_id == user_id, rows.c.order_id > order_id))
    page = select(*_COLUMNS).where(rows.c.sale_id == sale_id, rows.c.user_id >= user_id, further)
    if open_only:
        page = page.where(rows.c.state.in_(_OPEN))
    return await _fetch(session, page.order_by(rows.c.user_id, rows.c.order_id).limit(limit))


async def units_held(session: AsyncSession, sale_id: int, user_ids: Sequence[int]) -> dict[int, int]:
    """Units frozen and sold of each of these buyers in the sale; a buyer without any is absent."""
    held: dict[int, int] = {}
    for chunk in in_chunks(user_ids):
        totals = (
            select(rows.c.user_id, func.sum(rows.c.quantity))
            .where(rows.c.sale_id == sale_id, rows.c.user_id.in_(chunk), rows.c.state.in_(_HELD))
            .group_by(rows.c.user_id)
        )
        held.update((user_id, int(units)) for user_id, units in await session.execute(totals))
    return held


async def frozen_by(session: AsyncSession, gids: Sequence[str], branch_id: str) -> list[Frozen]:
    """What this branch of these gids (as many as one IN list takes) holds, by sale."""
    held = (
        select(rows.c.sale_id, rows.c.product_id, func.sum(rows.c.quantity), func.count())
        .where(rows.c.gid.in_(gids), rows.c.branch_id == branch_id, rows.c.state == State.FROZEN.value)
        .group_by(rows.c.sale_id, rows.c.product_id)
        .order_by(rows.c.sale_id, rows.c.product_id)
    )
    found = await session.execute(held)
    return [Frozen(sale_id, product_id, int(units), count) for sale_id, product_id, units, count in found]


async def end_frozen(session: AsyncSession, gids: Sequence[str], branch_id: str, state: State, *, now_ms: int) -> int:
    """Ends what this branch of these gids holds, and nothing else; the number of rows."""
    own = (
        update(rows)
        .where(rows.c.gid.in_(gids), rows.c.branch_id == branch_id, rows.c.state == State.FROZEN.value)
        .values(state=state.value, updated_at_ms=now_ms)
    )
    return await affected(session, own)


async def write_verdicts(
    session: AsyncSession,
    group: Group,
    verdicts: Sequence[Verdict],
    *,
    gid: str,
    branch_id: str,
    now_ms: int,
    taken: State = State.FROZEN,
) -> list[Reservation]:
    """Writes what was decided; one reservation per verdict as it now stands. Raises Raced when a row changed since.

    `taken`: what a Freeze writes; SOLD in a transaction that is as a whole committed or not.
    """
    outcomes: list[Reservation] = []
    fresh: list[tuple[Wanted, Reservation]] = []
    replaced: dict[tuple[State, str, str, str], list[bytes]] = defaultdict(list)
    for verdict in verdicts:
        if isinstance(verdict, Stands):
            outcomes.append(replace(verdict.row, reason=verdict.reason))
            continue
        row = _reservation(group, verdict, taken, gid=gid, branch_id=branch_id, now_ms=now_ms)
        outcomes.append(row)
        if verdict.over is None:
            fresh.append((verdict.order, row))
        else:
            replaced[row.state, row.reason, row.gid, row.branch_id].append(row.order_id)
    await _insert(session, fresh, now_ms=now_ms)
    for (state, reason, owner, branch), order_ids in replaced.items():
        values = {"state": state.value, "reason": reason, "gid": owner, "branch_id": branch, "updated_at_ms": now_ms}
        await _overwrite_released(session, order_ids, values)
    return outcomes


def _reservation(
    group: Group, verdict: Freeze | Reject, taken: State, *, gid: str, branch_id: str, now_ms: int
) -> Reservation:
    order = verdict.order
    state, reason = (State.REJECTED, str(verdict.reason)) if isinstance(verdict, Reject) else (taken, "")
    return Reservation(
        order.order_id, group.product_id, group.sale_id, order.user_id, order.quantity,
        state, reason, gid, branch_id, now_ms,
    )  # fmt: skip


async def _insert(session: AsyncSession, fresh: Sequence[tuple[Wanted, Reservation]], *, now_ms: int) -> None:
    if not fresh:
        return
    values = [
        {
            "order_id": row.order_id,
            "product_id": row.product_id,
            "sale_id": row.sale_id,
            "user_id": row.user_id,
            "quantity": row.quantity,
            "state": row.state.value,
            "reason": row.reason,
            "gid": row.gid,
            "branch_id": row.branch_id,
            "admitted_at_ms": order.admitted_at_ms,
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        for order, row in fresh
    ]
    try:
        await session.execute(insert(rows), values)  # the driver sends a list as one statement
    except IntegrityError as error:
        # The same order id came in a group of another sale, which another row lock guards.
        raise Raced("a reservation appeared meanwhile") from error


async def _overwrite_released(session: AsyncSession, order_ids: Sequence[bytes], values: dict[str, int | str]) -> None:
    for chunk in in_chunks(order_ids):
        statement = update(rows).where(rows.c.order_id.in_(chunk), rows.c.state == State.RELEASED.value).values(values)
        if await affected(session, statement) != len(chunk):
            raise Raced("a released reservation was taken meanwhile")


async def _fetch(session: AsyncSession, statement: Select[tuple[object, ...]]) -> list[Reservation]:
    found = await session.execute(statement)
    return [
        Reservation(order_id, product_id, sale_id, user_id, quantity, State(state), reason, gid, branch_id, updated)
        for order_id, product_id, sale_id, user_id, quantity, state, reason, gid, branch_id, updated in found
    ]
