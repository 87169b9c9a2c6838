"""So many global transactions at a time through one checkout, for a while; and the count of what they came to.

Opens nothing: checkout, clients and engine are its caller's.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import uuid7

from seckill.bench.backlog import new_sale
from seckill.bench.pattern_figures import Cell, Sums
from seckill.checkout.plan import Checkout
from seckill.checkout.prepared import PreparedBranches
from seckill.checkout.reservations import Reservations, ReservationState
from seckill.doctor.start import opening_database
from seckill.domain.errors import SeckillError
from seckill.domain.order import Order, OrderId, Sale, order_id_from_key
from seckill.domain.outcomes import Confirmed, Failed, Outcome, Undecided
from seckill.dtm.database import in_chunks
from seckill.front.product_client import ProductClient
from seckill.order.tables import orders as order_rows
from seckill.order.types import OrderState

UNITS = 100_000_000
"""Of each sale: never sold out."""

REST_S = 45.0
"""How long undecided orders have to end: longer than a coordinator takes to give up what nobody submits."""

LOOK_EVERY_S = 0.25

log = structlog.get_logger()


class NothingConfirmed(SeckillError):
    """No order of a cell was confirmed, though none has failed."""

    def __init__(self, cell: Cell, why: Mapping[str, int]) -> None:
        ends = ", ".join(f"{count} {end}" for end, count in why.items())
        super().__init__(f"{cell.pattern}, {cell.concurrency} at once: no order was confirmed: {ends}")


@dataclass(slots=True)
class Load:
    """What the transactions of a cell came to. `unfinished` were not told as confirmed; `why` counts their ends."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)  # one for each confirmed order
    unfinished: list[Order] = field(default_factory=list)
    why: Counter[str] = field(default_factory=Counter)
    error: Exception | None = None  # one of those that failed

    @property
    def confirmed(self) -> int:
        return len(self.latencies_ms)

    def require_confirmed(self, cell: Cell) -> None:
        """Raises the error of an order that failed, or NothingConfirmed, when none was confirmed."""
        if not self.confirmed:
            raise self.error or NothingConfirmed(cell, self.why)

    def add(self, orders: Sequence[Order], outcomes: Mapping[OrderId, Outcome], took_ms: float) -> None:
        for order in orders:
            match outcomes[order.order_id]:
                case Confirmed():
                    self.latencies_ms.append(took_ms)
                case Failed(error):
                    self.error = error
                    self._add_unfinished(order, type(error).__name__)
                case Undecided(cause=cause):
                    self._add_unfinished(order, f"Undecided ({type(cause).__name__})" if cause else "Undecided")
                case outcome:
                    self._add_unfinished(order, type(outcome).__name__)

    def _add_unfinished(self, order: Order, why: str) -> None:
        self.unfinished.append(order)
        self.why[why] += 1


class Buyers:
    """Orders that nobody else has: each of another buyer, over the sales by turns."""

    def __init__(self, sales: Sequence[Sale]) -> None:
        self._sales = sales
        self._turns = count()
        self._users = count(1)

    def next(self, size: int) -> list[Order]:
        """Orders of one sale."""
        sale = self._sales[next(self._turns) % len(self._sales)]
        now_ms = time.time_ns() // 1_000_000
        return [
            Order(
                order_id_from_key(sale.product_id, uuid7().bytes), sale.sale_id, next(self._users), sale.product_id, 1,
                now_ms,
            )
            for _ in range(size)
        ]  # fmt: skip


async def run_load(checkout: Checkout, buyers: Buyers, cell: Cell, *, seconds: float) -> Load:
    """Begins no transaction after `seconds`, and waits for those that run; when it is cancelled as well, for what they
    hold would stay behind. Orders that fail are not tried again.
    """
    load = Load()
    began = time.perf_counter()
    until = began + seconds

    async def carry_on() -> None:
        while time.perf_counter() < until:
            orders = buyers.next(cell.orders_each)
            at = time.perf_counter()
            outcomes = await checkout.run(orders)
            load.add(orders, outcomes, (time.perf_counter() - at) * 1_000)

    running = asyncio.gather(*(carry_on() for _ in range(cell.concurrency)))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        until = 0.0
        await running
        raise
    load.seconds = time.perf_counter() - began
    return load


class Accounts:
    """The sales of a measurement, and what they came to. `prepared` None: nothing is ever prepared there."""

    def __init__(
        self,
        product: ProductClient,
        reservations: Reservations,
        order_database: AsyncEngine,
        prepared: PreparedBranches | None,
    ) -> None:
        self._product = product
        self._reservations = reservations
        self._order_database = order_database
        self._prepared = prepared
        self._sales: list[int] = []
        self._loads: list[Load] = []

    async def open_sales(self, number: int) -> list[Sale]:
        made = [await self._product.create_sale(uuid.uuid4().hex, new_sale(UNITS)) for _ in range(number)]
        self._sales += [each.sale.sale_id for each in made]
        return [each.sale for each in made]

    def add(self, load: Load) -> None:
        self._loads.append(load)

    async def sums(self) -> Sums:
        """What everything came to, once it has ended. Raises DatabaseUnavailable and ProductUnavailable."""
        sales, prepared = await self.at_rest()
        late = await self._late()
        return Sums(
            confirmed=sum(load.confirmed for load in self._loads) + late,
            sold=sum(sale.sold for sale in sales),
            order_rows=await self._count_order_rows(),
            frozen=sum(sale.frozen for sale in sales),
            prepared=prepared,
        )

    async def close_sales(self) -> None:
        for sale_id in self._sales:
            await self._product.set_state(sale_id, "closed")

    async def at_rest(self) -> tuple[list[Sale], int]:
        """Waits until nothing is undecided, REST_S at most; the sales, and how many XA transactions are prepared."""
        until = time.perf_counter() + REST_S
        while True:
            prepared = len(await self._prepared.ages_ms()) if self._prepared else 0
            sales = [await self._product.sale(sale_id) for sale_id in self._sales]
            undecided = prepared + sum(sale.frozen for sale in sales)
            if not undecided or time.perf_counter() > until:
                return sales, prepared
            await asyncio.sleep(LOOK_EVERY_S)

    async def _late(self) -> int:
        """Orders that were sold although the checkout could not say so."""
        unfinished = [order for load in self._loads for order in load.unfinished]
        rows = await self._reservations.of_orders(unfinished)
        return sum(row.state is ReservationState.SOLD for row in rows.values())

    async def _count_order_rows(self) -> int:
        row = order_rows.c
        counted = 0
        url = self._order_database.url.render_as_string(hide_password=False)
        async with opening_database("order.database_url", url), self._order_database.connect() as connection:
            for sale_ids in in_chunks(self._sales):
                confirmed = row.sale_id.in_(sale_ids) & (row.status == OrderState.CONFIRMED)
                counted += (await connection.execute(select(func.count()).where(confirmed))).scalar_one()
        return counted
