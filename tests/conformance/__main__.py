"""`python -m tests.conformance GRPC HTTP` plays DTM's client against a DTM 1.19.0 server, and renews the recording."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.conformance.playing import built, play_go
from tests.conformance.records import RECORDING, write_records
from tests.servers import DtmAddress


def record(
    grpc: Annotated[str, typer.Argument(help="HOST:PORT of the gRPC service of a DTM server on its SQL store.")],
    http: Annotated[str, typer.Argument(help="HOST:PORT of its HTTP service.")],
) -> None:
    """Renew the recording."""
    asyncio.run(_record(DtmAddress(grpc, http)))


async def _record(dtm: DtmAddress) -> None:
    go = shutil.which("go")
    if go is None:
        raise SystemExit("go is not installed")
    with tempfile.TemporaryDirectory() as folder:
        records = await play_go(dtm, await built(go), Path(folder))
    write_records(RECORDING, records.values())


if __name__ == "__main__":
    typer.run(record)
