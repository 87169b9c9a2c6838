"""Bringing a database to the newest revision, one upgrade at a time, and adopting one that came without a revision.

SQLite: everything in one transaction that holds the write lock from its beginning. MySQL and MariaDB end a transaction
with every change of a table, so a named lock keeps a second upgrade waiting instead. Alembic is imported on first use.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tenacity
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.domain.errors import SeckillError
from seckill.dtm.database import MYSQL, create_engine, is_transient
from seckill.schema.revisions import (
    NEWEST,
    REVISIONS,
    SchemaOutdated,
    address_of,
    argument_of,
    found_revision,
    is_absent,
    revision_of,
    setting_of,
)
from seckill.schema.shape import differences

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"

LOCK_WAIT_S = 60
"""How long an upgrade waits for another one, and for transactions that hold a table which it has to change."""

DDL_LOCK_WAIT_S = 3
"""The same for `ddl`, which only reads."""

STATEMENT_S = 3_600
"""How long one statement may run: adding an index to a large table takes its time."""

_LOCK = "CONCAT('seckill-schema-', MD5(DATABASE()))"
"""Named locks are the server's, so the name holds the database; at most 64 characters."""


class NotOurSchema(SeckillError):
    """Tables without a revision that are not those of the first one: nothing is changed."""

    def __init__(self, name: str, address: str, found: Sequence[str]) -> None:
        super().__init__(
            f"the {argument_of(name)} database at {address} ({setting_of(name)}) has tables but no revision, and they "
            f"are not those of {REVISIONS[name][0]}: {'; '.join(found)}; name an empty database, or mend these tables"
        )
        self.name = name
        self.setting = setting_of(name)
        self.found = tuple(found)


class NoSchemaLock(SeckillError):
    """The server has answered that it cannot give the lock at all."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(
            f"the {argument_of(name)} database at {address} ({setting_of(name)}) gives no lock for an upgrade "
            "(GET_LOCK is NULL); name a database in the address, or look into the server's log"
        )
        self.name = name
        self.setting = setting_of(name)


class SchemaLocked(SeckillError):
    """Another upgrade of the same database has not ended in LOCK_WAIT_S."""

    retryable = True

    def __init__(self, name: str, address: str) -> None:
        super().__init__(
            f"another upgrade of the {argument_of(name)} database at {address} ({setting_of(name)}) "
            f"has not ended after {LOCK_WAIT_S} s"
        )


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade found and left; equal when there was nothing to do. `adopted`: it only lacked its revision."""

    name: str
    before: str | None
    after: str
    adopted: bool = False


async def upgrade(name: str, url: str, *, tls: ssl.SSLContext | None = None) -> Upgraded:
    """Brings the database to the newest revision. Safe to repeat, and to run twice at once.

    Raises SchemaOutdated for a newer or another database's revision, NotOurSchema, SchemaLocked, NoSchemaLock.
    """
    engine = create_engine(url, pool_size=1, lock_wait_s=LOCK_WAIT_S, read_timeout_s=STATEMENT_S, tls=tls)
    # Two connections that turn the same new SQLite file to write-ahead logging do not wait for each other: one fails.
    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_delay(LOCK_WAIT_S),
        wait=tenacity.wait_random_exponential(multiplier=0.02, max=1),
        reraise=True,
    )
    try:
        return await attempts(_attempt, engine, name)
    finally:
        await engine.dispose()


async def _attempt(engine: AsyncEngine, name: str) -> Upgraded:
    async with engine.connect() as connection:
        return await connection.run_sync(_upgrade, name, address_of(engine))


async def ddl(name: str, url: str, *, tls: ssl.SSLContext | None = None) -> str:
    """The statements that `upgrade` would execute now, for who applies them by hand. Changes nothing."""
    engine = create_engine(url, pool_size=1, lock_wait_s=DDL_LOCK_WAIT_S, tls=tls)
    try:
        found = await found_revision(engine)
        if found is None and await _has_tables(engine):
            async with engine.connect() as connection:
                await connection.run_sync(_require_first, name, address_of(engine))
            return _offline(name, engine, REVISIONS[name][0], stamp=True)
        _check_known(name, address_of(engine), found)
        return _offline(name, engine, found)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, name: str, address: str) -> Upgraded:
    from alembic import command  # noqa: PLC0415 - costs 100 ms, which a role need not pay

    with _alone(connection, name, address):
        before = revision_of(connection)
        adopted = before is None and bool(_tables(connection))
        if before == NEWEST[name]:
            return Upgraded(name, before, before)
        _check_known(name, address, before)
        config = _config(name)
        config.attributes["connection"] = connection
        if adopted:
            _require_first(connection, name, address)
            command.stamp(config, REVISIONS[name][0])
        command.upgrade(config, NEWEST[name])
        return Upgraded(name, before, NEWEST[name], adopted)


@contextmanager
def _alone(connection: Connection, name: str, address: str) -> Iterator[None]:
    """No other upgrade of this database runs meanwhile. SQLite's transaction has taken the write lock already."""
    if connection.dialect.name not in MYSQL:
        yield
        connection.commit()
        return
    # Otherwise a change would wait for a day behind an idle transaction, and everybody else behind the change.
    connection.execute(text(f"SET SESSION lock_wait_timeout = {LOCK_WAIT_S}"))
    match connection.execute(text(f"SELECT GET_LOCK({_LOCK}, {LOCK_WAIT_S})")).scalar():
        case None:
            raise NoSchemaLock(name, address)
        case 0:
            raise SchemaLocked(name, address)
    try:
        yield
        connection.commit()  # the next one has to see the revision
    finally:
        connection.rollback()
        connection.execute(text(f"SELECT RELEASE_LOCK({_LOCK})"))


def _check_known(name: str, address: str, found: str | None) -> None:
    if found is not None and found not in REVISIONS[name]:
        raise SchemaOutdated(name, address, found)


def _require_first(connection: Connection, name: str, address: str) -> None:
    found = differences(connection, first_tables(name))
    if found:
        raise NotOurSchema(name, address, found)


def first_tables(name: str) -> MetaData:
    """The tables of a database's first revision, as that revision makes them."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    revision = ScriptDirectory.from_config(_config(name)).get_revision(REVISIONS[name][0])
    assert revision is not None
    tables: MetaData = revision.module.TABLES
    return tables


async def _has_tables(engine: AsyncEngine) -> bool:
    if is_absent(engine):
        return False
    async with engine.connect() as connection:
        return bool(await connection.run_sync(_tables))


def _tables(connection: Connection) -> list[str]:
    return inspect(connection).get_table_names()


def _config(name: str) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    for key, value in {
        "script_location": str(MIGRATIONS),
        "version_locations": str(MIGRATIONS / name),
        "path_separator": "newline",  # a path may hold anything else
    }.items():
        config.set_main_option(key, value.replace("%", "%%"))
    return config


def _offline(name: str, engine: AsyncEngine, found: str | None, *, stamp: bool = False) -> str:
    from alembic import command  # noqa: PLC0415 - as above

    config = _config(name)
    config.output_buffer = io.StringIO()
    config.attributes["dialect_name"] = engine.dialect.name
    if stamp:
        command.stamp(config, REVISIONS[name][0], sql=True)
    if found != NEWEST[name]:
        command.upgrade(config, f"{found or 'base'}:{NEWEST[name]}", sql=True)
    told = f"-- {argument_of(name)}: {found or 'nothing'} -> {NEWEST[name]}\n"
    return told + config.output_buffer.getvalue()
