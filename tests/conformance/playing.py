"""Plays all scenarios, beside each other, with one client against one coordinator."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import grpc
from platformdirs import user_cache_path

from seckill.dtm import DtmClient
from tests.conformance.ordering import in_one_order
from tests.conformance.python_client import RUN_TIMEOUT_MS, Run
from tests.conformance.records import Record, end_of, named, read_records
from tests.conformance.scenarios import SCENARIOS
from tests.conformance.wire import Wire, wire_to
from tests.servers import DtmAddress
from tests.support.branches import serve_branches

GO = Path(__file__).parent / "go"
BUILD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 90
PACE_S = 0.08
"""From one scenario's beginning to the next one's: a log on a slow disk takes some 20 commits a second."""

WRITTEN_DOWN_S = 1
"""DTM writes what a branch answered down up to 200 ms later."""


async def play_python(coordinator: DtmAddress) -> dict[str, Record]:
    """With our own client."""
    async with (
        wire_to(coordinator.grpc) as wire,
        serve_branches() as branches,
        _client_of(wire.address, coordinator) as client,
    ):

        async def play(number: int, name: str) -> Record:
            await asyncio.sleep(number * PACE_S)
            run = Run(client, branches, await client.new_gid())
            await SCENARIOS[name](run)
            return run.record(name)

        plays = itertools.starmap(play, enumerate(SCENARIOS))
        records = await asyncio.wait_for(asyncio.gather(*plays), RUN_TIMEOUT_S)
        for record in records:
            record["branches"] = branches.address
        return await _completed(records, wire, client)


async def play_go(coordinator: DtmAddress, program: Path, folder: Path) -> dict[str, Record]:
    """With DTM's own client."""
    out = folder / f"{uuid4().hex}.jsonl"
    async with wire_to(coordinator.grpc) as wire, _client_of(wire.address, coordinator) as client:
        await run(RUN_TIMEOUT_S, str(program), "-dtm", wire.address, "-out", str(out), folder=folder)
        return await _completed(read_records(out).values(), wire, client)


@asynccontextmanager
async def _client_of(wire: str, coordinator: DtmAddress) -> AsyncIterator[DtmClient]:
    async with (
        grpc.aio.insecure_channel(wire) as channel,
        DtmClient(channel, address=wire, http_url=f"http://{coordinator.http}", timeout_ms=RUN_TIMEOUT_MS) as client,
    ):
        yield client


async def _completed(records: Iterable[Record], wire: Wire, client: DtmClient) -> dict[str, Record]:
    """Adds what the client sent and what became of it, and takes out what is different in every run."""
    await asyncio.sleep(WRITTEN_DOWN_S)
    return {record["scenario"]: await _with_end(record, wire, client) for record in records}


async def _with_end(record: Record, wire: Wire, client: DtmClient) -> Record:
    gid, branches = record["gid"], record["branches"]
    requests = wire.requests[gid]
    kept = {name: value for name, value in record.items() if name not in {"gid", "branches"}}
    end = end_of(await client.query(gid), requests)
    return kept | {
        "calls": in_one_order(record["scenario"], record["calls"]),
        "requests": named(requests, gid, branches),
        "end": named(end, gid, branches),
    }


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
