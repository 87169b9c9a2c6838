"""The run file: how `seckill up` tells commands in other terminals where it listens.

One TOML file for each running embedded pipeline, readable by its owner only, removed when the pipeline ends. Client
commands that name no settings of their own use the newest one whose process is alive.
"""

from __future__ import annotations

import os
import stat
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from seckill.cli.settings_text import document, to_toml

if TYPE_CHECKING:
    from seckill.settings import Settings

_PREFIX = "up-"


@contextmanager
def run_file(settings: Settings) -> Iterator[Path]:
    """Writes the file for this process, removes it on leaving. Raises OSError when no directory can be used."""
    path = _writable_directory() / f"{_PREFIX}{os.getpid()}.toml"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(to_toml(document(settings, reveal=True)))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def running_overrides() -> dict[str, Any] | None:
    """The settings of the newest embedded pipeline that runs for this user, or None."""
    found = [path for directory in _directories() if _ours(directory) for path in directory.glob(f"{_PREFIX}*.toml")]
    alive = [path for path in found if _alive(path)]
    if not alive:
        return None
    newest = max(alive, key=lambda path: path.stat().st_mtime_ns)
    return tomllib.loads(newest.read_text(encoding="utf-8"))


def _directories() -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine without XDG_RUNTIME_DIR is an ordinary one
        return [platformdirs.user_runtime_path("seckill"), platformdirs.user_state_path("seckill")]


def _writable_directory() -> Path:
    problem: OSError | None = None
    for directory in _directories():
        try:
            for each in (directory.parent, directory):  # one at a time: parents made on the way get wider rights
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            problem = error
            continue
        if _ours(directory) and os.access(directory, os.W_OK):
            return directory
        problem = PermissionError(f"{directory} belongs to somebody else, or others may write to it")
    assert problem is not None
    raise problem


def _ours(directory: Path) -> bool:
    """Ours alone to write: the file holds addresses and a token that commands will trust."""
    try:
        found = directory.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _alive(path: Path) -> bool:
    """Whether the process that wrote the file runs; the file of a dead one is removed."""
    pid = path.stem.removeprefix(_PREFIX)
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        path.unlink(missing_ok=True)
        return False
    except PermissionError:
        return False  # the pid belongs to another user by now
    return True
