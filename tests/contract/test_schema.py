"""The schemas: migrations make exactly what the code's tables say, once, and roles start on nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill import schema
from seckill.coordinator import serve_coordinator
from seckill.coordinator.tables import metadata as coordinator_tables
from seckill.dtm.database import MYSQL, create_engine
from seckill.messaging.letters import STATES
from seckill.messaging.letters import metadata as letter_tables
from seckill.order.service import serve_order
from seckill.order.tables import metadata as order_tables
from seckill.product.service import serve_product
from seckill.product.tables import metadata as product_tables
from seckill.schema import DATABASES, NEWEST, NoSchemaLock, NotOurSchema, SchemaOutdated
from seckill.schema.revisions import REVISIONS
from seckill.schema.shape import defined, differences
from seckill.schema.upgrading import MIGRATIONS, first_tables
from seckill.settings import CoordinatorSettings, OrderSettings, ProductSettings
from tests.support.sides import Side

TABLES: dict[str, MetaData] = {
    "product": product_tables,
    "order": order_tables,
    "coordinator": coordinator_tables,
    "dead_letters": letter_tables,
}

BROKEN_SALE = (
    "INSERT INTO sale (product_id, name, starts_at_ms, ends_at_ms, per_user_limit, price_cents, state,"
    " initial, stock, frozen, sold, created_at_ms, updated_at_ms)"
    " VALUES (7, 'lamp', 1, 2, 1, 0, 'open', 5, 3, 0, 1, 1, 1)"
)
SALE = BROKEN_SALE.replace("0, 1, 1, 1)", "0, 2, 1, 1)")
EMPTY_ORDER = (
    "INSERT INTO orders (order_id, product_id, sale_id, user_id, quantity, price_cents, status, gid, branch_id,"
    " admitted_at_ms, created_at_ms, updated_at_ms)"
    " VALUES ('0123456789abcdef', 1, 1, 1, 0, 0, 1, 'g', '02', 1, 1, 1)"
)

FROZEN = {
    "product_0001": "08bec01cec94e3dc5369f7dd3ee0c0bdcde4d6427917ea1fc9e2c7c7b68ce1f5",
    "order_0001": "e1443b9cd45b2ffebc3f61f4e5d5ed76d1614d1e12955e8264b80896a9780710",
    "coordinator_0001": "459fcaf801306ec1177ea8b3f6c6ba7520f6d7966a7a5d93b6a25d5400b76bd8",
    "dead_letters_0001": "54fc2c650a4480b3263801423caf31a5867073702027ca30e63143e66a2b883e",
}
"""SHA-256 of what a first revision makes on MySQL; a column's meaning in shared code must not change it."""


@pytest.fixture(params=DATABASES)
def name(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def url(side: Side, name: str, tmp_path: Path) -> str:
    """Of an empty database."""
    return side.empty_database(name, tmp_path)


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(url, pool_size=2, lock_wait_s=3)
    yield engine
    await engine.dispose()


async def run(engine: AsyncEngine, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    async with engine.begin() as connection:
        result = await connection.execute(text(statement), values)
        return [tuple(row) for row in result.all()] if result.returns_rows else []


async def compared(engine: AsyncEngine, tables: MetaData) -> list[Any]:
    """What Alembic, and our own stricter comparison, find to be different."""

    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [*compare_metadata(context, tables), *differences(connection, tables)]

    async with engine.connect() as connection:
        return await connection.run_sync(compare)


# --- the revisions ---------------------------------------------------------------------------------------------


async def test_migrations_make_what_the_tables_say(name: str, url: str, engine: AsyncEngine) -> None:
    """Columns, types, collations, keys, indexes and checks of a migrated database are those of the code."""
    assert await schema.upgrade(name, url) == schema.Upgraded(name, None, NEWEST[name])
    assert await compared(engine, TABLES[name]) == []


async def test_the_comparison_sees_what_is_different(side: Side, tmp_path: Path) -> None:
    """Another collation, a missing index, check or default, and another length are all found."""
    url = await side.database("product", tmp_path)
    engine = create_engine(url, pool_size=1, lock_wait_s=3)
    try:
        await run(engine, "DROP TABLE sale_change")
        await run(engine, "CREATE TABLE sale_change (change_id VARCHAR(128) NOT NULL PRIMARY KEY, sale_id BIGINT)")
        await run(engine, "DROP TABLE product")
        await run(engine, "CREATE TABLE product (product_id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(100) NOT NULL)")
        found = "\n".join(await compared_ours(engine, product_tables))
    finally:
        await engine.dispose()
    assert "product: no check product_stock_not_negative: stock >= 0" in found
    assert "product: unexpected column name varchar(100) not null" in found
    assert "sale_change: no column contents" in found
    if side.kind == "real":
        assert "sale_change: no column change_id varchar(128) character set ascii collate ascii_bin not null" in found


async def compared_ours(engine: AsyncEngine, tables: MetaData) -> list[str]:
    async with engine.connect() as connection:
        return await connection.run_sync(differences, tables)


def test_the_list_of_revisions_is_that_of_the_files(name: str) -> None:
    """What roles ask for without loading Alembic is what Alembic would bring a database to, and in one line."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("version_locations", str(MIGRATIONS / name))
    config.set_main_option("path_separator", "newline")
    script = ScriptDirectory.from_config(config)
    assert tuple(each.revision for each in reversed(list(script.walk_revisions()))) == REVISIONS[name]
    assert all(revision.startswith(f"{name}_") for revision in REVISIONS[name])


def test_a_first_revision_never_changes(name: str) -> None:
    """Databases that were made by it are there: what it makes stays what it was."""
    lines = [
        f"{table}: {line}" for table, lines in defined(first_tables(name), mysql.dialect()).items() for line in lines
    ]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == FROZEN[REVISIONS[name][0]], sorted(lines)


async def test_every_step_from_the_first_revision_keeps_rows(side: Side, tmp_path: Path) -> None:
    """A sale that was made on the first schema is still there on the newest one."""
    url = side.empty_database("product", tmp_path)
    engine = create_engine(url, pool_size=1, lock_wait_s=3)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(first_tables("product").create_all)
        await run(engine, SALE)
        assert (await schema.upgrade("product", url)).adopted
        assert await run(engine, "SELECT initial, stock, sold, pruned_at_ms FROM sale") == [(5, 3, 2, None)]
    finally:
        await engine.dispose()


# --- upgrading -------------------------------------------------------------------------------------------------


async def test_an_upgrade_is_repeatable(name: str, url: str) -> None:
    """A second upgrade finds nothing to do."""
    await schema.upgrade(name, url)
    assert await schema.upgrade(name, url) == schema.Upgraded(name, NEWEST[name], NEWEST[name])


async def test_upgrades_at_the_same_time_wait_for_each_other(name: str, url: str, engine: AsyncEngine) -> None:
    """Of four at once one makes the schema and the others find it made."""
    done = await asyncio.gather(*(schema.upgrade(name, url) for _ in range(4)))
    assert sorted(each.before is None for each in done) == [False, False, False, True]
    assert await compared(engine, TABLES[name]) == []


async def test_no_lock_is_not_another_upgrade(side: Side, tmp_path: Path) -> None:
    """A server that can give no lock at all, here for want of a database, is told as that, and at once."""
    if side.kind != "real":
        pytest.skip("SQLite has no named locks")
    url = make_url(side.empty_database("product", tmp_path)).set(database="")
    with pytest.raises(NoSchemaLock, match="gives no lock"):
        await schema.upgrade("product", url.render_as_string(hide_password=False))


async def test_the_statements_can_be_applied_by_hand(name: str, url: str, engine: AsyncEngine) -> None:
    """`ddl` changes nothing; a DBA who executes it gets the same schema, revision included."""
    statements = await schema.ddl(name, url)
    assert await schema.found_revision(engine) is None
    lines = [line for line in statements.splitlines() if not line.startswith("--")]
    for statement in "\n".join(lines).split(";\n"):
        if statement.strip():
            await run(engine, statement.replace(":", "\\:"))
    assert await compared(engine, TABLES[name]) == []
    assert await schema.upgrade(name, url) == schema.Upgraded(name, NEWEST[name], NEWEST[name])
    assert "CREATE" not in await schema.ddl(name, url)


async def test_tables_without_a_revision_are_adopted_when_they_are_right(
    name: str, url: str, engine: AsyncEngine
) -> None:
    """A database whose tables were made without migrations gets its revision and what is missing since."""
    async with engine.begin() as connection:
        await connection.run_sync(first_tables(name).create_all)
    assert await schema.upgrade(name, url) == schema.Upgraded(name, None, NEWEST[name], adopted=True)
    assert await compared(engine, TABLES[name]) == []


async def test_other_tables_are_not_adopted(name: str, url: str, engine: AsyncEngine) -> None:
    """Tables that are not ours are named, and nothing is changed."""
    await run(engine, "CREATE TABLE somebody_elses (id INTEGER NOT NULL PRIMARY KEY)")
    with pytest.raises(NotOurSchema, match="table somebody_elses is unknown"):
        await schema.upgrade(name, url)
    with pytest.raises(NotOurSchema):
        await schema.ddl(name, url)
    async with engine.connect() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["somebody_elses"]


async def test_a_foreign_or_newer_schema_is_left_alone(name: str, url: str, engine: AsyncEngine) -> None:
    """Neither another database's schema nor one from the future is touched, and both are told apart."""
    await schema.upgrade(name, url)
    other = next(each for each in DATABASES if each != name)
    with pytest.raises(SchemaOutdated, match="of another database") as foreign:
        await schema.upgrade(other, url)
    assert (foreign.value.kind, foreign.value.found) == ("foreign", NEWEST[name])
    await run(engine, f"UPDATE alembic_version SET version_num = '{name}_9999'")
    with pytest.raises(SchemaOutdated, match="newer") as newer:
        await schema.upgrade(name, url)
    assert newer.value.kind == "newer"


async def test_a_failing_upgrade_on_sqlite_leaves_nothing(tmp_path: Path) -> None:
    """There a migration is one transaction: half of it is nothing of it."""
    url = f"sqlite+aiosqlite:///{tmp_path}/product.db"
    engine = create_engine(url, pool_size=1, lock_wait_s=3)
    async with engine.begin() as connection:
        await connection.run_sync(first_tables("product").create_all)
        await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO alembic_version VALUES ('product_0001')"))
        # The last change of the second revision cannot be made.
        await connection.execute(text("ALTER TABLE product ADD COLUMN updated_at_ms BIGINT DEFAULT 0 NOT NULL"))
    with pytest.raises(DBAPIError):
        await schema.upgrade("product", url)
    columns = await run(engine, "SELECT name FROM pragma_table_info('sale')")
    await engine.dispose()
    assert ("pruned_at_ms",) not in columns


# --- roles -----------------------------------------------------------------------------------------------------


SERVICES = {
    "product": lambda url: serve_product(ProductSettings(grpc="127.0.0.1:0", database_url=SecretStr(url))),
    "order": lambda url: serve_order(OrderSettings(grpc="127.0.0.1:0", database_url=SecretStr(url))),
    "coordinator": lambda url: serve_coordinator(
        CoordinatorSettings(grpc="127.0.0.1:0", http="127.0.0.1:0", database_url=SecretStr(url))
    ),
}


@pytest.mark.parametrize(
    ("service", "found"),
    [
        (service, found)
        for service in SERVICES
        for found in (None, "old", "newer")
        if found != "old" or len(REVISIONS[service]) > 1
    ],
)
async def test_a_service_starts_on_the_newest_schema_only(
    side: Side, service: str, found: str | None, tmp_path: Path
) -> None:
    """On an absent, old or newer schema it refuses, and says setting, address, found, wanted and the command."""
    url = side.empty_database(service, tmp_path)
    if found is not None:
        await schema.upgrade(service, url)
        engine = create_engine(url, pool_size=1, lock_wait_s=3)
        revision = REVISIONS[service][0] if found == "old" else f"{service}_9999"
        await run(engine, f"UPDATE alembic_version SET version_num = '{revision}'")
        await engine.dispose()
    with pytest.raises(SchemaOutdated) as caught:
        async with SERVICES[service](url):
            pass
    line = str(caught.value)
    assert caught.value.kind == (found or "absent")
    for fact in (f"{service}.database_url", NEWEST[service], f"`seckill db upgrade {service}`", engine_address(url)):
        assert fact in line, line
    assert "\n" not in line
    if side.kind == "real":
        assert "***" in line


def engine_address(url: str) -> str:
    return url.rpartition("@")[2].partition("?")[0]


async def test_looking_makes_no_file(tmp_path: Path) -> None:
    """A SQLite file that is not there is no schema, and is not there afterwards."""
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path}/absent.db", pool_size=1, lock_wait_s=1)
    with pytest.raises(SchemaOutdated):
        await schema.require("order", engine)
    await engine.dispose()
    assert os.listdir(tmp_path) == []


# --- what the database itself refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("product", "INSERT INTO product (product_id, stock, created_at_ms) VALUES (1, -1, 1)"),
        ("product", BROKEN_SALE),
        ("order", EMPTY_ORDER),
        ("dead_letters", "INSERT INTO letter_action (letter_id, operator, action, at_ms) VALUES (99, 'me', 'note', 1)"),
    ],
    indirect=["name"],
)
async def test_checks_and_foreign_keys_hold(name: str, url: str, engine: AsyncEngine, statement: str) -> None:
    """Checks and foreign keys are enforced, not only declared."""
    await schema.upgrade(name, url)
    with pytest.raises(DBAPIError, match=r"(?i)constraint"):
        await run(engine, statement)


async def test_a_letter_has_one_row_and_a_known_state(side: Side, tmp_path: Path) -> None:
    """Letters are unique by order id, in any case of letters its own, and in one of four states."""
    engine = create_engine(await side.database("dead_letters", tmp_path), pool_size=1, lock_wait_s=3)
    insert = (
        "INSERT INTO letter (subject, order_id, state, reason, record_topic, record_partition, record_offset,"
        " letter_partition, letter_offset, first_failed_ms, last_failed_ms, attempts, created_ms, updated_ms)"
        " VALUES (:subject, :order_id, :state, 'UNREADABLE', 't', 0, 0, 0, 0, 1, 1, 1, 1, 1)"
    )
    try:
        for number, state in enumerate(STATES):
            await run(engine, insert, subject=f"1-{number}", order_id=f"1-{number}", state=state)
        await run(engine, insert, subject="t/0/1", order_id=None, state="new")
        await run(engine, insert, subject="t/0/2", order_id=None, state="new")
        for subject, order_id, state in [("1-0", None, "new"), ("x", "1-0", "new"), ("y", "1-9", "lost")]:
            with pytest.raises(DBAPIError, match=r"(?i)constraint|duplicate"):
                await run(engine, insert, subject=subject, order_id=order_id, state=state)
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("name", "query", "index"),
    [
        ("product", "SELECT * FROM stock_reservation WHERE gid = 'g'", "idx_reservation_gid"),
        (
            "product",
            "SELECT SUM(quantity) FROM stock_reservation WHERE sale_id = 1 AND user_id IN (1, 2)",
            "idx_reservation_buyer",
        ),
        ("order", "SELECT * FROM orders WHERE gid = 'g' AND branch_id = '02'", "idx_orders_gid"),
        ("order", "SELECT * FROM orders WHERE user_id = 1 ORDER BY created_at_ms DESC LIMIT 5", "idx_orders_buyer"),
        (
            "coordinator",
            "SELECT * FROM coordinator_transaction WHERE status IN ('prepared', 'submitted') AND next_cron_ms <= 5",
            "coordinator_transaction_due",
        ),
        ("dead_letters", "SELECT * FROM letter WHERE state = 'new' ORDER BY last_failed_ms", "letter_by_state"),
    ],
    indirect=["name"],
)
async def test_queries_find_their_index(name: str, url: str, engine: AsyncEngine, query: str, index: str) -> None:
    """What is asked all the time does not read whole tables."""
    await schema.upgrade(name, url)
    explain = "EXPLAIN" if engine.dialect.name in MYSQL else "EXPLAIN QUERY PLAN"
    assert index in str(await run(engine, f"{explain} {query}"))
