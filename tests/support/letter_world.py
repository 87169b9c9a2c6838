"""Dead letters of a few orders in a world of steps: the real desk, index and ledger; rows and topics in memory.

Operators, the role that looks after letters, a worker and reconcile act side by side; each may hang or die before any
call to a store (see `actors`). What is checked is what the stores hold, read past the desk.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from seckill.admission import AdmissionGate, Ledger, ParkedOrders, RedisLink, SaleBook, Wanted
from seckill.admission.parked import Held
from seckill.checkout.reservations import ReservationState
from seckill.dlq.desk import DeskStores, LetterDesk
from seckill.dlq.finishing import Finisher
from seckill.dlq.model import By, Done, Filter, Letter, LetterState
from seckill.dlq.topic import LetterTopic
from seckill.domain.errors import BranchFailed
from seckill.domain.order import Order
from seckill.domain.outcomes import Admitted, Confirmed, Rejected, Undecided
from seckill.domain.reasons import DeadLetterReason
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import create_engine, create_tables, session_factory
from seckill.messaging.dead_letters import Letter as Why
from seckill.messaging.dead_letters import letter_headers
from seckill.messaging.envelope import Headers, Record, decode, encode
from seckill.messaging.letters import metadata
from seckill.messaging.publisher import Publisher
from seckill.settings import LedgerSettings, RedisSettings
from tests.support.actors import STEPS_MAX, Actor, stop_before
from tests.support.memory_stores import MemoryReservations, Rows
from tests.support.redis_servers import Backend, a_sale

T = TypeVar("T")

MAIN, DEAD = "orders", "orders-dlt"
LEDGER = LedgerSettings(republish_after_ms=3_600_000)
QUANTITY = 2
ROUNDS_TO_REST = 6

_numbers = itertools.count(secrets.randbelow(2**60) + 1)


class MemoryTopics(Publisher):
    """The main topic and that of the dead letters, a partition each. `carried`: how far the worker has come."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {MAIN: [], DEAD: []}
        self.carried = 0

    async def check(self) -> None:
        """They are always there."""

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        assert (key, value) != (None, None), "Kafka's client takes no such record"
        await stop_before("send")
        self.write(topic, key, value, headers)

    def write(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        held = self.records[topic]
        held.append(Record(topic, 0, len(held), time.time_ns() // 1_000_000, key, value, tuple(headers)))

    async def read_at(self, topic: str, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], Record]:
        await stop_before("read_at")
        return {place: self.records[topic][place[1]] for place in places}

    async def read_all(self, take: Callable[[Sequence[Record]], Awaitable[None]]) -> None:
        await take(self.records[DEAD])


class StoppingParked(ParkedOrders):
    """Whoever calls it may hang or die before each call."""

    async def in_its_sale(self, order: Order) -> Order:
        await stop_before("in_its_sale")
        return await super().in_its_sale(order)

    async def held(self, order: Order) -> Held:
        await stop_before("held")
        return await super().held(order)

    async def unpark(self, order: Order) -> None:
        await stop_before("unpark")
        await super().unpark(order)

    async def settle(self, ended: Sequence[tuple[Order, Confirmed | Rejected]]) -> None:
        await stop_before("settle")
        await super().settle(ended)


class LetterWorld:
    """One order for each buyer, admitted, set aside and indexed. `close` it."""

    def __init__(self, backend: Backend, *, buyers: int) -> None:
        self._runner = asyncio.Runner()
        self.sale = a_sale(next(_numbers), stock=20, per_user_limit=QUANTITY)
        self.rows = Rows()
        self.topics = MemoryTopics()
        self.actors: dict[str, Actor] = {}
        self.told: dict[str, str] = {}
        self._run(self._open(backend))
        self.orders = self._run(self._admit(buyers))
        for order in self.orders:
            self.topics.write(MAIN, order.order_id.encode(), encode(order))
            self.carry(fate="failed")
        self.index()

    async def _open(self, backend: Backend) -> None:
        self._link = RedisLink(RedisSettings.model_validate({"url": backend.url, "run_id_check": backend.run_id_check}))
        self._gate = AdmissionGate(self._link, LEDGER, batch_max=10, queue_max=100)
        self.ledger = Ledger(self._link, LEDGER)
        self._book = SaleBook(self._link, LEDGER)
        await self._book.warm(self.sale)
        self._engine = create_engine("sqlite+aiosqlite:///:memory:", pool_size=1, lock_wait_s=3)
        await create_tables(self._engine, metadata)
        sessions = session_factory(self._engine)

        async def do(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
            await stop_before("index")
            return await in_transaction(sessions, work)

        reservations, parked = MemoryReservations(self.rows), StoppingParked(self._link, LEDGER, self.ledger)
        topic = LetterTopic(self.topics.read_at, main_topic=MAIN)
        finisher = Finisher(
            in_transaction=do, topic=topic, reservations=reservations, parked=parked, publisher=self.topics,
            main_topic=MAIN,
        )  # fmt: skip
        stores = DeskStores(reservations, parked, _no_sale, _no_story, self.topics.read_all)
        self.desk = LetterDesk(do, topic, stores, finisher, topic_name=DEAD, replays_max=100)

    async def _admit(self, buyers: int) -> list[Order]:
        orders = []
        for user_id in range(1, buyers + 1):
            answer = await self._gate.admit(Wanted(self.sale.product_id, user_id, QUANTITY))
            assert isinstance(answer, Admitted)
            ids = answer.order_id, answer.sale_id, user_id, self.sale.product_id, QUANTITY
            orders.append(Order(*ids, answer.admitted_at_ms, answer.admission_number))
        return orders

    def close(self) -> None:
        self._run(self._close())
        self._runner.close()

    async def _close(self) -> None:
        for actor in self.actors.values():
            await actor.die()
        await self._gate.close()
        await self.ledger.close()
        await self._link.close()
        await self._engine.dispose()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    # --- operators, and the role that looks after letters ------------------------------------------------------------

    def act(self, name: str, what: str, order: Order, *, steps: int) -> None:
        """Somebody begins something; who was at something else before, dies."""
        self.dies(name)
        self.actors[name] = Actor()
        self._run(self.actors[name].begin(self._work(what, order)))
        self.goes_on(name, steps=steps)

    async def _work(self, what: str, order: Order) -> object:
        match what:
            case "replay":
                return await self.desk.replay(await self.desk.get(order.order_id), By("anna", "n"))
            case "discard":
                return await self.desk.discard(await self.desk.get(order.order_id), By("bert", "n"))
            case "resume":
                return await self.desk.resume()
            case _:
                return await self.desk.resolve(lost_after_ms=0)

    def insist(self, letter: Letter) -> Done:
        """Somebody replays it, whatever speaks against that."""
        return self._run(self.desk.replay(letter, By("anna", "n"), force=True))

    def goes_on(self, name: str, *, steps: int) -> None:
        self._run(self.actors[name].go_on(steps))
        if self.actors[name].ended:
            task = self.actors.pop(name).task
            assert task is not None
            task.result()

    def dies(self, name: str) -> None:
        if name in self.actors:
            self._run(self.actors.pop(name).die())

    def index(self) -> None:
        """Every letter is read, as often as this is called."""
        self._run(self.desk.take(self.topics.records[DEAD]))

    # --- worker and reconcile: whole steps, for their own steps are played elsewhere ----------------------------------

    def carry(self, *, fate: str, again: int | None = None) -> None:
        """The next record, or one that was carried before: sold, frozen, failed (then it is a letter) or refused."""
        records = self.topics.records[MAIN]
        if again is None and self.topics.carried == len(records):
            return
        record = records[self.topics.carried if again is None else again % len(records)]
        self.topics.carried += again is None
        (order,) = decode(record)
        match self.rows.checkout(order, fate):
            case Confirmed() | Rejected() as end:
                self._run(self.ledger.settle([(order, end)]))
            case Undecided():
                self._run(self.ledger.postpone([order], delay_ms=0))
            case _:
                self._bury(record)

    def _bury(self, record: Record) -> None:
        why = Why(DeadLetterReason.BRANCH_FAILED, BranchFailed("p", "INTERNAL", "broken"), 1, 1_700_000_000_000)
        headers = letter_headers(record, why, group="g", now_ms=time.time_ns() // 1_000_000)
        self.topics.write(DEAD, record.key, record.value, headers)
        self._run(self.ledger.park(decode(record)))

    def transactions_end(self, *, sold: bool) -> None:
        for row in self.rows.frozen():
            self.rows.end(row.gid, sold=sold)

    def reconcile(self) -> None:
        """Settles pending entries whose orders have ended, and publishes again those that nothing holds."""
        for entry in self._run(self.ledger.entries(self.sale.product_id)):
            if entry.state == "pending":
                match self.rows.outcome(entry.order):
                    case Confirmed() | Rejected() as end:
                        self._run(self.ledger.settle([(entry.order, end)]))
                    case None:
                        self.topics.write(MAIN, entry.order.order_id.encode(), encode(entry.order))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Each order holds its units exactly as long as it has not ended as rejected; ends never change.

        Units that the database does not have are not sold again: the one rejection that gives back none.
        """
        entries = {entry.order.order_id for entry in self._run(self.ledger.entries(self.sale.product_id))}
        results = self._run(self.ledger.results([order.order_id for order in self.orders]))
        holding = []
        for order in self.orders:
            result = results[order.order_id]
            if order.order_id in entries:
                assert result.status in ("processing", "delayed")
                holding.append(order)
                continue
            told = ":".join(filter(None, (result.status, result.reason)))
            assert self.told.setdefault(order.order_id, told) == told
            row = self.rows.by_key[order.key]
            state = ReservationState.SOLD if result.status == "confirmed" else ReservationState.REJECTED
            assert (row.state, row.reason) == (state, result.reason)
            if state is ReservationState.SOLD:
                holding.append(order)
        view = self._run(self._book.read(self.sale.product_id))
        assert view is not None
        not_there = list(self.told.values()).count("rejected:SOLD_OUT")
        assert view.stock == self.sale.initial - QUANTITY * (len(holding) + not_there)
        allowances = self._run(self._book.units_of_buyers(self.sale.product_id, self.sale.sale_id))
        assert allowances == {order.user_id: QUANTITY for order in holding}

    def letters(self) -> list[Letter]:
        return self._run(self.desk.find(Filter()))

    def come_to_rest(self) -> None:
        """Everybody goes on, nothing fails any more: no letter is left half-way, and open ones are parked orders."""
        for name in list(self.actors):
            self.goes_on(name, steps=STEPS_MAX)
        for _ in range(ROUNDS_TO_REST):
            self.transactions_end(sold=True)
            while self.topics.carried < len(self.topics.records[MAIN]):
                self.carry(fate="sold")
            self.index()
            self.act("keeper", "resume", self.orders[0], steps=STEPS_MAX)
            self.act("keeper", "resolve", self.orders[0], steps=STEPS_MAX)
            self.reconcile()
            self.check()
        parked = {entry.order.order_id for entry in self._run(self.ledger.entries(self.sale.product_id))}
        for letter in self.letters():
            assert letter.open_intent == ""
            assert letter.state is not LetterState.REPLAYING
            assert (letter.state is LetterState.NEW) == (letter.order_id in parked)
            if letter.order_id not in parked:
                assert self.told[str(letter.order_id)] == letter.outcome


async def _no_sale(_: int) -> None:
    """Orders of the front name their sales: nobody asks."""


async def _no_story(_: str) -> list[Any]:
    return []
