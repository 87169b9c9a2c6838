"""`seckill alerts`: the role that tells people, and a message to every target to see whether it arrives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from seckill.cli.console import note, print_json, print_table
from seckill.cli.errors import FAILED
from seckill.cli.roles import run_role_here
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seckill.alerts.targets import Target
    from seckill.settings import Settings

commands = typer.Typer(
    invoke_without_command=True,
    help="""Run alerts: tells people, once and clearly, what does not heal by itself.

Until SIGTERM or Ctrl-C. Looks every alerts.every_ms at the index of dead
letters, the lag of the consumers and retry topics, transactions that do
not end, and the metrics of every role; audits every alerts.audit_every_ms.
Who does not answer is told as well.

Every alert is a line of the log, and a message to each of alerts.targets
(Apprise URLs). A target that is down is tried again, and keeps nobody
waiting. What was told is kept in the dead-letter database, which has to be
there at start (dead_letters.database_url).

Examples:

  seckill --config seckill.toml alerts
  seckill alerts test   # does a message arrive?
""",
)


@commands.callback()
def alerts(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        run_role_here(context, "alerts")


@commands.command("test")
def send_test(context: typer.Context, as_json: JsonOption = False) -> None:
    """Send a message to every target, and say who has taken it.

    Exit code 1 when a target has not, 2 when one of alerts.targets is wrong.

    Examples:

      seckill alerts test
      SECKILL__ALERTS__TARGETS='["json://127.0.0.1:8000/alerts"]' seckill alerts test --json
    """
    settings = client_settings(context)
    results = run(_test(settings))
    if as_json:
        print_json({"targets": results})
    elif results:
        print_table(("target", "result"), [(each["target"], each["problem"] or "taken") for each in results])
    else:
        note("seckill: alerts.targets names nobody: alerts are lines of the log of `seckill alerts`, and nothing else")
    if any(not each["taken"] for each in results):
        raise typer.Exit(FAILED)


async def _test(settings: Settings) -> Sequence[dict[str, Any]]:
    from seckill.wiring.alerts import open_targets

    targets = open_targets(settings.alerts)
    within_s = settings.alerts.send_timeout_ms / 1_000
    problems = await asyncio.gather(*(_try(target, within_s) for target in targets))
    return [
        {"target": target.name, "taken": not problem, "problem": problem}
        for target, problem in zip(targets, problems, strict=True)
    ]


async def _try(target: Target, within_s: float) -> str:
    """Empty when the target has taken the message, else why not."""
    from seckill.alerts.courier import in_thread
    from seckill.alerts.readers import clock_ms
    from seckill.alerts.words import test_message

    try:
        async with asyncio.timeout(within_s):
            return await in_thread(lambda: target.send(test_message(clock_ms())))
    except TimeoutError:
        return f"no answer within {within_s:g} s (alerts.send_timeout_ms)"
