"""Roles as processes for a measurement: on free loopback ports, ended by process id, their processor time told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from seckill.domain.errors import SeckillError
from seckill.settings import variable

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 30
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class RoleFailed(SeckillError):
    """A role that was started for the measurement ended, or did not start in time; says the last that it wrote."""

    def __init__(self, role: str, detail: str) -> None:
        super().__init__(f"the {role} role {detail}")
        self.role = role


@dataclass(frozen=True, slots=True)
class RunningRole:
    """A role's process; its log is a file in the measurement's folder."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def cpu_seconds(self) -> float:
        """Processor time so far, user and system; 0 where the system does not tell."""
        return process_seconds(self.process.pid)

    def resident_bytes(self) -> int:
        """Memory that the process has in RAM now; 0 where the system does not tell."""
        return resident_bytes(self.process.pid)

    def alive(self) -> None:
        """Raises RoleFailed when the process has ended."""
        if self.process.returncode is not None:
            raise RoleFailed(self.name, f"ended with {self.process.returncode}: {self._last_words()}")

    async def started(self) -> None:
        """Waits for the role's own word. Raises RoleFailed."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while b"role_started" not in await asyncio.to_thread(self.log.read_bytes):
                    self.alive()
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise RoleFailed(self.name, f"did not start within {START_TIMEOUT_S} s: {self._last_words()}") from error

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it does not drain in time."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-3:]) or "it wrote nothing"


@asynccontextmanager
async def running_role(
    name: str, folder: Path, config: Path | None, overrides: Mapping[str, str], *, label: str | None = None
) -> AsyncIterator[RunningRole]:
    """`seckill NAME` on the settings file, with `overrides` (`{"product.grpc": …}`) over it and the environment."""
    told = {"log.level": "info"} | dict(overrides)  # by its log it says that it has started
    environment = dict(os.environ) | {variable(key): value for key, value in told.items()}
    command = [sys.executable, "-m", "seckill.cli", *(("--config", str(config)) if config else ()), name]
    log = folder / f"{label or name}.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    role = RunningRole(label or name, process, log)
    try:
        await role.started()
        yield role
    finally:
        await role.stop()


def free_addresses(names: Sequence[str]) -> dict[str, str]:
    """A free loopback port for each of these settings."""
    found: dict[str, str] = {}
    probes = []
    for name in names:
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        probes.append(probe)
        found[name] = f"127.0.0.1:{probe.getsockname()[1]}"
    for probe in probes:
        probe.close()
    return found


def process_seconds(pid: int) -> float:
    """User and system time of a process, from proc(5) stat, fields 14 and 15."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """From proc(5) statm, field 2."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine_seconds() -> float:
    """Busy processor time of the whole machine, from proc(5) stat: all but idle and waiting for input."""
    try:
        numbers = [int(n) for n in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(numbers) - numbers[3] - numbers[4]) / _TICKS_PER_S
