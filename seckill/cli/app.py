"""The Typer application: the global options, the command groups, and how every command ends."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from seckill.cli import (
    alerts,
    audit,
    bench,
    config,
    db,
    demo,
    dlq,
    doctor,
    order,
    publish,
    reconcile,
    roles,
    sale,
    status,
    topics,
    tx,
    tx_mending,
)
from seckill.cli.console import note
from seckill.cli.errors import FAILED, INTERRUPTED, TERMINATED, explained
from seckill.cli.state import Global, Terminated

_HELP = """A flash sale that neither oversells nor loses an order.

Examples:

  seckill demo                                  # a whole sale, and proof
  seckill up                                    # the pipeline, for playing
  seckill sale create --product 1 --stock 100   # in a second terminal
  seckill publish --user 7 --product 1

Exit codes: 0 fine, 1 failed or partly done, 2 wrong options or settings,
3 something does not answer, 130 interrupted, 143 terminated before it
was up (a role that runs drains and ends with 0).

Data goes to stdout, everything else to stderr; NO_COLOR is respected.
"""


class Commands(TyperGroup):
    """Turns what a command raises into an exit code and one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except BrokenPipeError:
            # Whoever read our output has enough; nothing more can be written, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except (KeyboardInterrupt, asyncio.CancelledError):
            note("seckill: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Terminated:
            note("seckill: terminated")
            raise typer.Exit(TERMINATED) from None
        except Exception as error:  # noqa: BLE001 - the boundary: the user gets a line, or the traceback with --debug
            raise typer.Exit(_report(error, debug=bool(ctx.params.get("debug")))) from None


def _report(error: Exception, *, debug: bool) -> int:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # what went wrong, without the task group that it went wrong in
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    code, line = explained(error) or (
        FAILED,
        f"unexpected {type(error).__name__}: {error} (repeat with `seckill --debug …` for the whole story)",
    )
    note(f"seckill: {line}")
    return code


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"seckill {version('seckill')}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    name="seckill",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="PATH", help="Settings file (else SECKILL_CONFIG, else the embedded profile)."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    context.obj = Global(config=config_file, debug=debug)


app.command("demo")(demo.demo)
app.command("up")(roles.up)
app.add_typer(sale.commands, name="sale")
app.add_typer(bench.commands, name="bench")
app.command("publish")(publish.publish)
app.add_typer(order.commands, name="order")
app.command("status")(status.status)
tx.commands.command("retry")(tx_mending.retry)
tx.commands.command("resolve")(tx_mending.resolve)
app.add_typer(tx.commands, name="tx")
app.add_typer(dlq.commands, name="dlq")
app.command("audit")(audit.audit)
app.command("doctor")(doctor.doctor)
app.add_typer(topics.commands, name="topics")
app.add_typer(config.commands, name="config")
app.add_typer(db.commands, name="db")
for role, command in roles.ROLES.items():
    app.command(role, rich_help_panel="Roles (each its own process)")(command)
app.command("reconcile", rich_help_panel="Roles (each its own process)")(reconcile.reconcile)
app.add_typer(alerts.commands, name="alerts", rich_help_panel="Roles (each its own process)")
