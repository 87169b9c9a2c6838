"""Compose's part: services start when what they depend on is ready, and stop the other way round."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose.translate import Container, Site, Spec, container
from tests.servers.keeper import keeper

LOOK_EVERY_S = 0.2
_DURATION = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?")
JAVA_TERMINATED = 128 + signal.SIGTERM


def seconds(text: str) -> int:
    """`1m0s` → 60."""
    match = _DURATION.fullmatch(text)
    assert match is not None, text
    hours, minutes, rest = (int(value or 0) for value in match.groups())
    return hours * 3600 + minutes * 60 + rest


@dataclass
class Service:
    """One running container."""

    container: Container
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    healthy_after_s: float | None = None

    @property
    def name(self) -> str:
        return self.container.name

    @property
    def spec(self) -> Spec:
        return self.container.spec

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4_000:]

    def check(self) -> bool:
        """Runs the health check once, within its own time-out."""
        check = self.spec["healthcheck"]
        try:
            ended = subprocess.run(
                self.container.hardened(self.container.health_command()), env=self.container.environment(),
                cwd=self.container.folder, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=seconds(check["timeout"]), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return ended.returncode == 0

    def patience_s(self) -> int:
        """How long Docker would wait for health before it gives the container up."""
        check = self.spec["healthcheck"]
        return seconds(check["start_period"]) + int(check["retries"]) * seconds(check["interval"])

    def peak_memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def capabilities(self) -> tuple[str, str]:
        """The effective set, and whether new privileges are out of reach."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        effective, barred = re.search(r"CapEff:\s+(\w+)", status), re.search(r"NoNewPrivs:\s+(\d)", status)
        assert effective is not None
        assert barred is not None
        return effective[1], barred[1]

    def files_written(self) -> Iterator[Path]:
        """Regular files that it holds open for writing, its log aside."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        for entry in folder.iterdir():
            flags = re.search(r"flags:\s+(\d+)", Path(str(entry).replace("/fd/", "/fdinfo/")).read_text())
            target = entry.resolve()
            if flags and int(flags[1], 8) & (os.O_WRONLY | os.O_RDWR) and target.is_file() and target != self.log:
                yield target

    def stop(self) -> tuple[int, float]:
        """SIGTERM, and the time that the file gives it; exit code and seconds. Killed when that is over: -9."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds(self.spec.get("stop_grace_period", "10s")))
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        keeper().forget(self.process.pid)
        return code, time.monotonic() - began


@dataclass
class Stack:
    """The services of one loaded file, those that `up` would start."""

    site: Site
    wanted: frozenset[str] = frozenset()  # what `up` was asked to start
    order: list[str] = field(default_factory=list)  # in which they were started
    running: dict[str, Service] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    stops: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def services(self) -> Mapping[str, Spec]:
        return self.site.services

    def up(self, names: Sequence[str]) -> None:
        """Starts them all, each as soon as its conditions are met, and waits until each is healthy or has ended."""
        self.wanted = frozenset(names)
        waiting = list(names)
        while waiting or self._unready():
            ready = [name for name in waiting if self._may_start(name)]
            assert ready or self._unready(), f"nothing will ever start {waiting}"
            for name in ready:
                waiting.remove(name)
                self._start(name)
            for service in self._unready():
                self._look_at(service)
            time.sleep(LOOK_EVERY_S)

    def run(
        self, name: str, *more: str, timeout_s: float, instead: Sequence[str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose run --rm NAME` to its end; with `more` behind the command of the file, or another command."""
        assert self._may_start(name), f"{name} may not start yet"
        made = container(self.site, name)
        if instead is not None:
            made.spec = {**made.spec, "command": list(instead)}
        made.prepare()
        return subprocess.run(
            made.hardened([*made.command(), *more]), env=made.environment(), cwd=made.folder,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def stop(self) -> None:
        """As `down` does: who depends on others stops before them."""
        for name in reversed(self.order):
            if name in self.running:
                self.stops[name] = self.running.pop(name).stop()
        self.order.clear()
        self.completed.clear()

    def close(self) -> None:
        for service in self.running.values():
            service.process.kill()
            service.process.wait()
            keeper().forget(service.process.pid)
        self.running.clear()

    def _may_start(self, name: str) -> bool:
        conditions = {
            "service_healthy": lambda other: other in self.running and self.running[other].healthy_after_s is not None,
            "service_completed_successfully": lambda other: other in self.completed,
        }
        return all(
            conditions[depends["condition"]](other)
            for other, depends in self.services[name].get("depends_on", {}).items()
            if depends["required"] or other in self.wanted
        )

    def _start(self, name: str) -> None:
        made = container(self.site, name)
        made.prepare()
        log = made.folder / "output.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                made.hardened(made.command()), env=made.environment(), cwd=made.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        keeper().watch(process.pid)
        self.running[name] = Service(made, process, log, time.monotonic())
        self.order.append(name)

    def _unready(self) -> list[Service]:
        return [service for service in self.running.values() if service.healthy_after_s is None]

    def _look_at(self, service: Service) -> None:
        code = service.process.poll()
        waited = time.monotonic() - service.began
        if "healthcheck" not in service.spec:
            assert code in {None, 0}, f"{service.name} ended with {code}:\n{service.said()}"
            if code == 0:
                keeper().forget(service.process.pid)
                del self.running[service.name]
                self.completed.add(service.name)
            return
        assert code is None, f"{service.name} ended with {code}:\n{service.said()}"
        if service.check():
            service.healthy_after_s = waited
        else:
            assert waited < service.patience_s(), (
                f"{service.name} is not healthy after {waited:.0f} s:\n{service.said()}"
            )


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
