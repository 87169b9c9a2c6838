"""`seckill reconcile`: the role, or one look by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import note, print_json, print_table, say
from seckill.cli.errors import FAILED, WrongUsage, explained
from seckill.cli.roles import run_role_here
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from consumers.reconcile import Findings
    from seckill.settings import Settings

NEEDS_A_PERSON = ("conflicting", "contradicting")


def reconcile(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One look, and what it did; not until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run reconcile: looks after orders and transactions that somebody left behind.

    Settles what has ended, publishes again what no store knows, and ends
    transactions that their coordinator lost. Two of them do no harm.

    With --once: exit code 1 when something was found that needs a person,
    3 when something that it needs does not answer.

    Examples:

      seckill --config seckill.toml reconcile
      seckill reconcile --once
      seckill reconcile --once --json
    """
    if as_json and not once:
        raise WrongUsage("--json goes with --once: the role itself logs (log.json_lines), and shows /metrics")
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


async def _once(settings: Settings) -> Findings:
    from seckill.doctor.start import refuse_strangers_of_worker
    from seckill.wiring import open_reconciler

    await refuse_strangers_of_worker(settings)
    async with open_reconciler(settings) as (reconciler, checks):
        await checks["redis"]()
        return await reconciler.once()
