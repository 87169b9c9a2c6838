"""The product row: what a product is, and its units that are on no sale. On the session that the caller gives."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.product.tables import product


class ProductNotFound(Exception):
    def __init__(self, product_id: int) -> None:
        super().__init__(f"product {product_id} does not exist")
        self.product_id = product_id


@dataclass(frozen=True, slots=True)
class Product:
    product_id: int
    name: str
    description: str
    image_url: str
    cateid: int
    price_cents: int
    status: int
    stock: int  # units that are on no sale
    created_at_ms: int
    updated_at_ms: int  # when the stock last changed


async def get(session: AsyncSession, product_id: int) -> Product:
    """Raises ProductNotFound."""
    row = (await session.execute(select(product).where(product.c.product_id == product_id))).one_or_none()
    if row is None:
        raise ProductNotFound(product_id)
    return Product(**row._mapping)


async def lock_stock(session: AsyncSession, product_id: int) -> int | None:
    """Units that are on no sale, the row locked until the transaction ends; None when there is no such product."""
    row = select(product.c.stock).where(product.c.product_id == product_id).with_for_update()
    stock: int | None = await session.scalar(row)
    return stock


async def add_stock(session: AsyncSession, product_id: int, units: int, *, now_ms: int) -> None:
    """Adds units, or below 0 takes them; the row is locked by the caller or by this."""
    row = update(product).where(product.c.product_id == product_id)
    await session.execute(row.values(stock=product.c.stock + units, updated_at_ms=now_ms))
