"""The command line: `seckill …`. Options, tables and exit codes; the work is done by the layers below."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the `seckill` command."""
    try:
        from seckill.cli.app import app
    except KeyboardInterrupt:  # so early that there is nothing to say
        sys.exit(130)
    app(prog_name="seckill")
