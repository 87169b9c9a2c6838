"""The `seckill` command as a user has it: processes of their own, and nothing of whoever runs the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

COMMAND_TIMEOUT_S = 60
START_TIMEOUT_S = 60


@dataclass
class Running:
    """A command that keeps running; its stdout is read as it comes."""

    process: subprocess.Popen[str]
    lines: Queue[str | None] = field(default_factory=Queue)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def line(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """The next line of stdout."""
        try:
            line = self.lines.get(timeout=timeout_s)
        except Empty:
            line = None
        assert line is not None, f"no line of output; stderr: {''.join(self.errors)}"
        return line

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends a signal and waits for the end; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(COMMAND_TIMEOUT_S)
        for reader in self.readers:
            reader.join(5)
        return code

    @property
    def stderr(self) -> str:
        return "".join(self.errors)


@dataclass
class Seckill:
    """Runs `seckill …` in a home of its own."""

    environment: dict[str, str]
    folder: Path
    started: list[Running] = field(default_factory=list)

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "seckill.cli", *arguments],
            env=self.environment, cwd=self.folder, input=stdin, capture_output=True, text=True,
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        """The last line of the stdout of a command that must end with 0."""
        ended = self.run(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return json.loads(ended.stdout.splitlines()[-1])

    def start(self, *arguments: str) -> Running:
        running = Running(
            subprocess.Popen(
                [sys.executable, "-m", "seckill.cli", *arguments],
                env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        self.started.append(running)
        return running

    def close(self) -> None:
        for running in self.started:
            running.process.kill()
            running.process.wait(10)


@pytest.fixture(scope="session")
def new_seckill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Seckill]]:
    """Makes `seckill` commands that know nothing of each other; what they left running is ended."""
    made: list[Seckill] = []

    def make() -> Seckill:
        home = tmp_path_factory.mktemp("home")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SECKILL", "XDG_"))}
        own = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "XDG_STATE_HOME": str(home / "state")}
        made.append(Seckill({**kept, **own, "NO_COLOR": "1"}, home))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def seckill(new_seckill: Callable[[], Seckill]) -> Seckill:
    return new_seckill()
