"""`seckill audit`: the six invariants, from the stores of a pipeline that runs or rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import age, event_lines, note, print_json, print_table, say
from seckill.cli.demo import show_verdict
from seckill.cli.errors import FAILED, OK, UNREACHABLE, CliError, WrongUsage, explained
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from seckill.audit.reading import Scope
    from seckill.audit.rules import Verdict
    from seckill.audit.stores import Stores
    from seckill.audit.timeline import Timeline
    from seckill.settings import Settings

SLOW_SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the options ask for."""

    scope: Scope
    pause_s: float
    slow_s: float
    wait_s: float
    limit: int


@dataclass(frozen=True, slots=True)
class _Found:
    """`unrest`: what was still under way although the pipeline was to be at rest; `more`: stories not told."""

    verdict: Verdict
    timelines: Sequence[Timeline]
    more: int
    unrest: str
    seconds: float
    limit: int

    @property
    def exit_code(self) -> int:
        return OK if self.verdict.holds and not self.unrest else FAILED


def audit(
    context: typer.Context,
    sales: Annotated[list[int] | None, typer.Option("--sale", metavar="ID", help="Only this sale; repeatable.")] = None,
    products: Annotated[
        list[int] | None, typer.Option("--product", metavar="ID", help="Only this product's sales; repeatable.")
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Order ids that clients were given, one a line: none may be lost."),
    ] = None,
    at_rest: Annotated[
        bool, typer.Option("--at-rest", help="Nothing may be under way: frozen units and pending orders are wrong too.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Of --at-rest: wait so long for orders under way.")
    ] = 10,
    pause: Annotated[
        float, typer.Option(min=0, max=600, metavar="SECONDS", help="Between the two readings of a suspicion.")
    ] = 2,
    slow: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Warn of orders that are pending for longer.")
    ] = 300,
    results: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Compare only so many results that buyers are told; --watch goes on there."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="Most breaches and timelines to show.")] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Audit again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.2, max=86_400, metavar="SECONDS", help="Of --watch: from one to the next.")
    ] = 60,
    count: Annotated[int | None, typer.Option(min=1, help="Of --watch: end after so many.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the six invariants against the stores: both databases, Redis and the dead letters.

    The pipeline may run meanwhile: what is only on its way is not wrong, and
    what looks wrong is looked at again after --pause. Shown is what stays
    wrong, each order with its timeline. Locks nothing.

    Of a million orders, the sums take 4 s of processor time here and 4 s in
    the databases; comparing all that buyers are told, 20 s and 12 s more. To
    run it every minute, spread the latter over the readings with --results.

    Exit code 1 when an invariant is false or an order of --replies is
    nowhere, 3 when a store does not answer.

    Examples:

      seckill audit
      seckill audit --sale 7 --watch --interval 60 --results 50000
      seckill audit --at-rest --replies replies.txt --json
    """
    from seckill.audit.reading import Scope, Walk

    if count is not None and not watch:
        raise WrongUsage("--count goes with --watch")
    accepted = frozenset(_read_replies(replies) if replies else [])
    scope = Scope(
        product_ids=products or None, sale_ids=sales or None, at_rest=at_rest, accepted=accepted,
        results=None if results == 0 else Walk(results),
    )  # fmt: skip
    plan = _Plan(scope, pause, slow, wait, limit)
    settings = client_settings(context)
    if watch:
        raise typer.Exit(run(_watch(settings, plan, interval, count, as_json)))
    found = run(_once(settings, plan))
    _print(found, as_json)
    raise typer.Exit(found.exit_code)


async def _once(settings: Settings, plan: _Plan) -> _Found:
    from seckill.audit.stores import open_stores

    async with open_stores(settings) as stores:
        return await _audit(stores, plan)


async def _audit(stores: Stores, plan: _Plan) -> _Found:
    from seckill.audit.live import audit
    from seckill.audit.stores import rest
    from seckill.audit.timeline import timelines

    await stores.admission.sales.check()  # before the databases, where a whole reading would come to nothing
    unrest = await rest(stores, plan.scope.product_ids, timeout_s=plan.wait_s) if plan.scope.at_rest else ""
    began = time.perf_counter()
    verdict = await audit(stores, plan.scope, pause_s=plan.pause_s, slow_after_ms=int(plan.slow_s * 1000))
    seconds = round(time.perf_counter() - began, 3)
    if not (verdict.sales or verdict.pruned_sales) and (plan.scope.sale_ids or plan.scope.product_ids):
        raise CliError("there is no such sale: see `seckill sale list`")
    told, more = await timelines(stores, verdict, limit=plan.limit)
    return _Found(verdict, told, more, unrest, seconds, plan.limit)


async def _watch(settings: Settings, plan: _Plan, interval_s: float, count: int | None, as_json: bool) -> int:
    """Until Ctrl-C, or for `count` times; then the exit code. A store that does not answer is said, and asked again."""
    code, number = OK, 0
    while True:
        began = time.monotonic()
        try:
            found = await _once(settings, plan)
        except Exception as error:
            foreseen = explained(error)
            if foreseen is None or foreseen[0] != UNREACHABLE:
                raise
            _print_silence(foreseen[1], as_json)
            code = code or UNREACHABLE
        else:
            _print_again(found, as_json)
            code = FAILED if found.exit_code else code
        number += 1
        if number == count:
            return code
        await asyncio.sleep(max(0.0, interval_s - (time.monotonic() - began)))


def _read_replies(path: Path) -> list[str]:
    from seckill.domain.order import parse_order_id

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"--replies: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            parse_order_id(line)
        except ValueError as error:
            raise WrongUsage(f"--replies: {path} line {number}: {error}") from error
    return lines


# --- showing ---------------------------------------------------------------------------------------------------------


def _report(found: _Found) -> dict[str, Any]:
    from seckill.audit.report import verdict_report

    verdict = found.verdict
    return {
        "at_ms": time.time_ns() // 1_000_000,
        "holds": verdict.holds,
        **verdict_report(verdict, shown=found.limit),
        "rejected": verdict.rejected,
        "sales": verdict.sales,
        "pruned_sales": verdict.pruned_sales,
        "pending": verdict.pending,
        "slow": [{"order_id": order_id, "age_ms": age_ms} for order_id, age_ms in verdict.slow[:SLOW_SHOWN]],
        "slow_orders": len(verdict.slow),
        "waiting_for_rebuild": list(verdict.waiting_sales),
        "unseen": verdict.unseen,
        "timelines": [asdict(timeline) for timeline in found.timelines],
        "more_timelines": found.more,
        "at_rest": not found.unrest,
        "seconds": found.seconds,
    }


def _print(found: _Found, as_json: bool) -> None:
    verdict = found.verdict
    if as_json:
        print_json(_report(found))
    else:
        rows = [("confirmed", verdict.confirmed), *(("rejected " + code, n) for code, n in verdict.rejected.items())]
        rows += [("dead-lettered", verdict.dead_lettered), ("pending", verdict.pending)]
        rows += [("oversold", verdict.oversold), ("lost", len(verdict.lost))]
        print_table(("orders", "count"), rows)
        say("")
        show_verdict(verdict, shown=found.limit)
        _print_timelines(found)
    for line in _remarks(found):
        note(f"seckill: {line}")


def _remarks(found: _Found) -> list[str]:
    verdict, lines = found.verdict, []
    if found.unrest:
        lines.append(f"not at rest: {found.unrest}; --at-rest takes what is under way for wrong")
    if verdict.slow:
        order_id, age_ms = verdict.slow[0]
        lines.append(f"{len(verdict.slow)} orders are pending for long, {order_id} for {age(age_ms)}: no breach so far")
    if verdict.waiting_sales:
        sales = ", ".join(map(str, verdict.waiting_sales[:SLOW_SHOWN]))
        lines.append(f"Redis was started anew: admission of sale {sales} is closed until it is rebuilt, and not judged")
    if verdict.unseen:
        lines.append(f"{verdict.unseen} more orders do not fit together: only the first ones were looked at")
    if verdict.pruned_sales:
        lines.append(f"{verdict.pruned_sales} sales have been pruned, and are not judged")
    return lines


def _print_timelines(found: _Found) -> None:
    for timeline in found.timelines:
        say("")
        say(timeline.of)
        for problem in timeline.problems:
            say(f"  {problem}")
        for line in event_lines(timeline.events):
            say(f"  {line}")
    if found.more:
        say("")
        say(f"and {found.more} more (--limit)")


def _print_again(found: _Found, as_json: bool) -> None:
    """One line each time, while everything holds; what is wrong is shown in full."""
    if as_json or found.exit_code:
        _print(found, as_json)
        return
    verdict = found.verdict
    facts = {
        "confirmed": verdict.confirmed,
        "rejected": sum(verdict.rejected.values()),
        "dead-lettered": verdict.dead_lettered,
        "pending": verdict.pending,
    }
    told = ", ".join(f"{number} {name}" for name, number in facts.items())
    at = time.strftime("%H:%M:%S")
    say(f"{at}  all {len(verdict.invariants)} invariants hold in {verdict.sales} sales: {told} ({found.seconds:.1f} s)")
    for line in _remarks(found):
        note(f"seckill: {line}")


def _print_silence(line: str, as_json: bool) -> None:
    if as_json:
        print_json({"at_ms": time.time_ns() // 1_000_000, "holds": None, "error": line})
    else:
        note(f"seckill: {line}")
