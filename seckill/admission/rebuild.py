"""Redis' side of a rebuild: close admission of a sale, stage what the other stores say, and install it in one step.

What is to be installed is decided by who calls; nothing here reads SQL or Kafka. Between `close` and `install` the
stock key holds the rebuild's token; whoever comes with another token steps back, until the token has not been renewed
for PATIENCE_MS.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from seckill.admission.keys import COMPLETE, DOUBTED, PRODUCTS, SaleKeys, current_sale_key, sale_keys, sales_key
from seckill.admission.ledger import LedgerEntry, entry_text
from seckill.admission.link import Argument, Command, RedisLink, load_script
from seckill.admission.sales import UNITS_MAX
from seckill.domain.errors import SeckillError
from seckill.domain.order import OrderId, Sale
from seckill.settings import LedgerSettings

PATIENCE_MS = 15_000
"""A rebuild that has not renewed its token for so long is dead, and another one may begin."""

RENEW_EVERY_MS = PATIENCE_MS // 5

STAGED_MS = 600_000
"""How long staged keys live when their rebuild dies."""

PAIRS_MAX = 1_000
"""Members of one staging command."""

UNCHECKED = "unchecked"
"""In the place of a run id, where the server tells none: then only a Redis that lost everything is noticed by it."""


class RebuildFailed(SeckillError):
    """What was staged could not be installed; the next attempt begins anew, and admission stays closed until then."""

    retryable = True

    def __init__(self, sale: Sale, why: str) -> None:
        super().__init__(f"sale {sale.sale_id} of product {sale.product_id} was not rebuilt: {why}")
        self.sale_id = sale.sale_id
        self.why = why


@dataclass(frozen=True, slots=True)
class SaleContents:
    """What Redis is to hold of a sale: `stock + admitted = initial` in units; `number` is the last admission number.

    `buyers`: each buyer's units and order ids. `changes`: what the changes of units moved.
    """

    initial: int
    stock: int
    number: int
    entries: Sequence[LedgerEntry]
    buyers: Mapping[int, tuple[int, Sequence[OrderId]]]
    changes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Closed:
    """A sale whose admission is closed for a rebuild: the last admission number known in Redis, and Redis' time."""

    sale: Sale
    token: str
    number: int
    at_ms: int


class Standing(Enum):
    """How Redis holds a sale."""

    HELD = "held"
    MISSING = "missing"  # not at all
    OLD = "old"  # by a server process that nobody has vouched for: it may have lost acknowledged writes
    DOUBTED = "doubted"  # somebody saw more of it than is held, or a rebuild of it has failed
    UNLIKE = "unlike"  # another number of units than its row says
    REBUILDING = "rebuilding"  # somebody is at it


class RebuildBook:
    """All methods raise AdmissionUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink, settings: LedgerSettings) -> None:
        self._link = link
        self._result_ttl_ms = settings.result_ttl_s * 1_000

    # --- which sales need it -------------------------------------------------------------------------------------

    async def standings(self, sales: Sequence[Sale]) -> dict[int, Standing]:
        """By sale id, in one round trip."""
        fields = ("stock", "run_id", "rebuild", "rebuild_at_ms", "initial")
        commands: list[Command] = [("HMGET", sale_keys(sale.product_id, sale.sale_id).stock, *fields) for sale in sales]
        time, run_id, *held = await self._link.run([("TIME",), *self._info(), *commands])
        now_ms = int(time[0]) * 1_000 + int(time[1]) // 1_000
        server = run_id["run_id"] if isinstance(run_id, dict) else None
        return {
            sale.sale_id: _standing(sale, values, server=server, now_ms=now_ms)
            for sale, values in zip(sales, held, strict=True)
        }

    async def doubted(self) -> set[tuple[int, int]]:
        """Product and sale ids of what `Ledger.doubt` has named."""
        names = await self._link.one(("SMEMBERS", DOUBTED))
        return {(int(product_id), int(sale_id)) for product_id, _, sale_id in (name.partition(":") for name in names)}

    async def forget_doubt(self, product_id: int, sale_id: int) -> None:
        await self._link.one(("SREM", DOUBTED, f"{product_id}:{sale_id}"))

    async def server_not_complete(self) -> str | None:
        """The server on which not every sale has been looked at yet: a new one, or restarted; None: it is known."""
        stored, info = await self._link.run([("GET", COMPLETE), *self._info()])
        server = str(info["run_id"]) if isinstance(info, dict) else UNCHECKED
        return None if stored == server else server

    async def say_complete(self, server: str) -> None:
        """Every sale has been looked at on that server."""
        await self._link.one(("SET", COMPLETE, server))

    def _info(self) -> list[Command]:
        return [("INFO", "server") if self._link.run_id_check else ("PING",)]

    # --- the steps -----------------------------------------------------------------------------------------------

    async def close(self, sale: Sale, *, newest: bool) -> Closed | None:
        """No order of the sale is admitted from here on. None: another rebuild is at it.

        `newest`: no later sale of the product exists. An older one never becomes the product's current sale.
        """
        token = uuid.uuid4().hex
        keys = sale_keys(sale.product_id, sale.sale_id)
        arguments: list[Argument] = [
            token, sale.sale_id, sale.name, sale.starts_at_ms, sale.ends_at_ms, min(sale.per_user_limit, UNITS_MAX),
            sale.price_cents, sale.state, self._result_ttl_ms, int(newest), PATIENCE_MS, int(self._link.run_id_check),
        ]  # fmt: skip
        names = [current_sale_key(sale.product_id), keys.stock, sales_key(sale.product_id)]
        await self._link.one(("SADD", PRODUCTS, sale.product_id))
        said, *facts = await self._link.one(load_script("close_for_rebuild").call(names, arguments))
        return None if said == "busy" else Closed(sale, token, int(facts[0]), int(facts[1]))

    async def renew(self, closed: Closed) -> bool:
        """False: the token counts no more."""
        return await self._hold(closed, "renew")

    async def release(self, closed: Closed) -> None:
        """The next rebuild need not wait for the token to age. Does nothing after `install`."""
        await self._hold(closed, "release")

    async def _hold(self, closed: Closed, what: str) -> bool:
        key = sale_keys(closed.sale.product_id, closed.sale.sale_id).stock
        return bool(await self._link.one(load_script("hold_rebuild").call([key], [closed.token, what])))

    async def changes(self, sale: Sale) -> dict[str, int]:
        """What the changes of units moved, as far as Redis remembers: "add:ID", "take:ID" → units."""
        found = await self._link.one(("HGETALL", sale_keys(sale.product_id, sale.sale_id).changes))
        return {name: int(units) for name, units in found.items()}

    async def stage(self, closed: Closed, contents: SaleContents) -> None:
        """Writes the contents beside what is held, under the token."""
        staged = _staged(closed)
        pending = [entry for entry in contents.entries if entry.state == "pending"]
        parked = [entry for entry in contents.entries if entry.state == "parked"]
        await self._fill("HSET", staged.ledger, ((e.order.order_id, entry_text(e)) for e in contents.entries))
        await self._fill("ZADD", staged.due, ((e.due_ms, e.order.order_id) for e in pending))
        await self._fill("ZADD", staged.ages, ((e.order.admitted_at_ms, e.order.order_id) for e in pending))
        await self._fill("ZADD", staged.parked, ((e.due_ms, e.order.order_id) for e in parked))
        buyers = ((user_id, " ".join((str(units), *ids))) for user_id, (units, ids) in contents.buyers.items())
        await self._fill("HSET", staged.buyers, buyers)
        await self._fill("HSET", staged.changes, contents.changes.items())

    async def install(self, closed: Closed, contents: SaleContents) -> None:
        """Puts what was staged in the place of what Redis holds, and opens the sale as its terms there say.

        Raises RebuildFailed when another rebuild has begun, Redis was restarted, or staged keys are not whole.
        """
        sale = closed.sale
        parked = sum(entry.state == "parked" for entry in contents.entries)
        pending = len(contents.entries) - parked
        sizes = (len(contents.buyers), len(contents.entries), pending, pending, parked, len(contents.changes))
        arguments: list[Argument] = [
            closed.token, contents.stock, contents.initial, contents.number, int(self._link.run_id_check),
            closed.at_ms, *sizes,
        ]  # fmt: skip
        keys = sale_keys(sale.product_id, sale.sale_id)
        names = [keys.stock, *_contents_of(keys), *_contents_of(_staged(closed))]
        reply = str(await self._link.one(load_script("install_rebuild").call(names, arguments)))
        if reply != "installed":
            raise RebuildFailed(sale, reply)
        await self.forget_doubt(sale.product_id, sale.sale_id)

    async def _fill(self, command: str, key: str, pairs: Iterable[tuple[Argument, Argument]]) -> None:
        iterator = iter(pairs)
        while part := [item for pair in islice(iterator, PAIRS_MAX) for item in pair]:
            commands: list[Command] = [(command, key, *part), ("PEXPIRE", key, STAGED_MS)]
            await self._link.run(commands)


def _standing(sale: Sale, values: Sequence[str | None], *, server: str | None, now_ms: int) -> Standing:
    stock, run_id, rebuild, rebuild_at_ms, initial = values
    if rebuild is not None:
        alive = rebuild_at_ms is not None and now_ms - int(rebuild_at_ms) < PATIENCE_MS
        return Standing.REBUILDING if alive else Standing.DOUBTED
    if stock is None or initial is None:
        return Standing.MISSING
    if server is not None and server != run_id:
        return Standing.OLD
    return Standing.HELD if int(initial) == sale.initial else Standing.UNLIKE


def _contents_of(keys: SaleKeys) -> list[str]:
    """In the order in which `install_rebuild.lua` takes them."""
    return [keys.buyers, keys.ledger, keys.due, keys.ages, keys.parked, keys.changes]


def _staged(closed: Closed) -> SaleKeys:
    """The same names under the token, in the same slot."""
    keys, token = sale_keys(closed.sale.product_id, closed.sale.sale_id), closed.token
    buyers, ledger, due, ages, parked, changes = (f"{name}:{token}" for name in _contents_of(keys))
    return SaleKeys(keys.stock, buyers, ledger, due, ages, parked, changes, keys.result_prefix)
