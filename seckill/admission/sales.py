"""The sale book: Redis' copy of the sale row, which admission judges by."""

from __future__ import annotations

from dataclasses import dataclass

from seckill.admission.keys import PRODUCTS, change_key, current_sale_key, sale_keys, sales_key
from seckill.admission.link import Command, RedisLink, load_script
from seckill.domain.errors import InvalidTransition, SeckillError
from seckill.domain.order import Sale
from seckill.settings import LedgerSettings

UNITS_MAX = 2**53 - 1
"""Largest stock, and largest per-user limit that is kept: a Lua number holds 53 bits exactly."""

CHANGE_KEPT_MS = 86_400_000
"""How long the first time of a change is remembered."""


class RebuildNeeded(SeckillError):
    """Redis lost the sale, or a rebuild of it is under way: its stock can only follow from all the stores."""

    def __init__(self, sale: Sale) -> None:
        super().__init__(
            f"sale {sale.sale_id} of product {sale.product_id} is not in Redis any more ({sale.frozen} units frozen, "
            f"{sale.sold} sold), or is being rebuilt: admission stays closed until then"
        )
        self.sale_id = sale.sale_id
        self.product_id = sale.product_id


@dataclass(frozen=True, slots=True)
class SaleView:
    """The current sale of a product as admission sees it.

    `admitted` are the units that were taken from the stock and not given back: always `stock + admitted == initial`.
    `vouched`: this server process is the one that the sale was warmed on, and nobody rebuilds it or asks for that;
    otherwise admission answers PAUSED.
    """

    sale_id: int
    state: str
    name: str
    starts_at_ms: int
    ends_at_ms: int
    per_user_limit: int
    price_cents: int
    stock: int
    admitted: int
    initial: int
    number: int
    vouched: bool


class SaleBook:
    """All methods raise AdmissionUnavailable when Redis does not answer; all may be repeated."""

    def __init__(self, link: RedisLink, settings: LedgerSettings) -> None:
        self._link = link
        self._result_ttl_ms = settings.result_ttl_s * 1_000

    async def warm(self, sale: Sale, *, first: bool = True) -> None:
        """Copies the row. First time: units included; again: window, limit, price, name and state only.

        `first` says that Redis cannot have held the sale before: if it has, orders may be on their way of which the row
        does not know. A sale that has ended or is closed never takes the place of another.

        Raises RebuildNeeded when Redis lost the sale, or it is being rebuilt: window, limit, price, name and state are
        then copied if it is the product's current sale there, and nothing else is. Raises InvalidTransition when
        another sale of the product is still on, or the units are above 2^53 - 1.
        """
        if max(sale.stock, sale.initial) > UNITS_MAX:
            raise InvalidTransition(sale.sale_id, f"admission counts up to {UNITS_MAX} units, not {sale.initial}")
        # The product is listed first: a listed product without a sale is harmless, an unlisted ledger is forgotten.
        await self._link.one(("SADD", PRODUCTS, sale.product_id))
        reply = str(await self._link.one(self._warm_command(sale, first)))
        match reply.partition(" "):
            case ("rebuild", _, _):
                raise RebuildNeeded(sale)
            case ("open", _, other):
                raise InvalidTransition(
                    sale.sale_id, f"sale {other} of product {sale.product_id} is still on: close it, or let it end"
                )
            case ("warmed", _, _):
                await self._forget_old_sales(sale.product_id, keep=sale.sale_id)

    def _warm_command(self, sale: Sale, first: bool) -> Command:
        names = [
            current_sale_key(sale.product_id),
            sale_keys(sale.product_id, sale.sale_id).stock,
            sales_key(sale.product_id),
        ]
        untouched = first and sale.frozen == 0 and sale.sold == 0
        return load_script("warm").call(
            names,
            [
                sale.sale_id, sale.name, sale.starts_at_ms, sale.ends_at_ms, min(sale.per_user_limit, UNITS_MAX),
                sale.price_cents, sale.state, sale.stock, int(untouched), int(self._link.run_id_check),
                self._result_ttl_ms,
            ],
        )  # fmt: skip

    async def _forget_old_sales(self, product_id: int, *, keep: int) -> None:
        """Removes what is left of earlier sales, once their last result has expired and nothing of them is pending."""
        time = await self._link.one(("TIME",))
        now_ms = int(time[0]) * 1_000 + int(time[1]) // 1_000
        expired = await self._link.one(("ZRANGEBYSCORE", sales_key(product_id), "-inf", now_ms))
        for sale_id in (int(text) for text in expired):
            keys = sale_keys(product_id, sale_id)
            if sale_id != keep and await self._link.one(("HLEN", keys.ledger)) == 0:
                await self._link.run(
                    [("UNLINK", keys.stock, keys.buyers, keys.changes), ("ZREM", sales_key(product_id), sale_id)]
                )

    async def read(self, product_id: int) -> SaleView | None:
        """The product's current sale; None when it has none, or when Redis holds its row but not its units."""
        row = await self._link.one(("HGETALL", current_sale_key(product_id)))
        if not row:
            return None
        sale_id = int(row["sale_id"])
        commands: list[Command] = [("HGETALL", sale_keys(product_id, sale_id).stock)]
        if self._link.run_id_check:
            commands.append(("INFO", "server"))
        units, *info = await self._link.run(commands)
        if "stock" not in units:
            return None
        return SaleView(
            sale_id=sale_id,
            state=row["state"],
            name=row["name"],
            starts_at_ms=int(row["starts_at_ms"]),
            ends_at_ms=int(row["ends_at_ms"]),
            per_user_limit=int(row["per_user_limit"]),
            price_cents=int(row["price_cents"]),
            stock=int(units["stock"]),
            admitted=int(units["admitted"]),
            initial=int(units["initial"]),
            number=int(units["number"]),
            vouched="rebuild" not in units and (not info or info[0]["run_id"] == units["run_id"]),
        )

    async def units_of_buyers(self, product_id: int, sale_id: int) -> dict[int, int]:
        """What each buyer has used of the limit. Reads the whole sale in steps: for audits, when nothing moves."""
        key, cursor = sale_keys(product_id, sale_id).buyers, 0
        units: dict[int, int] = {}
        while True:
            cursor, part = await self._link.one(("HSCAN", key, cursor, "COUNT", 1_000))
            units |= {int(user_id): int(text.partition(" ")[0]) for user_id, text in part.items()}
            if int(cursor) == 0:
                return units

    async def set_state(self, sale: Sale, state: str) -> None:
        """Opens, pauses or closes admission of the sale; nothing happens when another sale is current."""
        await self._link.one(load_script("set_state").call([current_sale_key(sale.product_id)], [sale.sale_id, state]))

    async def add_units(self, sale: Sale, change_id: str, units: int) -> None:
        """Raises the stock, after the sale row was raised. A repeat with the same change id adds nothing."""
        await self._change(sale, "add", change_id, units)

    async def take_units(self, sale: Sale, change_id: str, units: int) -> int:
        """Lowers the stock by what is there, before the sale row is lowered; how many units were taken.

        A repeat with the same change id takes nothing and answers the same.
        """
        return await self._change(sale, "take", change_id, units)

    async def undo_take(self, sale: Sale, change_id: str) -> None:
        """Puts back what `take_units` took, when the sale row could not be lowered; the change then counts as 0."""
        await self._change(sale, "undo", change_id, 0)

    async def _change(self, sale: Sale, operation: str, change_id: str, units: int) -> int:
        keys = sale_keys(sale.product_id, sale.sale_id)
        return int(
            await self._link.one(
                load_script("change_units").call([keys.stock, keys.changes], [operation, change_id, units])
            )
        )

    async def first_asked_ms(self, change_id: str) -> int:
        """When this change was asked for first, in ms since 1970: a repeat within a day gets the same answer."""
        time = await self._link.one(("TIME",))
        now_ms = int(time[0]) * 1_000 + int(time[1]) // 1_000
        key = change_key(change_id)
        _, first_ms = await self._link.run([("SET", key, now_ms, "NX", "PX", CHANGE_KEPT_MS), ("GET", key)])
        return int(first_ms)

    async def check(self) -> None:
        """PING."""
        await self._link.one(("PING",))
