"""A database: asked, and judged by what its section of the settings wants of it."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.coordinator.tables import metadata as coordinator_tables
from seckill.doctor.findings import Finding, ok, problem, unreachable, warning
from seckill.doctor.judgements.clock import judge_clock
from seckill.doctor.judgements.plain import judge_encryption
from seckill.doctor.judgements.sql import DatabaseWants, judge_database
from seckill.doctor.probes.sql import ask_database, connected
from seckill.dtm.database import create_engine
from seckill.messaging.letters import metadata as letter_tables
from seckill.order.tables import metadata as order_tables
from seckill.plaintext import Plaintext
from seckill.product.tables import metadata as product_tables
from seckill.schema import SchemaOutdated, require
from seckill.schema.revisions import argument_of, is_absent
from seckill.security import database_context
from seckill.settings import CoordinatorSettings, DeadLetterSettings, OrderSettings, ProductSettings, variable

POOL_SIZE = 4
"""Of the coordinator, which has no setting for it."""

AnyDatabase = ProductSettings | OrderSettings | CoordinatorSettings | DeadLetterSettings

_TABLES: Mapping[str, MetaData] = {
    "product": product_tables,
    "order": order_tables,
    "coordinator": coordinator_tables,
    "dead_letters": letter_tables,
}


async def examine_database(name: str, section: AnyDatabase, *, embedded: bool) -> list[Finding]:
    """Raises Silent, Stranger and CertificateProblem."""
    url = section.database_url.get_secret_value()
    engine = create_engine(url, pool_size=1, lock_wait_s=3, tls=database_context(name, section))
    try:
        if engine.url.get_backend_name() == "sqlite":
            return await _sqlite(name, engine, embedded=embedded)
        async with connected(engine) as connection:
            facts = await ask_database(connection)
        wants = DatabaseWants(getattr(section, "pool_size", POOL_SIZE), byte_wise_columns(_TABLES[name]))
        plain = [] if embedded else [judge_encryption(_plain_database(name, section))]
        return [
            ok("reachable", "yes"), *judge_database(facts, wants), await _schema(name, engine),
            *judge_clock(facts.clock), *plain,
        ]  # fmt: skip
    finally:
        await engine.dispose()


def _plain_database(name: str, section: AnyDatabase) -> Plaintext | None:
    if section.database_tls != "off":
        return None
    remedy = f"set {name}.database_tls to verify-identity, and {name}.database_tls_ca"
    return Plaintext(f"{name}.database_url", "", remedy)


async def _sqlite(name: str, engine: AsyncEngine, *, embedded: bool) -> list[Finding]:
    if is_absent(engine):
        make_it = (
            f"name a MariaDB with {variable(f'{name}.database_url')}, or run `seckill db upgrade {argument_of(name)}`"
        )
        return [unreachable(f"there is no file {engine.url.database}", make_it)]
    findings = [ok("reachable", "yes"), await _schema(name, engine)]
    if not embedded:
        remedy = f"name a MariaDB with {variable(f'{name}.database_url')}"
        findings.append(warning("version", "SQLite: one machine, one writer at a time", remedy))
    return findings


async def _schema(name: str, engine: AsyncEngine) -> Finding:
    try:
        await require(name, engine)
    except SchemaOutdated as error:
        found = f"{error.found or 'none'}, {error.wanted} is wanted"
        return problem("schema", found, f"run `seckill db upgrade {argument_of(name)}`")
    return ok("schema", "the newest")


def byte_wise_columns(tables: MetaData) -> dict[tuple[str, str], str]:
    """The columns that are defined with a collation of their own, and that collation."""
    found = {}
    for table in tables.tables.values():
        for column in table.columns:
            variant = column.type._variant_mapping.get("mysql")
            collation = getattr(variant, "collation", None)
            if collation is not None:
                found[table.name, column.name] = str(collation)
    return found
