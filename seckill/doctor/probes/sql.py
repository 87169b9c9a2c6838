"""SQL databases: what a connection of ours really gets, and what the server promises. Reads only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any, NoReturn

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from seckill.doctor.facts import Clock, DatabaseFacts, SessionFacts
from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.wire import SQL, raise_stranger

ACCESS_DENIED = {1044, 1045, 1142, 1143, 1227, 1698}
"""To the server, the database, a table, a column, or a right of the administrator's."""
UNKNOWN_DATABASE = 1049
DEFAULT_PORT = 3306

_SESSION = "SHOW SESSION VARIABLES WHERE variable_name IN ({names})"
_ISOLATION = ("transaction_isolation", "tx_isolation")  # MariaDB before 11.1 knows the second only


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Raises Silent, and Stranger for a server that refuses us or is no MySQL or MariaDB."""
    try:
        async with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        await raise_heard(engine.url, error)


async def raise_heard(url: URL, error: DBAPIError) -> NoReturn:
    """What a driver's error means: Stranger when the server refuses us or is no MySQL or MariaDB, else Silent."""
    code, detail = told(error)
    if code in ACCESS_DENIED:
        raise Stranger(detail, remedy="correct user and password, or GRANT ALL on the database to the user") from error
    if code == UNKNOWN_DATABASE:
        raise Stranger(detail, remedy="CREATE DATABASE … CHARACTER SET utf8mb4, or correct the name") from error
    if url.host:
        await raise_stranger(f"{url.host}:{url.port or DEFAULT_PORT}", expected=SQL)
    raise Silent(detail) from error


def told(error: DBAPIError) -> tuple[int | None, str]:
    """A driver's error as the server's number and words; the number is None when the server gave none."""
    arguments = getattr(error.orig, "args", ())
    match arguments:
        case (int() as code, str() as words, *_):
            return code, words
        case (str() as words, *_):
            return None, words
        case _:
            return None, str(error.orig)


async def ask_session(connection: AsyncConnection) -> SessionFacts:
    names = ("sql_mode", *_ISOLATION, "max_allowed_packet", "innodb_lock_wait_timeout")
    found = await _variables(connection, names)
    return SessionFacts(
        sql_mode=frozenset(mode for mode in found["sql_mode"].split(",") if mode),
        isolation=next((found[name] for name in _ISOLATION if name in found), "unknown"),
        max_allowed_packet=int(found["max_allowed_packet"]),
        lock_wait_s=int(found.get("innodb_lock_wait_timeout", 0)),
    )


async def ask_database(connection: AsyncConnection) -> DatabaseFacts:
    """MariaDB or MySQL only."""
    names = ("version", "innodb_flush_log_at_trx_commit", "max_connections")
    found = await _variables(connection, (*names, "character_set_database", "collation_database"))
    tables = "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE()"
    columns = (
        "SELECT table_name, column_name, collation_name FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND collation_name IS NOT NULL"
    )
    return DatabaseFacts(
        version=found["version"],
        session=await ask_session(connection),
        charset=found["character_set_database"],
        collation=found["collation_database"],
        flush_log_at_commit=int(found.get("innodb_flush_log_at_trx_commit", 0)),
        max_connections=int(found["max_connections"]),
        engines={table: str(engine) for table, engine in await connection.execute(text(tables))},
        collations={(table, column): name for table, column, name in await connection.execute(text(columns))},
        clock=await _clock(connection),
    )


async def _variables(connection: AsyncConnection, names: tuple[str, ...]) -> Mapping[str, str]:
    listed = ", ".join(f"'{name}'" for name in names)
    rows: Any = await connection.execute(text(_SESSION.format(names=listed)))
    return {str(name).lower(): str(value) for name, value in rows}


async def _clock(connection: AsyncConnection) -> Clock:
    before_s = time.time()
    told_at = (await connection.execute(text("SELECT UTC_TIMESTAMP(6)"))).scalar_one()
    after_s = time.time()
    told_s = told_at.replace(tzinfo=UTC).timestamp()
    return Clock((told_s - (before_s + after_s) / 2) * 1000, (after_s - before_s) * 500)
