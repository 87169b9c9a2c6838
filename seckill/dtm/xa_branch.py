"""The server side of an XA branch on MySQL or MariaDB: a database transaction that outlives its connection.

`run` leaves it prepared, `finish` commits it or rolls it back, `prepared` lists what waits for that. The barrier's row
of `action` stands in the same transaction, and a rollback writes it afterwards: an action that comes late finds it.
Knows nothing of what a branch does. Needs the table of `barrier_table`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar, cast

import tenacity
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import Pool, QueuePool

from seckill.dtm.barrier import (
    Barrier,
    InvalidMetadata,
    Passage,
    in_transaction,
    inserted_by,
    may_be_tried_again,
    tried_again,
)
from seckill.dtm.database import MYSQL, mysql_code, session_factory
from seckill.dtm.errors import DtmError
from seckill.dtm.protocol import ACTION, BRANCH_ID, COMMIT, GID, OP, ROLLBACK, BranchContext
from seckill.dtm.tcc_branch import DecisionLost

T = TypeVar("T")

XID_PART_MAX_BYTES = 64

BUSY_MS = 1_000
"""How long an end waits for the preparing connection to be gone, which takes about a millisecond as a rule."""

RUNS_MAX, RUN_WAIT_S = 64, 3.0  # of an engine whose pool has no bounds

_ACCESS_DENIED = 1227
XAER_NOTA = 1397  # no such prepared transaction, for this connection
_XA_RBROLLBACK, _XAER_RMFAIL, _XAER_DUPID, _XA_RBTIMEOUT, _XA_RBDEADLOCK = 1402, 1399, 1440, 1613, 1614
_TRANSIENT = {_XA_RBROLLBACK, _XAER_RMFAIL, _XAER_DUPID, _XA_RBTIMEOUT, _XA_RBDEADLOCK}
"""The database has rolled back, or the name is taken by an attempt that has not ended yet."""


class XaUnsupported(DtmError):
    """A database without XA transactions; `dialect` is its name."""

    def __init__(self, dialect: str) -> None:
        super().__init__(f"XA transactions need MySQL or MariaDB, this database is {dialect}")
        self.dialect = dialect


class XaTooLate(DtmError):
    """An action whose rollback came first: nothing was done, and nothing will be."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id} was rolled back before")
        self.context = context


class XaRepeated(DtmError):
    """An action that has committed before: nothing was done now, and its reply is not kept."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id} has committed before")
        self.context = context


class XaBusy(DtmError):
    """A branch whose preparing connection has not ended yet: to be repeated."""

    retryable = True

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id}: the connection that prepared it has not ended")
        self.context = context


class XaMissing(DtmError):
    """A commit of a branch that is neither prepared nor committed: nothing was changed. Somebody has to look at it."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id}: commit of what was not prepared")
        self.context = context


class XaHidden(DtmError):
    """A database that does not show this user what is prepared: MySQL 8 wants the privilege XA_RECOVER_ADMIN."""

    def __init__(self) -> None:
        super().__init__("XA RECOVER is not allowed to this user of the database (MySQL: XA_RECOVER_ADMIN)")


@dataclass(frozen=True, slots=True)
class XaId:
    """A prepared branch, as the database lists it."""

    gid: str
    branch_id: str


def require_xa(engine: AsyncEngine) -> None:
    """Raises XaUnsupported unless the engine's database has XA transactions."""
    if engine.dialect.name not in MYSQL:
        raise XaUnsupported(engine.dialect.name)


class XaBranches:
    """The XA branches in the database of `engine`, an ordinary one of `create_engine`. Raises XaUnsupported.

    A connection that has prepared is closed, for MariaDB lets others end its transaction only then; the engine's pool
    makes a new one. `run` uses `runs_max` of the pool's connections at most (None: half of them), so that `finish`,
    which frees the locks that runs wait for, finds one.
    """

    def __init__(self, engine: AsyncEngine, *, runs_max: int | None = None) -> None:
        require_xa(engine)
        self._engine = engine
        self._sessions = session_factory(engine)
        self._format_id = format_id(engine.url.database or "")
        self._runs = asyncio.Semaphore(runs_max or _half_of(engine.pool))

    async def run(self, context: BranchContext, business: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Op `action`: runs `business` in an XA transaction and prepares it; what it raises is raised again, undone.

        Raises XaTooLate after a rollback, XaRepeated after a commit. As with `in_transaction`, a lock that was not got
        and a deadlock have the whole tried again; a repeat while the first is prepared is such a case. A caller that
        is cancelled waits until the running attempt has ended, and what that has prepared is left to the coordinator.
        """
        xid = self._xid(context)
        return await tried_again(lambda: self._prepare(xid, context, business), after=_may_be_tried_again)

    async def finish(self, context: BranchContext) -> None:
        """Op `commit` or `rollback`, once or repeated.

        Raises XaBusy, XaHidden and OperationalError (to be repeated), DecisionLost after the other of the two, and
        XaMissing for a commit without an action. After a rollback no action gets through any more.
        """
        xid = self._xid(context)
        match context.op:
            case "commit":
                if not await self._end(xid, context):
                    await in_transaction(self._sessions, lambda session: _require_committed(session, context))
            case "rollback":
                await self._end(xid, context)
                if not await in_transaction(self._sessions, lambda session: Barrier(context).keep_out(session, ACTION)):
                    raise DecisionLost(context, COMMIT)
            case other:
                raise InvalidMetadata(OP, f"{other[:45]!r}, {COMMIT!r} or {ROLLBACK!r} ends a branch")

    async def prepared(self) -> list[XaId]:
        """What is prepared in this database by this library and not yet ended. Raises XaHidden."""
        async with self._autocommitting() as connection:
            return await self._recover(connection)

    # --- the two phases

    async def _prepare(self, xid: str, context: BranchContext, business: Callable[[AsyncSession], Awaitable[T]]) -> T:
        async with self._spent_connection() as connection:
            await connection.exec_driver_sql(f"XA START {xid}")
            try:
                value = await _within(connection, context, business)
                await connection.exec_driver_sql(f"XA END {xid}")
                await connection.exec_driver_sql(f"XA PREPARE {xid}")
            except BaseException:
                await _undo(connection, xid)
                raise
            return value

    async def _end(self, xid: str, context: BranchContext) -> bool:
        """Commits or rolls back what is prepared; False: there is nothing. Raises XaBusy."""
        looking = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(BUSY_MS / 1000),
            wait=tenacity.wait_exponential(multiplier=0.002, max=0.1),
            retry=tenacity.retry_if_exception_type(XaBusy),
            reraise=True,
        )
        async with self._autocommitting() as connection:
            return await looking(self._end_once, connection, xid, context)

    async def _end_once(self, connection: AsyncConnection, xid: str, context: BranchContext) -> bool:
        try:
            await connection.exec_driver_sql(f"XA {context.op.upper()} {xid}")
        except DBAPIError as error:
            if mysql_code(error) != XAER_NOTA:
                raise
        else:
            return True
        if XaId(context.gid, context.branch_id) in await self._recover(connection):
            raise XaBusy(context)  # the database says "unknown" also as long as the preparing connection is open
        return False

    async def _recover(self, connection: AsyncConnection) -> list[XaId]:
        try:
            rows = await connection.exec_driver_sql("XA RECOVER")
        except DBAPIError as error:
            if mysql_code(error) == _ACCESS_DENIED:
                raise XaHidden from error
            raise
        return [
            _xa_id(data, gtrid_length)
            for its_format, gtrid_length, _bqual_length, data in rows
            if its_format == self._format_id
        ]

    # --- connections

    @asynccontextmanager
    async def _spent_connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection that is closed for good at the end: without a ROLLBACK, which a prepared one would refuse."""
        async with self._free_run():
            connection = await self._engine.connect()
            try:
                yield connection
            finally:
                await connection.invalidate()
                await connection.close()

    @asynccontextmanager
    async def _free_run(self) -> AsyncIterator[None]:
        """Waits no longer than for one of the pool's connections. Raises SQLAlchemy's TimeoutError."""
        try:
            async with asyncio.timeout(_patience_s(self._engine.pool)):
                await self._runs.acquire()
        except TimeoutError as error:
            raise PoolTimeout("too many XA branches run at a time") from error
        try:
            yield
        finally:
            self._runs.release()

    @asynccontextmanager
    async def _autocommitting(self) -> AsyncIterator[AsyncConnection]:
        """With autocommit off MariaDB takes every connection for one inside a transaction, and ends none (1400)."""
        async with self._engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    def _xid(self, context: BranchContext) -> str:
        """The branch's name in SQL, where its parts are hexadecimal. Raises InvalidMetadata."""
        Barrier(context)  # checks the identity
        for name, value in ((GID, context.gid), (BRANCH_ID, context.branch_id)):
            if len(value) > XID_PART_MAX_BYTES:
                raise InvalidMetadata(name, f"longer than the {XID_PART_MAX_BYTES} characters of an XA name")
        return f"X'{context.gid.encode().hex()}',X'{context.branch_id.encode().hex()}',{self._format_id}"


def format_id(database: str) -> int:
    """The number by which the branches of one database are told from all others on its server: XA names are the
    server's, not the database's.
    """
    return zlib.crc32(f"dtm xa branch of {database}".encode()) & 0x7FFF_FFFF


async def _within(
    connection: AsyncConnection, context: BranchContext, business: Callable[[AsyncSession], Awaitable[T]]
) -> T:
    # A session on a connection that is in a transaction already: closing it neither commits nor rolls back.
    async with AsyncSession(connection, expire_on_commit=False, autoflush=False) as session:
        passed = await Barrier(context).call(session, business)
        await session.flush()
    match passed.passage:
        case Passage.RAN:
            return cast("T", passed.value)
        case Passage.REPEATED:
            raise XaRepeated(context)
        case _:
            raise XaTooLate(context)


async def _undo(connection: AsyncConnection, xid: str) -> None:
    """So that the caller hears of the error when all is undone. Where it fails, the end of the connection undoes it."""
    for command in ("END", "ROLLBACK"):
        with suppress(SQLAlchemyError):  # END: it may have ended already
            await connection.exec_driver_sql(f"XA {command} {xid}")


async def _require_committed(session: AsyncSession, context: BranchContext) -> None:
    match await inserted_by(session, context, op=ACTION, locked=True):
        case None:
            raise XaMissing(context)
        case "rollback":
            raise DecisionLost(context, ROLLBACK)


def _may_be_tried_again(error: BaseException) -> bool:
    return may_be_tried_again(error) or mysql_code(error) in _TRANSIENT


def _xa_id(data: bytes | str, gtrid_length: int) -> XaId:
    name = data if isinstance(data, str) else data.decode("latin-1")
    return XaId(name[:gtrid_length], name[gtrid_length:])


def _half_of(pool: Pool) -> int:
    return max(1, pool.size() // 2) if isinstance(pool, QueuePool) else RUNS_MAX


def _patience_s(pool: Pool) -> float:
    return pool.timeout() if isinstance(pool, QueuePool) else RUN_WAIT_S
