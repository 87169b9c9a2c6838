"""`seckill order show`: what became of an order. `seckill order` alone is the order service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seckill.cli.console import note, print_json, say
from seckill.cli.errors import FAILED, WrongUsage
from seckill.cli.roles import run_role_here
from seckill.cli.state import JsonOption, client_settings, front_of, run

commands = typer.Typer(
    invoke_without_command=True,
    help="""Ask what became of an order; without a command of its own: run the order service.

Examples:

  seckill order show 1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --wait 10
  seckill --config seckill.toml order
""",
)


@commands.callback()
def service(context: typer.Context) -> None:
    """`seckill order` alone is the role, whose name it shares with the things that it keeps."""
    if context.invoked_subcommand is None:
        run_role_here(context, "order")


@commands.command("show")
def show(
    context: typer.Context,
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="The order's id: <product>-<32 hex digits>.")],
    wait: Annotated[float, typer.Option(min=0, max=3600, metavar="SECONDS", help="Wait so long for its end.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show an order: processing, confirmed, rejected (with the reason), or delayed.

    With --wait, exit code 1 says that it had not ended when the time was up.

    Examples:

      seckill order show 1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
      seckill order show 1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --wait 10 --json
    """
    from seckill.domain.order import parse_order_id

    try:
        parse_order_id(order_id)
    except ValueError as error:
        raise WrongUsage(str(error)) from error

    async def work() -> dict[str, Any]:
        async with front_of(client_settings(context)) as front:
            return await front.order_result(order_id, wait_s=wait)

    result = run(work())
    if as_json:
        print_json(result)
    else:
        reason = f" ({result['reason']})" if result.get("reason") else ""
        say(f"{result['order_id']}  {result['status']}{reason}")
    if wait and result["status"] == "processing":
        note(f"seckill: still processing after {wait:g} s")
        raise typer.Exit(FAILED)
