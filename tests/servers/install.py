"""Programs for the native servers: Debian packages, Kafka's jars from Maven, DTM built with Go.

Versions are pinned (`recipes/`); what was downloaded or built lies in the user's cache and is used again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from tests.servers.addresses import ServersMissing

RECIPES = Path(__file__).parent / "recipes"
BUILD_TIMEOUT_S = 1_200
DTM_VERSION = "1.19.0"

DEBIAN = {
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "redis-server": "redis-server",
    "java": "default-jre-headless",
    "mvn": "maven",
    "wget": "wget",
    "wrk": "wrk",
}
"""Debian's package for each program. Go is not taken from there: DTM needs a newer one than it may have."""

SYSTEM_FOLDERS = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"))


class InstallFailed(Exception):
    """A command of the installation did not work; the message has its last lines."""


def program(name: str) -> str | None:
    """The path of a program; also looks where a user's PATH does not."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS)


def missing() -> dict[str, str]:
    """Which servers cannot be started natively here and now, and why."""
    needed: dict[str, list[tuple[str, object]]] = {
        "Kafka": [("java", program("java")), ("its jars", kafka_jars() if kafka_jars().exists() else None)],
        "Redis": [("redis-server", program("redis-server"))],
        "MariaDB": [("mariadbd", program("mariadbd")), ("mariadb-install-db", program("mariadb-install-db"))],
        "DTM": [("its program", dtm_program() if dtm_program().exists() else None)],
    }
    absent = {server: [name for name, found in parts if found is None] for server, parts in needed.items()}
    return {
        server: f"no {' and no '.join(names)} here (make services installs it)"
        for server, names in absent.items()
        if names
    }


def require(*servers: str) -> None:
    """Raises ServersMissing when one of them cannot be started natively."""
    reasons = {server: reason for server, reason in missing().items() if server in servers}
    if reasons:
        raise ServersMissing(reasons)


# --- what lies in the cache ------------------------------------------------------------------------------------------


@cache
def kafka_jars() -> Path:
    """The folder of Kafka's jars, whether it is there or not."""
    return user_cache_path("seckill") / f"kafka-{_fingerprint(RECIPES / 'kafka')}"


@cache
def dtm_program() -> Path:
    """DTM's program, whether it is there or not."""
    return user_cache_path("seckill") / f"dtm-{DTM_VERSION}-{_fingerprint(RECIPES / 'dtm')}"


def _fingerprint(recipe: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(recipe.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


# --- installing ------------------------------------------------------------------------------------------------------


def install(tell: Callable[[str], None]) -> None:
    """Gets everything that is missing. Raises InstallFailed."""
    _install_packages(tell)
    _once(kafka_jars(), _fetch_kafka, tell, "Kafka's jars, about 45 MB")
    _once(dtm_program(), _build_dtm, tell, f"DTM {DTM_VERSION}, built from source in some minutes")


def _install_packages(tell: Callable[[str], None]) -> None:
    absent = {name for name in DEBIAN if program(name) is None} - ({"mvn"} if kafka_jars().exists() else set())
    wanted = sorted({DEBIAN[name] for name in absent})
    if not wanted:
        return
    if os.geteuid() != 0 or program("apt-get") is None:
        raise InstallFailed(f"these Debian packages are needed, and installing them needs root: {' '.join(wanted)}")
    tell(f"apt-get install {' '.join(wanted)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    _run("apt-get", "update", "-qq", environment=quiet)
    with _no_services():
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted, environment=quiet)


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian starts a server when its package is installed, unless this file says no. An existing one is left alone."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()


def _once(target: Path, make: Callable[[Path], None], tell: Callable[[str], None], what: str) -> None:
    """Makes `target` unless it is there; others who want it wait, and never see half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if target.exists():
            return
        tell(f"getting {what} into {target}")
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        make(fresh)
        fresh.rename(target)


def _fetch_kafka(target: Path) -> None:
    shutil.copytree(RECIPES / "kafka", target / "build")
    arguments = ("dependency:copy-dependencies", f"-DoutputDirectory={target}", "-DincludeScope=runtime")
    try:
        _run(_needed("mvn", "Maven"), "--batch-mode", "--quiet", *arguments, folder=target / "build")
    except InstallFailed:
        shutil.rmtree(target)
        raise
    shutil.rmtree(target / "build")


def _build_dtm(target: Path) -> None:
    """`-mod=mod` writes go.sum, checked against the checksum database; `-p=1` leaves the other processors alone."""
    source = target.with_name(f"{target.name}.source")
    shutil.copytree(RECIPES / "dtm", source)
    version = f"-X main.Version={DTM_VERSION}"
    try:
        _run(_needed("go", "Go 1.22 or newer"), "build", "-mod=mod", "-p=1", "-ldflags", version, "-o", str(target),
             "github.com/dtm-labs/dtm", folder=source)  # fmt: skip
    finally:
        shutil.rmtree(source)


def _needed(name: str, what: str) -> str:
    found = program(name)
    if found is None:
        raise InstallFailed(f"{what} is needed, and there is no {name}: install it first")
    return found


def _run(*command: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
    ended = subprocess.run(
        command, cwd=folder, env=os.environ | (environment or {}), timeout=BUILD_TIMEOUT_S, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if ended.returncode != 0:
        raise InstallFailed(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-2_000:]}")


def tell_on_stderr(line: str) -> None:
    print(f"services: {line}", file=sys.stderr, flush=True)
