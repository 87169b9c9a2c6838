"""A coordinator is killed before and after every commit of its log, and started again on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from seckill.dtm import DtmClient, GlobalTransaction, Tcc, TransOptions, Unavailable
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinator_child import MOMENTS, Child, KillAt, coordinator_process, writes_of
from tests.support.coordinators import Logs, client_of

OPTIONS = TransOptions(wait_result=True, timeout_to_fail_s=2, retry_interval_s=1)
AT_ONCE_MAX = 20
BROKEN = Answer(grpc.StatusCode.INTERNAL, "broken")


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


@dataclass(slots=True)
class Told:
    """What the starter of a transaction was told for certain: the statuses that the end may have."""

    possible: frozenset[str] = frozenset({"succeed", "failed"})


Starter = Callable[[DtmClient, Branches, str, Told], Awaitable[None]]


async def two_tries(client: DtmClient, branches: Branches, gid: str) -> Tcc:
    tcc = await Tcc.begin(client, gid, options=OPTIONS)
    await tcc.call_branch(branches.branch, b"one", timeout_ms=1_000)
    await tcc.call_branch(branches.branch, b"two", timeout_ms=1_000)
    return tcc


async def submits(client: DtmClient, branches: Branches, gid: str, told: Told) -> None:
    told.possible = frozenset({"failed"})  # until a Submit is on its way
    tcc = await two_tries(client, branches, gid)
    told.possible = frozenset({"succeed", "failed"})
    await tcc.submit(timeout_ms=3_000)
    told.possible = frozenset({"succeed"})


async def submits_with_a_failing_confirm(client: DtmClient, branches: Branches, gid: str, told: Told) -> None:
    branches.script(gid, "01", "confirm", BROKEN)
    await submits(client, branches, gid, told)


async def aborts(client: DtmClient, branches: Branches, gid: str, told: Told) -> None:
    told.possible = frozenset({"failed"})
    tcc = await two_tries(client, branches, gid)
    await tcc.abort(reason="changed its mind")


async def goes_away(client: DtmClient, branches: Branches, gid: str, told: Told) -> None:
    told.possible = frozenset({"failed"})
    await two_tries(client, branches, gid)


async def start(starter: Starter, child: Child, branches: Branches, gid: str, told: Told) -> None:
    async with client_of(child.backend, timeout_ms=3_000) as client:
        with contextlib.suppress(Unavailable):  # it died; or Submit tells how the scripted Confirm has failed
            await starter(client, branches, gid, told)


async def end_of(child: Child, gid: str) -> GlobalTransaction | None:
    """The transaction once it has ended; None when the coordinator does not know it."""
    async with client_of(child.backend) as client, asyncio.timeout(30):
        while (found := await client.query(gid)) is not None and found.status not in {"succeed", "failed"}:
            await asyncio.sleep(0.02)
        return found


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def undisturbed(starter: Starter, log_url: str, folder: Path, branches: Branches) -> list[str]:
    """Plays a transaction without a kill; returns the commits that it took."""
    gid, told = uuid4().hex, Told()
    async with coordinator_process(log_url, folder) as child:
        await start(starter, child, branches, gid, told)
        judge(await end_of(child, gid), branches, gid, told)
    return writes_of(folder)


async def killed(starter: Starter, log_url: str, folder: Path, branches: Branches, kill_at: KillAt) -> None:
    """Plays a transaction with a coordinator that dies at `kill_at`, until its successor has ended it."""
    gid, told = uuid4().hex, Told()
    async with coordinator_process(log_url, folder, kill_at) as first:
        await start(starter, first, branches, gid, told)
        await first.until_dead()
    async with coordinator_process(log_url, folder) as second:
        ended = await end_of(second, gid)
    if ended is None:
        assert kill_at == KillAt(1, "before")  # only what was never written is unknown
        assert branches.of(gid) == []
        return
    judge(ended, branches, gid, told)


def judge(ended: GlobalTransaction | None, branches: Branches, gid: str, told: Told) -> None:
    """The end is what the starter was told, every branch got it, in order, and none got the opposite."""
    assert ended is not None
    assert ended.status in told.possible
    op = "confirm" if ended.status == "succeed" else "cancel"
    registered = [branch for branch in ended.branches if branch.op == op]
    assert all(branch.status == "succeed" for branch in registered)
    calls = branches.ops(gid)
    ids = [branch.branch_id for branch in registered]
    assert {branch_id for branch_id, called in calls if called == "try"} <= set(ids)
    ends = [branch_id for branch_id, called in calls if called != "try"]
    assert {called for _, called in calls} <= {"try", op}
    assert list(dict.fromkeys(ends)) == ids[::-1]
    assert all(ends.count(branch_id) <= 3 for branch_id in ids)  # once, after a scripted failure, after the kill


@pytest.mark.parametrize("starter", [submits, submits_with_a_failing_confirm, aborts, goes_away])
async def test_a_kill_at_any_write_loses_and_splits_nothing(
    starter: Starter, logs: Logs, tmp_path: Path, branches: Branches
) -> None:
    """Whenever the coordinator is killed, its successor ends the transaction as decided, the same for all branches."""
    commits = await undisturbed(starter, await logs.fresh(), made(tmp_path / "undisturbed"), branches)
    assert commits[:3] == ["Insert", "Register", "Register"]
    assert commits[-3:] == ["Decide", "BranchDone", "Finish"] or starter is submits_with_a_failing_confirm
    at_once = asyncio.Semaphore(AT_ONCE_MAX)

    kills = [KillAt(write, moment) for write in range(1, len(commits) + 1) for moment in MOMENTS]
    log_urls = {kill_at: await logs.fresh() for kill_at in kills}

    async def one(kill_at: KillAt) -> None:
        name = f"{kill_at.write}-{kill_at.moment}-{commits[kill_at.write - 1]}"
        async with at_once:
            try:
                await killed(starter, log_urls[kill_at], made(tmp_path / name), branches, kill_at)
            except BaseException as error:
                error.add_note(f"killed at {name}")
                raise

    async with asyncio.TaskGroup() as group:
        for kill_at in kills:
            group.create_task(one(kill_at))


async def test_another_coordinator_takes_over_when_the_lease_ends(
    logs: Logs, tmp_path: Path, branches: Branches
) -> None:
    """What a frozen coordinator has in hand is finished by another on the same log; awake again, it does no harm."""
    log_url = await logs.fresh()
    async with (
        coordinator_process(log_url, made(tmp_path / "one")) as one,
        coordinator_process(log_url, made(tmp_path / "other")) as other,
        client_of(one.backend) as client,
    ):
        tcc = await Tcc.begin(client, uuid4().hex, options=TransOptions())
        for _ in range(2):
            await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
        branches.script(tcc.gid, "02", "confirm", Answer(pause_ms=300))
        await tcc.submit()
        await branches.until(tcc.gid, 3)
        one.freeze()
        ended = await end_of(other, tcc.gid)
        one.thaw()
        await asyncio.sleep(0.5)
        again = await end_of(one, tcc.gid)
    assert ended is not None
    assert again is not None
    assert (ended.status, again.status) == ("succeed", "succeed")
    confirms = [branch_id for branch_id, op in branches.ops(tcc.gid) if op == "confirm"]
    assert confirms == ["02", "02", "01"]
