"""One reading of the stores: sums of everything, rows of what does not fit together. Reads only; decides nothing.

The order in which the stores are read makes the sums comparable although none of them stands still: Redis' counters
first, then its ledger, then product's rows, then the orders. What admission had counted by then is in the ledger still,
or in the rows by now; and an order is confirmed before its units are sold. Rows in question are read once more at the
end: most of what was only on its way has arrived by then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from seckill.admission import LedgerEntry
from seckill.admission.inspection import Counted, Told
from seckill.audit.facts import Facts, LedgerRow, RedisSale, SaleRow, Totals
from seckill.audit.rows import Key, Suspects, look
from seckill.audit.stores import Stores, snapshot
from seckill.audit.sums import (
    PIECE_ROWS,
    Moment,
    Sums,
    Wanted,
    buyers_above,
    doubtful_gids,
    keys_of,
    sum_up,
)
from seckill.domain.errors import InvalidOrder
from seckill.domain.order import OrderId, order_id_from_key, parse_order_id
from seckill.domain.outcomes import OrderStatus
from seckill.dtm.database import in_chunks
from seckill.messaging.envelope import Record, decode
from seckill.messaging.reading import read_topic
from seckill.product.decide import State as RowState
from seckill.product.tables import sale as sales_table
from seckill.product.tables import stock_reservation as reservations

LOOKED_AT_MAX = 1_000
"""Orders that do not fit together and whose rows are fetched; of the others only the number is told."""

SETTLED_WITHIN_MS = 60_000
"""A rejection that is older than this has long been given back, or is given back by reconcile: one at a time."""


@dataclass(slots=True)
class Walk:
    """Through all results in Redis: as many as a reading may compare (None: all), the next one going on from there."""

    at_most: int | None = None
    cursor: int = 0


@dataclass(frozen=True, slots=True)
class Scope:
    """What is read: sales that are of these products (None: all) and among these (None: all), unless pruned.

    `accepted` are order ids that clients were given. `results` says how much of what buyers are told is compared; None:
    only what they are told of orders that do not fit together. `again` are order ids that are looked at in any case.
    """

    product_ids: Collection[int] | None = None
    sale_ids: Collection[int] | None = None
    at_rest: bool = False
    accepted: frozenset[str] = frozenset()
    results: Walk | None = field(default_factory=Walk)
    again: frozenset[str] = frozenset()
    piece_rows: int = PIECE_ROWS  # that are summed up at once


async def read_facts(
    stores: Stores, *, accepted: Iterable[str] = (), product_ids: Collection[int] | None = None
) -> Facts:
    """A reading of a pipeline at rest; of all products, or of some. Raises what the stores' clients raise."""
    return await read(stores, Scope(product_ids=product_ids, at_rest=True, accepted=frozenset(accepted)))


async def read(stores: Stores, scope: Scope) -> Facts:
    """Raises AdmissionUnavailable, DatabaseUnavailable, PublishUnknown."""
    sales, known, pruned = await _sales(stores, scope)
    products = {sale.sale_id: sale.product_id for sale in sales}
    counted = await stores.inspection.counters([(sale.product_id, sale.sale_id) for sale in sales])
    ledger = await _ledger(stores, products)
    summed = await _sum_up(stores, scope, products, counted, ledger)
    suspects = summed.suspects
    if scope.results is not None:
        suspects.keys |= await _told_otherwise(stores, scope, scope.results, products)
    in_ledger = {entry.order.order_id for entry in ledger}
    adrift = {key for key in summed.released if order_id_from_key(*key) not in in_ledger}
    letters_needed = scope.at_rest or adrift or summed.missing - in_ledger
    letters = await _letters(stores, products) if letters_needed else frozenset()
    set_aside = letters | {entry.order.order_id for entry in ledger if entry.state == "parked"}
    chosen, unseen = keys_of(suspects.keys | adrift, limit=LOOKED_AT_MAX)
    suspects.keys = {*chosen, *map(parse_order_id, set_aside | summed.missing | scope.again)}
    in_question = {order_id_from_key(*key) for key in suspects.keys}
    told = await _told(stores, sorted(in_question))  # before the rows: what is told is written after them
    rows = await look(stores, suspects, products)
    return Facts(
        sales=summed.sales,
        reservations=rows.reservations,
        orders=rows.orders,
        product_decisions=rows.product_decisions,
        order_decisions=rows.order_decisions,
        redis=_views(counted, known),
        ledger=[_ledger_row(entry, counted.until_ms) for entry in ledger],
        told=told,
        letters=letters,
        accepted=scope.accepted & in_question,
        pruned_sales=pruned,
        totals=summed.totals,
        unseen=unseen,
        at_rest=scope.at_rest,
    )


async def _ledger(stores: Stores, products: Mapping[int, int]) -> list[LedgerEntry]:
    found: list[LedgerEntry] = []
    for sale_id, product_id in products.items():
        found += (await stores.inspection.entries(product_id, sale_id)).values()
    return found


@dataclass(frozen=True, slots=True)
class _Summed:
    """What the snapshots say. `released`: orders that hold nothing now; `missing`: accepted orders without an end."""

    sales: Sequence[SaleRow]
    totals: Mapping[int, Totals]
    suspects: Suspects
    released: frozenset[Key]
    missing: frozenset[str]


async def _sum_up(
    stores: Stores, scope: Scope, products: Mapping[int, int], counted: Counted, ledger: Sequence[LedgerEntry]
) -> _Summed:
    """Sums of all rows, as of one moment in each database; product's is the earlier one."""
    moment = Moment(counted.from_ms, counted.until_ms, None if scope.at_rest else counted.from_ms - SETTLED_WITHIN_MS)
    wanted = Wanted(products, refused=scope.sale_ids is None)
    suspects = Suspects()
    async with snapshot(stores, "product") as product, snapshot(stores, "order") as order:
        sales = [sale for sale in (await _sale_rows(product))[0] if sale.sale_id in products]
        sums = await sum_up(product, order, wanted, moment, piece_rows=scope.piece_rows)
        suspects.keys |= sums.doubtful
        suspects.gids |= await doubtful_gids(product, order, piece_rows=scope.piece_rows)
        for sale in sales:
            if largest := sums.sales[sale.sale_id].largest:
                above = await buyers_above(product, sale.sale_id, limit=sale.per_user_limit, largest=largest)
                suspects.buyers |= {sale.sale_id: above} if above else {}
        totals = await _totals(product, sums, counted, ledger, moment)
        missing = await _not_ended(product, scope.accepted)
    return _Summed(sales, totals, suspects, frozenset(sums.released), frozenset(missing))


# --- sales, sums -----------------------------------------------------------------------------------------------------


async def _sales(stores: Stores, scope: Scope) -> tuple[list[SaleRow], set[int], int]:
    """The chosen sales, the ids of all there are, and how many of the chosen were pruned: they cannot be judged."""
    async with snapshot(stores, "product") as connection:
        rows, pruned = await _sale_rows(connection)
    chosen = [
        row
        for row in rows
        if (scope.product_ids is None or row.product_id in scope.product_ids)
        and (scope.sale_ids is None or row.sale_id in scope.sale_ids)
    ]
    judged = [row for row in chosen if row.sale_id not in pruned]
    return judged, {row.sale_id for row in rows}, len(chosen) - len(judged)


async def _sale_rows(connection: AsyncConnection) -> tuple[list[SaleRow], set[int]]:
    found = list(await connection.execute(select(sales_table)))
    rows = [
        SaleRow(
            sale_id=row.sale_id,
            product_id=row.product_id,
            initial=row.initial,
            stock=row.stock,
            frozen=row.frozen,
            sold=row.sold,
            per_user_limit=row.per_user_limit,
        )
        for row in found
    ]
    return rows, {row.sale_id for row in found if row.pruned_at_ms is not None}


async def _totals(
    product: AsyncConnection, sums: Sums, counted: Counted, ledger: Sequence[LedgerEntry], moment: Moment
) -> dict[int, Totals]:
    """The sums of the rows, and what they and the ledger say of the units that admission has given out."""
    held = {sale_id: each.sold_before for sale_id, each in sums.sales.items()}
    unsure = {sale_id: each.unsure for sale_id, each in sums.sales.items()}
    for entry in ledger:
        order, counters = entry.order, counted.sales.get(entry.order.sale_id)
        if counters is not None and (order.admission_number or 0) <= counters.number:
            held[order.sale_id] = held.get(order.sale_id, 0) + order.quantity
    row = reservations.c
    for part in in_chunks([entry.order.key for entry in ledger]):
        # In the ledger and sold already: counted twice.
        sold = select(row.sale_id, row.quantity, row.admitted_at_ms)
        for sale_id, quantity, at_ms in await product.execute(
            sold.where(row.order_id.in_(part), row.state == RowState.SOLD)
        ):
            if at_ms < moment.from_ms:
                held[sale_id] = held.get(sale_id, 0) - quantity
            elif at_ms <= moment.until_ms:
                unsure[sale_id] = unsure.get(sale_id, 0) - quantity
    return {
        sale_id: Totals(
            sold_orders=sums.sales[sale_id].sold_orders,
            sold=sums.sales[sale_id].sold,
            frozen=sums.sales[sale_id].frozen,
            ordered=sums.sales[sale_id].ordered,
            held=held.get(sale_id, 0),
            unsure=unsure.get(sale_id, 0),
            rejected=sums.sales[sale_id].rejected,
        )
        for sale_id in sums.sales.keys() | held.keys()
    }


def _views(counted: Counted, known: Collection[int]) -> list[RedisSale]:
    """What Redis says of the sales, and of the ones that it has of these products and the database has not."""
    views = [
        RedisSale(each.sale_id, each.stock, each.admitted, each.initial, each.vouched)
        for each in counted.sales.values()
    ]
    strange = [sale_id for sale_id in counted.current.values() if sale_id not in known]
    return [*views, *(RedisSale(sale_id, 0, 0) for sale_id in strange)]


def _ledger_row(entry: LedgerEntry, now_ms: int) -> LedgerRow:
    order = entry.order
    parked, age_ms = entry.state == "parked", max(0, now_ms - order.admitted_at_ms)
    return LedgerRow(order.order_id, order.sale_id, order.quantity, parked, age_ms)


# --- what buyers were told -------------------------------------------------------------------------------------------


async def _not_ended(product: AsyncConnection, accepted: Collection[str]) -> set[str]:
    """Those of the accepted orders of which no reservation says how they ended."""
    ended: set[bytes] = set()
    row = reservations.c
    keys = [parse_order_id(order_id)[1] for order_id in accepted]
    for part in in_chunks(keys):
        last = select(row.order_id).where(row.order_id.in_(part), row.state.in_((RowState.SOLD, RowState.REJECTED)))
        ended |= set((await product.scalars(last)).all())
    return {order_id for order_id in accepted if parse_order_id(order_id)[1] not in ended}


async def _told_otherwise(stores: Stores, scope: Scope, walk: Walk, products: Mapping[int, int]) -> set[Key]:
    """Orders of which Redis tells another end than their reservations."""
    found: set[Key] = set()
    async for said in _results(stores, scope, walk, products):
        stands: dict[Key, tuple[RowState, str]] = {}
        row = reservations.c
        async with snapshot(stores, "product") as connection:
            for part in in_chunks([key for _, key in said]):
                rows = select(row.product_id, row.order_id, row.state, row.reason).where(row.order_id.in_(part))
                stands |= {
                    (product_id, key): (state, reason)
                    for product_id, key, state, reason in await connection.execute(rows)
                }
        found |= {key for key, each in said.items() if not _is_told(each, stands.get(key))}
    return found


async def _results(
    stores: Stores, scope: Scope, walk: Walk, products: Mapping[int, int]
) -> AsyncIterator[dict[Key, Told]]:
    """Pages of the results of the chosen sales, and of orders that were refused without one."""
    ours, compared = set(products.values()), 0
    product_id = min(ours) if len(ours) == 1 else None
    if not ours:
        return
    async for cursor, page in stores.inspection.results(product_id=product_id, cursor=walk.cursor):
        walk.cursor, compared = cursor, compared + len(page)
        keyed = {parse_order_id(each.order_id): each for each in page}
        yield {
            key: each
            for key, each in keyed.items()
            if products.get(each.sale_id) == key[0] or (each.sale_id == 0 and key[0] in ours and scope.sale_ids is None)
        }
        if walk.at_most is not None and compared >= walk.at_most:
            return


def _is_told(told: Told, stands: tuple[RowState, str] | None) -> bool:
    if told.status == OrderStatus.CONFIRMED:
        return stands is not None and stands[0] == RowState.SOLD
    return stands is not None and stands[0] == RowState.REJECTED and stands[1] == told.reason


async def _told(stores: Stores, order_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    results = await stores.admission.ledger.results([OrderId(order_id) for order_id in order_ids])
    return {
        order_id: (result.status.value, result.reason)
        for order_id, result in results.items()
        if result.status in (OrderStatus.CONFIRMED, OrderStatus.REJECTED)
    }


async def _letters(stores: Stores, products: Mapping[int, int]) -> frozenset[str]:
    """Orders of these products that have a dead letter. A letter that holds no order stands for none."""
    ours = set(products.values())
    return frozenset(order_id for order_id in await letters_of(stores) if parse_order_id(order_id)[0] in ours)


async def letters_of(stores: Stores) -> dict[str, Record]:
    """Order id → its newest record in the dead-letter topic. Raises PublishUnknown."""
    found: dict[str, Record] = {}
    for record in await read_topic(stores.settings.kafka, stores.settings.kafka.dead_letter_topic):
        try:
            found |= {order.order_id: record for order in decode(record)}
        except InvalidOrder:
            continue
    return found
