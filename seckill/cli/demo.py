"""`seckill demo`: a whole sale on the embedded pipeline, and what the stores say about it afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import err, note, print_json, print_table, say, stderr_is_terminal
from seckill.cli.errors import FAILED, OK, WrongUsage
from seckill.cli.roles import (
    PatternOption,
    announce,
    configure_logs,
    embedded_overrides,
    kafka_unheard,
    starting,
    with_pattern,
)
from seckill.cli.state import client_settings, role_settings, run_pipeline

if TYPE_CHECKING:
    from rich.progress import TaskID

    from seckill.audit.rules import Verdict
    from seckill.demo.run import DemoOptions, DemoResult, Live
    from seckill.settings import Settings


def demo(
    context: typer.Context,
    stock: Annotated[int, typer.Option(min=1, max=1_000_000, help="Units of each product.")] = 1_000,
    buyers: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many people want one.")] = 10_000,
    products: Annotated[int, typer.Option(min=1, max=1_000, help="Products, each with a sale of its own.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same crowd.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=1_000, help="Requests in flight at a time.")] = 64,
    rest_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time for the last orders to end.")
    ] = 60,
    replies: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the accepted order ids there, for `seckill audit`.")
    ] = None,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Stay up afterwards, like `seckill up`.")
    ] = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="Use the pipeline that runs already, where the settings say.")
    ] = False,
    pattern: PatternOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The last line of stdout is one JSON object.")] = False,
) -> None:
    """Run a whole flash sale here and now: thousands of buyers over real HTTP, then proof from the stores.

    Some buyers press twice, some want an unknown product, some send
    nonsense. Exit code 1 when any invariant is false, an order is lost, or
    a request got an answer that makes no sense. With settings whose profile
    is real, it runs on the servers that they name.

    Examples:

      seckill demo
      seckill demo --stock 100 --buyers 2000 --products 3
      seckill demo --pattern saga
      seckill demo --json | tail -1 | jq .invariants
      seckill demo --keep-running --replies replies.txt
      seckill --config compose.toml demo --attach
    """
    if attach and pattern:
        raise WrongUsage("--pattern: the worker of --attach has one already")
    if attach and keep_running:
        raise WrongUsage("--keep-running: the pipeline of --attach runs on anyway")
    # The crowd is started while gRPC runs; as a new program, which gRPC's handlers for forks need not prepare for.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from seckill.demo.run import DemoOptions

    settings = (
        client_settings(context)
        if attach
        else with_pattern(role_settings(context, embedded_overrides(port=None, base_port=0)), pattern)
    )
    options = DemoOptions(
        stock=stock,
        buyers=buyers,
        products=products,
        seed=seed,
        concurrency=concurrency,
        rest_timeout_s=rest_timeout,
        close_sales=attach or settings.profile == "real",
    )
    if attach:
        raise typer.Exit(run_pipeline(_attached(settings, options, replies, as_json)))
    configure_logs(settings, quiet=True)
    raise typer.Exit(run_pipeline(_demo(settings, options, replies, keep_running, as_json)))


async def _attached(settings: Settings, options: DemoOptions, replies: Path | None, as_json: bool) -> int:
    """The same sale on somebody else's pipeline: buyers at its front, the verdict from its stores."""
    from seckill.demo.report import demo_report
    from seckill.demo.run import run_demo

    with _progress(options) as watch:
        result = await run_demo(settings, options, watch)
    if replies is not None:
        await asyncio.to_thread(_write_replies, replies, result.accepted)
    _show(demo_report(result), result, as_json)
    return OK if result.fine else FAILED


async def _demo(settings: Settings, options: DemoOptions, replies: Path | None, keep: bool, as_json: bool) -> int:
    from seckill.cli.run_file import run_file
    from seckill.demo.report import demo_report
    from seckill.demo.run import run_demo
    from seckill.wiring import open_embedded, open_on_servers

    on_servers = settings.profile == "real"
    starting(embedded=not on_servers)
    heard = kafka_unheard()
    async with open_on_servers(settings) if on_servers else open_embedded(settings) as embedded:
        heard()
        with _progress(options) as watch:
            result = await run_demo(embedded.settings, options, watch)
        if replies is not None:
            await asyncio.to_thread(_write_replies, replies, result.accepted)
        report = demo_report(result)
        if keep:
            with run_file(embedded.settings):
                announce(embedded.addresses, embedded.settings, as_json)
                _show(report, result, as_json)
                note("seckill: running on until Ctrl-C")
                await embedded.until_stopped()
                note("seckill: draining …")
        else:
            _show(report, result, as_json)
    if keep:
        embedded.drain.end_process()
        note("seckill: drained and ended")
    return OK if result.fine else FAILED


def _write_replies(path: Path, order_ids: Any) -> None:
    try:
        path.write_text("".join(f"{order_id}\n" for order_id in order_ids), encoding="ascii")
    except OSError as error:
        raise WrongUsage(f"--replies: cannot write {path}: {error.strerror}") from error


# --- while it runs -------------------------------------------------------------------------------------------------


@contextmanager
def _progress(options: DemoOptions) -> Iterator[Callable[[Live], None]]:
    """Bars on stderr where a terminal shows them; else nothing."""
    if not stderr_is_terminal():
        yield lambda live: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    units = options.stock * options.products
    with Progress(*columns, console=err(), transient=True) as bars:
        requests, accepted, confirmed = (
            bars.add_task(name, total=total)
            for name, total in (("requests", options.buyers), ("accepted", units), ("confirmed", units))
        )
        refused: dict[str, TaskID] = {}

        def watch(live: Live) -> None:
            total = max(options.buyers, live.requests)
            bars.update(requests, completed=live.requests, total=total, description=f"requests: {live.stage}")
            bars.update(accepted, completed=len(live.accepted))
            bars.update(confirmed, completed=live.confirmed)
            for code, count in live.rejected.items():
                if code not in refused:
                    refused[code] = bars.add_task(f"refused: {code}", total=total)
                bars.update(refused[code], completed=count, total=total)

        yield watch


# --- afterwards ----------------------------------------------------------------------------------------------------


def _show(report: dict[str, Any], result: DemoResult, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        show_demo(report)
        show_verdict(result.verdict)
    for answer in report["unexpected_answers"]:
        note(f"seckill: an answer that makes no sense: {answer}")
    if result.unrest:
        note(f"seckill: not at rest: {result.unrest}")


_OF = {
    "accept": "a 202, which comes once Kafka has the order",
    "answer": "any answer, refusals included",
    "confirm": "the confirmation, from the admission on",
}


def show_demo(report: dict[str, Any]) -> None:
    latency = report["latency_ms"]
    rows = [
        ("requests", f"{report['requests']:,}", f"{report['requests_per_second']:,.0f} a second"),
        ("accepted", f"{report['accepted']:,}", f"{report['repeated']:,} repeats got the same order again"),
        (
            "confirmed",
            f"{report['confirmed']:,}",
            f"{report['confirmed_per_second']:,.0f} a second, over the whole time",
        ),
        *(("refused", f"{count:,}", code) for code, count in report["rejected"].items()),
        ("dead-lettered", f"{report['dead_lettered']:,}", "set aside after the last attempt"),
        ("lost", f"{report['lost']:,}", "accepted order ids that are nowhere in the stores"),
        ("oversold", f"{report['oversold']:,}", "units above the stock"),
        ("duplicates", f"{report['duplicates']:,}", "units above a buyer's limit"),
        ("seconds", f"{report['seconds']:.1f}", "from the first request until every order had ended"),
    ]
    print_table(("what", "count", "which is"), rows)
    say("")
    print_table(
        ("latency", "p50 ms", "p95 ms", "p99 ms", "of"),
        [(name, *(f"{latency[name][rank]:.1f}" for rank in ("p50", "p95", "p99")), _OF[name]) for name in latency],
    )
    say("")


def show_verdict(verdict: Verdict, *, shown: int = 20) -> None:
    """The six invariants, and what breaks one: the first `shown` of each."""
    from seckill.audit.report import MEANING
    from seckill.audit.rules import Invariant

    rows = [
        (invariant.value, "no" if verdict.breaches[invariant] else "yes", MEANING[invariant]) for invariant in Invariant
    ]
    print_table(("invariant", "holds", "meaning"), rows)
    say("")
    broken = sum(holds == "no" for _, holds, _ in rows)
    lost = f"{len(verdict.lost)} orders lost" if verdict.lost else "no order lost"
    say(f"{len(rows) - broken} of {len(rows)} invariants hold; {verdict.oversold} units oversold, {lost}.")
    for invariant, found in verdict.breaches.items():
        for breach in found[:shown]:
            note(f"{invariant.value}: {breach.what}: {breach.problem}")
        if len(found) > shown:
            note(f"{invariant.value}: and {len(found) - shown} more")
