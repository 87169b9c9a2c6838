"""`seckill db …`: the schemas of the four databases, and what may be thrown away."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import note, print_json, print_table, say
from seckill.cli.errors import FAILED, UNREACHABLE, Unreachable, WrongUsage
from seckill.cli.state import JsonOption, chosen, file_named, role_settings, run

if TYPE_CHECKING:
    import ssl

    from seckill.prune import Plan, Pruned
    from seckill.schema import Upgraded
    from seckill.settings import Settings

NAMES = ("product", "order", "coordinator", "dead-letters")

Databases = Annotated[
    list[str] | None,
    typer.Argument(metavar=f"[{'|'.join(NAMES)}]...", help="Which databases. [default: all]", show_default=False),
]

RETENTION_MIN = "1h"
"""Every time-out, repeat and difference of clocks in the pipeline is far below it."""

commands = typer.Typer(
    no_args_is_help=True,
    help="""Make and upgrade the databases' tables, and prune old rows.

Roles do not start on a database whose schema is not theirs.

Without a settings file these are the databases of the embedded profile, in
this folder. `seckill up` keeps databases of its own, and upgrades them itself.

Examples:

  seckill --config seckill.toml db upgrade
  seckill --config seckill.toml db status
  seckill --config seckill.toml db prune --older-than 30d --dry-run
""",
)


@commands.command("upgrade")
def upgrade(
    context: typer.Context,
    databases: Databases = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements instead of executing them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring databases to the newest schema: those that the settings name, all or some.

    Safe to repeat, and to run twice at once. The databases themselves must
    exist (a SQLite file is made). With --sql nothing is changed.

    Examples:

      seckill db upgrade
      seckill --config seckill.toml db upgrade product order
      seckill --config seckill.toml db upgrade product --sql > product.sql
    """
    names = _chosen(databases)
    settings = _settings(context, names)
    if sql:
        statements = {_argument(name): run(_ddl(settings, name)) for name in names}
        if as_json:
            print_json({"statements": statements})
        else:
            say("\n".join(statements.values()).rstrip("\n"))
        return
    done = []
    for name in names:
        one = run(_upgrade(settings, name))
        done.append({"database": _argument(name), "before": one.before, "after": one.after, "adopted": one.adopted})
        if not as_json:
            say(_upgraded_line(one))
    if as_json:
        print_json({"databases": done})


def _upgraded_line(one: Upgraded) -> str:
    name = _argument(one.name)
    if one.before == one.after:
        return f"{name}: {one.after}, nothing to do"
    adopted = " (its tables were there, and are as they should be)" if one.adopted else ""
    return f"{name}: {one.before or 'nothing'} -> {one.after}{adopted}"


@commands.command("status")
def status(context: typer.Context, databases: Databases = None, as_json: JsonOption = False) -> None:
    """Show the schema that each database has, and the one that is wanted.

    Exit code 1 when they differ, 3 when a database does not answer.

    Examples:

      seckill db status
      seckill --config seckill.toml db status product --json
    """
    names = _chosen(databases)
    settings = _settings(context, names)
    rows = [run(_status(settings, name)) for name in names]
    if as_json:
        print_json({"databases": rows})
    else:
        columns = ("database", "state", "found", "wanted", "address")
        print_table(columns, [[row[column] for column in columns] for row in rows], spare=("address",))
    for row in rows:
        if row["problem"]:
            note(f"seckill: {row['problem']}")
    if any(row["state"] == "unreachable" for row in rows):
        raise typer.Exit(UNREACHABLE)
    if any(row["state"] != "current" for row in rows):
        raise typer.Exit(FAILED)


def _settings(context: typer.Context, names: list[str]) -> Settings:
    """Those of the roles: not of a pipeline that `seckill up` runs, which keeps its own databases.

    Says so when nobody has said which databases are meant.
    """
    from seckill.log import configure_logging
    from seckill.settings import variable

    configure_logging("debug" if chosen(context).debug else "error")
    if not chosen(context).debug:
        for library in ("aiokafka", "asyncmy"):  # asyncmy logs MySQL's notes as warnings
            logging.getLogger(library).setLevel(logging.CRITICAL)
    settings = role_settings(context)
    given = {name.upper() for name, value in os.environ.items() if value}
    if not file_named(context) and any(variable(f"{name}.database_url") not in given for name in names):
        note(_OF_THE_PROFILE)
    return settings


_OF_THE_PROFILE = (
    "seckill: `seckill up` keeps databases of its own; these are those of the embedded profile, in this folder; "
    "name others with --config"
)


@commands.command("prune")
def prune(
    context: typer.Context,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help=f"Keep what changed since: 30d, 12h; at least {RETENTION_MIN}.")
    ],
    piece: Annotated[int, typer.Option(min=1, max=10_000, help="Rows in one transaction.")] = 500,
    pause: Annotated[float, typer.Option(min=0, max=60, metavar="SECONDS", help="Between two of them.")] = 0.05,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete old rows that nothing can need any more; never anything undecided.

    Of transactions that were decided longer ago: barrier, reply and decision
    rows, and what our own coordinator keeps of them. Of whole sales that were
    closed and ended longer ago: their reservations, if neither Redis, Kafka
    nor a dead letter can bring one of their orders back; else it says why they
    stay. From then on such a sale refuses every order, `seckill audit` leaves
    it out, and an order of it is found in the order service only.

    Redis, Kafka and the coordinator must answer. --dry-run cannot count the
    decisions of transactions whose reservations would go in the same run.

    Examples:

      seckill --config seckill.toml db prune --older-than 30d --dry-run
      seckill --config seckill.toml db prune --older-than 30d --pause 0.2
    """
    import time

    from seckill.cli.times import parse_age

    try:
        age_ms = parse_age(older_than)
    except ValueError as error:
        raise WrongUsage(f"--older-than: {error}") from error
    if age_ms < parse_age(RETENTION_MIN):
        raise WrongUsage(f"--older-than: {older_than} is too short, {RETENTION_MIN} is the least")
    from seckill.prune import Plan

    now_ms = int(time.time() * 1000)
    plan = Plan(now_ms - age_ms, now_ms, piece=piece, pause_ms=int(pause * 1000), dry_run=dry_run)
    done = run(_prune(_settings(context, _chosen(None)), plan))
    if as_json:
        print_json(_pruned_fields(done, plan))
    else:
        _show_pruned(done, plan)


def _pruned_fields(done: Pruned, plan: Plan) -> dict[str, Any]:
    return {
        "dry_run": plan.dry_run,
        "cutoff_ms": plan.cutoff_ms,
        "rows": dict(done.rows),
        "sales": done.sales,
        "kept": [{"sale_id": each.sale_id, "product_id": each.product_id, "reason": each.reason} for each in done.kept],
        "coordinator": done.coordinator,
    }


def _show_pruned(done: Pruned, plan: Plan) -> None:
    if done.rows:
        print_table(("rows", "would go" if plan.dry_run else "deleted"), sorted(done.rows.items()))
    elif not done.sales:
        say("nothing to delete")
    for sale_id in done.sales:
        say(f"sale {sale_id}: its reservations {'would go' if plan.dry_run else 'are gone'}")
    for each in done.kept:
        say(f"sale {each.sale_id} of product {each.product_id}: its reservations stay: {each.reason}")
    if not done.coordinator:
        note("seckill: the coordinator database has no schema: DTM keeps its transactions itself")


async def _prune(settings: Settings, plan: Plan) -> Pruned:
    from seckill.prune import prune

    return await prune(settings, plan)


# --- one database ----------------------------------------------------------------------------------------------------


def _chosen(databases: list[str] | None) -> list[str]:
    """Names as the settings' sections have them, each once."""
    given = [name.replace("_", "-") for name in databases or NAMES]
    for name in given:
        if name not in NAMES:
            raise WrongUsage(f"{name!r} is none of the databases {', '.join(NAMES)}")
    return [name.replace("-", "_") for name in dict.fromkeys(given)]


def _argument(name: str) -> str:
    from seckill.schema.revisions import argument_of

    return argument_of(name)


def _url(settings: Settings, name: str) -> str:
    url: str = getattr(settings, name).database_url.get_secret_value()
    return url


def _tls(settings: Settings, name: str) -> ssl.SSLContext | None:
    from seckill.security import database_context

    return database_context(name, getattr(settings, name))


async def _upgrade(settings: Settings, name: str) -> Upgraded:
    from seckill import schema

    async with _answering(settings, name):
        return await schema.upgrade(name, _url(settings, name), tls=_tls(settings, name))


async def _ddl(settings: Settings, name: str) -> str:
    from seckill import schema

    async with _answering(settings, name):
        return await schema.ddl(name, _url(settings, name), tls=_tls(settings, name))


async def _status(settings: Settings, name: str) -> dict[str, Any]:
    from seckill.dtm.database import create_engine
    from seckill.schema import NEWEST, SchemaOutdated, found_revision
    from seckill.schema.revisions import address_of

    engine = create_engine(_url(settings, name), pool_size=1, lock_wait_s=3, tls=_tls(settings, name))
    row: dict[str, Any] = {"database": _argument(name), "found": None, "wanted": NEWEST[name], "problem": ""}
    row["address"] = address_of(engine)
    try:
        async with _answering(settings, name):
            row["found"] = await found_revision(engine)
    except Unreachable as error:
        return row | {"state": "unreachable", "problem": str(error)}
    finally:
        await engine.dispose()
    if row["found"] == row["wanted"]:
        return row | {"state": "current"}
    outdated = SchemaOutdated(name, row["address"], row["found"])
    return row | {"state": outdated.kind, "problem": str(outdated)}


@asynccontextmanager
async def _answering(settings: Settings, name: str) -> AsyncIterator[None]:
    """Raises Unreachable, in the roles' words, for what the database says while the block uses it."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        from seckill.doctor.start import database_unavailable
        from seckill.schema import setting_of

        told = await database_unavailable(setting_of(name), _url(settings, name), error)
        raise Unreachable(f"{told}; {told.remedy}") from error
