"""`python -m seckill.cli`: the same as the `seckill` command."""

from __future__ import annotations

from seckill.cli import main

main()
