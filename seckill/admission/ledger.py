"""The ledger: orders that were accepted and have not ended, and for a while how they ended.

Every method is one script call (or one pipeline of reads) per sale and may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import structlog

from seckill.admission.keys import DOUBTED, PRODUCTS, SaleKeys, sale_keys, sales_key
from seckill.admission.link import Argument, Command, RedisLink, load_script
from seckill.admission.moves import CALL_ORDERS_MAX, EntryMoves, by_sale, parts
from seckill.admission.waiting import ResultWatch
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import AdmissionUnavailable
from seckill.domain.order import Order, OrderId, Sale, parse_order_id
from seckill.domain.outcomes import Confirmed, OrderResult, OrderStatus, Rejected
from seckill.domain.reasons import Rejection
from seckill.settings import LedgerSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

ENDED = frozenset({OrderStatus.CONFIRMED, OrderStatus.REJECTED})


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """`due_ms`: when someone should look at it; of a parked entry, when it was parked."""

    order: Order
    published_at_ms: int
    due_ms: int
    state: Literal["pending", "parked"]


@dataclass(frozen=True, slots=True)
class LedgerStats:
    """`oldest_age_ms` is that of the oldest pending entry (0: none); `sale_id` is the newest sale held (0: none)."""

    entries: int
    parked: int
    oldest_age_ms: int
    sale_id: int = 0


class Ledger(EntryMoves):
    """All methods raise AdmissionUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink, settings: LedgerSettings) -> None:
        super().__init__(link)
        self._result_ttl_ms = settings.result_ttl_s * 1_000
        self._watch = ResultWatch(self.results)

    async def close(self) -> None:
        await self._watch.close()

    async def settle(self, ended: Sequence[tuple[Order, Confirmed | Rejected]]) -> None:
        """Writes results, takes the entries off, gives back what a rejection gives back. A result never changes.

        An order that names no sale is settled in the one that holds its entry, if any does.
        """
        held_by = await self.sales_with_entries([order for order, _ in ended if order.sale_id == 0])
        in_sales = ((replace(order, sale_id=held_by.get(order.order_id, order.sale_id)), end) for order, end in ended)
        batches = by_sale(in_sales, lambda pair: pair[0])
        commands = [self._settle_command(*batch) for batch in batches]
        reach(CrashPoint.SETTLING)
        replies = await self._link.run(commands) if commands else []
        reach(CrashPoint.SETTLED)
        for (_, _, pairs), standing in zip(batches, replies, strict=True):
            for (order, end), result in zip(pairs, standing, strict=True):
                if result != _result_text(order, end):
                    log.error("result_conflict", order_id=order.order_id, stands=result, came=_result_text(order, end))

    async def sales_with_entries(self, orders: Sequence[Order]) -> dict[OrderId, int]:
        """The sale whose ledger has the order, of those that one has."""
        sales = await self._sales_of(sorted({order.product_id for order in orders}))
        places = [
            (sale_id, sale_keys(product_id, sale_id).ledger, [order.order_id for order in part])
            for product_id, _, part in by_sale(orders, lambda order: order)
            for sale_id in sales[product_id]
        ]
        replies = await self._link.run([("HMGET", key, *ids) for _, key, ids in places]) if places else []
        return {
            order_id: sale_id
            for (sale_id, _, ids), entries in zip(places, replies, strict=True)
            for order_id, entry in zip(ids, entries, strict=True)
            if entry is not None
        }

    def _settle_command(
        self, product_id: int, sale_id: int, pairs: Sequence[tuple[Order, Confirmed | Rejected]]
    ) -> Command:
        keys = sale_keys(product_id, sale_id)
        names = [keys.stock, keys.buyers, keys.ledger, keys.due, keys.ages, keys.parked, sales_key(product_id)]
        arguments: list[Argument] = [sale_id, self._result_ttl_ms]
        for order, end in pairs:
            names.append(keys.result(order.order_id))
            status, reason = _status_and_reason(end)
            gives_units = int(_gives_units(end))
            arguments += (order.order_id, order.user_id, order.quantity, status, reason, gives_units)
        return load_script("settle").call(names, arguments)

    async def results(self, order_ids: Sequence[OrderId]) -> dict[OrderId, OrderResult]:
        """What Redis knows of these orders. Absent: nothing (never admitted, or its result has expired).

        How an order ended goes before what another sale of the product still holds of it.
        """
        by_product: dict[int, list[OrderId]] = {}
        for order_id in dict.fromkeys(order_ids):
            by_product.setdefault(parse_order_id(order_id)[0], []).append(order_id)
        sales = await self._sales_of(list(by_product))
        places = [
            (sale_keys(product_id, sale_id), part)
            for product_id, ids in by_product.items()
            for sale_id in sales[product_id]
            for part in parts(ids)
        ]
        found: dict[OrderId, OrderResult] = {}
        for order_id, facts in await self._facts(places):
            result = _result(order_id, facts)
            if result is not None and (order_id not in found or found[order_id].status not in ENDED):
                found[order_id] = result
        return found

    async def look(self, order_id: OrderId) -> tuple[OrderResult | None, bool]:
        """What Redis knows of the order, and whether its word is good: it may be older than what was told before.

        An end is always good. False, too, where it knows nothing.
        """
        product_id = parse_order_id(order_id)[0]
        places = [sale_keys(product_id, sale_id) for sale_id in (await self._sales_of([product_id]))[product_id]]
        # Vouched is asked for first: a rebuild in between makes good what was not, and never the other way round.
        script = load_script("vouched")
        asked = [script.call([keys.stock], [int(self._link.run_id_check)]) for keys in places]
        commands: list[Command] = [*asked, *_fact_commands([(keys, [order_id]) for keys in places])]
        replies = await self._link.run(commands) if commands else []
        facts = [
            _Facts(*(part[0] for part in answers)) for answers in zip(*[iter(replies[len(places) :])] * 3, strict=True)
        ]
        found = [(_result(order_id, each), bool(good)) for each, good in zip(facts, replies, strict=False)]
        known = [(result, good or result.status in ENDED) for result, good in found if result is not None]
        return min(known, key=lambda pair: pair[0].status not in ENDED, default=(None, False))

    async def require_whole(self, sale: Sale) -> None:
        """Raises AdmissionUnavailable, too, while what Redis holds of the sale may not be all that was ever written."""
        key = sale_keys(sale.product_id, sale.sale_id).stock
        if not await self._link.one(load_script("vouched").call([key], [int(self._link.run_id_check)])):
            raise AdmissionUnavailable(self._link.address, f"sale {sale.sale_id} is lost there, and will be rebuilt")

    async def seen(self, orders: Sequence[Order]) -> Seen:
        """Which of these very orders (buyer and quantity count) have ended and are off the ledger of their sale.

        Sale 0: of all sales. A result that one sale holds does not end an entry that another one holds.
        """
        by_id = {order.order_id: order for order in orders}
        unknown = sorted({order.product_id for order in orders if order.sale_id == 0})
        sales = await self._sales_of(unknown)
        places = [
            (sale_keys(product_id, place), [order.order_id for order in part])
            for product_id, sale_id, part in by_sale(orders, lambda order: order)
            for place in ([sale_id] if sale_id else sales[product_id])
        ]
        found = await self._facts(places)
        held = {order_id for order_id, facts in found if facts.entry is not None}
        known = held | {order_id for order_id, facts in found if facts.result is not None}
        return Seen(
            ended=frozenset(
                order_id
                for order_id, facts in found
                if order_id not in held and facts.result is not None and _is_result_of(facts.result, by_id[order_id])
            ),
            unknown=frozenset(by_id.keys() - known),
            reused=frozenset(
                order_id
                for order_id, facts in found
                if facts.entry is not None and not _is_entry_of(facts.entry, by_id[order_id])
            ),
        )

    async def doubt(self, orders: Sequence[Order]) -> int:
        """Closes admission of the sales that do not know the admission numbers of these orders, and names them for
        reconcile to rebuild: Redis has gone back there. Returns how many. The orders name their sales.
        """
        highest: dict[tuple[int, int], int] = {}
        for order in orders:
            sale = (order.product_id, order.sale_id)
            highest[sale] = max(highest.get(sale, 0), order.admission_number or 0)
        script = load_script("doubt")
        replies = await self._link.run([script.call([sale_keys(*sale).stock], [highest[sale]]) for sale in highest])
        doubted = [
            f"{product_id}:{sale_id}" for (product_id, sale_id), reply in zip(highest, replies, strict=True) if reply
        ]
        if doubted:
            await self._link.one(("SADD", DOUBTED, *doubted))
        return len(doubted)

    async def _facts(self, places: Sequence[tuple[SaleKeys, Sequence[OrderId]]]) -> list[tuple[OrderId, _Facts]]:
        """What each place holds of its orders, in the order given."""
        commands = _fact_commands(places)
        replies = await self._link.run(commands) if commands else []
        return [
            (order_id, _Facts(*facts))
            for (_, ids), *answers in zip(places, replies[0::3], replies[1::3], replies[2::3], strict=True)
            for order_id, *facts in zip(ids, *answers, strict=True)
        ]

    async def wait_result(self, order_id: OrderId, *, timeout_ms: int) -> OrderResult | None:
        """The end of the order, or what is known of it when the time is up. DELAYED ends the waiting as well.

        All waiters of this ledger share one poll. None: Redis does not know the order.
        """
        return await self._watch.wait(order_id, timeout_ms=timeout_ms)

    def stop_waiting(self) -> None:
        """Whoever waits for a result, now or later, is answered with what is known."""
        self._watch.stop()

    async def due(self, product_id: int, *, limit: int) -> list[LedgerEntry]:
        """Up to `limit` pending entries that someone should look at, oldest first. Changes nothing."""
        script = load_script("due")
        found: list[LedgerEntry] = []
        for sale_id in (await self._sales_of([product_id]))[product_id]:
            keys = sale_keys(product_id, sale_id)
            wanted = min(limit - len(found), CALL_ORDERS_MAX)
            if wanted <= 0:
                break
            reply = await self._link.one(script.call([keys.ledger, keys.due], [wanted]))
            for order_id, text, due_ms in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
                order, published_at_ms = entry_order(product_id, sale_id, order_id, text)
                found.append(LedgerEntry(order, published_at_ms, int(float(due_ms)), "pending"))
        return found

    async def claim(self, entries: Sequence[LedgerEntry], *, republish_after_ms: int) -> list[Order]:
        """Takes those entries for publication that still are as they were read; each is due again later.

        That is in `republish_after_ms`, or in as long as the entry is old already, up to ten times that: copies of a
        record that only waits stay few. Nobody else gets them in between; when the reply is lost, they come back.
        """
        script, taken = load_script("claim"), []
        for product_id, sale_id, part in by_sale(entries, lambda entry: entry.order):
            keys = sale_keys(product_id, sale_id)
            seen = [field for entry in part for field in (entry.order.order_id, entry_text(entry))]
            reach(CrashPoint.CLAIMING)
            reply = set(await self._link.one(script.call([keys.ledger, keys.due], [republish_after_ms, *seen])))
            reach(CrashPoint.CLAIMED)
            taken += [entry.order for entry in part if entry.order.order_id in reply]
        return taken

    async def entries(self, product_id: int) -> list[LedgerEntry]:
        """All entries of the product's sales: for audits and a person's eyes, not for the path of an order."""
        found: list[LedgerEntry] = []
        for sale_id in (await self._sales_of([product_id]))[product_id]:
            keys = sale_keys(product_id, sale_id)
            texts, due, parked = await self._link.run(
                [
                    ("HGETALL", keys.ledger),
                    ("ZRANGE", keys.due, 0, -1, "WITHSCORES"),
                    ("ZRANGE", keys.parked, 0, -1, "WITHSCORES"),
                ]
            )
            due_of, parked_of = _scores(due), _scores(parked)
            for order_id, text in texts.items():
                order, published_at_ms = entry_order(product_id, sale_id, order_id, text)
                if order_id in parked_of:
                    found.append(LedgerEntry(order, published_at_ms, parked_of[order_id], "parked"))
                elif order_id in due_of:  # in neither: settled between the two reads
                    found.append(LedgerEntry(order, published_at_ms, due_of[order_id], "pending"))
        return found

    async def stats(self, product_id: int) -> LedgerStats:
        """Sizes over all sales of the product; as cheap with a full ledger as with an empty one."""
        sales = (await self._sales_of([product_id]))[product_id]
        commands: list[Command] = [("TIME",)]
        for sale_id in sales:
            keys = sale_keys(product_id, sale_id)
            commands += [
                ("HLEN", keys.ledger), ("ZCARD", keys.parked), ("ZRANGE", keys.ages, 0, 0, "WITHSCORES"),
            ]  # fmt: skip
        time, *replies = await self._link.run(commands)
        now_ms = int(time[0]) * 1_000 + int(time[1]) // 1_000
        oldest = [at_ms for ages in replies[2::3] for at_ms in _scores(ages).values()]
        return LedgerStats(
            entries=sum(replies[0::3]),
            parked=sum(replies[1::3]),
            oldest_age_ms=max(0, now_ms - min(oldest)) if oldest else 0,
            sale_id=max(sales, default=0),
        )

    async def products(self) -> list[int]:
        """Ids of the products that have a sale in Redis, in order."""
        return sorted(int(product_id) for product_id in await self._link.one(("SMEMBERS", PRODUCTS)))

    async def _sales_of(self, product_ids: Sequence[int]) -> dict[int, list[int]]:
        """The sales of each product that Redis holds something of, newest first."""
        if not product_ids:
            return {}
        replies = await self._link.run([("ZRANGE", sales_key(product_id), 0, -1) for product_id in product_ids])
        return {
            product_id: sorted((int(sale_id) for sale_id in reply), reverse=True)
            for product_id, reply in zip(product_ids, replies, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """`unknown`: neither entry nor result is there. `reused`: the entry is another order's, with the same id."""

    ended: frozenset[OrderId]
    unknown: frozenset[OrderId]
    reused: frozenset[OrderId]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What one sale holds of an order."""

    entry: str | None
    parked_at: float | None
    result: str | None


def _fact_commands(places: Sequence[tuple[SaleKeys, Sequence[OrderId]]]) -> list[Command]:
    """Three for each place. The ledger is read before the results: what is settled in between is seen twice."""
    commands: list[Command] = []
    for keys, ids in places:
        commands += [
            ("HMGET", keys.ledger, *ids),
            ("ZMSCORE", keys.parked, *ids),
            ("MGET", *(keys.result(order_id) for order_id in ids)),
        ]
    return commands


def _result(order_id: OrderId, facts: _Facts) -> OrderResult | None:
    if facts.result is not None:
        status, _, _, reason = facts.result.split(":", 3)
        return OrderResult(order_id, OrderStatus(status), reason)
    if facts.entry is None:
        return None
    return OrderResult(order_id, OrderStatus.PROCESSING if facts.parked_at is None else OrderStatus.DELAYED)


def _is_entry_of(entry: str, order: Order) -> bool:
    user_id, quantity, _ = entry.split(":", 2)
    return (int(user_id), int(quantity)) == (order.user_id, order.quantity)


def _is_result_of(result: str, order: Order) -> bool:
    _, user_id, quantity, _ = result.split(":", 3)
    return (int(user_id), int(quantity)) == (order.user_id, order.quantity)


def _status_and_reason(end: Confirmed | Rejected) -> tuple[str, str]:
    match end:
        case Confirmed():
            return OrderStatus.CONFIRMED.value, ""
        case Rejected(reason):
            return OrderStatus.REJECTED.value, str(reason)


def _gives_units(end: Confirmed | Rejected) -> bool:
    """When the database had no units for the order, there are none to sell again."""
    match end:
        case Rejected(Rejection.SOLD_OUT, by_admission=False):
            return False
        case _:
            return True


def _result_text(order: Order, end: Confirmed | Rejected) -> str:
    """A result as `settle.lua` writes it."""
    status, reason = _status_and_reason(end)
    return f"{status}:{order.user_id}:{order.quantity}:{reason}"


def entry_order(product_id: int, sale_id: int, order_id: str, text: str) -> tuple[Order, int]:
    """The order of an entry as `admit.lua` writes it, and when it was published last."""
    user_id, quantity, admitted_at_ms, number, published_at_ms = (int(field) for field in text.split(":"))
    order = Order(OrderId(order_id), sale_id, user_id, product_id, quantity, admitted_at_ms, number)
    return order, published_at_ms


def entry_text(entry: LedgerEntry) -> str:
    """An entry as `admit.lua` writes it."""
    order = entry.order
    fields = (order.user_id, order.quantity, order.admitted_at_ms, order.admission_number, entry.published_at_ms)
    return ":".join(map(str, fields))


def _scores(flat: Sequence[str]) -> dict[str, int]:
    """Member → score of a ZRANGE … WITHSCORES reply."""
    return {member: int(float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)}
