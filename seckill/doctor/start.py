"""What a role refuses to start on: a database that is not what it asks for, an address where something else answers.

A dependency that is merely silent is no reason here: it may come, and readiness says so until then. Something else in
its place does not mend itself, and is told at once.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from seckill.client import front_url
from seckill.doctor.access import database_door, grpc_door, grpc_refusal, refusal
from seckill.doctor.findings import Level
from seckill.doctor.judgements.sql import judge_session
from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.grpc import ask_coordinator, ask_service
from seckill.doctor.probes.http import ask_coordinator_http
from seckill.doctor.probes.sql import ask_session, raise_heard, told
from seckill.domain.errors import SeckillError, Unfit
from seckill.dtm.database import MYSQL, create_engine, is_transient
from seckill.schema.revisions import argument_of
from seckill.security import channel_credentials, database_context
from seckill.settings import NO_TLS, DatabaseTls, Settings, TlsSettings, variable

log = structlog.get_logger(__name__)

LACKING = {1054, 1146}
"""What a server says of a column or a table that is not there."""


class DatabaseUnavailable(SeckillError):
    """A database cannot be used; names the setting, the address without its password, and the remedy."""

    retryable = True

    def __init__(self, setting: str, url: str, detail: str, remedy: str = "") -> None:
        address = make_url(url).set(query={}).render_as_string(hide_password=True)
        super().__init__(f"the database at {address} ({setting}) cannot be used: {detail}")
        self.setting = setting
        self.remedy = remedy or f"start it, {_another(setting)}"


# --- databases -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opening_database(setting: str, url: str) -> AsyncIterator[None]:
    """Raises DatabaseUnavailable for what the database, or whoever answers in its place, says to the block."""
    try:
        yield
    except DBAPIError as error:
        raise await database_unavailable(setting, url, error) from error


async def database_unavailable(setting: str, url: str, error: Exception) -> DatabaseUnavailable:
    """An error of a database, or of whoever answers in its place, as setting, address, reason and remedy."""
    if not isinstance(error, DBAPIError):
        return DatabaseUnavailable(setting, url, str(error).splitlines()[0])
    if is_transient(error):
        return DatabaseUnavailable(setting, url, told(error)[1], "wait for who holds the lock, and repeat the command")
    by_server = make_url(url).get_backend_name() in MYSQL
    said = await _told_by_server(setting, url, error) if by_server else _told_by_file(setting, url, error)
    return DatabaseUnavailable(setting, url, *said)


async def _told_by_server(setting: str, url: str, error: DBAPIError) -> tuple[str, str]:
    """What is wrong and the remedy: another server in its place, a login or TLS that is refused, or silence."""
    try:
        await raise_heard(make_url(url), error)
    except Stranger as heard:
        if not heard.remedy:
            return f"{heard} in its place", f"correct {variable(setting)}"
        said = str(heard), heard.remedy
    except Silent as heard:
        said = str(heard), _upgrade(setting) if told(error)[0] in LACKING else ""
    found = refusal(error, database_door(setting.partition(".")[0]))
    return (found.problem, found.remedy) if found else said


def _told_by_file(setting: str, url: str, error: DBAPIError) -> tuple[str, str]:
    """The same of a SQLite file."""
    path, detail = Path(make_url(url).database or ""), told(error)[1]
    if not path.parent.is_dir():
        return _no_folder(setting, path)
    if not path.exists():
        return f"there is no file {path}", _upgrade(setting)
    if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        return detail, _upgrade(setting)
    remedy = "see that it is a file of SQLite, and that we may read and write it and its folder"
    return detail, f"{remedy}, {_another(setting)}"


def _upgrade(setting: str) -> str:
    """For a file, table or column that is not there."""
    name = argument_of(setting.partition(".")[0])
    return f"make what is missing with `seckill db upgrade {name}`, {_another(setting)}"


def _no_folder(setting: str, path: Path) -> tuple[str, str]:
    return f"there is no folder {path.parent}", f"make it, {_another(setting)}"


def _another(setting: str) -> str:
    return f"or name another with {variable(setting)}"


async def require_database(section: str, url: str, tls: DatabaseTls) -> None:
    """Raises DatabaseUnavailable, and Unfit when a connection does not get what it asks for, as SQLite's does."""
    setting = f"{section}.database_url"
    address = make_url(url).set(query={}).render_as_string(hide_password=True)
    if make_url(url).get_backend_name() not in MYSQL:
        _require_folder(setting, url)
        return
    engine = create_engine(url, pool_size=1, lock_wait_s=3, tls=database_context(section, tls))
    try:
        async with opening_database(setting, url), engine.connect() as connection:
            session = await ask_session(connection)
    finally:
        await engine.dispose()
    for finding in judge_session(session):
        if finding.level is Level.PROBLEM:
            told = f"{finding.check}: {finding.found}"
            raise Unfit("the database", address, setting, told, finding.remedy)


def _require_folder(setting: str, url: str) -> None:
    """SQLite makes a file that is not there, but not its folder."""
    path = make_url(url).database
    if path and path != ":memory:" and not Path(path).parent.is_dir():
        raise DatabaseUnavailable(setting, url, *_no_folder(setting, Path(path)))


# --- other roles -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    what: str
    setting: str
    address: str
    tls: TlsSettings | None  # of a gRPC address
    asking: Coroutine[Any, Any, object]


async def refuse_strangers_of_front(settings: Settings) -> None:
    """Raises Unfit when something else answers where the front expects the product service."""
    await _refuse_strangers([_product(settings)])


async def refuse_strangers_of_worker(settings: Settings) -> None:
    """Raises Unfit when something else answers where the worker expects coordinator, product or order."""
    dtm, tls = settings.dtm, settings.tls
    coordinator = ask_coordinator(dtm.grpc, channel_credentials(tls) if dtm.tls else None)
    order = ask_service(settings.order.grpc, "order.Order", channel_credentials(tls))
    await _refuse_strangers(
        [
            _Asked("the coordinator", "dtm.grpc", dtm.grpc, tls if dtm.tls else NO_TLS, coordinator),
            _Asked("the coordinator", "dtm.http", dtm.http, None, ask_coordinator_http(front_url(dtm.http))),
            _product(settings),
            _Asked("the order service", "order.grpc", settings.order.grpc, tls, order),
        ]
    )


def _product(settings: Settings) -> _Asked:
    asking = ask_service(settings.product.grpc, "product.Product", channel_credentials(settings.tls))
    return _Asked("the product service", "product.grpc", settings.product.grpc, settings.tls, asking)


async def _refuse_strangers(asked: list[_Asked]) -> None:
    for found in await asyncio.gather(*(_stranger(each) for each in asked)):
        if found is not None:
            raise found


async def _stranger(asked: _Asked) -> Unfit | None:
    try:
        await asked.asking
    except (Stranger, Silent) as error:
        return await _kept_out(asked) or _judged(asked, error)
    return None


async def _kept_out(asked: _Asked) -> Unfit | None:
    if asked.tls is None:
        return None
    found = await grpc_refusal(asked.address, asked.tls, grpc_door(asked.what, asked.setting))
    return Unfit(asked.what, asked.address, asked.setting, found.problem, found.remedy) if found else None


def _judged(asked: _Asked, error: Stranger | Silent) -> Unfit | None:
    if isinstance(error, Stranger):
        remedy = f"correct {variable(asked.setting)}"
        return Unfit(asked.what, asked.address, asked.setting, f"{error} in its place", remedy)
    log.warning(
        "dependency_silent_at_start",
        what=asked.what,
        setting=asked.setting,
        address=asked.address,
        error=str(error),
    )
    return None
