"""Fresh databases on a real MariaDB. Callable with or without a running event loop: SQL runs in a thread of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.servers.addresses import Servers

_made: list[tuple[str, str]] = []


def fresh_database(servers: Servers | str, prefix: str) -> str:
    """Makes an empty database (utf8mb4) and returns its URL. `servers` may be the administrator's URL itself."""
    admin = servers if isinstance(servers, str) else servers.mariadb
    name = f"{prefix}_{uuid.uuid4().hex[:16]}"
    execute(admin, [f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4"])
    _made.append((admin, name))
    return make_url(admin).set(database=name).render_as_string(hide_password=False)


def drop_fresh_databases(admin: str) -> None:
    """Drops what `fresh_database` has made there: for servers that go on without us."""
    execute(admin, [f"DROP DATABASE IF EXISTS `{name}`" for where, name in _made if where == admin])


def statements_of(script: str) -> list[str]:
    """The statements of a SQL file: each ends in a semicolon at the end of a line; `--` begins a comment."""
    text = "\n".join(line.partition("--")[0].rstrip() for line in script.splitlines())
    return [statement for part in f"{text}\n".split(";\n") if (statement := part.strip())]


def execute(url: str, statements: Sequence[str]) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(_execute(url, statements))).result()


async def _execute(url: str, statements: Sequence[str]) -> None:
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        async with engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
            await connection.commit()
    finally:
        await engine.dispose()
