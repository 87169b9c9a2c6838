"""The command line: `seckill …`. Options, tables and exit codes; the work is done by the layers below."""

from __future__ import annotations


def main() -> None:
    """The entry point of the `seckill` command."""
    from seckill.cli.app import app

    app(prog_name="seckill")
