"""Sums and fingerprints of all rows, in pieces of the primary key: what fits together costs no row on the wire.

Both databases are cut at the same keys. Of each piece both say how many orders of a sale were sold and confirmed, how
many units, and the sum of the rows' fingerprints; only where these differ, the keys are fetched. Locks nothing, and no
statement reads more than a piece.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, case, cast, func, or_, select
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncConnection

from seckill.audit.facts import CANCEL, CONFIRM
from seckill.dtm.database import MYSQL, in_chunks
from seckill.order.tables import metadata as order_metadata
from seckill.order.tables import orders
from seckill.order.types import OrderState
from seckill.product.decide import State
from seckill.product.tables import metadata as product_metadata
from seckill.product.tables import stock_reservation as reservations

PIECE_ROWS = 10_000
"""Largest piece; the sum of so many fingerprints of 48 bits fits into 63."""

BUYERS_PAGE = 5_000

PRODUCT_DECISIONS = product_metadata.tables["decision"]
ORDER_DECISIONS = order_metadata.tables["decision"]

_DECISION_OF = {State.FROZEN: None, State.SOLD: CONFIRM, State.RELEASED: CANCEL}
"""As `rules.DECISION_OF`, by the numbers that stand in SQL."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Sale id → product id. `refused`: also the orders of these products that were refused without a sale."""

    products: Mapping[int, int]
    refused: bool

    def __contains__(self, place: tuple[int, int]) -> bool:
        product_id, sale_id = place
        return sale_id in self.products or (self.refused and sale_id == 0 and product_id in self.products.values())


@dataclass(frozen=True, slots=True)
class Moment:
    """When Redis was asked for its counters, by its own clock in ms. `rejected_since_ms`: from when on a rejection
    may have been settled after that; None: at rest nothing is.
    """

    from_ms: int
    until_ms: int
    rejected_since_ms: int | None


@dataclass(slots=True)
class SaleSums:
    """Of one sale, over all pieces, in units unless said otherwise."""

    sold_orders: int = 0  # orders
    sold: int = 0
    frozen: int = 0
    ordered: int = 0
    sold_before: int = 0  # admitted before Redis was asked
    unsure: int = 0  # admitted or given back about when Redis was asked
    rejected: Counter[str] = field(default_factory=Counter)  # orders by reason
    largest: int = 0  # quantity of one order


@dataclass(slots=True)
class Sums:
    """`doubtful`: keys of orders whose rows do not fit together; `released`: of those that hold nothing any more."""

    sales: defaultdict[int, SaleSums] = field(default_factory=lambda: defaultdict(SaleSums))
    doubtful: set[tuple[int, bytes]] = field(default_factory=set)  # product id, key
    released: set[tuple[int, bytes]] = field(default_factory=set)
    rows: int = 0  # read, of reservations and orders


async def sum_up(
    product: AsyncConnection, order: AsyncConnection, wanted: Wanted, moment: Moment, *, piece_rows: int
) -> Sums:
    """Of the wanted sales, from a snapshot of each database; product's is the older one."""
    sums = Sums()
    async for piece in _pieces((product, reservations.c.order_id), (order, orders.c.order_id), rows=piece_rows):
        reserved = await _reserved(product, piece, wanted, moment, sums)
        ordered = await _ordered(order, piece, wanted, sums)
        for sale_id in (sale for sale in reserved.keys() | ordered.keys() if reserved.get(sale) != ordered.get(sale)):
            here = await _marks(product, reservations, piece, sale_id, reservations.c.state == State.SOLD)
            there = await _marks(order, orders, piece, sale_id, orders.c.status == OrderState.CONFIRMED)
            sums.doubtful |= {(product_id, key) for product_id, key, _ in here ^ there}
    return sums


_Mark = tuple[int, int, int]  # orders, units, sum of fingerprints


async def _reserved(
    connection: AsyncConnection, piece: _Piece, wanted: Wanted, moment: Moment, sums: Sums
) -> dict[int, _Mark]:
    """Adds a piece of the reservations to the sums; what was sold in it, by sale."""
    row, decision = reservations.c, PRODUCT_DECISIONS
    within, timing = piece(row.order_id), _timing(moment)
    groups = (row.product_id, row.sale_id, row.state, row.reason, decision.c.op, timing)
    mark = func.sum(case((row.state == State.SOLD, fingerprint(connection, reservations)), else_=0))
    found = await connection.execute(
        select(*groups, func.count(), func.sum(row.quantity), func.max(row.quantity), mark)
        .select_from(reservations.outerjoin(decision, _own_decision()))
        .where(within, or_(row.sale_id != 0, row.gid == ""))
        .group_by(*groups)
    )
    sold: dict[int, _Mark] = {}
    unfit = False
    for product_id, sale_id, state, reason, op, when, count, units, largest, marks in found:
        sums.rows += count
        if (product_id, sale_id) not in wanted:
            continue
        sale = sums.sales[sale_id]
        sale.largest = max(sale.largest, int(largest))
        match State(state):
            case State.SOLD:
                orders_before, units_before, marks_before = sold.get(sale_id, (0, 0, 0))
                sold[sale_id] = (orders_before + count, units_before + int(units), marks_before + int(marks))
                sale.sold_orders += count
                sale.sold += int(units)
                sale.sold_before += int(units) if when == 0 else 0
                sale.unsure += int(units) if when == 1 else 0
            case State.FROZEN:
                sale.frozen += int(units)
            case State.REJECTED:
                sale.rejected[reason] += count
                # The database's own SOLD_OUT gives no units back to Redis; that of a late admission took none.
                sale.unsure += int(units) if reason == "SOLD_OUT" or when == 1 else 0
        unfit |= State(state) is State.RELEASED or (state in _DECISION_OF and op != _DECISION_OF[State(state)])
    if unfit:
        await _note_unfit(connection, within, wanted, sums)
    return sold


def _timing(moment: Moment) -> ColumnElement[int]:
    """0: Redis counts its units among the admitted ones or has them back; 2: it does not yet; 1: either."""
    row = reservations.c
    sold = case((row.admitted_at_ms < moment.from_ms, 0), (row.admitted_at_ms <= moment.until_ms, 1), else_=2)
    if moment.rejected_since_ms is None:
        return case((row.state == State.SOLD, sold), else_=0)
    rejected = case((row.updated_at_ms >= moment.rejected_since_ms, 1), else_=0)
    return case((row.state == State.SOLD, sold), (row.state == State.REJECTED, rejected), else_=0)


def _own_decision() -> ColumnElement[bool]:
    decision = PRODUCT_DECISIONS.c
    return and_(decision.gid == reservations.c.gid, decision.branch_id == reservations.c.branch_id)


async def _note_unfit(connection: AsyncConnection, within: ColumnElement[bool], wanted: Wanted, sums: Sums) -> None:
    """Reservations of a piece that were released, or are not what their decision made of them."""
    row, op = reservations.c, PRODUCT_DECISIONS.c.op
    unfit = or_(
        row.state == State.RELEASED,
        and_(row.state == State.SOLD, or_(op.is_(None), op != CONFIRM)),
        and_(row.state == State.FROZEN, op.is_not(None)),
    )
    found = await connection.execute(
        select(row.product_id, row.sale_id, row.order_id, row.state, op)
        .select_from(reservations.outerjoin(PRODUCT_DECISIONS, _own_decision()))
        .where(within, row.sale_id != 0, unfit)
    )
    for product_id, sale_id, key, state, decided in found:
        if (product_id, sale_id) not in wanted:
            continue
        if decided != _DECISION_OF[State(state)]:
            sums.doubtful.add((product_id, key))
        elif state == State.RELEASED:
            sums.released.add((product_id, key))


async def _ordered(connection: AsyncConnection, piece: _Piece, wanted: Wanted, sums: Sums) -> dict[int, _Mark]:
    """Adds a piece of the orders to the sums; what was confirmed in it, by sale."""
    found = await connection.execute(
        select(orders.c.sale_id, func.count(), func.sum(orders.c.quantity), func.sum(fingerprint(connection, orders)))
        .where(piece(orders.c.order_id), orders.c.status == OrderState.CONFIRMED)
        .group_by(orders.c.sale_id)
    )
    confirmed: dict[int, _Mark] = {}
    for sale_id, count, units, marks in found:
        sums.rows += count
        if sale_id in wanted.products:
            confirmed[sale_id] = (count, int(units), int(marks))
            sums.sales[sale_id].ordered += int(units)
    return confirmed


async def _marks(
    connection: AsyncConnection, table: Table, piece: _Piece, sale_id: int, state: ColumnElement[bool]
) -> set[tuple[int, bytes, int]]:
    """Product, key and fingerprint of a sale's rows in a piece."""
    wanted = select(table.c.product_id, table.c.order_id, fingerprint(connection, table))
    found = await connection.execute(wanted.where(piece(table.c.order_id), table.c.sale_id == sale_id, state))
    return {(product_id, key, int(mark)) for product_id, key, mark in found}


def fingerprint(connection: AsyncConnection, table: Table) -> ColumnElement[int]:
    """48 bits of everything that an order and its reservation have in common."""
    row = table.c
    return _digest(connection, row.order_id, row.product_id, row.sale_id, row.user_id, row.quantity, row.gid)


def _digest(connection: AsyncConnection, *values: ColumnElement[Any]) -> ColumnElement[int]:
    if connection.dialect.name in MYSQL:
        text = func.concat_ws(":", *values)
        return cast(func.conv(func.left(func.md5(text), 12), 16, 10), mysql.BIGINT(unsigned=True))
    return func.fingerprint(*values)  # of the audit's own connection


# --- decisions -------------------------------------------------------------------------------------------------------


async def doubtful_gids(product: AsyncConnection, order: AsyncConnection, *, piece_rows: int) -> set[str]:
    """Gids whose branches were not ended alike."""
    found: set[str] = set()
    async for piece in _pieces((product, PRODUCT_DECISIONS.c.gid), (order, ORDER_DECISIONS.c.gid), rows=piece_rows):
        here = await _decided(product, PRODUCT_DECISIONS, piece)
        there = await _decided(order, ORDER_DECISIONS, piece)
        # A group that product refused as a whole is cancelled before the order's branch exists.
        alike = here.get(CONFIRM) == there.get(CONFIRM) and there.get(CANCEL) in (None, here.get(CANCEL))
        if not alike:
            mine, theirs = await _ops(product, PRODUCT_DECISIONS, piece), await _ops(order, ORDER_DECISIONS, piece)
            for gid in mine.keys() | theirs.keys():
                ended = mine.get(gid), theirs.get(gid)
                if ended[0] != ended[1] and ended != (CANCEL, None):
                    found.add(gid)
    return found


async def _decided(connection: AsyncConnection, table: Table, piece: _Piece) -> dict[str, tuple[int, int]]:
    """How many branches were ended in which way, and the sum of their gids' fingerprints."""
    mark = func.sum(_digest(connection, table.c.gid))
    found = await connection.execute(
        select(table.c.op, func.count(), mark).where(piece(table.c.gid)).group_by(table.c.op)
    )
    return {op: (count, int(marks)) for op, count, marks in found}


async def _ops(connection: AsyncConnection, table: Table, piece: _Piece) -> dict[str, str]:
    found = await connection.execute(select(table.c.gid, table.c.op).where(piece(table.c.gid)))
    return {row.gid: row.op for row in found}


# --- buyers ----------------------------------------------------------------------------------------------------------


async def buyers_above(connection: AsyncConnection, sale_id: int, *, limit: int, largest: int) -> list[int]:
    """Who holds more than `limit` units of the sale. `largest` is that of any of its orders.

    Whoever has so few orders that they cannot be above it is passed over in the index, without reading a row.
    """
    row, after, found = reservations.c, -1, []
    while True:
        page = (
            select(row.user_id)
            .where(row.sale_id == sale_id, row.user_id > after)
            .group_by(row.user_id)
            .having(func.count() * largest > limit)
            .order_by(row.user_id)
            .limit(BUYERS_PAGE)
        )
        suspects = list((await connection.scalars(page)).all())
        for part in in_chunks(suspects):
            held = (
                select(row.user_id)
                .where(row.sale_id == sale_id, row.user_id.in_(part), row.state.in_((State.FROZEN, State.SOLD)))
                .group_by(row.user_id)
                .having(func.sum(row.quantity) > limit)
            )
            found += list((await connection.scalars(held)).all())
        if len(suspects) < BUYERS_PAGE:
            return found
        after = suspects[-1]


# --- pieces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    """Keys above `after`, up to and with `until`; None: no bound."""

    after: Any
    until: Any

    def __call__(self, key: ColumnElement[Any]) -> ColumnElement[bool]:
        bounds = [key > self.after] if self.after is not None else []
        return and_(True, *bounds, *([key <= self.until] if self.until is not None else []))


async def _pieces(*sides: tuple[AsyncConnection, ColumnElement[Any]], rows: int) -> AsyncIterator[_Piece]:
    """Cuts the keys of both sides into pieces that have `rows` at most on each."""
    after: Any = None
    while True:
        ends = [await _last_of(rows, connection, key, after) for connection, key in sides]
        until = min((end for end in ends if end is not None), default=None)
        yield _Piece(after, until)
        if until is None:
            return
        after = until


async def _last_of(rows: int, connection: AsyncConnection, key: ColumnElement[Any], after: Any) -> Any:
    """The last key of a full piece; None when fewer rows follow."""
    query = select(key).where(_Piece(after, None)(key)).order_by(key).offset(rows - 1).limit(1)
    return await connection.scalar(query)


def keys_of(doubtful: Iterable[tuple[int, bytes]], *, limit: int) -> tuple[Sequence[tuple[int, bytes]], int]:
    """The first `limit` of them in the order of their keys, and how many more there are."""
    ordered = sorted(doubtful, key=lambda each: each[1])
    return ordered[:limit], max(0, len(ordered) - limit)
