"""`seckill status`: the whole pipeline on one screen, asked of each part itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
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
PARTS = ("lag", "ledger", "undecided", "letters")
LISTED_MAX = 1_000

Report = dict[str, Any]


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="Of --watch.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show each role, the consumers' lag, the ledger, undecided transactions, and dead letters.

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
    _import_what_asks()
    roles, (lag, retry), ledger, undecided, letters = await asyncio.gather(
        _roles(settings), _lags(settings), _ledger(settings), _undecided(settings), _letters(settings)
    )
    parts = {"lag": lag, "retry": retry, "ledger": ledger, "undecided": undecided, "letters": letters}
    return {"roles": roles, **parts}


def _import_what_asks() -> None:
    """Before the first question has its time: importing takes a second, in which no answer would be heard."""
    import seckill.client
    import seckill.clients
    import seckill.dlq.tally
    import seckill.messaging.lag
    import seckill.security  # noqa: F401


def exit_code(report: Report) -> int:
    states = {role["state"] for role in report["roles"]}
    if states == {"unreachable"}:
        return UNREACHABLE
    partial = any("error" in report[part] for part in PARTS)
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
        ("dead-letters", "dead_letters.http", settings.dead_letters.http),
        ("alerts", "alerts.ops", settings.alerts.ops),
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


async def _lags(settings: Settings) -> tuple[Report, Report]:
    """What the group has yet to pass, partition by partition; and what waits in each retry topic."""
    from seckill.domain.errors import PublishUnknown
    from seckill.messaging.lag import consumer_lag
    from seckill.messaging.retry_topics import retry_tiers

    kafka, tiers = settings.kafka, retry_tiers(settings.kafka, settings.retry)
    limited = kafka.model_copy(update={"request_timeout_ms": int(ANSWER_TIMEOUT_S * 1000)})
    try:
        partitions = await consumer_lag(limited, tiers)
    except PublishUnknown as error:
        return {"error": str(error)}, {"topics": []}  # told once
    lags = Counter({tier.topic: 0 for tier in tiers})
    for each in partitions:
        lags[each.topic] += each.lag
    main = {
        "topic": kafka.topic,
        "group": kafka.group,
        "total": lags[kafka.topic],
        "partitions": [{**asdict(each), "lag": each.lag} for each in partitions if each.topic == kafka.topic],
    }
    waiting = [{"topic": tier.topic, "delay_ms": tier.delay_ms, "lag": lags[tier.topic]} for tier in tiers]
    return main, {"group": kafka.retry_group, "total": sum(each["lag"] for each in waiting), "topics": waiting}


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


async def _letters(settings: Settings) -> Report:
    """By state, from their index; nothing where no index is set up."""
    from seckill.dlq.tally import letters_by_state
    from seckill.domain.errors import SeckillError
    from seckill.settings import DeadLetterSettings

    if settings.dead_letters.database_url == DeadLetterSettings().database_url:
        return {}
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            by_state = await letters_by_state(settings.dead_letters)
    except (SeckillError, TimeoutError) as error:
        return {"error": str(error) or "their index gave no answer in time"}
    return {"total": sum(by_state.values()), "by_state": by_state}


# --- showing -------------------------------------------------------------------------------------------------------

_ROLE_COLUMNS = ("role", "state", "address", "setting", "what is wrong")
_LEDGER_COLUMNS = ("product", "sale", "in the ledger", "parked", "oldest")
_LAG_COLUMNS = ("partition", "committed", "end", "lag")
_RETRY_COLUMNS = ("retry topic", "delay", "waiting")


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
        (_RETRY_COLUMNS, _retry_rows(report)),
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


def _retry_rows(report: Report) -> list[list[str]]:
    return [[each["topic"], age(each["delay_ms"]), str(each["lag"])] for each in report["retry"]["topics"]]


def _ledger_rows(report: Report) -> list[list[str]]:
    return [
        [str(each["product_id"]), str(each["sale_id"]), str(each["entries"]), str(each["parked"]),
         age(each["oldest_age_ms"]) if each["entries"] > each["parked"] else "-"]
        for each in report["ledger"].get("sales", ())
    ]  # fmt: skip


def _lines(report: Report) -> list[str]:
    undecided = report["undecided"]
    lines = [f"{part}: {report[part]['error']}" for part in PARTS if "error" in report[part]]
    if "error" not in undecided:
        states = ", ".join(f"{undecided[state]} {state}" for state in UNDECIDED if undecided[state])
        more = f" ({states}), oldest {age(undecided['oldest_age_ms'])}" if states else ""
        lines.append(f"undecided transactions: {undecided['total']}{more}")
    if "by_state" in report["letters"]:
        counts = ", ".join(f"{count} {state}" for state, count in report["letters"]["by_state"].items())
        lines.append(f"dead letters: {counts or 'none'}")
    return lines
