"""A sale's durable home: its row. Creating, reading and changing it, on the session that the caller gives.

Every change carries an id: a repeat changes nothing more. Everything that moves units locks the row first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import Row, Select, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.domain.errors import InvalidTransition, SaleNotFound
from seckill.domain.order import MAX_ID, NewSale, Sale
from seckill.dtm.barrier import Raced
from seckill.dtm.database import affected, dialect_of, insert_ignore
from seckill.product.tables import product, sale, sale_change

OPEN, PAUSED, CLOSED = "open", "paused", "closed"
STATES = (OPEN, PAUSED, CLOSED)
LIST_MAX = 1_000

_COLUMNS = (
    sale.c.sale_id, sale.c.product_id, sale.c.name, sale.c.starts_at_ms, sale.c.ends_at_ms, sale.c.per_user_limit,
    sale.c.price_cents, sale.c.state, sale.c.initial, sale.c.stock, sale.c.frozen, sale.c.sold, sale.c.created_at_ms,
)  # fmt: skip


class SalePruned(InvalidTransition):
    """A closed sale whose reservations are gone: it takes no order and no change any more."""

    def __init__(self, sale_id: int) -> None:
        super().__init__(sale_id, "is closed, and its reservations have been pruned")


@dataclass(frozen=True, slots=True)
class Created:
    """`first`: this call has made the sale; else an earlier one with the same change id did."""

    sale: Sale
    first: bool


@dataclass(frozen=True, slots=True)
class SaleUpdate:
    """What changes; None leaves a field as it is. `stock_delta` units are added, or below 0 taken."""

    name: str | None = None
    starts_at_ms: int | None = None
    ends_at_ms: int | None = None
    per_user_limit: int | None = None
    price_cents: int | None = None
    stock_delta: int = 0


# --- reading ---------------------------------------------------------------------------------------------------


async def get(session: AsyncSession, sale_id: int) -> Sale:
    """Raises SaleNotFound."""
    return _known(sale_id, await _one(session, select(*_COLUMNS).where(sale.c.sale_id == sale_id)))


async def lock(session: AsyncSession, sale_id: int) -> Sale | None:
    """The sale, its row locked until the transaction ends.

    Raises SalePruned: without its reservations nobody can tell an order that is new from one that was sold long ago.
    """
    locked = select(*_COLUMNS, sale.c.pruned_at_ms).where(sale.c.sale_id == sale_id).with_for_update()
    row = (await session.execute(locked)).one_or_none()
    if row is None:
        return None
    if row.pruned_at_ms is not None:
        raise SalePruned(sale_id)
    return Sale(*row[:-1])


async def listed(
    session: AsyncSession,
    *,
    product_id: int | None = None,
    state: str | None = None,
    before_sale_id: int | None = None,
) -> list[Sale]:
    """Newest first, at most LIST_MAX; only ones older than `before_sale_id`, if it is given."""
    statement = select(*_COLUMNS).order_by(sale.c.sale_id.desc()).limit(LIST_MAX)
    if product_id is not None:
        statement = statement.where(sale.c.product_id == product_id)
    if state is not None:
        statement = statement.where(sale.c.state == state)
    if before_sale_id is not None:
        statement = statement.where(sale.c.sale_id < before_sale_id)
    return [_sale(row) for row in await session.execute(statement)]


async def changes_of(session: AsyncSession, sale_id: int) -> list[str]:
    """Ids of the changes that the row has taken in. They are what operators did by hand: few, and all of them."""
    found = await session.scalars(select(sale_change.c.change_id).where(sale_change.c.sale_id == sale_id))
    return list(found)


# --- changing --------------------------------------------------------------------------------------------------


async def create(session: AsyncSession, change_id: str, new: NewSale, *, now_ms: int) -> Created:
    """Makes the sale, and its product when there is none. Raises InvalidTransition when another sale is not closed."""
    contents = _contents("create", new)
    made = await _made_by(session, change_id, contents)
    if made is not None:
        return Created(await get(session, made), first=False)
    other = await _one(session, select(*_COLUMNS).where(sale.c.open_product_id == new.product_id))
    if other is not None:
        raise InvalidTransition(other.sale_id, f"is {other.state}; product {new.product_id} has one open sale at most")
    await _ensure_product(session, new, now_ms=now_ms)
    sale_id = await _insert(session, new, now_ms=now_ms)
    await _remember(session, change_id, sale_id, contents, now_ms=now_ms)
    return Created(await get(session, sale_id), first=True)


async def change(session: AsyncSession, change_id: str, sale_id: int, wanted: SaleUpdate, *, now_ms: int) -> Sale:
    """Changes terms and units. Raises SaleNotFound, and InvalidTransition when the sale does not allow it."""
    contents = _contents("update", (sale_id, wanted))
    before = _known(sale_id, await lock(session, sale_id))
    if await _made_by(session, change_id, contents) is not None:
        return before
    after = _changed(before, wanted)
    values = {
        "name": after.name,
        "starts_at_ms": after.starts_at_ms,
        "ends_at_ms": after.ends_at_ms,
        "per_user_limit": after.per_user_limit,
        "price_cents": after.price_cents,
        "initial": after.initial,
        "stock": after.stock,
        "updated_at_ms": now_ms,
    }
    await session.execute(update(sale).where(sale.c.sale_id == sale_id).values(values))
    await _remember(session, change_id, sale_id, contents, now_ms=now_ms)
    return after


async def set_state(session: AsyncSession, sale_id: int, state: str, *, now_ms: int) -> Sale:
    """open ↔ paused → closed, which is the end. Raises SaleNotFound and InvalidTransition."""
    before = _known(sale_id, await lock(session, sale_id))
    if before.state == state:
        return before
    if before.state == CLOSED:
        raise InvalidTransition(sale_id, f"is closed and cannot become {state}")
    open_product_id = None if state == CLOSED else before.product_id
    values = {"state": state, "open_product_id": open_product_id, "updated_at_ms": now_ms}
    await session.execute(update(sale).where(sale.c.sale_id == sale_id).values(values))
    return replace(before, state=state)


async def shift(session: AsyncSession, sale_id: int, *, stock: int = 0, frozen: int = 0, sold: int = 0) -> None:
    """Moves units between a sale's counters; the three sum to 0. The row is locked by the caller."""
    assert stock + frozen + sold == 0
    if not (stock or frozen or sold):
        return
    values = {"stock": sale.c.stock + stock, "frozen": sale.c.frozen + frozen, "sold": sale.c.sold + sold}
    await session.execute(update(sale).where(sale.c.sale_id == sale_id).values(values))


def _changed(before: Sale, wanted: SaleUpdate) -> Sale:
    if before.state == CLOSED:
        raise InvalidTransition(before.sale_id, "is closed and cannot be changed")
    terms = {name: value for name, value in _fields(wanted).items() if name != "stock_delta" and value is not None}
    after = replace(
        before, **terms, initial=before.initial + wanted.stock_delta, stock=before.stock + wanted.stock_delta
    )
    if after.stock < 0:
        raise InvalidTransition(
            before.sale_id, f"has {before.stock} units available, {-wanted.stock_delta} were to be taken"
        )
    if after.initial > MAX_ID:
        raise InvalidTransition(before.sale_id, f"would have more than {MAX_ID} units")
    if after.starts_at_ms >= after.ends_at_ms:
        raise InvalidTransition(before.sale_id, f"would end at {after.ends_at_ms}, before {after.starts_at_ms}")
    return after


async def _insert(session: AsyncSession, new: NewSale, *, now_ms: int) -> int:
    values = {
        **{name: value for name, value in _fields(new).items() if name != "stock"},
        "open_product_id": new.product_id,
        "state": OPEN,
        "initial": new.stock,
        "stock": new.stock,
        "frozen": 0,
        "sold": 0,
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
    }
    try:
        result = await session.execute(insert(sale).values(values))
    except IntegrityError as error:
        raise Raced("another sale of the product was opened meanwhile") from error
    sale_id: int = result.inserted_primary_key[0]  # type: ignore[attr-defined]  # an insert's cursor has it
    return sale_id


async def _ensure_product(session: AsyncSession, new: NewSale, *, now_ms: int) -> None:
    values = {
        "product_id": new.product_id,
        "name": new.name,
        "price_cents": new.price_cents,
        "stock": 0,
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
    }
    await affected(session, insert_ignore(product, dialect_of(session)), values)


# --- the memory of changes -------------------------------------------------------------------------------------


async def _made_by(session: AsyncSession, change_id: str, contents: bytes) -> int | None:
    """The sale that this change made or changed before. Raises InvalidTransition when the id was another change's."""
    known = select(sale_change.c.sale_id, sale_change.c.contents).where(sale_change.c.change_id == change_id)
    row = (await session.execute(known)).one_or_none()
    if row is None:
        return None
    if row.contents != contents:
        raise InvalidTransition(row.sale_id, f"change id {change_id} came before with other contents")
    sale_id: int = row.sale_id
    return sale_id


async def _remember(session: AsyncSession, change_id: str, sale_id: int, contents: bytes, *, now_ms: int) -> None:
    values = {"change_id": change_id, "sale_id": sale_id, "contents": contents, "created_at_ms": now_ms}
    try:
        await session.execute(insert(sale_change), values)
    except IntegrityError as error:
        raise Raced(f"change {change_id} came twice at the same time") from error


def _contents(kind: str, asked: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode((kind, asked))).digest()


# --- rows ------------------------------------------------------------------------------------------------------


async def _one(session: AsyncSession, statement: Select[tuple[Any, ...]]) -> Sale | None:
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else _sale(row)


def _sale(row: Row[tuple[Any, ...]]) -> Sale:
    return Sale(*row)


def _known(sale_id: int, found: Sale | None) -> Sale:
    if found is None:
        raise SaleNotFound(sale_id)
    return found


def _fields(value: NewSale | SaleUpdate) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
