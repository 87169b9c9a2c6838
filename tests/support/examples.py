"""The Python examples of a page: each stands behind its name, and runs in a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"<!-- example: (?P<name>[^>]+) -->\n```python\n(?P<code>.*?)```", re.DOTALL)
RUN_TIMEOUT_S = 60


def examples(page: str) -> dict[str, str]:
    """The code of every example of a page, by name; `page` is its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {match["name"]: match["code"] for match in EXAMPLE.finditer(text)}


async def printed_by(code: str, environment: Mapping[str, str], *, folder: Path | None = None) -> str:
    """What a program prints, run in `folder`; it has to end with 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code,
        cwd=folder, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(RUN_TIMEOUT_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
