"""`seckill reconcile`: the role, or one look by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import note, print_json, print_table, say
from seckill.cli.errors import FAILED
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

    Settles what has ended, publishes again what no store knows, ends
    transactions that their coordinator lost, and makes Redis' side of a
    sale again when Redis was lost or restarted. Two of them do no harm.

    With --once: exit code 1 when something was found that needs a person.

    Examples:

      seckill --config seckill.toml reconcile
      seckill reconcile --once
      seckill reconcile --once --json
    """
    if not once:
        run_role_here(context, "reconcile")
        return
    findings = run(_once(client_settings(context)))
    if as_json:
        print_json(dict(findings.counts))
    elif findings.counts:
        print_table(("what", "count"), sorted(findings.counts.items()))
    elif not findings.cut_short:
        say("nothing was left behind")
    for look, error in findings.cut_short.items():
        note(f"seckill: {look}: not looked at to the end: {error}")
    if findings.cut_short or any(findings.counts[what] for what in NEEDS_A_PERSON):
        raise typer.Exit(FAILED)


async def _once(settings: Settings) -> Findings:
    from seckill.wiring import open_reconciler

    async with open_reconciler(settings) as (reconciler, checks):
        await checks["redis"]()
        return await reconciler.once()
