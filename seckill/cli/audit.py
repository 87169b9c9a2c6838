"""`seckill audit`: the six invariants of a pipeline at rest, from its stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import note, print_json, print_table, say
from seckill.cli.demo import show_verdict
from seckill.cli.errors import FAILED, OK, WrongUsage
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from seckill.demo.audit import Verdict
    from seckill.settings import Settings


def audit(
    context: typer.Context,
    replies: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Order ids that clients were given, one a line: none may be lost."),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for orders under way.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Check the six invariants against the stores: both databases, Redis and the dead letters.

    Meant for a pipeline at rest; everything is read into memory. Exit code 1
    when an invariant is false or an order of --replies is nowhere.

    Examples:

      seckill audit
      seckill audit --replies replies.txt --json
    """
    accepted = _read_replies(replies) if replies else []
    unrest, verdict = run(_audit(client_settings(context), accepted, wait))
    if as_json:
        from seckill.demo.report import verdict_report

        print_json({**verdict_report(verdict), "rejected": verdict.rejected, "at_rest": not unrest})
    else:
        rows = [("confirmed", verdict.confirmed), *(("rejected " + code, n) for code, n in verdict.rejected.items())]
        rows += [("dead-lettered", verdict.dead_lettered), ("oversold", verdict.oversold), ("lost", len(verdict.lost))]
        print_table(("orders", "count"), rows)
        say("")
        show_verdict(verdict)
    if unrest:
        note(f"seckill: not at rest: {unrest}; the invariants are those of a system at rest")
    if verdict.pruned_sales:
        note(f"seckill: {verdict.pruned_sales} sales have been pruned, and are not judged")
    raise typer.Exit(OK if verdict.holds and not unrest else FAILED)


async def _audit(settings: Settings, accepted: list[str], wait_s: float) -> tuple[str, Verdict]:
    from seckill.demo.audit import judge
    from seckill.demo.run import rest
    from seckill.demo.stores import open_stores, read_facts

    async with open_stores(settings) as stores:
        unrest = await rest(stores, timeout_s=wait_s)
        return unrest, judge(await read_facts(stores, accepted=accepted))


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
