"""Engines, column types and statements that behave alike on SQLite and on MySQL or MariaDB.

May import SQLAlchemy and the drivers' error types only. Opens nothing by itself: a connection is made on first use.
"""

from __future__ import annotations

import sqlite3
import ssl
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import BigInteger, Insert, Integer, LargeBinary, MetaData, String, Table, event, insert
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.engine import Connection, CursorResult, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.sql import Executable
from sqlalchemy.types import TypeEngine

from seckill.dtm.connections import watch_connections

T = TypeVar("T")

MYSQL = ("mysql", "mariadb")

IN_LIST_MAX = 199
"""Longest IN list. From `eq_range_index_dive_limit` (200) on, MariaDB may drop the index and scan the table."""

BLOB_MAX_BYTES = 2**24 - 1
"""Longest stored byte string (MEDIUMBLOB)."""

READ_TIMEOUT_S = 10
"""How long MySQL or MariaDB may take for one answer, where nothing else is said."""

LOCK_WAIT_TIMEOUT = 1205
DEADLOCK = 1213

TOO_MANY_CONNECTIONS, SHUTTING_DOWN, NO_SOCKET, NOT_LISTENING = 1040, 1053, 2002, 2003

_CONNECT_TIMEOUT_S = 5  # until the port accepts; the handshake is bounded by mysql_connection
_RECYCLE_S = 1_800
_SQL_MODE = "TRADITIONAL,ONLY_FULL_GROUP_BY,NO_ENGINE_SUBSTITUTION"


class UnsupportedDialect(Exception):
    """A database that these statements were not written for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"database dialect {name!r}: sqlite, mysql or mariadb is needed")
        self.name = name


# --- engines ---------------------------------------------------------------------------------------------------


def create_engine(
    url: str,
    *,
    pool_size: int,
    lock_wait_s: int,
    read_timeout_s: int = READ_TIMEOUT_S,
    tls: ssl.SSLContext | None = None,
) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite`, `mysql+asyncmy` or `mariadb+asyncmy`. Raises UnsupportedDialect.

    Nobody waits longer than `lock_wait_s` for a lock, or for a free connection. On SQLite one connection is used
    whatever `pool_size` says: it has one writer at a time, and a queue in the event loop is fair where its own waiting
    (sleep and look again) is not. MySQL or MariaDB has `read_timeout_s` for each answer: more than `lock_wait_s`. With
    `tls` a connection to it is encrypted, or not made at all.
    """
    name = make_url(url).get_backend_name()
    if name == "sqlite":
        engine = _sqlite_engine(url, lock_wait_s)
    elif name in MYSQL:
        engine = _mysql_engine(url, pool_size, lock_wait_s, read_timeout_s, tls)
    else:
        raise UnsupportedDialect(name)
    watch_connections(engine)
    return engine


def session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False, autoflush=False)


async def create_tables(engine: AsyncEngine, metadata: MetaData) -> None:
    """Makes the tables that are not there yet; existing ones are left as they are."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


def _sqlite_engine(url: str, lock_wait_s: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,  # for a database in memory as well, which lives in its one connection
        pool_size=1,
        max_overflow=0,
        pool_timeout=lock_wait_s,
        connect_args={"timeout": lock_wait_s},
    )
    fail_in_place(engine)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_immediate)
    return engine


def fail_in_place(engine: AsyncEngine) -> None:
    """A SQLite file that cannot be opened fails in the caller's own thread. aiosqlite would answer from another one,
    which is left behind and meets an event loop that may have been closed.
    """
    event.listen(engine.sync_engine, "do_connect", _open_once)


def _open_once(_dialect: Any, _record: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    sqlite3.connect(arguments[0], uri=bool(options.get("uri"))).close()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would otherwise begin by itself, and later than we need
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: a commit is on disk when it is answered. A branch that has confirmed is never asked again, so what it
    # answered must survive a power cut; NORMAL would lose the newest commits then.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    # Takes the write lock at once. A transaction that reads first and writes later could not wait for it: SQLite ends
    # it with SQLITE_BUSY_SNAPSHOT as soon as somebody else has written in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _mysql_engine(
    url: str, pool_size: int, lock_wait_s: int, read_timeout_s: int, tls: ssl.SSLContext | None
) -> AsyncEngine:
    from seckill.dtm.mysql_connection import connect  # noqa: PLC0415 - SQLite needs no asyncmy

    return create_async_engine(
        url,
        # Under REPEATABLE READ a plain read does not see the row that made an insert-ignore do nothing.
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=lock_wait_s,
        pool_recycle=_RECYCLE_S,
        connect_args={
            "async_creator_fn": connect,
            "ssl": tls,
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            "init_command": f"SET SESSION innodb_lock_wait_timeout={lock_wait_s}, sql_mode='{_SQL_MODE}'",
        },
    )


# --- errors ----------------------------------------------------------------------------------------------------


def is_transient(error: BaseException) -> bool:
    """Whether the whole transaction may be tried again: a lock was not got (1205, SQLITE_BUSY) or a deadlock (1213)."""
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return bool((code & 0xFF) == sqlite3.SQLITE_BUSY)  # the high bits tell which kind of busy
    return mysql_code(error) in {LOCK_WAIT_TIMEOUT, DEADLOCK}


def mysql_code(error: BaseException) -> int | None:
    """The number of an error of MySQL or MariaDB; None for any other error."""
    arguments: tuple[Any, ...] = getattr(error.orig, "args", ()) if isinstance(error, DBAPIError) else ()
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def is_connection_lost(error: BaseException) -> bool:
    """Whether the database could not be reached, or the connection broke. A commit that ends so may have happened."""
    if not isinstance(error, DBAPIError):
        return False
    unreachable = {TOO_MANY_CONNECTIONS, SHUTTING_DOWN, NO_SOCKET, NOT_LISTENING}
    return error.connection_invalidated or mysql_code(error) in unreachable


# --- column types ----------------------------------------------------------------------------------------------


def ascii_text(length: int) -> TypeEngine[str]:
    """Text that is compared byte by byte. MySQL's default collation takes `Ab1` for `aB1`. Check lengths before SQL."""
    return String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), *MYSQL)


def fixed_bytes(length: int) -> TypeEngine[bytes]:
    return LargeBinary(length).with_variant(mysql.BINARY(length), *MYSQL)


def long_bytes() -> TypeEngine[bytes]:
    """Up to BLOB_MAX_BYTES."""
    return LargeBinary().with_variant(mysql.MEDIUMBLOB(), *MYSQL)


def row_number() -> TypeEngine[int]:
    """A 64-bit key that the database counts up; SQLite does so only for INTEGER."""
    return BigInteger().with_variant(Integer(), "sqlite")


TABLE_OPTIONS: Mapping[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}


# --- statements ------------------------------------------------------------------------------------------------


def dialect_of(session: AsyncSession) -> str:
    return session.get_bind().dialect.name


@cache
def insert_ignore(table: Table, dialect: str) -> Insert:
    """An insert that leaves an existing row of the same unique key alone, and then affects 0 rows."""
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    if dialect in MYSQL:
        return insert(table).prefix_with("IGNORE")
    raise UnsupportedDialect(dialect)


async def affected(
    session: AsyncSession, statement: Executable, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
) -> int:
    """Executes an insert, update or delete; the number of rows that it changed."""
    result = await session.execute(statement, rows)
    return int(cast("CursorResult[Any]", result).rowcount)


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cuts a list into parts that may stand in one IN list."""
    for start in range(0, len(values), IN_LIST_MAX):
        yield values[start : start + IN_LIST_MAX]
