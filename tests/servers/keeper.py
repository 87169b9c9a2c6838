"""Ends the servers and removes their folders when the process that started them dies, however it dies.

One small process for all of them. It reads what to look after from a pipe; the pipe's end is the owner's end.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

# Runs alone, without this package: `+ 12` and `- 12` are processes, `folder PATH` is removed at the end.
_PROGRAM = """
import os, shutil, signal, sys
pids, folders = set(), set()
for line in sys.stdin:
    word, _, value = line.rstrip("\\n").partition(" ")
    if word == "+":
        pids.add(int(value))
    elif word == "-":
        pids.discard(int(value))
    else:
        folders.add(value)
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
for folder in folders:
    shutil.rmtree(folder, ignore_errors=True)
"""


class Keeper:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def watch(self, pid: int) -> None:
        self._say(f"+ {pid}")

    def forget(self, pid: int) -> None:
        """It has ended; its id may become another's."""
        self._say(f"- {pid}")

    def remove_at_end(self, folder: Path) -> None:
        self._say(f"folder {folder}")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


@cache
def keeper() -> Keeper:
    """The one of this process; started when it is first needed."""
    return Keeper()
