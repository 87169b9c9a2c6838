"""The roles as processes under a small supervisor, which tests kill, freeze and drain. DTM can be one of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seckill.cli.roles import EVERY_ADDRESS
from tests.servers.ports import free_ports

ROLES = ("coordinator", "product", "order", "worker", "reconcile", "front")
STARTED = b"role_started"
START_TIMEOUT_S = 120  # six interpreters that start at once on a machine that is busy with other tests
END_TIMEOUT_S = 40
RESTART_PAUSE_S = 0.5


def role_addresses() -> dict[str, dict[str, str]]:
    """Settings sections with a fixed address for everything that the roles listen on, and `dtm` to match."""
    sections: dict[str, dict[str, str]] = {}
    for name, port in zip(EVERY_ADDRESS, free_ports(len(EVERY_ADDRESS)), strict=True):
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = f"127.0.0.1:{port}"
    sections["dtm"] = dict(sections["coordinator"])
    return sections


@dataclass(frozen=True, slots=True)
class Death:
    """An end that nobody asked for; `log` is the last that the role wrote."""

    role: str
    code: int
    log: str

    def __str__(self) -> str:
        return f"{self.role} ended by itself with {self.code}:\n{self.log}"


@dataclass(frozen=True, slots=True)
class Program:
    """What is run as a role, and what it writes once it serves."""

    command: Sequence[str]
    sign: bytes = STARTED
    environment: Mapping[str, str] = field(default_factory=dict)  # besides what every role is given


def our_program(role: str) -> Program:
    return Program((sys.executable, "-m", "seckill.cli", role))


@dataclass
class RoleProcess:
    """One role. Whoever ends it says so; an end that nobody asked for is noted, and the role is started again."""

    role: str
    program: Program
    environment: Mapping[str, str]
    log: Path
    deaths: list[Death] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    drains: list[tuple[str, int, float]] = field(default_factory=list)  # role, exit code, seconds
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    process: asyncio.subprocess.Process | None = None
    log_from: int = 0  # where the running process' lines begin
    asked: bool = False
    watching: asyncio.Task[None] | None = None

    @property
    def ours(self) -> bool:
        return self.program.sign == STARTED

    @property
    def has_started(self) -> bool:
        return self.log.exists() and self.program.sign in self.log.read_bytes()[self.log_from :]

    async def start(self) -> None:
        self.asked = False
        self.log_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                *self.program.command,
                env=dict(self.environment), cwd=self.log.parent, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        self.watching = asyncio.create_task(self._watch(self.process))

    async def started(self) -> None:
        """Waits until the running process says that it has started. It is started again when it dies before that."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self.has_started:
                await asyncio.sleep(0.05)

    async def kill(self, down_s: float) -> None:
        async with self.lock:
            await self._end(signal.SIGKILL)
            await asyncio.sleep(down_s)
            await self.start()

    async def drain(self, down_s: float) -> None:
        await self.started()
        async with self.lock:
            began = time.monotonic()
            code = await self._end(signal.SIGTERM)
            self.drains.append((self.role, code, time.monotonic() - began))
            await asyncio.sleep(down_s)
            await self.start()

    async def freeze(self, for_s: float) -> None:
        await self.started()
        async with self.lock:
            assert self.process is not None
            self.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(for_s)
            self.process.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        async with self.lock:
            await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.asked = True
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            return await asyncio.wait_for(self.process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            self.hung.append(f"{self.role} did not end within {END_TIMEOUT_S} s of {number.name}")
            self.process.kill()
            return await self.process.wait()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        async with self.lock:
            if self.asked or process is not self.process:
                return
            tail = self.log.read_bytes()[self.log_from :][-3_000:].decode(errors="replace")
            self.deaths.append(Death(self.role, code, tail))
            await asyncio.sleep(RESTART_PAUSE_S)
            await self.start()

    def events(self) -> list[dict[str, Any]]:
        """The role's log lines that are events; what libraries wrote comes as `{"event": line, "level": "raw"}`."""
        return [event_of(line) for line in self.log.read_text(errors="replace").splitlines()]


def event_of(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {"event": line, "level": "raw"}
    ours = isinstance(event, dict) and "event" in event
    return event if ours else {"event": line, "level": "raw"}


@asynccontextmanager
async def running_roles(
    config: Path, others: Mapping[str, Program] | None = None
) -> AsyncIterator[dict[str, RoleProcess]]:
    """All of them, started; their logs lie beside the settings file. `others` are run instead of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL")}
    environment |= {"SECKILL_CONFIG": str(config), "NO_COLOR": "1"}
    upgraded = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "seckill.cli", "db", "upgrade", env=environment, cwd=config.parent
    )
    assert await upgraded.wait() == 0
    programs = {role: our_program(role) for role in ROLES} | dict(others or {})
    roles = {
        role: RoleProcess(role, program, environment | dict(program.environment), config.parent / f"{role}.log")
        for role, program in programs.items()
    }
    try:
        for process in roles.values():
            await process.start()
        await asyncio.gather(*(process.started() for process in roles.values()))
        yield roles
    finally:
        await asyncio.gather(*(process.close() for process in roles.values() if process.process is not None))
