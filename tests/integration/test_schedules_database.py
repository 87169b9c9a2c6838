"""A branch whose database gives up in the middle: nothing half done remains, and the repeat does it whole.

1205 undoes the statement that waited and nothing else, so whoever commits after it keeps a barrier row without its
effect. First the moment by itself, on both sides; then real locks on a real MariaDB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from asyncmy.errors import OperationalError as DriverError
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from seckill.domain.order import Order
from seckill.dtm.barrier import ATTEMPTS_MAX, in_transaction
from seckill.dtm.database import DEADLOCK, LOCK_WAIT_TIMEOUT, create_engine, session_factory
from seckill.dtm.protocol import BranchContext
from seckill.product import branches
from seckill.product.decide import Group, Wanted
from tests.integration.test_reconcile import admitted
from tests.servers import Servers
from tests.support.backbone import Backbone, open_backbone
from tests.support.branch_calls import branch_calls
from tests.support.sides import real_side
from tests.support.statuses import Fails

OPERATIONS = ["try", "confirm", "cancel"]
DONE = {"try": (2, 1, 0), "confirm": (2, 0, 1), "cancel": (3, 0, 0)}
"""Stock, frozen and sold after an operation on one of three units."""


async def kept(backbone: Backbone) -> list[list[tuple[object, ...]]]:
    """Everything that a branch of product writes."""
    return [
        await backbone.query("product", f"SELECT {columns} FROM {table} ORDER BY 1, 2")
        for table, columns in {
            "barrier": "gid, op, barrier_id, reason",
            "decision": "gid, op",
            "branch_reply": "gid, branch_id",
            "stock_reservation": "gid, state",
            "sale": "stock, frozen, sold",
        }.items()
    ]


# --- the moment by itself --------------------------------------------------------------------------------------------


@contextmanager
def giving_up(engine: AsyncEngine, error: Exception, *, times: int) -> Iterator[list[str]]:
    """The next changes of a sale's row end so, like a statement that waited too long; yields them."""
    given_up: list[str] = []

    def before(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("UPDATE sale SET") and len(given_up) < times:
            given_up.append(statement)
            raise OperationalError(statement, parameters, error)

    event.listen(engine.sync_engine, "before_cursor_execute", before)
    try:
        yield given_up
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", before)


@pytest.mark.parametrize("times", [1, ATTEMPTS_MAX], ids=["once", "until it gives up"])
@pytest.mark.parametrize("code", [LOCK_WAIT_TIMEOUT, DEADLOCK])
@pytest.mark.parametrize("op", OPERATIONS)
async def test_1205_or_1213_in_the_middle_of_a_branch(backbone: Backbone, op: str, code: int, times: int) -> None:
    """The database gives up after barrier, decision and reservations were written, before the sale's row is.

    The whole is tried again; when the attempts are used up nothing of them is there, and the next call does it all.
    """
    sale = await backbone.open_sale(stock=3)
    order = await backbone.admit(sale, 1)
    gid = uuid4().hex
    engine = create_engine(backbone.settings.product.database_url.get_secret_value(), pool_size=1, lock_wait_s=1)

    async def call(op: str) -> None:
        await in_transaction(session_factory(engine), lambda session: branch(session, gid, op, order))

    try:
        if op != "try":
            await call("try")
        before = await kept(backbone)
        with giving_up(engine, DriverError(code, "gives up"), times=times) as given_up:
            if times == ATTEMPTS_MAX:
                with pytest.raises(OperationalError):
                    await call(op)
                assert await kept(backbone) == before
            await call(op)
        assert len(given_up) == times
    finally:
        await engine.dispose()
    assert (await kept(backbone))[-1] == [DONE[op]]
    await repeated(backbone, order, gid, op)


async def branch(session: Any, gid: str, op: str, order: Order) -> None:
    """A call of product's branch in that session."""
    context = BranchContext(gid, "tcc", "01", op)
    match op:
        case "try":
            group = Group(order.product_id, order.sale_id, [Wanted(order.key, order.user_id, order.quantity)])
            await branches.try_group(session, context, group, now_ms=1)
        case "confirm":
            await branches.confirm(session, context, now_ms=1)
        case "cancel":
            await branches.cancel(session, context, now_ms=1)


async def repeated(backbone: Backbone, order: Order, gid: str, op: str) -> None:
    """The same call through the service finds it done, and changes nothing."""
    before = await kept(backbone)
    async with branch_calls(backbone.settings, [order], gid) as calls:
        await calls.product(op)
    assert await kept(backbone) == before


# --- real locks ------------------------------------------------------------------------------------------------------

SALE_LOCK = text("SELECT stock FROM sale WHERE sale_id = :id FOR UPDATE")


@pytest.fixture
async def real(servers: Servers, tmp_path: Path) -> AsyncIterator[Backbone]:
    async with open_backbone(real_side(servers), tmp_path) as opened:
        yield opened


@asynccontextmanager
async def beside(backbone: Backbone) -> AsyncIterator[AsyncConnection]:
    """Somebody else's transaction in the product database; what it does is rolled back."""
    engine = create_async_engine(
        backbone.settings.product.database_url.get_secret_value(),
        poolclass=NullPool,
        isolation_level="READ COMMITTED",
    )
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@pytest.mark.parametrize("op", OPERATIONS)
async def test_a_lock_that_is_waited_for_too_long(real: Backbone, op: str) -> None:
    """Somebody holds the sale's row longer than a branch waits for it (1205), until its caller is told UNAVAILABLE.

    Nothing of the call is kept; when it is repeated after that, it is done whole.
    """
    sale = await real.open_sale(stock=3)
    order = await real.admit(sale, 1)
    async with branch_calls(real.settings, [order], uuid4().hex) as calls, beside(real) as other:
        if op != "try":
            await calls.product("try")
        before = await kept(real)
        await other.execute(SALE_LOCK, {"id": sale.sale_id})
        with Fails(grpc.StatusCode.UNAVAILABLE):
            await calls.product(op)
        assert await kept(real) == before
        await other.rollback()
        await calls.product(op)
    assert (await kept(real))[-1] == [DONE[op]]


@pytest.mark.parametrize("op", OPERATIONS)
async def test_a_deadlock(real: Backbone, op: str) -> None:
    """A branch holds the sale's row and waits for its reservation, whose holder asks for the sale's row (1213).

    The branch is the lighter one, so MariaDB ends it; it does its work again as a whole, and its caller sees nothing.
    """
    sale = await real.open_sale(stock=30)
    order, *heavy = await admitted(real, sale, 21, due=False)
    async with (
        branch_calls(real.settings, heavy, uuid4().hex) as others,
        branch_calls(real.settings, [order], uuid4().hex) as calls,
        beside(real) as other,
    ):
        await others.product("try")
        if op != "try":
            await calls.product("try")
        ended = await deadlocks(other)
        await other.execute(text("UPDATE stock_reservation SET updated_at_ms = 7"))
        if op == "try":
            await other.execute(
                text("INSERT INTO stock_reservation SELECT :key, product_id, sale_id, user_id, quantity, state, reason,"
                     " gid, branch_id, admitted_at_ms, created_at_ms, updated_at_ms FROM stock_reservation LIMIT 1"),
                {"key": order.key},
            )  # fmt: skip
        calling = asyncio.create_task(calls.product(op))
        await until_somebody_waits(real)
        await other.execute(SALE_LOCK, {"id": sale.sale_id})
        await other.rollback()
        await calling
        assert await deadlocks(other) == ended + 1
    stock, frozen, sold = DONE[op]
    assert (await kept(real))[-1] == [(stock + 7, frozen + 20, sold)]


async def deadlocks(connection: AsyncConnection) -> int:
    """How many the server has ended."""
    return int((await connection.execute(text("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'"))).one()[1])


async def until_somebody_waits(backbone: Backbone) -> None:
    """For a row lock. InnoDB makes that table anew only for who has not read it for 100 ms."""
    waiting = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    async with asyncio.timeout(10):
        while not await backbone.query("product", waiting):
            await asyncio.sleep(0.2)
