"""Redis' side of a rebuild: close admission of a sale, stage what the other stores say, and install it in one step.

What is to be installed is decided by who calls; nothing here reads SQL or Kafka.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice

from seckill.admission.keys import PRODUCTS, SaleKeys, current_sale_key, sale_keys, sales_key
from seckill.admission.ledger import LedgerEntry, entry_text
from seckill.admission.link import Argument, Command, RedisLink, load_script
from seckill.admission.sales import UNITS_MAX
from seckill.domain.order import OrderId, Sale
from seckill.settings import LedgerSettings

STAGED_MS = 600_000
"""How long staged keys live when their rebuild dies."""

PAIRS_MAX = 1_000
"""Members of one staging command."""


@dataclass(frozen=True, slots=True)
class SaleContents:
    """What Redis is to hold of a sale: `stock + admitted = initial` in units; `number` is the last admission number.

    `buyers`: each buyer's units and order ids.
    """

    initial: int
    stock: int
    number: int
    entries: Sequence[LedgerEntry]
    buyers: Mapping[int, tuple[int, Sequence[OrderId]]]


@dataclass(frozen=True, slots=True)
class Closed:
    """A sale whose admission is closed for a rebuild; `number` is the last admission number that Redis still knew."""

    sale: Sale
    token: str
    number: int


class Standing(Enum):
    """How Redis holds a sale that its row says is on."""

    HELD = "held"
    MISSING = "missing"  # not at all, or another sale stands in its place
    OLD = "old"  # by a server process that nobody has vouched for: it may have lost acknowledged writes
    REBUILDING = "rebuilding"  # somebody is at it


class RebuildBook:
    """All methods raise AdmissionUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink, settings: LedgerSettings) -> None:
        self._link = link
        self._result_ttl_ms = settings.result_ttl_s * 1_000

    async def standing(self, sale: Sale, *, patience_ms: int) -> Standing:
        """A rebuild that began longer than `patience_ms` ago counts as dead."""
        stock_key = sale_keys(sale.product_id, sale.sale_id).stock
        commands: list[Command] = [
            ("HGET", current_sale_key(sale.product_id), "sale_id"),
            ("HMGET", stock_key, "stock", "run_id", "rebuild_at_ms"),
            ("TIME",),
        ]
        if self._link.run_id_check:
            commands.append(("INFO", "server"))
        current, (stock, run_id, rebuild_at_ms), time, *info = await self._link.run(commands)
        now_ms = int(time[0]) * 1_000 + int(time[1]) // 1_000
        if rebuild_at_ms is not None and now_ms - int(rebuild_at_ms) < patience_ms:
            return Standing.REBUILDING
        if current is None or int(current) != sale.sale_id or stock is None:
            return Standing.MISSING
        return Standing.OLD if info and info[0]["run_id"] != run_id else Standing.HELD

    async def close(self, sale: Sale) -> Closed | None:
        """No order of the sale is admitted from here on. None: Redis holds a newer sale of the product."""
        token = uuid.uuid4().hex
        keys = sale_keys(sale.product_id, sale.sale_id)
        arguments: list[Argument] = [
            token, sale.sale_id, sale.name, sale.starts_at_ms, sale.ends_at_ms, min(sale.per_user_limit, UNITS_MAX),
            sale.price_cents, sale.state, self._result_ttl_ms,
        ]  # fmt: skip
        names = [current_sale_key(sale.product_id), keys.stock, sales_key(sale.product_id)]
        await self._link.one(("SADD", PRODUCTS, sale.product_id))
        reply = str(await self._link.one(load_script("close_for_rebuild").call(names, arguments)))
        return None if reply == "other" else Closed(sale, token, int(reply))

    async def install(self, closed: Closed, contents: SaleContents) -> bool:
        """Replaces what Redis holds of the sale and opens it as its row says; False: a newer rebuild does it."""
        sale = closed.sale
        keys = sale_keys(sale.product_id, sale.sale_id)
        staged = _staged(keys, closed.token)
        await self._stage(staged, contents)
        names = [
            keys.stock, keys.buyers, keys.ledger, keys.due, keys.ages, keys.parked,
            staged.buyers, staged.ledger, staged.due, staged.ages, staged.parked,
        ]  # fmt: skip
        arguments: list[Argument] = [
            closed.token, contents.stock, contents.initial, contents.initial - contents.stock, contents.number,
            int(self._link.run_id_check),
        ]  # fmt: skip
        return bool(await self._link.one(load_script("install_rebuild").call(names, arguments)))

    async def _stage(self, staged: SaleKeys, contents: SaleContents) -> None:
        pending = [entry for entry in contents.entries if entry.state == "pending"]
        parked = [entry for entry in contents.entries if entry.state == "parked"]
        await self._fill("HSET", staged.ledger, ((e.order.order_id, entry_text(e)) for e in contents.entries))
        await self._fill("ZADD", staged.due, ((e.due_ms, e.order.order_id) for e in pending))
        await self._fill("ZADD", staged.ages, ((e.order.admitted_at_ms, e.order.order_id) for e in pending))
        await self._fill("ZADD", staged.parked, ((e.due_ms, e.order.order_id) for e in parked))
        buyers = ((user_id, " ".join((str(units), *ids))) for user_id, (units, ids) in contents.buyers.items())
        await self._fill("HSET", staged.buyers, buyers)

    async def _fill(self, command: str, key: str, pairs: Iterable[tuple[Argument, Argument]]) -> None:
        iterator = iter(pairs)
        while part := [item for pair in islice(iterator, PAIRS_MAX) for item in pair]:
            commands: list[Command] = [(command, key, *part), ("PEXPIRE", key, STAGED_MS)]
            await self._link.run(commands)


def _staged(keys: SaleKeys, token: str) -> SaleKeys:
    """The same names under the token, in the same slot."""
    return replace(
        keys,
        buyers=f"{keys.buyers}:{token}",
        ledger=f"{keys.ledger}:{token}",
        due=f"{keys.due}:{token}",
        ages=f"{keys.ages}:{token}",
        parked=f"{keys.parked}:{token}",
    )
