"""Which revision a database has, and which one it must have. Reads one row; knows nothing of Alembic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.domain.errors import SeckillError

VERSION_TABLE = "alembic_version"

REVISIONS: Mapping[str, tuple[str, ...]] = {
    "product": ("product_0001", "product_0002"),
    "order": ("order_0001", "order_0002"),
    "coordinator": ("coordinator_0001", "coordinator_0002"),
    "dead_letters": ("dead_letters_0001", "dead_letters_0002", "dead_letters_0003"),
}
"""Every revision of every database, oldest first. An id names its database: none is taken for another's."""

DATABASES = tuple(REVISIONS)
NEWEST: Mapping[str, str] = {name: revisions[-1] for name, revisions in REVISIONS.items()}


class SchemaOutdated(SeckillError):
    """A database whose schema is not the one that this program works on. `found` is None when it has none."""

    def __init__(self, name: str, address: str, found: str | None) -> None:
        self.name = name
        self.setting = setting_of(name)
        self.address = address
        self.found = found
        self.wanted = NEWEST[name]
        where = f"the {argument_of(name)} database at {address} ({self.setting})"
        command = f"`seckill db upgrade {argument_of(name)}`"
        self.kind: Literal["absent", "old", "newer", "foreign"]
        if found is None:
            self.kind = "absent"
            told = f"has no schema, {self.wanted} is wanted; make it with {command}"
        elif found in REVISIONS[name]:
            self.kind = "old"
            told = f"has the schema {found}, {self.wanted} is wanted; bring it there with {command}"
        elif found.startswith(f"{name}_"):
            self.kind = "newer"
            told = (
                f"has the schema {found}, which is newer than the {self.wanted} that this program wants; "
                f"{command} does not go back: run the program that made it"
            )
        else:
            self.kind = "foreign"
            told = f"has the schema {found} of another database, {self.wanted} is wanted; {command} needs its own one"
        super().__init__(f"{where} {told}")


def setting_of(name: str) -> str:
    """The setting that says where a database is."""
    return f"{name}.database_url"


def argument_of(name: str) -> str:
    """The database's name as commands take it."""
    return name.replace("_", "-")


def address_of(engine: AsyncEngine) -> str:
    """Where a database is, without password and options: for a person."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def is_absent(engine: AsyncEngine) -> bool:
    """Whether it is a SQLite file that is not there: connecting would make it."""
    path = engine.url.database
    is_file = engine.url.get_backend_name() == "sqlite" and path and path != ":memory:"
    return bool(is_file and not Path(str(path)).exists())


async def require(name: str, engine: AsyncEngine) -> None:
    """Raises SchemaOutdated unless the database has the newest revision that this program knows."""
    found = await found_revision(engine)
    if found != NEWEST[name]:
        raise SchemaOutdated(name, address_of(engine), found)


async def found_revision(engine: AsyncEngine) -> str | None:
    """The database's revision; None when it has none. Looking does not make a SQLite file that is not there."""
    if is_absent(engine):
        return None
    async with engine.connect() as connection:
        return await connection.run_sync(revision_of)


def revision_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - a constant
    return revision
