"""`python -m tests.conformance HOST:PORT` plays DTM's client against a DTM 1.19.0 server, and renews the recording."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.conformance.playing import built, play_go
from tests.conformance.records import RECORDING, write_records


def record(dtm: Annotated[str, typer.Argument(help="gRPC address of a DTM server on its SQL store.")]) -> None:
    """Renew the recording."""
    asyncio.run(_record(dtm))


async def _record(dtm: str) -> None:
    go = shutil.which("go")
    if go is None:
        raise SystemExit("go is not installed")
    with tempfile.TemporaryDirectory() as folder:
        records = await play_go(dtm, await built(go), Path(folder))
    write_records(RECORDING, records.values())


if __name__ == "__main__":
    typer.run(record)
