"""docker-compose.yml and Dockerfile as Docker's own libraries read them (a small Go program in `go/`)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

from tests.support.programs import needs

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
PROFILES = ("coordinator", "cli", "demo")
SOURCE = Path(__file__).parent / "go"
BUILD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 30

Json = dict[str, Any]


class Refused(Exception):
    """The library does not take the file; the message is its own."""


def compose_file(*files: Path, variables: Mapping[str, str] | None = None, profiles: Sequence[str] = PROFILES) -> Json:
    """The file with every default filled in and every variable put in. Raises Refused."""
    options = [each for profile in profiles for each in ("-profile", profile)]
    loaded: Json = _run("file", *options, *map(str, files or (FILE,)), variables=variables or {})
    return loaded


def dockerfile(path: Path = ROOT / "Dockerfile") -> Json:
    """`stages`, `instructions` and `warnings`. Raises Refused."""
    parsed: Json = _run("dockerfile", str(path), variables={})
    return parsed


def build_context(folder: Path = ROOT) -> list[str]:
    """The files that a build of the image is sent."""
    sent: list[str] = _run("context", str(folder), variables={})
    return sent


def _run(*arguments: str, variables: Mapping[str, str]) -> Any:
    ended = subprocess.run(
        [str(program()), *arguments], env={"PATH": os.environ["PATH"], **variables}, cwd=ROOT,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise Refused(ended.stderr.strip())
    return json.loads(ended.stdout)


@cache
def program() -> Path:
    """Built once for each state of its source, and kept in the user's cache."""
    go = needs("go")
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCE.iterdir() if path.suffix in {".go", ".mod", ".sum"}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    binary = user_cache_path("seckill") / f"compose-{digest.hexdigest()[:20]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        built = subprocess.run(
            [go, "build", "-mod=mod", "-p=1", "-o", str(fresh), "."], cwd=SOURCE, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_TIMEOUT_S, check=False,
        )  # fmt: skip
        if built.returncode != 0:
            pytest.fail(built.stdout[-4_000:])
        fresh.rename(binary)
    return binary
