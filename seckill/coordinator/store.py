"""The durable log of transactions: many small writes share one commit, reads go past them.

A write returns when it is on disk. Whoever waits while a commit is under way goes into the next one together.
Only this module and `tables.py` talk to the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Self, TypeVar

import structlog
from sqlalchemy import Row, Select, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from seckill.coordinator.commands import Command, Known
from seckill.coordinator.state import (
    DECIDED,
    UNFINISHED,
    BranchOp,
    Status,
    Transaction,
    now_ms,
    options_from_json,
    options_to_json,
)
from seckill.coordinator.tables import branches, metadata, transactions
from seckill.dtm.database import create_engine, create_tables, is_transient

BATCH_MAX = 100  # commands per commit; also the length of IN lists, which MariaDB scans for when they grow past 200
QUEUE_MAX = 10_000
ATTEMPTS_MAX = 8
LOCK_WAIT_S = 3
POOL_SIZE = 4

OnWrite = Callable[[Literal["before", "after"], tuple[str, ...]], None]
"""Called around every commit with the names of its commands: for tests that kill the process there."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class StoreUnavailable(Exception):
    """The database did not answer as it must. Whether the write took effect is unknown."""


class Store:
    """The log in one database. An asynchronous context manager: makes its tables, and ends its last commit."""

    def __init__(self, url: str, *, on_write: OnWrite | None = None) -> None:
        self._engine = create_engine(url, pool_size=POOL_SIZE, lock_wait_s=LOCK_WAIT_S)
        self._on_write: OnWrite = on_write or (lambda moment, names: None)
        self._queue: asyncio.Queue[tuple[Command[Any], asyncio.Future[Any]] | None] = asyncio.Queue(QUEUE_MAX)
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        await create_tables(self._engine, metadata)
        self._writer = asyncio.create_task(self._write_batches(), name="coordinator-log")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        if self._writer is not None:
            await self._queue.put(None)
            await self._writer
        await self._engine.dispose()

    async def write(self, command: Command[T]) -> T:
        """Applies one command; returns its outcome once it is durable. Raises StoreUnavailable."""
        if self._closing:
            raise StoreUnavailable("the log is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._queue.put((command, future))
        return await future

    # Reads; each raises StoreUnavailable

    async def find(self, gid: str) -> tuple[Transaction, list[BranchOp]] | None:
        async with self._reading() as connection:
            row = (await connection.execute(select(transactions).where(transactions.c.gid == gid))).one_or_none()
            if row is None:
                return None
            return _transaction(row), (await _read_branches(connection, [gid])).get(gid, [])

    async def page(
        self,
        *,
        limit: int,
        before: int | None = None,
        status: str | None = None,
        trans_type: str | None = None,
        created_from_ms: int | None = None,
        created_to_ms: int | None = None,
    ) -> list[Transaction]:
        """Transactions newest first, from the number `before` downwards."""
        query = select(transactions).order_by(transactions.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(transactions.c.number < before)
        if status is not None:
            query = query.where(transactions.c.status == status)
        if trans_type is not None:
            query = query.where(transactions.c.trans_type == trans_type)
        if created_from_ms is not None:
            query = query.where(transactions.c.created_ms >= created_from_ms)
        if created_to_ms is not None:
            query = query.where(transactions.c.created_ms <= created_to_ms)
        return await self._read(query)

    async def due(self, *, limit: int) -> list[Transaction]:
        """Unfinished transactions whose cron time has come, longest due first."""
        at = transactions.c.next_cron_ms
        return await self._read(_unfinished().where(at <= now_ms()).order_by(at).limit(limit))

    async def later(self, *, after_ms: int, limit: int) -> list[Transaction]:
        """Unfinished transactions whose cron time is more than `after_ms` ahead."""
        at = transactions.c.next_cron_ms
        return await self._read(_unfinished().where(at > now_ms() + after_ms).order_by(at.desc()).limit(limit))

    async def stuck(self, *, older_than_ms: int) -> int:
        """How many decided transactions are still not finished after that time."""
        query = select(func.count()).select_from(transactions)
        query = query.where(transactions.c.status.in_(DECIDED), transactions.c.created_ms < now_ms() - older_than_ms)
        async with self._reading() as connection:
            return (await connection.execute(query)).scalar_one()

    async def _read(self, query: Select[Any]) -> list[Transaction]:
        async with self._reading() as connection:
            return [_transaction(row) for row in (await connection.execute(query)).all()]

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(repr(error)) from error

    # Writes

    async def _write_batches(self) -> None:
        open_ = True
        while open_:
            batch = []
            entry = await self._queue.get()
            while entry is not None:
                batch.append(entry)
                if len(batch) == BATCH_MAX or self._queue.empty():
                    break
                entry = self._queue.get_nowait()
            open_ = entry is not None
            if batch:
                await self._write_batch(batch)

    async def _write_batch(self, batch: Sequence[tuple[Command[Any], asyncio.Future[Any]]]) -> None:
        try:
            outcomes = await self._commit([command for command, _ in batch])
        except Exception as error:  # whatever it was, every caller is answered and the next batch gets its turn
            log.exception("log_write_failed", commands=len(batch))
            if len(batch) > 1:  # one of them may be what the database does not take: each on its own
                for entry in batch:
                    await self._write_batch([entry])
                return
            _settle(batch[0][1], StoreUnavailable(repr(error)))
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            _settle(future, outcome)

    async def _commit(self, commands: Sequence[Command[Any]]) -> list[Any]:
        names = tuple(type(command).__name__ for command in commands)
        attempts = AsyncRetrying(
            retry=retry_if_exception(_is_conflict),
            stop=stop_after_attempt(ATTEMPTS_MAX),
            wait=wait_random_exponential(multiplier=0.01, max=1),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                async with self._engine.connect() as connection:
                    outcomes = await _apply(connection, commands)
                    self._on_write("before", names)
                    await connection.commit()
                    self._on_write("after", names)
        return outcomes


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():  # its caller was cancelled; the write is there
        return
    if isinstance(outcome, StoreUnavailable):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _is_conflict(error: BaseException) -> bool:
    """Another writer was there: nothing of ours was written, and a second look will see what it did."""
    return isinstance(error, IntegrityError) or is_transient(error)


async def _apply(connection: AsyncConnection, commands: Sequence[Command[Any]]) -> list[Any]:
    known = await _look(connection, commands)
    outcomes = [command.apply(known[command.gid]) for command in commands]
    await _write(connection, known.values())
    return outcomes


async def _look(connection: AsyncConnection, commands: Sequence[Command[Any]]) -> dict[str, Known]:
    """Locks and reads the transactions of the batch, in the order of their gids, so that two never deadlock."""
    known = {gid: Known() for gid in sorted({command.gid for command in commands})}
    query = select(transactions).where(transactions.c.gid.in_(known)).order_by(transactions.c.gid)
    for row in (await connection.execute(query.with_for_update())).all():
        known[row.gid].transaction = _transaction(row)
    wanted = sorted({command.gid for command in commands if command.needs_branches and known[command.gid].transaction})
    for gid, found in (await _read_branches(connection, wanted)).items():
        known[gid].branches = found
    return known


async def _read_branches(connection: AsyncConnection, gids: Sequence[str]) -> dict[str, list[BranchOp]]:
    found: dict[str, list[BranchOp]] = {}
    if gids:
        query = select(branches).where(branches.c.gid.in_(gids)).order_by(branches.c.number)
        for row in (await connection.execute(query)).all():
            found.setdefault(row.gid, []).append(_branch(row))
    return found


async def _write(connection: AsyncConnection, known: Collection[Known]) -> None:
    """One statement for each kind of change."""
    inserted = [_transaction_values(each.transaction) for each in known if each.inserted and each.transaction]
    if inserted:
        await connection.execute(insert(transactions), inserted)
    changed = [each.transaction for each in known if each.changed and not each.inserted and each.transaction]
    if changed:
        await connection.execute(_UPDATE_TRANSACTION, [_transaction_changes(each) for each in changed])
    registered = [_branch_values(branch) for each in known for branch in each.new_branches]
    if registered:
        await connection.execute(insert(branches), registered)
    done = [_branch_changes(branch) for each in known for branch in each.done_branches]
    if done:
        await connection.execute(_UPDATE_BRANCH, done)


_CHANGING = (
    "status", "updated_ms", "finished_ms", "next_cron_ms", "next_cron_interval_s", "owner", "rollback_reason",
)  # fmt: skip
_UPDATE_TRANSACTION = (
    update(transactions)
    .where(transactions.c.gid == bindparam("its_gid"))
    .values({name: bindparam(name) for name in _CHANGING})
)
_UPDATE_BRANCH = (
    update(branches)
    .where(
        branches.c.gid == bindparam("its_gid"),
        branches.c.branch_id == bindparam("its_branch_id"),
        branches.c.op == bindparam("its_op"),
    )
    .values(status=bindparam("status"), finished_ms=bindparam("finished_ms"))
)


def _unfinished() -> Select[Any]:
    return select(transactions).where(transactions.c.status.in_(UNFINISHED))


def _transaction(row: Row[Any]) -> Transaction:
    values = dict(row._mapping)
    return Transaction(**values | {"status": Status(values["status"]), "options": options_from_json(values["options"])})


def _transaction_values(transaction: Transaction) -> dict[str, Any]:
    values = {name: getattr(transaction, name) for name in Transaction.__slots__ if name != "number"}
    return values | {"options": options_to_json(transaction.options)}


def _transaction_changes(transaction: Transaction) -> dict[str, Any]:
    return {name: getattr(transaction, name) for name in _CHANGING} | {"its_gid": transaction.gid}


def _branch(row: Row[Any]) -> BranchOp:
    values = {name: value for name, value in row._mapping.items() if name != "number"}
    return BranchOp(**values | {"status": Status(values["status"])})


def _branch_values(branch: BranchOp) -> dict[str, Any]:
    return {name: getattr(branch, name) for name in BranchOp.__slots__}


def _branch_changes(branch: BranchOp) -> dict[str, Any]:
    return {
        "its_gid": branch.gid,
        "its_branch_id": branch.branch_id,
        "its_op": branch.op,
        "status": branch.status,
        "finished_ms": branch.finished_ms,
    }
