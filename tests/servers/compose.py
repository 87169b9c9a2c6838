"""The servers of `docker-compose.yml`, where a Docker engine answers: a project of its own, on ports of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.addresses import DtmAddress, Servers
from tests.servers.ports import free_ports

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
OVERRIDE = Path(__file__).parent / "recipes" / "compose.tests.yml"
SERVICES = ("kafka", "redis", "mariadb", "dtm")
PORTS = ("KAFKA_PORT", "REDIS_PORT", "MARIADB_PORT", "DTM_GRPC_PORT", "DTM_HTTP_PORT", "DTM_JSON_RPC_PORT")
PASSWORDS = ("REDIS_PASSWORD", "MARIADB_ROOT_PASSWORD", "DTM_DB_PASSWORD")
START_TIMEOUT_S = 600


class ComposeFailed(Exception):
    """Docker answers, and yet the servers do not come up."""


def engine_answers() -> bool:
    docker = shutil.which("docker")
    if docker is None or not FILE.exists():
        return False
    ended = subprocess.run([docker, "info"], capture_output=True, timeout=30, check=False)
    return ended.returncode == 0


@contextmanager
def servers() -> Iterator[Servers]:
    """The four servers; their containers and volumes are removed afterwards."""
    project = f"seckill-tests-{secrets.token_hex(4)}"
    variables = own_variables()
    try:
        _compose(project, variables, "up", "--detach", "--wait", *SERVICES)
        yield addresses(variables)
    finally:
        _compose(project, variables, "down", "--volumes", "--remove-orphans")


def own_variables() -> dict[str, str]:
    """What the file takes from its environment: free ports, and passwords that nobody else knows."""
    ports = zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)
    return dict(ports) | {name: secrets.token_hex(8) for name in PASSWORDS}


def addresses(variables: Mapping[str, str]) -> Servers:
    host = "127.0.0.1"
    return Servers(
        source="compose",
        kafka=f"{host}:{variables['KAFKA_PORT']}",
        redis=f"redis://:{variables['REDIS_PASSWORD']}@{host}:{variables['REDIS_PORT']}/0",
        mariadb=f"mysql+asyncmy://root:{variables['MARIADB_ROOT_PASSWORD']}@{host}:{variables['MARIADB_PORT']}/",
        dtm=DtmAddress(f"{host}:{variables['DTM_GRPC_PORT']}", f"{host}:{variables['DTM_HTTP_PORT']}"),
    )


def _compose(project: str, variables: Mapping[str, str], *arguments: str) -> None:
    command = ["docker", "compose", "--project-name", project, "--file", str(FILE), "--file", str(OVERRIDE), *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=START_TIMEOUT_S, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise ComposeFailed(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-3_000:]}")
