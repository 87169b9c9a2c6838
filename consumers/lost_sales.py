"""Which sales Redis has lost, or holds from before a restart: what a rebuild is for.

Sales on offer are compared with Redis in every look: one round trip to Redis, two calls to product. Closed ones are
looked at when this server has not been looked at as a whole (it is new, was restarted, or has another file), and when a
worker came upon an order of one that Redis does not know.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from seckill.admission.rebuild import RebuildBook, Standing
from seckill.domain.order import Sale

log = structlog.get_logger()

NOT_YET_MS = {Standing.MISSING: 5_000, Standing.UNLIKE: 30_000}
"""How long a sale has to stand so until it counts: it may be about to be warmed, or its units to be changed."""


class SaleRows(Protocol):
    """The product service, as far as this asks it."""

    async def all_sales(self, *, product_id: int = 0, state: str = "") -> list[Sale]: ...

    async def find_sale(self, sale_id: int) -> Sale | None: ...


class OpenReservations(Protocol):
    async def any_open(self, sale_id: int) -> bool:
        """Whether an order of the sale has a row and has not ended."""


@dataclass(frozen=True, slots=True)
class LostSale:
    sale: Sale
    why: Standing


class LostSales:
    """Opens nothing. Raises AdmissionUnavailable and ProductUnavailable."""

    def __init__(self, book: RebuildBook, rows: SaleRows, reservations: OpenReservations) -> None:
        self._book = book
        self._rows = rows
        self._reservations = reservations
        self._since_s: dict[tuple[int, Standing], float] = {}  # when a sale was found to stand so first

    async def find(self, *, at_once: bool = False) -> list[LostSale]:
        """What is to be rebuilt now: sales on offer first, and closed ones when no other is lost.

        `at_once`: also what may only be about to be warmed or changed; for a person, who knows that nobody is.
        """
        server = await self._book.server_not_complete()
        lost = await self._lost([*await self.on_offer(), *await self._doubted()])
        if not lost and server is not None:
            lost = await self._lost_and_closed()
            if not lost:
                await self._book.say_complete(server)
        self._since_s = {key: since_s for key, since_s in self._since_s.items() if key in {_key(each) for each in lost}}
        free = [each for each in lost if each.why is not Standing.REBUILDING]
        return [each for each in free if at_once or self._counts(each)]

    async def on_offer(self) -> list[Sale]:
        return [*await self._rows.all_sales(state="open"), *await self._rows.all_sales(state="paused")]

    async def _doubted(self) -> list[Sale]:
        """Sales of which a worker has seen more than Redis holds; those of other databases are no business of ours."""
        found = []
        for product_id, sale_id in sorted(await self._book.doubted()):
            sale = await self._rows.find_sale(sale_id)
            if sale is None:
                log.error("orders_of_a_strange_sale", product_id=product_id, sale_id=sale_id)
                await self._book.forget_doubt(product_id, sale_id)
            elif sale.state == "closed":
                found.append(sale)
        return found

    async def _lost_and_closed(self) -> list[LostSale]:
        """Without those of which nothing is left to do: Redis has forgotten them, and every order has ended."""
        lost = await self._lost(await self._rows.all_sales(state="closed"))
        return [each for each in lost if each.why is not Standing.MISSING or await self._is_unfinished(each.sale)]

    async def _is_unfinished(self, sale: Sale) -> bool:
        return sale.frozen > 0 or await self._reservations.any_open(sale.sale_id)

    async def _lost(self, sales: Sequence[Sale]) -> list[LostSale]:
        """Those at which somebody is as well: until he has installed, the server is not complete, for he may die."""
        standings = await self._book.standings(sales)
        return [LostSale(sale, why) for sale in sales if (why := standings[sale.sale_id]) is not Standing.HELD]

    def _counts(self, lost: LostSale) -> bool:
        now_s = time.monotonic()
        return now_s - self._since_s.setdefault(_key(lost), now_s) >= NOT_YET_MS.get(lost.why, 0) / 1_000


def _key(lost: LostSale) -> tuple[int, Standing]:
    return lost.sale.sale_id, lost.why
