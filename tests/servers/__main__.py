"""`python -m tests.servers install` gets the programs; `… run -- CMD` runs a command on real servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from typing import Annotated

import typer

from seckill.log import configure_logging
from tests.servers import install as installing
from tests.servers.addresses import Servers, ServersMissing
from tests.servers.found import real_servers
from tests.servers.native import StartFailed
from tests.servers.pipeline import empty_redis, pipeline_environment

REDIS_DATABASE = 9
"""Of a Redis server that was given to us; it is emptied."""

app = typer.Typer(add_completion=False, help="Real servers for tests and the demo.")


@app.command()
def install() -> None:
    """Install what is missing for Kafka, Redis, MariaDB and DTM as processes of this machine."""
    try:
        installing.install(installing.tell_on_stderr)
    except installing.InstallFailed as error:
        installing.tell_on_stderr(str(error))
        raise typer.Exit(3) from error
    if reasons := installing.missing():
        installing.tell_on_stderr("; ".join(f"{server}: {reason}" for server, reason in reasons.items()))
        raise typer.Exit(3)
    installing.tell_on_stderr("Kafka, Redis, MariaDB and DTM can be started here")


@app.command(context_settings={"ignore_unknown_options": True})
def run(command: Annotated[list[str], typer.Argument(help="After `--`: the command and its arguments.")]) -> None:
    """Run a command with real servers up, and `SECKILL__…` variables that name them."""
    configure_logging("error")
    try:
        with real_servers() as servers:
            installing.tell_on_stderr(f"Kafka, Redis, MariaDB and DTM answer ({servers.source})")
            environment = asyncio.run(_environment(servers))
            code = subprocess.run(command, env=os.environ | environment, check=False).returncode
    except (ServersMissing, StartFailed) as error:
        installing.tell_on_stderr(str(error))
        raise typer.Exit(3) from error
    raise typer.Exit(code)


async def _environment(servers: Servers) -> dict[str, str]:
    """Servers that we have just started are fresh; on others the pipeline keeps to itself."""
    if servers.source == "native":
        return await pipeline_environment(servers, suffix="", redis_url=servers.redis)
    suffix = f"-{uuid.uuid4().hex[:8]}"
    return await pipeline_environment(servers, suffix=suffix, redis_url=empty_redis(servers.redis, REDIS_DATABASE))


if __name__ == "__main__":
    app()
