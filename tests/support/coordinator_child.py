"""A coordinator in a process of its own, which can be told to kill itself at a certain write of its log.

The processes are forked from a server that has imported everything already, so that a test can afford many of them.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from seckill.coordinator import serve_coordinator
from seckill.log import configure_logging
from tests.support.coordinators import Backend, coordinator_settings

Moment = Literal["before", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "after")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


@dataclass(frozen=True, slots=True)
class KillAt:
    """Before or after the commit of the `write`th write, counted from 1."""

    write: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class Child:
    backend: Backend
    process: BaseProcess

    def freeze(self) -> None:
        """It keeps its connections and does nothing, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    async def until_dead(self) -> None:
        """Returns when it has killed itself."""
        async with asyncio.timeout(30):
            while self.process.is_alive():
                await asyncio.sleep(0.01)
        assert self.process.exitcode == -signal.SIGKILL


def _run(log_url: str, folder: Path, kill_at: KillAt | None) -> None:
    configure_logging("error")
    asyncio.run(_serve(log_url, folder, kill_at))


async def _serve(log_url: str, folder: Path, kill_at: KillAt | None) -> None:
    writes = 0

    def on_write(moment: Moment, names: tuple[str, ...]) -> None:
        nonlocal writes
        if moment == "before":
            writes += 1
        if kill_at == KillAt(writes, moment):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "after":
            with (folder / "writes").open("a") as file:
                file.write(",".join(names) + "\n")

    settings = coordinator_settings(log_url, branch_timeout_s=1, retry_interval_s=1, cron_interval_ms=20)
    async with serve_coordinator(settings, on_write=on_write) as served:
        (folder / "address.new").write_text(json.dumps([served.grpc_address, served.http_address]))
        (folder / "address.new").rename(folder / "address")
        await asyncio.Event().wait()


@asynccontextmanager
async def coordinator_process(log_url: str, folder: Path, kill_at: KillAt | None = None) -> AsyncIterator[Child]:
    """Runs one on this log, with `folder` for what it tells; on leaving, it is killed if it has not done so itself."""
    (folder / "address").unlink(missing_ok=True)
    process = _processes.Process(target=_run, args=(log_url, folder, kill_at), daemon=True)
    process.start()
    try:
        async with asyncio.timeout(30):
            while not (folder / "address").exists():
                await asyncio.sleep(0.01)
        yield Child(Backend("ours", *json.loads((folder / "address").read_text())), process)
    finally:
        process.kill()
        await asyncio.to_thread(process.join)


def writes_of(folder: Path) -> list[str]:
    """The commits that a coordinator has made so far, each with the names of its commands."""
    return (folder / "writes").read_text().splitlines()
