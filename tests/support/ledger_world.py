"""One product from admission to its end: the real gate, ledger, sale book, carrier and reconcilers, around one Redis.

Rows and topic are in memory, the model stands beside it all, and everybody acts in steps: see `actors`. Methods are
plain ones, for a history reads best as a list of what happened; a loop of its own runs whatever moves meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from aiokafka import TopicPartition

from consumers.conflicts import Conflicts
from consumers.dependencies import BLAMED, Dependencies
from consumers.reconcile import Findings, ReconcileLimits, Reconciler
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission import ParkedOrders, RedisLink, SaleBook, Wanted
from seckill.admission.keys import PRODUCTS, sale_keys, sales_key
from seckill.checkout.late import LateAdmission
from seckill.checkout.reservations import ReservationState
from seckill.circuits import BreakerLimits
from seckill.domain.order import Order, OrderId, Sale, order_id_from_key, order_key
from seckill.domain.outcomes import Admission, Admitted, AlreadyDecided, Confirmed, Rejected
from seckill.domain.reasons import Rejection
from seckill.domain.retry import RetryPolicy
from seckill.dtm.client import DtmClient
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import Record, encode
from seckill.messaging.offsets import PartitionProgress
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import LedgerSettings, RedisSettings
from tests.support.actors import STEPS_MAX, Actor, Complaints, stop_before
from tests.support.ledger_model import NO_SALE, Entry, LedgerModel, next_sale
from tests.support.memory_stores import (
    PUBLISH_WITHIN_MS,
    Drawer,
    MemoryCheckout,
    MemoryOrphans,
    MemoryReservations,
    Message,
    Rows,
    Topic,
)
from tests.support.redis_servers import Backend, a_sale, raw_redis
from tests.support.watched_redis import WatchedGate, WatchedLedger

T = TypeVar("T")
Wish = tuple[int, int, str | None]
"""Buyer, quantity, idempotency key."""

LATER_MS = 3_600_000
LEDGER_MAX = 8
LIMIT_MAX = 3
LEDGER = LedgerSettings(entries_max=LEDGER_MAX, republish_after_ms=LATER_MS)
LIMITS = ReconcileLimits(
    every_ms=1, batch_max=100, republish_after_ms=LATER_MS, publish_within_ms=PUBLISH_WITHIN_MS,
    undecided_wait_ms=LATER_MS, orphan_after_ms=1, orphans_max=100,
)  # fmt: skip
TIER = RetryTier(0, "orders-retry-0", LATER_MS)
ROUNDS_TO_REST = 5

_numbers = itertools.count(secrets.randbelow(2**60) + 1)


async def _answers() -> None:
    """The probe of a dependency that is up."""


async def _nothing_is_lost(*_: int) -> bool:
    """Whether a sale that Redis does not know is on offer: Redis forgets none here."""
    return False


class LedgerWorld:
    """Empties the Redis that it is given. `close` it."""

    def __init__(self, backend: Backend) -> None:
        self._runner = asyncio.Runner()
        self._stack = ExitStack()
        self._redis = self._stack.enter_context(raw_redis(backend.url))
        self._redis.flushdb()
        self.product_id = next(_numbers)
        sale = a_sale(self.product_id, stock=12, per_user_limit=LIMIT_MAX)
        self.sales = {sale.sale_id: sale}
        self.model = LedgerModel(sale, entries_max=LEDGER_MAX)
        self.complaints = Complaints()
        self.rows = Rows()
        self.topic = Topic(self.model, self.complaints)
        self.actors: dict[str, Actor] = {}
        self._run(self._open(backend))
        self._run(self._book.warm(sale))

    async def _open(self, backend: Backend) -> None:
        url_and_check = {"url": backend.url, "run_id_check": backend.run_id_check}
        self._link = RedisLink(RedisSettings.model_validate(url_and_check))
        self._gate = WatchedGate(self._link, LEDGER, self.model, self.complaints)
        self._ledger = WatchedLedger(self._link, LEDGER, self.model, self.complaints)
        self._book = SaleBook(self._link, LEDGER)
        reservations = MemoryReservations(self.rows)
        self._carrier = SeckillCarrier(
            ledger=self._ledger,
            parked=ParkedOrders(self._link, LEDGER, self._ledger),
            late=LateAdmission(self._gate, reservations, doubt=self._ledger.doubt, on_offer=_nothing_is_lost),
            checkout=MemoryCheckout(self.rows),
            reservations=reservations,
            dead_letters=Drawer(self.topic),
            publisher=self.topic,
            tiers=(TIER,),
            policy=RetryPolicy(attempts_max=2, base_ms=1, cap_ms=1, tier_delays_ms=(TIER.delay_ms,)),
            dependencies=Dependencies("worker", dict.fromkeys(BLAMED.values(), _answers), BreakerLimits(1, 1)),
            undecided_wait_ms=LATER_MS,
        )
        self._reconcilers = {
            name: Reconciler(
                ledger=self._ledger,
                sale=self._sale_by_id,
                reservations=reservations,
                orphans=MemoryOrphans(self.rows),
                client=DtmClient.__new__(DtmClient),  # is only asked to hasten what a coordinator carries: none does
                publisher=self.topic,
                conflicts=Conflicts(self._ledger, Drawer(self.topic), topic="orders"),
                watermark=self.topic.watermark,
                limits=LIMITS,
            )
            for name in ("reconciler 1", "reconciler 2")
        }

    def close(self) -> None:
        self._run(self._close())
        self._stack.close()
        self._runner.close()

    async def _close(self) -> None:
        for actor in self.actors.values():
            await actor.die()
        await self._gate.close()
        await self._ledger.close()
        await self._link.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _sale_by_id(self, sale_id: int) -> Sale | None:
        await stop_before("sale")
        return self.sales.get(sale_id)

    # --- actors: a new one takes the place of the one of that name, who dies -----------------------------------------

    def _act(
        self, name: str, work: Coroutine[Any, Any, Any], *, steps: int = STEPS_MAX, until: str = "", **traits: Any
    ) -> None:
        if name in self.actors:
            self.dies(name)
        self.actors[name] = Actor(**traits)
        self._run(self.actors[name].begin(work))
        self.goes_on(name, steps=steps, until=until)

    def goes_on(self, name: str, *, steps: int = STEPS_MAX, until: str = "") -> None:
        actor = self.actors[name]
        self._run(actor.go_on(steps, until=until))
        if actor.ended:
            del self.actors[name]
            assert actor.task is not None
            found = actor.task.result()
            assert not isinstance(found, Findings) or not found.cut_short, found

    def dies(self, name: str) -> None:
        self._run(self.actors.pop(name).die())

    # --- orders ------------------------------------------------------------------------------------------------------

    def admit(self, wishes: Sequence[Wish]) -> list[Order]:
        """A batch, judged as if one came after the other; the admitted orders, repeated ones included."""
        wanted = [Wanted(self.product_id, *wish) for wish in wishes]
        admitted = []
        for wish, answer in zip(wanted, self._run(self._admit(wanted)), strict=True):
            key = (self.model.current, wish.user_id, wish.request_id or "")
            known = self.model.by_key.get(key) if wish.request_id else None
            expected = self.model.judge(wish.user_id, wish.quantity, known)
            asked = Order(known or OrderId(""), self.model.current, wish.user_id, self.product_id, wish.quantity, 0)
            self._gate.compare(asked, answer, expected)
            if isinstance(answer, Admitted | AlreadyDecided):
                assert known in (None, answer.order_id), "a repeated key answers another order"
            if isinstance(answer, Admitted):
                admitted.append(self.model.admitted[answer.order_id])
                if wish.request_id:
                    self.model.by_key[key] = answer.order_id
        return admitted

    async def _admit(self, wanted: Sequence[Wanted]) -> list[Admission]:
        return await asyncio.gather(*map(self._gate.admit, wanted))

    def publish(self, name: str, orders: Sequence[Order], **how: Any) -> None:
        """By a front, an operator, or somebody else who has nothing to do with the ledger."""
        self._act(name, self._publish(orders), **how)

    async def _publish(self, orders: Sequence[Order]) -> None:
        await asyncio.gather(*map(self.topic.publish, orders), return_exceptions=True)  # an unknown end is no error

    def order_past_the_front(self, user_id: int, quantity: int) -> Order:
        """It names no sale and no number."""
        order_id = order_id_from_key(self.product_id, next(_numbers).to_bytes(16, "big"))
        return Order(order_id, NO_SALE, user_id, self.product_id, quantity, 0)

    def deliver(self, name: str, message: Message, *, fate: str = "sold", **how: Any) -> None:
        """A record to a worker, who passes it when it has routed it. `fate`: see `Rows.checkout`."""
        entry = self.model.entry(message.order)
        if fate == "frozen" and (entry is None or entry.parked):
            fate = "sold"  # such an order would be held in hand, and looked at again, for seconds
        self._act(name, self._carry(message), fate=fate, **how)

    async def _carry(self, message: Message) -> None:
        order = message.order
        record = Record(message.topic, 0, 0, message.at_ms, order.order_id.encode(), encode(order))
        arrival = Arrival(TopicPartition(message.topic, 0), PartitionProgress(), record)
        await self._carrier.carry([Delivered(order, record, arrival)])
        await stop_before("commit")
        message.passed = True

    def look(self, name: str, **how: Any) -> None:
        self._act(name, self._reconcilers[name].once(), **how)

    def time_passes(self, entries: Sequence[Entry]) -> None:
        """Entries become due without anybody having moved them; what is admitted later is told apart by its time."""
        for entry in entries:
            keys = sale_keys(self.product_id, entry.order.sale_id)
            self._redis.zadd(keys.due, {entry.order.order_id: 1}, xx=True)
            entry.due = not entry.parked
        self._run(asyncio.sleep(2 * PUBLISH_WITHIN_MS / 1_000))

    def discard(self, order: Order) -> None:
        """A letter is given up: the database decides, then Redis is told what it says."""
        if self.rows.outcome(order) is None:
            self.rows.write(order, ReservationState.REJECTED, Rejection.DISCARDED, in_transaction=False)
        end = self.rows.outcome(order)
        if isinstance(end, Confirmed | Rejected):
            self._act("operator", self._ledger.settle([(order, end)]))

    # --- sales -------------------------------------------------------------------------------------------------------

    def change_terms(self, limit: int, state: str) -> None:
        """Of the current row, and its copy; a closed sale stays closed. Old rows are copied as well."""
        row = self.sales[self.model.current]
        if row.state != "closed":
            self.sales[row.sale_id] = replace(row, per_user_limit=limit, state=state)
        for sale_id in self.sales:
            self._warm_again(sale_id)

    def next_sale(self, stock: int, limit: int, *, only_closed: bool = False) -> None:
        """The product's sale is closed; the next one opens, at once or when this is called again."""
        row = self.sales[self.model.current]
        if row.state != "closed":
            self.sales[row.sale_id] = replace(row, state="closed")
            self._warm_again(row.sale_id)
            if only_closed:
                return
        sale = next_sale(row, stock=stock, per_user_limit=limit)
        self.sales[sale.sale_id] = sale
        self._run(self._book.warm(sale))
        self.model.open(sale)

    def _warm_again(self, sale_id: int) -> None:
        self._run(self._book.warm(self.sales[sale_id]))
        self.model.copy(self.sales[sale_id])

    def change_units(self, operation: str, change_id: str, units: int) -> None:
        moved, sale = self.model.change(operation, change_id, units), self.model.now.sale
        match operation:
            case "add":
                self._run(self._book.add_units(sale, change_id, units))
            case "take":
                assert self._run(self._book.take_units(sale, change_id, units)) == moved
            case _:
                self._run(self._book.undo_take(sale, change_id))

    def results_expire(self, sale_id: int) -> None:
        """All of one sale that is over, or of none."""
        keys = sale_keys(self.product_id, sale_id)
        for order_id in self.model.expire(sale_id):
            self._redis.delete(keys.result(order_id))
        self._redis.zadd(sales_key(self.product_id), {str(sale_id): 1}, xx=True)

    def is_over(self, sale_id: int) -> bool:
        return sale_id == NO_SALE or self.sales[sale_id].state == "closed"

    # --- what always holds -------------------------------------------------------------------------------------------

    def check(self) -> None:
        assert not self.complaints
        self._check_sales()
        self._check_results()
        self._check_entries()

    def _check_sales(self) -> None:
        """Everything that Redis holds, read past the code under test, is what the model holds."""
        assert self._redis.smembers(PRODUCTS) == {str(self.product_id)}
        listed = self._redis.zrange(sales_key(self.product_id), 0, -1)
        assert set(listed) == {str(sale_id) for sale_id in self.model.listed}
        for sale_id, sale in self.model.held.items():
            keys = sale_keys(self.product_id, sale_id)
            with self._redis.pipeline(transaction=False) as pipe:
                for key in (keys.stock, keys.buyers, keys.ledger, keys.changes):
                    pipe.hgetall(key)
                for key in (keys.due, keys.ages, keys.parked):
                    pipe.zrange(key, 0, -1)
                units, buyers, entries, changes, due, ages, parked = pipe.execute()
            stock, admitted, initial, number = (int(units[name]) for name in ("stock", "admitted", "initial", "number"))
            assert stock + admitted == initial == sale.initial
            assert stock == sale.stock >= 0
            assert number == sale.number
            assert {int(user): int(text.split()[0]) for user, text in buyers.items()} == sale.buyers
            assert max(sale.buyers.values(), default=0) <= LIMIT_MAX
            assert {key: int(moved) for key, moved in changes.items()} == sale.changes
            assert set(entries) == set(sale.entries)
            pending = {order_id for order_id, entry in sale.entries.items() if not entry.parked}
            assert set(due) == set(ages) == pending
            assert set(parked) == set(sale.entries) - pending

    def _check_results(self) -> None:
        """Buyers are told what the model says, and nothing but what the rows say."""
        ids = list(self.model.admitted)
        told = self._run(self._ledger.results(ids))
        assert told == {order_id: result for order_id in ids if (result := self.model.result(order_id)) is not None}
        for order_id, end in self.model.told.items():
            row = self.rows.by_key[order_key(order_id)]
            state = ReservationState.SOLD if end.status == "confirmed" else ReservationState.REJECTED
            assert (row.state, row.reason) == (state, end.reason)

    def _check_entries(self) -> None:
        shown = {
            (entry.order, entry.state, entry.published_at_ms)
            for entry in self._run(self._ledger.entries(self.product_id))
        }
        assert shown == {(entry.order, entry.state, entry.published_at_ms) for entry in self.model.entries()}
        stats = self._run(self._ledger.stats(self.product_id))
        assert (stats.entries, stats.parked) == (len(shown), sum(state == "parked" for _, state, _ in shown))

    def come_to_rest(self) -> None:
        """Everybody goes on, and nothing fails any more: only parked entries are left, and all other orders ended."""
        for name in list(self.actors):
            self.goes_on(name)
        for _ in range(ROUNDS_TO_REST):
            for message in self.topic.unpassed():
                self.deliver("worker 1", message)
            for row in self.rows.frozen():
                self.rows.end(row.gid, sold=True)
            self.time_passes(list(self.model.entries()))
            self.look("reconciler 1")
            self.check()
        left = {entry.order.order_id: entry.state for entry in self.model.entries()}
        assert left == dict.fromkeys(left.keys() & self.topic.letters.keys(), "parked")
        assert self.model.admitted.keys() - self.model.told.keys() == left.keys()
        assert not self.topic.unpassed()
