"""Random interleavings of Try, Confirm, Cancel, repeats, strays and restarts against both branches.

Several gids with overlapping orders are called in any order, alone and at the same time. After every step the stores
are read past the code under test, and the invariants have to hold.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from seckill.domain.errors import InvalidTransition
from seckill.domain.order import NewSale
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import create_engine, session_factory
from seckill.dtm.protocol import BranchContext
from seckill.dtm.tcc_branch import DecisionLost, TryMissing, TryRefused, TryTooLate
from seckill.order import branches as order_branches
from seckill.order import tables as order_tables
from seckill.order import types as order_types
from seckill.product import branches as product_branches
from seckill.product import decide, sales
from seckill.product import tables as product_tables
from tests.support.sides import Side

PRODUCT, STOCK, LIMIT = 7, 6, 3
EXPECTED = (TryTooLate, TryRefused, DecisionLost, TryMissing, InvalidTransition)

# What each order id asks for, as (user, quantity); the second form is another order under the same id.
CONTENTS = {number: ((1 + number % 3, 1 + number % 2), (1 + number % 3, 3)) for number in range(1, 9)}
GROUPS = st.lists(
    st.tuples(st.sampled_from(sorted(CONTENTS)), st.sampled_from([0, 0, 0, 1])),
    min_size=1, max_size=5, unique_by=lambda order: order[0],
)  # fmt: skip
GIDS = st.sampled_from(["g1", "g2", "g3", "g4", "g5"])
CALLS = st.sampled_from(
    [(branch, op) for branch in ("product", "order") for op in ("try", "try", "confirm", "confirm", "cancel")]
)

Sessions = async_sessionmaker[AsyncSession]
Call = tuple[str, str, str]  # branch, op, gid


class Store:
    """One service's database: the engine under test, and a connection of our own to look past it."""

    def __init__(self, url: str, metadata: MetaData) -> None:
        self._url, self._metadata = url, metadata
        self._beside = create_async_engine(url, poolclass=NullPool)
        self.engine: AsyncEngine
        self.sessions: Sessions

    async def open(self) -> None:
        self.engine = create_engine(self._url, pool_size=4, lock_wait_s=3)
        self.sessions = session_factory(self.engine)

    async def empty(self) -> None:
        async with self._beside.begin() as connection:
            for table in reversed(self._metadata.sorted_tables):
                await connection.execute(table.delete())

    async def read(self, *queries: str) -> list[list[tuple[Any, ...]]]:
        async with self._beside.connect() as connection:
            return [[tuple(row) for row in await connection.execute(text(query))] for query in queries]

    async def everything(self) -> list[list[tuple[Any, ...]]]:
        rows = await self.read(*(f"SELECT * FROM {name}" for name in self._metadata.tables))
        return [sorted(each, key=repr) for each in rows]


class Branches(RuleBasedStateMachine):
    product_url: ClassVar[str]
    order_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.product = Store(self.product_url, product_tables.metadata)
        self.order = Store(self.order_url, order_tables.metadata)
        self.initial = STOCK
        self.groups: dict[str, list[tuple[int, int]]] = {}
        self.replies: dict[Call, bytes] = {}
        self.succeeded: set[Call] = set()
        self.final: dict[bytes, tuple[Any, ...]] = {}
        self.confirmed: dict[bytes, tuple[Any, ...]] = {}
        self.changes = 0

    @initialize(groups=st.fixed_dictionaries(dict.fromkeys(("g1", "g2", "g3", "g4", "g5"), GROUPS)))
    def start(self, groups: dict[str, list[tuple[int, int]]]) -> None:
        self.groups = groups
        self.runner.run(self.product.empty())
        self.runner.run(self.order.empty())
        self.runner.run(self._open())
        new = NewSale(PRODUCT, "flash", 0, 10, LIMIT, 100, STOCK)
        sale = self._run(self.product, lambda session: sales.create(session, "c", new, now_ms=1)).sale
        self.sale_id: int = sale.sale_id

    def teardown(self) -> None:
        if hasattr(self, "sale_id"):
            self.runner.run(self._close())
        self.runner.close()

    # --- what happens ---

    @rule(call=CALLS, gid=GIDS)
    def one_call(self, call: tuple[str, str], gid: str) -> None:
        """A call that failed, or succeeded before, changes nothing at all."""
        branch, op = call
        store = self.product if branch == "product" else self.order
        before = self.runner.run(store.everything())
        error = self.runner.run(self._call((branch, op, gid)))
        unchanged = self.runner.run(store.everything()) == before
        if error is not None or (branch, op, gid) in self.succeeded:
            assert unchanged, (branch, op, gid, error)
        if error is None:
            self._succeeded((branch, op, gid))

    @rule(calls=st.lists(st.tuples(CALLS, GIDS), min_size=2, max_size=6))
    def many_at_once(self, calls: list[tuple[tuple[str, str], str]]) -> None:
        """Calls that arrive together; of a Confirm and a Cancel of the same branch one succeeds at most."""
        wanted: list[Call] = [(branch, op, gid) for (branch, op), gid in calls]

        async def together() -> list[Exception | None]:
            return list(await asyncio.gather(*(self._call(call) for call in wanted)))

        for call, error in zip(wanted, self.runner.run(together()), strict=True):
            if error is None:
                self._succeeded(call)

    @rule(numbers=st.lists(st.sampled_from(sorted(CONTENTS)), min_size=1, max_size=3, unique=True))
    def reject(self, numbers: list[int]) -> None:
        """A rejection from outside takes only what is released or unknown."""
        before = {row[0]: row for row in self._reservations()}
        group = self._product_group([(number, 0) for number in numbers])
        self._run(self.product, lambda session: product_branches.reject(session, group, "DISCARDED", now_ms=2))
        for order_id, row in before.items():
            if row[3] in (decide.State.FROZEN, decide.State.SOLD, decide.State.REJECTED):
                assert {row[0]: row for row in self._reservations()}[order_id] == row

    @rule(units=st.integers(-4, 3))
    def change_units(self, units: int) -> None:
        """Units come and go, never those that somebody holds."""
        self.changes += 1
        change, wanted = f"u{self.changes}", sales.SaleUpdate(stock_delta=units)
        for _ in range(2):
            try:
                self._run(self.product, lambda session: sales.change(session, change, self.sale_id, wanted, now_ms=2))
            except InvalidTransition:
                return
        self.initial += units

    @rule()
    def restart(self) -> None:
        """Both services end and come back on the same files."""
        self.runner.run(self._close())
        self.runner.run(self._open())

    # --- what must hold ---

    @invariant()
    def counters_add_up(self) -> None:
        if not self.groups:
            return
        [(initial, stock, frozen, sold)] = self._read(self.product, "SELECT initial, stock, frozen, sold FROM sale")
        assert initial == self.initial
        assert stock + frozen + sold == initial
        assert min(stock, frozen, sold) >= 0
        rows = self._reservations()
        assert frozen == units(row for row in rows if row[3] == decide.State.FROZEN)
        assert sold == units(row for row in rows if row[3] == decide.State.SOLD)

    @invariant()
    def nobody_has_more_than_the_limit(self) -> None:
        held: Counter[int] = Counter()
        for _, user_id, quantity, state, _, _ in self._reservations():
            if state in (decide.State.FROZEN, decide.State.SOLD):
                held[user_id] += quantity
        assert all(count <= LIMIT for count in held.values()), held

    @invariant()
    def what_is_final_stays(self) -> None:
        """Sold and rejected reservations, and confirmed orders, never change."""
        now = {row[0]: row for row in self._reservations()}
        assert {order_id: now.get(order_id) for order_id in self.final} == self.final
        self.final |= {key: row for key, row in now.items() if row[3] in (decide.State.SOLD, decide.State.REJECTED)}
        orders = {row[0]: row for row in self._orders()}
        assert {order_id: orders.get(order_id) for order_id in self.confirmed} == self.confirmed
        self.confirmed |= orders

    @invariant()
    def rows_agree_with_what_was_answered(self) -> None:
        """Nothing ended what is frozen; a Confirm sold what is sold, a Cancel released what is released."""
        for _, _, _, state, gid, _ in self._reservations():
            ended = {op for op in ("confirm", "cancel") if ("product", op, gid) in self.succeeded}
            expected = {
                decide.State.FROZEN: set(), decide.State.SOLD: {"confirm"}, decide.State.RELEASED: {"cancel"},
            }.get(state, ended)  # fmt: skip
            assert ended == expected, (state, gid, ended)
        for row in self._orders():
            assert ("order", "confirm", row[-1]) in self.succeeded

    @invariant()
    def one_decision_per_branch(self) -> None:
        for branch in ("product", "order"):
            for gid in self.groups:
                assert not {(branch, "confirm", gid), (branch, "cancel", gid)} <= self.succeeded

    # --- how it is done ---

    async def _open(self) -> None:
        await asyncio.gather(self.product.open(), self.order.open())

    async def _close(self) -> None:
        await asyncio.gather(self.product.engine.dispose(), self.order.engine.dispose())

    def _run(self, store: Store, work: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        return self.runner.run(in_transaction(store.sessions, work))

    async def _call(self, call: Call) -> Exception | None:
        """The error when the branch refused; a repeated Try has to get the first one's bytes."""
        branch, op, gid = call
        store = self.product if branch == "product" else self.order
        try:
            reply = await in_transaction(store.sessions, lambda session: self._work(session, branch, op, gid))
        except EXPECTED as error:
            return error
        if op == "try" and branch == "product":
            assert self.replies.setdefault(call, reply) == reply
        return None

    def _work(self, session: AsyncSession, branch: str, op: str, gid: str) -> Awaitable[Any]:
        context = BranchContext(gid, "tcc", "01" if branch == "product" else "02", op)
        reserved, ordered = self._product_group(self.groups[gid]), self._order_group(self.groups[gid])
        match branch, op:
            case "product", "try":
                return product_branches.try_group(session, context, reserved, now_ms=2)
            case "product", "confirm":
                return product_branches.confirm(session, context, now_ms=2)
            case "product", "cancel":
                return product_branches.cancel(session, context, now_ms=2)
            case "order", "try":
                return order_branches.try_group(session, context, ordered)
            case "order", "confirm":
                return order_branches.confirm(session, context, ordered, now_ms=2)
            case _:
                return order_branches.cancel(session, context, now_ms=2)

    def _succeeded(self, call: Call) -> None:
        self.succeeded.add(call)

    def _product_group(self, orders: list[tuple[int, int]]) -> decide.Group:
        wanted = [decide.Wanted(key(number), *CONTENTS[number][form]) for number, form in orders]
        return decide.Group(PRODUCT, self.sale_id, wanted)

    def _order_group(self, orders: list[tuple[int, int]]) -> order_types.Group:
        wanted = [order_types.NewOrder(key(number), *CONTENTS[number][form]) for number, form in orders]
        return order_types.Group(PRODUCT, self.sale_id, 100, wanted)

    def _read(self, store: Store, query: str) -> list[tuple[Any, ...]]:
        return self.runner.run(store.read(query))[0]

    def _reservations(self) -> list[tuple[Any, ...]]:
        """order_id, user_id, quantity, state, gid, reason"""
        if not self.groups:
            return []
        return self._read(self.product, "SELECT order_id, user_id, quantity, state, gid, reason FROM stock_reservation")

    def _orders(self) -> list[tuple[Any, ...]]:
        """order_id, user_id, quantity, gid of the confirmed ones"""
        if not self.groups:
            return []
        return self._read(self.order, "SELECT order_id, user_id, quantity, gid FROM orders WHERE status = 1")


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def units(rows: Iterable[tuple[Any, ...]]) -> int:
    return sum(row[2] for row in rows)


EXAMPLES = {"embedded": 25, "real": 8}


def test_branches(side: Side, tmp_path: Path) -> None:
    """Whatever comes in whatever order: units add up, what is final stays, and no branch ends both ways."""

    class Here(Branches):
        product_url = asyncio.run(side.database("product", tmp_path))
        order_url = asyncio.run(side.database("order", tmp_path))

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES[side.kind], stateful_step_count=30, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
