"""What an onlooker may read of admission: counters, ledger and results, in pages that keep nobody waiting.

Reads only. The pages of one call are of different moments; what each of them says was true when it was read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from seckill.admission.keys import current_sale_key, sale_keys, sales_key
from seckill.admission.ledger import LedgerEntry, entry_order
from seckill.admission.link import Command, RedisLink

PAGE = 1_000
"""Entries, keys or sales asked of Redis at a time."""


@dataclass(frozen=True, slots=True)
class SaleCounters:
    """Of one moment, in units. `number`: how many orders had been admitted. `vouched` as in SaleView."""

    sale_id: int
    stock: int
    admitted: int
    initial: int
    number: int
    vouched: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """`from_ms` and `until_ms`: Redis' own time before and after; `current`: product → its sale here."""

    sales: dict[int, SaleCounters]
    current: dict[int, int]
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Told:
    """A result that stands in Redis under this sale; 0 is that of orders that were refused without one."""

    order_id: str
    sale_id: int
    status: str
    reason: str


class Inspection:
    """All methods raise AdmissionUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def counters(self, places: Sequence[tuple[int, int]]) -> Counted:
        """Of these sales (product id, sale id), those that Redis holds."""
        from_ms = await self._now_ms()
        run_id = (await self._link.one(("INFO", "server")))["run_id"] if self._link.run_id_check else None
        sales: dict[int, SaleCounters] = {}
        current: dict[int, int] = {}
        for start in range(0, len(places), PAGE):
            part = places[start : start + PAGE]
            commands: list[Command] = []
            for product_id, sale_id in part:
                key = sale_keys(product_id, sale_id).stock
                commands.append(("HMGET", key, "stock", "admitted", "initial", "number", "run_id", "rebuild"))
                commands.append(("HGET", current_sale_key(product_id), "sale_id"))
            replies = await self._link.run(commands)
            for (product_id, sale_id), counters, current_id in zip(part, replies[::2], replies[1::2], strict=True):
                if current_id is not None:
                    current[product_id] = int(current_id)
                if counters[0] is not None:
                    stock, admitted, initial, number = (int(text) for text in counters[:4])
                    vouched = counters[5] is None and (run_id is None or counters[4] == run_id)
                    sales[sale_id] = SaleCounters(sale_id, stock, admitted, initial, number, vouched)
        return Counted(sales, current, from_ms, await self._now_ms())

    async def entries(self, product_id: int, sale_id: int) -> dict[str, LedgerEntry]:
        """The ledger of a sale by order id. An entry that is settled or written meanwhile may be there or not."""
        keys, cursor = sale_keys(product_id, sale_id), 0
        found: dict[str, LedgerEntry] = {}
        while True:
            cursor, page = await self._link.one(("HSCAN", keys.ledger, cursor, "COUNT", PAGE))
            if page:
                found |= await self._entries(product_id, sale_id, page)
            if int(cursor) == 0:
                return found

    async def _entries(self, product_id: int, sale_id: int, texts: Mapping[str, str]) -> dict[str, LedgerEntry]:
        keys, found = sale_keys(product_id, sale_id), {}
        due, parked = await self._link.run([("ZMSCORE", keys.due, *texts), ("ZMSCORE", keys.parked, *texts)])
        for (order_id, text), due_ms, parked_ms in zip(texts.items(), due, parked, strict=True):
            order, published_at_ms = entry_order(product_id, sale_id, order_id, text)
            state: Literal["pending", "parked"] = "pending" if parked_ms is None else "parked"
            at_ms = int(float(parked_ms or due_ms or 0))
            found[order_id] = LedgerEntry(order, published_at_ms, at_ms, state)
        return found

    async def results(self, *, product_id: int | None = None, cursor: int = 0) -> AsyncIterator[tuple[int, list[Told]]]:
        """Every result that stands here all the while, of one product or of all; each at least once, in pages.

        With each page comes the cursor from which to go on after it; 0: that was the last one. Goes through all keys of
        the database, whatever they are.
        """
        product = "*" if product_id is None else str(product_id)
        while True:
            pattern = f"seckill:{{{product}}}:*:result:*"
            cursor, keys = await self._link.one(("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE))
            cursor = int(cursor)
            yield cursor, await self._read(keys)
            if cursor == 0:
                return

    async def sales_of(self, product_id: int) -> list[int]:
        """Ids of the sales of which Redis holds something; 0 is that of orders that were refused without one."""
        return sorted(int(sale_id) for sale_id in await self._link.one(("ZRANGE", sales_key(product_id), 0, -1)))

    async def entry(self, product_id: int, sale_id: int, order_id: str) -> LedgerEntry | None:
        """One entry of the ledger."""
        keys = sale_keys(product_id, sale_id)
        text = await self._link.one(("HGET", keys.ledger, order_id))
        return (await self._entries(product_id, sale_id, {order_id: text}))[order_id] if text is not None else None

    async def told(self, order_id: str, product_id: int, sale_ids: Sequence[int]) -> list[Told]:
        """What stands of one order, in any of these sales."""
        return await self._read([sale_keys(product_id, sale_id).result(order_id) for sale_id in sale_ids])

    async def _read(self, keys: Sequence[str]) -> list[Told]:
        """The results that stand under these keys; one command for each product."""
        of_product: dict[str, list[str]] = {}
        for key in keys:
            of_product.setdefault(key.split(":", 2)[1], []).append(key)
        replies = await self._link.run([("MGET", *part) for part in of_product.values()]) if keys else []
        return [
            _told(key, text)
            for part, texts in zip(of_product.values(), replies, strict=True)
            for key, text in zip(part, texts, strict=True)
            if text is not None
        ]

    async def _now_ms(self) -> int:
        time = await self._link.one(("TIME",))
        return int(time[0]) * 1_000 + int(time[1]) // 1_000


def _told(key: str, text: str) -> Told:
    """`seckill:{P}:S:result:ORDER_ID` and `status:user:quantity:reason`."""
    _, _, sale_id, _, order_id = key.split(":", 4)
    status, _, _, reason = text.split(":", 3)
    return Told(order_id, int(sale_id), status, reason)
