"""Plays all scenarios, at the same time, with one client against one coordinator."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import grpc
from platformdirs import user_cache_path

from seckill.dtm import DtmClient
from tests.conformance.python_client import RUN_TIMEOUT_MS, Run
from tests.conformance.records import Record, named, read_records
from tests.conformance.scenarios import SCENARIOS
from tests.conformance.wire import Wire, wire_to
from tests.support.branches import serve_branches

GO = Path(__file__).parent / "go"
BUILD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 60


async def play_python(coordinator: str) -> dict[str, Record]:
    """With our own client. `coordinator` is its gRPC server's `host:port`."""
    async with (
        wire_to(coordinator) as wire,
        serve_branches() as branches,
        grpc.aio.insecure_channel(wire.address) as channel,
        DtmClient(channel, address=wire.address, timeout_ms=RUN_TIMEOUT_MS) as client,
    ):

        async def play(name: str) -> Record:
            run = Run(client, branches, await client.new_gid())
            await SCENARIOS[name](run)
            return run.record(name)

        records = await asyncio.wait_for(asyncio.gather(*map(play, SCENARIOS)), RUN_TIMEOUT_S)
        return {record["scenario"]: _with_requests(record, wire, branches.address) for record in records}


async def play_go(coordinator: str, program: Path, folder: Path) -> dict[str, Record]:
    """With DTM's own client."""
    out = folder / f"{uuid4().hex}.jsonl"
    async with wire_to(coordinator) as wire:
        await run(RUN_TIMEOUT_S, str(program), "-dtm", wire.address, "-out", str(out), folder=folder)
        records = read_records(out)
        return {name: _with_requests(record, wire, record["branches"]) for name, record in records.items()}


def _with_requests(record: Record, wire: Wire, branches: str) -> Record:
    """Adds what the client sent, and takes out what is different in every run."""
    gid = record["gid"]
    kept = {name: value for name, value in record.items() if name not in {"gid", "branches"}}
    return kept | {"requests": named(wire.requests[gid], gid, branches)}


async def built(go: str) -> Path:
    """The Go program, built once for each state of its source; `-p=1` leaves the other processors alone."""
    digest = hashlib.sha256()
    for path in _sources(GO):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    binary = user_cache_path("seckill") / f"conformance-{digest.hexdigest()[:20]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        await run(BUILD_TIMEOUT_S, go, "build", "-mod=mod", "-p=1", "-o", str(fresh), ".", folder=GO)
        fresh.rename(binary)
    return binary


def _sources(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.iterdir() if path.suffix in {".go", ".mod", ".sum"})


async def run(timeout_s: float, *command: str, folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, output.decode(errors="replace")[-4_000:]
