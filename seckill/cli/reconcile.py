"""`seckill reconcile`: the role, or one look by hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import note, print_json, print_table, say
from seckill.cli.errors import FAILED, WrongUsage, explained
from seckill.cli.roles import run_role_here
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumers.reconcile import Findings
    from consumers.survivors import Rebuilt
    from seckill.settings import Settings

NEEDS_A_PERSON = ("conflicting", "contradicting", "unread")


def reconcile(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One look, and what it did; not until Ctrl-C.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make Redis' side of lost sales again, and say what was changed.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="With --rebuild: every open and paused sale, lost or not.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run reconcile: looks after orders and transactions that somebody left behind.

    Settles what has ended, publishes again what no store knows, ends
    transactions that their coordinator lost, and makes Redis' side of a
    sale again when Redis lost it or was restarted. Two of them do no harm.

    While a sale is rebuilt, it answers PAUSED (reconcile.rebuild_wait_ms,
    and as long as it takes to read the topic since the sale was made).

    With --once: exit code 1 when something was found that needs a person,
    3 when something that it needs does not answer.

    Examples:

      seckill --config seckill.toml reconcile
      seckill reconcile --once
      seckill reconcile --once --json
      seckill reconcile --rebuild
    """
    _check_usage(once=once, rebuild=rebuild, every=every, as_json=as_json)
    if rebuild:
        _show_rebuilt(run(_rebuild(client_settings(context), every=every)), as_json=as_json)
        return
    if not once:
        run_role_here(context, "reconcile")
        return
    findings = run(_once(client_settings(context)))
    problems = {look: explained(error) or (FAILED, repr(error)) for look, error in findings.cut_short.items()}
    if as_json:
        cut_short = {look: line for look, (_, line) in problems.items()}
        print_json({"counts": dict(findings.counts), "cut_short": cut_short})
    elif findings.counts:
        print_table(("what", "count"), sorted(findings.counts.items()))
    elif not problems:
        say("nothing was left behind")
    for _, line in problems.values():
        note(f"seckill: {line}")
    codes = {code for code, _ in problems.values()} | {FAILED for what in NEEDS_A_PERSON if findings.counts[what]}
    if codes:
        raise typer.Exit(max(codes))


def _check_usage(*, once: bool, rebuild: bool, every: bool, as_json: bool) -> None:
    if as_json and not (once or rebuild):
        raise WrongUsage(
            "--json goes with --once or --rebuild: the role itself logs (log.json_lines), and shows /metrics"
        )
    if once and rebuild:
        raise WrongUsage("--once and --rebuild do not go together")
    if every and not rebuild:
        raise WrongUsage("--all goes with --rebuild")


def _show_rebuilt(done: Sequence[Rebuilt], *, as_json: bool) -> None:
    rows = [asdict(each) for each in done]
    if as_json:
        print_json({"rebuilt": rows})
    elif rows:
        print_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    else:
        say("no sale needed it, or another rebuild is at it")


async def _rebuild(settings: Settings, *, every: bool) -> list[Rebuilt]:
    from seckill.doctor.start import refuse_strangers_of_worker
    from seckill.wiring import open_sales_watch

    await refuse_strangers_of_worker(settings)
    async with open_sales_watch(settings) as watch:
        return await watch.by_hand(every=every)


async def _once(settings: Settings) -> Findings:
    from seckill.doctor.start import refuse_strangers_of_worker
    from seckill.wiring import open_reconciler

    await refuse_strangers_of_worker(settings)
    async with open_reconciler(settings) as (reconciler, checks):
        await checks["redis"]()
        return await reconciler.once()
