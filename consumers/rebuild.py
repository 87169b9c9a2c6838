"""Rebuild: what Redis held of a sale, made again from SQL and the topics after Redis was lost or set back.

    close admission ─▶ wait until no publish can be under way ─▶ read what survives ─▶ decide ─▶ install and open

The order of reading matters: Kafka's uncommitted records first, then the reservations. A worker that takes a record in
between leaves its mark in the reservations; the other way round the order would be seen in neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog
from structlog.contextvars import bound_contextvars

from seckill.admission.ledger import Ledger, LedgerEntry
from seckill.admission.rebuild import Closed, RebuildBook, SaleContents
from seckill.checkout.reservations import Reservation, Reservations, ReservationState
from seckill.domain.errors import InvalidOrder
from seckill.domain.order import Order, OrderId, Sale, order_id_from_key
from seckill.messaging.envelope import Record, decode

log = structlog.get_logger()

ATTEMPTS_MAX = 3
"""Times that the stores are read again because the sale's units were changed meanwhile."""

BUYER_ORDERS_MAX = 8
"""Order ids remembered of a buyer, as admission does."""

ReadRecords = Callable[[], Awaitable[Sequence[Record]]]
ReadSale = Callable[[int], Awaitable[Sale]]
ENDED = (ReservationState.SOLD, ReservationState.REJECTED)


@dataclass(frozen=True, slots=True)
class Survivors:
    """What the stores say of one sale: Redis' ledger, Kafka's uncommitted records, letters, and SQL's reservations."""

    entries: Sequence[LedgerEntry]
    uncommitted: Sequence[Order]
    letters: frozenset[OrderId]
    set_aside: Sequence[Order]  # the orders of those letters
    reservations: Sequence[Reservation]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild installed. `surplus`: units admitted above what the sale has, which the database will refuse."""

    sale_id: int
    product_id: int
    stock: int
    sold: int
    pending: int
    parked: int
    lost_by_redis: int  # orders that Redis did not hold any more
    surplus: int


def contents_of(sale: Sale, found: Survivors, *, number: int, now_ms: int) -> tuple[SaleContents, Rebuilt]:
    """What Redis is to hold. Pure.

    Units are held by what is sold and by every order that has not ended; the rest is stock. Every entry is due at once:
    reconcile looks at them, and publishes again what is in no topic.
    """
    rows = {row.key: row for row in found.reservations}
    known = {entry.order.order_id: entry for entry in found.entries}
    orders = {order.order_id: order for order in _every_order(sale, found, now_ms)}
    waiting = [order for order in orders.values() if not _has_ended(rows.get(order.key))]
    in_topic = {order.order_id for order in found.uncommitted}
    aside = found.letters - in_topic
    entries = [
        LedgerEntry(
            order,
            published_at_ms=_published_at(order, known.get(order.order_id), in_topic, now_ms),
            due_ms=now_ms,
            state="parked" if order.order_id in aside or _is_parked(known.get(order.order_id)) else "pending",
        )
        for order in waiting
    ]
    sold = [row for row in found.reservations if row.state is ReservationState.SOLD]
    held = sum(row.quantity for row in sold) + sum(order.quantity for order in waiting)
    stock = max(0, sale.initial - held)
    numbers = [order.admission_number or 0 for order in waiting]
    contents = SaleContents(
        initial=sale.initial,
        stock=stock,
        number=max([number, *numbers]),
        entries=entries,
        buyers=_buyers(sale, sold, waiting),
    )
    parked = sum(entry.state == "parked" for entry in entries)
    lost = sum(order.order_id not in known for order in waiting)
    told = Rebuilt(
        sale.sale_id, sale.product_id, stock, sum(row.quantity for row in sold), len(entries) - parked, parked, lost,
        max(0, held - sale.initial),
    )  # fmt: skip
    return contents, told


def _every_order(sale: Sale, found: Survivors, now_ms: int) -> Iterable[Order]:
    """Every order of the sale that any store knows; of one that several know, the last one here stands.

    SQL does not tell when an order was admitted, nor under which number: both are for people's eyes only.
    """
    for row in found.reservations:
        if row.state not in ENDED:
            yield Order(
                order_id_from_key(sale.product_id, row.key), sale.sale_id, row.user_id, sale.product_id, row.quantity,
                now_ms, 0,
            )  # fmt: skip
    yield from found.set_aside
    yield from found.uncommitted
    yield from (entry.order for entry in found.entries)


def _has_ended(row: Reservation | None) -> bool:
    return row is not None and row.state in ENDED


def _published_at(order: Order, known: LedgerEntry | None, in_topic: Collection[OrderId], now_ms: int) -> int:
    if order.order_id in in_topic:
        return now_ms
    return known.published_at_ms if known is not None else 0


def _is_parked(known: LedgerEntry | None) -> bool:
    return known is not None and known.state == "parked"


def _buyers(sale: Sale, sold: Sequence[Reservation], waiting: Sequence[Order]) -> dict[int, tuple[int, list[OrderId]]]:
    units: dict[int, int] = {}
    ids: dict[int, list[OrderId]] = {}
    holders = [(row.user_id, row.quantity, order_id_from_key(sale.product_id, row.key)) for row in sold]
    holders += [(order.user_id, order.quantity, order.order_id) for order in waiting]
    for user_id, quantity, order_id in holders:
        units[user_id] = units.get(user_id, 0) + quantity
        if len(ids.setdefault(user_id, [])) < BUYER_ORDERS_MAX:
            ids[user_id].append(order_id)
    return {user_id: (units[user_id], ids[user_id]) for user_id in units}


class Rebuilder:
    """Opens nothing: everything it uses is its caller's."""

    def __init__(
        self,
        *,
        book: RebuildBook,
        ledger: Ledger,
        reservations: Reservations,
        read_sale: ReadSale,
        read_uncommitted: ReadRecords,
        read_letters: ReadRecords,
        wait_ms: int,
        clock_ms: Callable[[], int],
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._reservations = reservations
        self._read_sale = read_sale
        self._read_uncommitted = read_uncommitted
        self._read_letters = read_letters
        self._wait_ms = wait_ms
        self._clock_ms = clock_ms

    async def rebuild(self, sales: Sequence[Sale]) -> list[Rebuilt]:
        """Makes Redis' side of these sales again; one result for each that was installed, and not by another rebuild.

        Raises AdmissionUnavailable, PublishUnknown or ProductUnavailable; admission of those that were not installed
        stays closed then, and the next attempt begins anew.
        """
        done: dict[int, Rebuilt] = {}
        for _ in range(ATTEMPTS_MAX):
            closed = [each for sale in sales if (each := await self._book.close(sale)) is not None]
            if not closed:
                break
            log.warning("rebuild_began", sales=len(closed), wait_ms=self._wait_ms)
            await asyncio.sleep(self._wait_ms / 1_000)
            topics = await self._read_uncommitted(), await self._read_letters()
            sales = []
            for each in closed:
                sale = await self._read_sale(each.sale.sale_id)
                rebuilt = await self._install(each, sale, *topics)
                if rebuilt is None:
                    continue
                done[sale.sale_id] = rebuilt
                now = await self._read_sale(sale.sale_id)
                if now.initial != sale.initial:  # its units were changed meanwhile, and Redis does not know of it
                    sales.append(now)
        return list(done.values())

    async def _install(
        self, closed: Closed, sale: Sale, uncommitted: Sequence[Record], letters: Sequence[Record]
    ) -> Rebuilt | None:
        with bound_contextvars(sale_id=sale.sale_id, product_id=sale.product_id):
            set_aside = _orders_of(sale, letters)
            found = Survivors(
                entries=[e for e in await self._ledger.entries(sale.product_id) if e.order.sale_id == sale.sale_id],
                uncommitted=_orders_of(sale, uncommitted),
                letters=frozenset(order.order_id for order in set_aside),
                set_aside=set_aside,
                reservations=await self._reservations.of_sale(sale.sale_id),
            )
            contents, rebuilt = contents_of(sale, found, number=closed.number, now_ms=self._clock_ms())
            if not await self._book.install(closed, contents):
                return None
            log.warning("rebuilt", **{name: getattr(rebuilt, name) for name in _TOLD})
            return rebuilt


_TOLD = ("stock", "sold", "pending", "parked", "lost_by_redis", "surplus")


def _orders_of(sale: Sale, records: Sequence[Record]) -> list[Order]:
    """The orders of the sale in these records; those without an admission number were not admitted by it yet."""
    found: dict[OrderId, Order] = {}
    for record in records:
        try:
            orders = decode(record)
        except InvalidOrder:
            continue
        found |= {
            order.order_id: order
            for order in orders
            if order.sale_id == sale.sale_id and order.admission_number is not None
        }
    return list(found.values())
