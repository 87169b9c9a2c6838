"""Changing sales: their row in the product database first or last, and Redis' copy of it, in the order that is safe.

Raising units: the row, then Redis; lowering: Redis by what is there, then the row by that. So Redis never admits what
the row does not have. Every change carries an id and may be repeated until both sides have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from seckill.admission.sales import RebuildNeeded, SaleBook, SaleView
from seckill.domain.order import NewSale, Sale
from seckill.front.product_client import ProductClient, ProductRefused, SaleChange

log = structlog.get_logger(__name__)

COPIES_MAX = 5
"""Times that a row is copied again because it changed meanwhile."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The sale after a change; `taken`: units that could be taken off, when that was asked for."""

    sale: Sale
    taken: int | None = None


@dataclass(frozen=True, slots=True)
class SaleDesk:
    """Raises ProductUnavailable, AdmissionUnavailable (repeat with the same change id), ProductRefused,
    InvalidTransition.
    """

    product: ProductClient
    book: SaleBook

    async def create(self, change_id: str, new: NewSale) -> Sale:
        made = await self.product.create_sale(change_id, new)
        return await self.copy(made.sale, first=made.first)

    async def change(self, change_id: str, sale_id: int, change: SaleChange, *, stock_delta: int) -> Changed:
        if stock_delta < 0:
            return await self._lower(change_id, sale_id, change, units=-stock_delta)
        sale = await self.product.update_sale(change_id, sale_id, change, stock_delta=stock_delta)
        if stock_delta:
            await self.book.add_units(sale, change_id, stock_delta)
        return Changed(await self.copy(sale))

    async def _lower(self, change_id: str, sale_id: int, change: SaleChange, *, units: int) -> Changed:
        sale = await self.product.sale(sale_id)
        taken = await self.book.take_units(sale, change_id, units)
        try:
            sale = await self.product.update_sale(change_id, sale_id, change, stock_delta=-taken)
        except ProductRefused:
            await self.book.undo_take(sale, change_id)
            raise
        return Changed(await self.copy(sale), taken)

    async def set_state(self, sale_id: int, state: str) -> Sale:
        return await self.copy(await self.product.set_state(sale_id, state))

    async def show(self, sale_id: int) -> tuple[Sale, SaleView | None]:
        """The row, and what Redis holds if the sale is its product's current one there."""
        sale = await self.product.sale(sale_id)
        view = await self.book.read(sale.product_id)
        return sale, view if view is not None and view.sale_id == sale_id else None

    async def copy(self, sale: Sale, *, first: bool = False) -> Sale:
        """Copies until the row is what was copied: of two who change a sale at once, the later one's copy stands.

        `first`: the sale's row has just been made, so that nobody can have sold anything of it. Of a sale that Redis
        lost, or that is being rebuilt, the terms are copied, and the rebuild brings the units.
        """
        for _ in range(COPIES_MAX):
            try:
                await self.book.warm(sale, first=first)
            except RebuildNeeded as error:
                log.warning("sale_not_in_redis", sale_id=sale.sale_id, error=str(error))
            now = await self.product.sale(sale.sale_id)
            if _terms(now) == _terms(sale):
                return now
            sale = now
        log.warning("sale_keeps_changing", sale_id=sale.sale_id)
        return sale


def _terms(sale: Sale) -> Sale:
    """What is copied again: everything but the units."""
    return replace(sale, initial=0, stock=0, frozen=0, sold=0)
