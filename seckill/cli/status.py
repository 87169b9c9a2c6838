"""`seckill status`: the whole pipeline on one screen, asked of each part itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import age, out, print_json, print_table, say, stdout_is_terminal
from seckill.cli.errors import FAILED, OK, UNREACHABLE
from seckill.cli.state import JsonOption, client_settings, front_of, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seckill.settings import Settings

ANSWER_TIMEOUT_S = 3.0
UNDECIDED = ("prepared", "submitted", "aborting")
LISTED_MAX = 1_000

Report = dict[str, Any]


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="Of --watch.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show each role, the consumer's lag, the ledger, and undecided transactions.

    Exit code 0: every role is ready; 1: something is not; 3: nothing answers at all.

    Examples:

      seckill status
      seckill status --watch
      seckill status --json | jq .ledger
    """
    settings = client_settings(context)
    if not watch:
        report = run(gathered(settings))
        _print(report, as_json)
        raise typer.Exit(exit_code(report))
    run(_watch(settings, interval, as_json))


async def gathered(settings: Settings) -> Report:
    """Asks every part at once. What does not answer stands in the report as an `error`, never as nothing."""
    roles, lag, ledger, undecided = await asyncio.gather(
        _roles(settings), _lag(settings), _ledger(settings), _undecided(settings)
    )
    return {"roles": roles, "lag": lag, "ledger": ledger, "undecided": undecided}


def exit_code(report: Report) -> int:
    states = {role["state"] for role in report["roles"]}
    if states == {"unreachable"}:
        return UNREACHABLE
    partial = any("error" in report[part] for part in ("lag", "ledger", "undecided"))
    return OK if states == {"ready"} and not partial else FAILED


async def _watch(settings: Settings, interval: float, as_json: bool) -> None:
    if as_json or not stdout_is_terminal():
        while True:
            _print(await gathered(settings), as_json)
            await asyncio.sleep(interval)
    from rich.live import Live

    with Live(console=out(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(_screen(await gathered(settings)), refresh=True)
            await asyncio.sleep(interval)


# --- asking --------------------------------------------------------------------------------------------------------


async def _roles(settings: Settings) -> list[Report]:
    import aiohttp

    from seckill.client import front_url
    from seckill.security import front_context

    front = front_url(settings.front.http, https=True) if settings.front.https else settings.front.http
    addresses = [
        ("front", "front.http", front),
        ("product", "product.ops", settings.product.ops),
        ("order", "order.ops", settings.order.ops),
        ("worker", "worker.ops", settings.worker.ops),
        ("reconcile", "reconcile.ops", settings.reconcile.ops),
        ("coordinator", "dtm.http", settings.dtm.http),
    ]
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=front_context(settings.front) or True)  # only the front's is HTTPS
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return await asyncio.gather(*(_role(session, *each) for each in addresses))


async def _role(session: Any, role: str, setting: str, address: str) -> Report:
    import aiohttp

    from seckill.client import front_url, reason_of

    known = {"role": role, "setting": setting, "address": address}
    try:
        async with session.get(f"{front_url(address)}/readyz") as response:
            if response.status == 404 and role == "coordinator":
                return {**known, "state": "ready", "checks": {}}  # a DTM server answers, which has no such page
            found = await response.json(content_type=None)
            ready = response.status == 200
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return {**known, "state": "unreachable", "checks": {}, "error": reason_of(error)}
    checks = found.get("checks", {}) if isinstance(found, dict) else {}
    return {**known, "state": "ready" if ready else "unready", "checks": checks}


async def _lag(settings: Settings) -> Report:
    from seckill.domain.errors import PublishUnknown
    from seckill.messaging.lag import consumer_lag

    limited = settings.kafka.model_copy(update={"request_timeout_ms": int(ANSWER_TIMEOUT_S * 1000)})
    try:
        partitions = await consumer_lag(limited)
    except PublishUnknown as error:
        return {"error": str(error)}
    return {
        "topic": settings.kafka.topic,
        "group": settings.kafka.group,
        "total": sum(each.lag for each in partitions),
        "partitions": [{**asdict(each), "lag": each.lag} for each in partitions],
    }


async def _ledger(settings: Settings) -> Report:
    from seckill.client import FrontUnavailable, Problem

    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S), front_of(settings) as front:
            return {"sales": (await front.status())["ledger"]}
    except (FrontUnavailable, Problem, TimeoutError, KeyError) as error:
        return {"error": str(error) or "the front gave no answer in time"}


async def _undecided(settings: Settings) -> Report:
    from seckill.cli.errors import coordinator_silent
    from seckill.cli.tx import coordinator_of
    from seckill.dtm.errors import DtmError, Unavailable

    try:
        async with coordinator_of(settings, timeout_ms=int(ANSWER_TIMEOUT_S * 1000)) as dtm:
            found = [each for state in UNDECIDED for each in await dtm.list(limit=LISTED_MAX, status=state)]
    except Unavailable as error:
        return {"error": coordinator_silent(error)}
    except DtmError as error:
        return {"error": str(error)}
    created = [each.created_at.timestamp() for each in found if each.created_at]
    oldest_ms = int((time.time() - min(created)) * 1000) if created else None
    counts = {state: sum(each.status == state for each in found) for state in UNDECIDED}
    return {"total": len(found), **counts, "oldest_age_ms": oldest_ms}


# --- showing -------------------------------------------------------------------------------------------------------

_ROLE_COLUMNS = ("role", "state", "address", "setting", "what is wrong")
_LEDGER_COLUMNS = ("product", "sale", "in the ledger", "parked", "oldest")
_LAG_COLUMNS = ("partition", "committed", "end", "lag")


def _print(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report)
    elif stdout_is_terminal():
        out().print(_screen(report))
    else:
        for columns, rows in _tables(report):
            print_table(columns, rows)
            say("")
        say("\n".join(_lines(report)))


def _screen(report: Report) -> RenderableType:
    from rich.console import Group

    from seckill.cli.console import fitted_table

    tables = (fitted_table(columns, rows, spare=("setting", "address")) for columns, rows in _tables(report))
    return Group(*(part for table in tables for part in (table, "")), *_lines(report))


def _tables(report: Report) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    tables = [
        (_ROLE_COLUMNS, _role_rows(report)),
        (_LAG_COLUMNS, _lag_rows(report)),
        (_LEDGER_COLUMNS, _ledger_rows(report)),
    ]
    return [(columns, rows) for columns, rows in tables if rows]


def _role_rows(report: Report) -> list[list[str]]:
    return [
        [
            role["role"],
            role["state"],
            role["address"],
            role["setting"],
            role.get("error") or _wrong(role["checks"]) or "-",
        ]
        for role in report["roles"]
    ]


def _wrong(checks: dict[str, str]) -> str:
    return "; ".join(f"{name}: {answer}" for name, answer in checks.items() if answer != "ok")


def _lag_rows(report: Report) -> list[list[str]]:
    rows = [
        [str(each["partition"]), str(each["committed"] if each["committed"] is not None else "-"), str(each["end"]),
         str(each["lag"])]
        for each in report["lag"].get("partitions", ())
    ]  # fmt: skip
    return [*rows, ["total", "-", "-", str(report["lag"]["total"])]] if rows else rows


def _ledger_rows(report: Report) -> list[list[str]]:
    return [
        [str(each["product_id"]), str(each["sale_id"]), str(each["entries"]), str(each["parked"]),
         age(each["oldest_age_ms"]) if each["entries"] > each["parked"] else "-"]
        for each in report["ledger"].get("sales", ())
    ]  # fmt: skip


def _lines(report: Report) -> list[str]:
    undecided = report["undecided"]
    lines = [f"{part}: {report[part]['error']}" for part in ("lag", "ledger", "undecided") if "error" in report[part]]
    if "error" not in undecided:
        states = ", ".join(f"{undecided[state]} {state}" for state in UNDECIDED if undecided[state])
        more = f" ({states}), oldest {age(undecided['oldest_age_ms'])}" if states else ""
        lines.append(f"undecided transactions: {undecided['total']}{more}")
    return lines
