"""The durable log of transactions: many small writes share one commit, reads go past them.

A write returns when it is on disk. Whoever waits while a commit is under way goes into the next one together, so a
batch costs a handful of statements whatever its size. Only this module and `tables.py` talk to the database.

On MySQL and MariaDB the transactions of a batch are locked first, in the order of their gids, under READ COMMITTED:
what is read after that is what other coordinators have committed. As long as no COMMIT was sent, a deadlock, a lock
that was not got or a lost connection means that nothing was written, and the batch is done again from its beginning.
A COMMIT whose answer is lost is another matter: nobody knows, its callers are told so, and the log itself has the
truth. A decision that was written is then carried out by a cron run, once the lease in it has ended.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Self, TypeVar

import structlog
from sqlalchemy import Row, Select, TextClause, bindparam, func, insert, select, text, tuple_, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from seckill.coordinator.commands import (
    BranchDone,
    Claim,
    Command,
    Decide,
    Finish,
    Insert,
    Known,
    Postpone,
    Register,
    Reset,
    TurnBack,
)
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
from seckill.coordinator.tables import branches, transactions
from seckill.crashpoints import CrashPoint, reach
from seckill.dtm.database import MYSQL, create_engine, is_connection_lost, is_transient
from seckill.schema import require

BATCH_MAX = 100  # commands per commit; also the length of IN lists, which MariaDB scans for when they grow past 200
QUEUE_MAX = 10_000
ATTEMPTS_MAX = 8
RETRY_S = 7  # when the first attempts end is no new one begun: enough for two lock time-outs
LOCK_WAIT_S = 3
POOL_SIZE = 4

OnWrite = Callable[[Literal["before", "after"], tuple[str, ...]], None]
"""Called around every commit with the names of its commands: for tests that kill the process there."""

WRITTEN: Mapping[type[Command[Any]], CrashPoint] = {
    Insert: CrashPoint.LOG_INSERT_WRITTEN,
    Register: CrashPoint.LOG_REGISTER_WRITTEN,
    Decide: CrashPoint.LOG_DECIDE_WRITTEN,
    TurnBack: CrashPoint.LOG_TURN_BACK_WRITTEN,
    BranchDone: CrashPoint.LOG_BRANCH_DONE_WRITTEN,
    Postpone: CrashPoint.LOG_POSTPONE_WRITTEN,
    Finish: CrashPoint.LOG_FINISH_WRITTEN,
    Claim: CrashPoint.LOG_CLAIM_WRITTEN,
    Reset: CrashPoint.LOG_RESET_WRITTEN,
}
COMMITTED: Mapping[type[Command[Any]], CrashPoint] = {
    Insert: CrashPoint.LOG_INSERT_COMMITTED,
    Register: CrashPoint.LOG_REGISTER_COMMITTED,
    Decide: CrashPoint.LOG_DECIDE_COMMITTED,
    TurnBack: CrashPoint.LOG_TURN_BACK_COMMITTED,
    BranchDone: CrashPoint.LOG_BRANCH_DONE_COMMITTED,
    Postpone: CrashPoint.LOG_POSTPONE_COMMITTED,
    Finish: CrashPoint.LOG_FINISH_COMMITTED,
    Claim: CrashPoint.LOG_CLAIM_COMMITTED,
    Reset: CrashPoint.LOG_RESET_COMMITTED,
}

T = TypeVar("T")

log = structlog.get_logger(__name__)


class StoreUnavailable(Exception):
    """The database did not answer as it must."""


class OutcomeUnknown(StoreUnavailable):
    """Nobody knows whether the write took effect. The same request may be made again: it finds what is there."""


class Store:
    """The log in one database. An asynchronous context manager: raises SchemaOutdated, and ends its last commit."""

    def __init__(self, url: str, *, on_write: OnWrite | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._engine = create_engine(url, pool_size=POOL_SIZE, lock_wait_s=LOCK_WAIT_S, tls=tls)
        self._on_write: OnWrite = on_write or (lambda moment, names: None)
        self._queue: asyncio.Queue[tuple[Command[Any], asyncio.Future[Any]] | None] = asyncio.Queue(QUEUE_MAX)
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        try:
            await require("coordinator", self._engine)
        except BaseException:
            await self._engine.dispose()
            raise
        self._writer = asyncio.create_task(self._write_batches(), name="coordinator-log")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        if self._writer is not None:
            await self._queue.put(None)
            await self._writer
        await self._engine.dispose()

    @property
    def kind(self) -> str:
        """`sqlite`, `mysql` or `mariadb`."""
        return self._engine.dialect.name

    async def write(self, command: Command[T]) -> T:
        """Applies one command; returns its outcome once it is durable. Raises StoreUnavailable."""
        if self._closing:
            raise StoreUnavailable("the log is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._queue.put((command, future))
        return await future

    # Reads; each raises StoreUnavailable

    async def find(self, gid: str) -> tuple[Transaction, list[BranchOp]] | None:
        async def read(connection: AsyncConnection) -> tuple[Transaction, list[BranchOp]] | None:
            row = (await connection.execute(select(transactions).where(transactions.c.gid == gid))).one_or_none()
            if row is None:
                return None
            return _transaction(row), (await _read_branches(connection, [gid])).get(gid, [])

        return await self._read(read)

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
        return await self._read_transactions(query)

    async def due(self, *, limit: int) -> list[Transaction]:
        """Unfinished transactions whose cron time has come, longest due first."""
        at = transactions.c.next_cron_ms
        return await self._read_transactions(_unfinished().where(at <= now_ms()).order_by(at).limit(limit))

    async def later(self, *, after_ms: int, limit: int) -> list[Transaction]:
        """Unfinished transactions whose cron time is more than `after_ms` ahead."""
        at = transactions.c.next_cron_ms
        waiting = _unfinished().where(at > now_ms() + after_ms)
        return await self._read_transactions(waiting.order_by(at.desc()).limit(limit))

    async def stuck(self, *, older_than_ms: int) -> int:
        """How many decided transactions are still not finished after that time."""
        query = select(func.count()).select_from(transactions)
        query = query.where(transactions.c.status.in_(DECIDED), transactions.c.created_ms < now_ms() - older_than_ms)

        async def read(connection: AsyncConnection) -> int:
            return (await connection.execute(query)).scalar_one()

        return await self._read(read)

    async def _read_transactions(self, query: Select[Any]) -> list[Transaction]:
        async def read(connection: AsyncConnection) -> list[Transaction]:
            return [_transaction(row) for row in (await connection.execute(query)).all()]

        return await self._read(read)

    async def _read(self, read: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Once more when the connection was lost: a database that came back is found through new connections only."""
        attempts = AsyncRetrying(retry=retry_if_exception(is_connection_lost), stop=stop_after_attempt(2), reraise=True)
        try:
            async for attempt in attempts:
                with attempt:
                    async with self._engine.connect() as connection:
                        return await read(connection)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(repr(error)) from error
        raise AssertionError("the last attempt returns or raises")

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
        except OutcomeUnknown as error:
            log.warning("log_commit_unanswered", commands=len(batch), error=str(error))
            outcomes = [error] * len(batch)
        except Exception as error:  # whatever it was, every caller is answered and the next batch gets its turn
            outcomes = [StoreUnavailable(f"nothing was written: {error!r}")] * len(batch)
            if is_connection_lost(error) or isinstance(error, PoolTimeout):
                log.warning("log_unreachable", commands=len(batch), error=repr(error))
            else:
                log.exception("log_write_failed", commands=len(batch))
                if len(batch) > 1:  # one of them may be what the database does not take: each on its own
                    for entry in batch:
                        await self._write_batch([entry])
                    return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            _settle(future, outcome)

    async def _commit(self, commands: Sequence[Command[Any]]) -> list[Any]:
        names = tuple(type(command).__name__ for command in commands)
        attempts = AsyncRetrying(
            retry=retry_if_exception(_can_be_repeated),
            stop=stop_after_attempt(ATTEMPTS_MAX) | stop_after_delay(RETRY_S),
            wait=wait_random_exponential(multiplier=0.01, max=1),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                async with self._engine.connect() as connection:
                    outcomes = await _apply(connection, commands)
                    self._on_write("before", names)
                    _reach_each(commands, WRITTEN)
                    await _commit(connection)
                    _reach_each(commands, COMMITTED)
                    self._on_write("after", names)
        return outcomes


def _reach_each(commands: Sequence[Command[Any]], points: Mapping[type[Command[Any]], CrashPoint]) -> None:
    for command in commands:
        reach(points[type(command)])


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():  # its caller was cancelled; the write is there
        return
    if isinstance(outcome, StoreUnavailable):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _can_be_repeated(error: BaseException) -> bool:
    """Nothing was written: another writer was there, whom a second look will see, or the connection broke before."""
    return isinstance(error, IntegrityError) or is_transient(error) or is_connection_lost(error)


async def _commit(connection: AsyncConnection) -> None:
    """Raises OutcomeUnknown when it is not certain that nothing was written."""
    try:
        await connection.commit()
    except (DBAPIError, OSError) as error:
        if is_transient(error):  # rolled back, says the database itself
            raise
        raise OutcomeUnknown(f"the commit was not answered: {error!r}") from error


async def _apply(connection: AsyncConnection, commands: Sequence[Command[Any]]) -> list[Any]:
    known = await _look(connection, commands)
    outcomes = [command.apply(known[command.gid]) for command in commands]
    await _write(connection, known.values())
    return outcomes


async def _look(connection: AsyncConnection, commands: Sequence[Command[Any]]) -> dict[str, Known]:
    """Locks and reads the transactions of the batch, in the order of their gids, so that two never deadlock."""
    known = {gid: Known() for gid in sorted({command.gid for command in commands})}
    for row in (await connection.execute(_LOCKED, {"gids": list(known)})).all():
        known[row.gid].transaction = _transaction(row)
    wanted = sorted({command.gid for command in commands if command.needs_branches and known[command.gid].transaction})
    for gid, found in (await _read_branches(connection, wanted)).items():
        known[gid].branches = found
    return known


_LOCKED = select(transactions).where(transactions.c.gid.in_(bindparam("gids", expanding=True)))
_LOCKED = _LOCKED.order_by(transactions.c.gid).with_for_update()
for _dialect in MYSQL:  # on a small table it might read every row, and so wait for locks that it does not want
    _LOCKED = _LOCKED.with_hint(transactions, "FORCE INDEX (coordinator_transaction_gid)", _dialect)


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
        rows = [_transaction_values(each) | {"number": each.number} for each in changed]
        await connection.execute(_change_transactions(connection.dialect.name), rows)
    registered = [_branch_values(branch) for each in known for branch in each.new_branches]
    if registered:
        await connection.execute(insert(branches), registered)
    done = [branch for each in known for branch in each.done_branches]
    for status in sorted({branch.status for branch in done}):
        await connection.execute(_BRANCHES_DONE, _values_of_done(status, done))


_CHANGING = (
    "status", "updated_ms", "finished_ms", "next_cron_ms", "next_cron_interval_s", "owner", "rollback_reason",
)  # fmt: skip


@cache
def _change_transactions(dialect: str) -> TextClause:
    """Many different rows with one statement: an insert that changes the rows that are there, found by their number.

    They are there, and locked. For an UPDATE of many rows MariaDB's driver sends one statement a row, and waits for
    each answer. As text, because SQLAlchemy would compile its own form of this anew for every batch.
    """
    names = transactions.c.keys()
    values = ", ".join(f":{name}" for name in names)
    insert_ = f"INSERT INTO {transactions.name} ({', '.join(names)}) VALUES ({values})"  # noqa: S608 - our columns
    if dialect == "sqlite":
        changes = ", ".join(f"{name} = excluded.{name}" for name in _CHANGING)
        return text(f"{insert_} ON CONFLICT (number) DO UPDATE SET {changes}")
    changes = ", ".join(f"{name} = VALUES({name})" for name in _CHANGING)
    return text(f"{insert_} ON DUPLICATE KEY UPDATE {changes}")


_OPERATION = tuple_(branches.c.gid, branches.c.branch_id, branches.c.op)
_BRANCHES_DONE = (
    update(branches)
    .where(
        branches.c.gid.in_(bindparam("gids", expanding=True)),  # for the index, which a list of tuples may not use
        _OPERATION.in_(bindparam("operations", expanding=True)),
    )
    .values(status=bindparam("to_status"), finished_ms=bindparam("at_ms"))
)


def _unfinished() -> Select[Any]:
    return select(transactions).where(transactions.c.status.in_(UNFINISHED))


def _transaction(row: Row[Any]) -> Transaction:
    values = dict(row._mapping)
    return Transaction(**values | {"status": Status(values["status"]), "options": options_from_json(values["options"])})


def _transaction_values(transaction: Transaction) -> dict[str, Any]:
    values = {name: getattr(transaction, name) for name in Transaction.__slots__ if name != "number"}
    return values | {"options": options_to_json(transaction.options)}


def _branch(row: Row[Any]) -> BranchOp:
    values = {name: value for name, value in row._mapping.items() if name != "number"}
    return BranchOp(**values | {"status": Status(values["status"])})


def _branch_values(branch: BranchOp) -> dict[str, Any]:
    return {name: getattr(branch, name) for name in BranchOp.__slots__}


def _values_of_done(status: Status, done: Sequence[BranchOp]) -> dict[str, Any]:
    """Of those that have this status now."""
    those = [branch for branch in done if branch.status is status]
    return {
        "gids": sorted({branch.gid for branch in those}),
        "operations": sorted((branch.gid, *branch.key) for branch in those),
        "to_status": status,
        "at_ms": now_ms(),
    }
