"""DTM's own Go client cannot tell our coordinator from a DTM server.

A small Go program on DTM's client module drives the coordinator over the wire and records every answer and every branch
call. `dtm-1.19.0.jsonl` is what the same program recorded of a DTM 1.19.0 server (boltdb store); ours must be equal
but for DIFFERENCES. With SECKILL_TEST_DTM the program also runs against a DTM server that somebody has started.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

from tests.support.coordinators import BACKENDS, Backend, backend_of
from tests.support.programs import needs

HERE = Path(__file__).parent
BUILD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 60

Record = dict[str, Any]

# The wanted differences: what ours answers, and the calls that it makes.
DIFFERENCES: dict[str, Record] = {
    # DTM makes an empty transaction of a gid that nobody prepared, and calls that a success.
    "submit of an unknown gid": {
        "answers": [("Submit", "Aborted", "no trans with gid: {gid} found, cannot submit. FAILURE")],
        "calls": [],
    },
    # DTM marks the transaction as succeeded and never repeats the Confirm that has failed.
    "second submit while the first is confirming": {"calls": [("01", "confirm"), ("01", "confirm")]},
}

# The least pauses between the calls of a branch operation, in ms; a cron run repeats them, so they may be longer.
LEAST_GAPS_MS = {
    "Confirm fails twice": {"02/confirm": [2_000, 4_000]},
    "Confirm is ongoing twice": {"01/confirm": [1_000, 1_000]},
    "Confirm refuses": {"01/confirm": [2_000]},
    "Confirm refuses in the old way of saying ongoing": {"01/confirm": [1_000]},
    "Confirm times out": {"02/confirm": [3_000]},
    "Cancel fails once": {"02/cancel": [2_000]},
    "abort waits as Prepare said": {"01/cancel": [2_000]},
}
GAP_SLACK_MS = 2_500

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S + RUN_TIMEOUT_S)


@pytest.fixture(scope="module")
def go() -> str:
    return needs("go")


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    async with backend_of(request.param, tmp_path) as opened:
        yield opened


async def built(go: str) -> Path:
    """The program, built once for each state of its source; `-p=1` leaves the other processors alone."""
    source = HERE / "go"
    digest = hashlib.sha256()
    for path in _sources(source):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    binary = user_cache_path("seckill") / f"conformance-{digest.hexdigest()[:20]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        await run(BUILD_TIMEOUT_S, go, "build", "-mod=mod", "-p=1", "-o", str(fresh), ".", folder=source)
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


def records_of(path: Path) -> dict[str, Record]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["scenario"]: line for line in lines}


def answers_of(record: Record) -> list[tuple[str, str, str]]:
    return [(each["request"], each["code"], each["message"]) for each in record["answers"]]


def calls_of(record: Record) -> list[tuple[str, str]]:
    return [(each["branch"], each["op"]) for each in record["calls"]]


async def test_the_go_client_sees_a_dtm_server(go: str, backend: Backend, tmp_path: Path) -> None:
    """Answers, order of calls, metadata and payloads are those of a DTM server, scenario by scenario."""
    binary = await built(go)
    out = tmp_path / "records.jsonl"
    await run(RUN_TIMEOUT_S, str(binary), "-dtm", backend.grpc, "-out", str(out), folder=tmp_path)
    ours, theirs = records_of(out), records_of(HERE / "dtm-1.19.0.jsonl")
    assert list(ours) == list(theirs)
    for name, record in ours.items():
        wanted = DIFFERENCES.get(name, {}) if backend.kind == "embedded" else {}
        assert answers_of(record) == wanted.get("answers", answers_of(theirs[name])), name
        if "calls" in wanted:
            assert calls_of(record) == wanted["calls"], name
        else:
            assert record["calls"] == theirs[name]["calls"], name
    for name, gaps in LEAST_GAPS_MS.items():
        assert ours[name]["gaps_ms"].keys() == gaps.keys(), name
        for operation, least in gaps.items():
            seen = ours[name]["gaps_ms"][operation]
            assert len(seen) == len(least), name
            assert all(low <= gap < low + GAP_SLACK_MS for low, gap in zip(least, seen, strict=True)), (name, seen)


def test_the_recording_shows_what_is_compared() -> None:
    """The recording of the DTM server itself has both branches' Try and Confirm, with identity, headers and barrier."""
    success = records_of(HERE / "dtm-1.19.0.jsonl")["success"]
    assert calls_of(success) == [("01", "try"), ("02", "try"), ("02", "confirm"), ("01", "confirm")]
    assert [each["dtm"] for each in success["calls"]] == ["{dtm}", "{dtm}", "", ""]
    assert {each["headers"]["x-trace"] for each in success["calls"]} == {"abc"}
    assert success["calls"][2]["barrier"] == "tcc/02/confirm"
