"""How long the demo's orders took, from the stores; everything else it reads through `seckill.audit`."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from seckill.audit.stores import Stores, snapshot
from seckill.demo.plan import Latency, latency
from seckill.product.decide import State
from seckill.product.tables import stock_reservation


async def confirm_latency(stores: Stores, product_ids: Collection[int]) -> Latency:
    """From admission to the reservation's last change, of sold ones. Both times are whole milliseconds."""
    row = stock_reservation.c
    of_sold = row.product_id.in_(product_ids) & (row.state == State.SOLD)
    async with snapshot(stores, "product") as connection:
        found = await connection.execute(select(row.updated_at_ms - row.admitted_at_ms).where(of_sold))
        return latency([float(took_ms) for (took_ms,) in found])
