"""What every role shows its operators: /healthz, /readyz, /metrics, and the HTTP server that answers them.

`/healthz` says that the event loop turns. `/readyz` says whether the role can do its work now: each dependency is
asked, in parallel and within a time-out, and a role that drains answers 503. Ops ports are plaintext by design: they
tell no secrets, and belong on a private network.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

log = structlog.get_logger()

Check = Callable[[], Awaitable[None]]
"""Asks one dependency; raises when it cannot serve."""

CHECK_TIMEOUT_S = 2.0

CONNECTIONS_MAX = 200
"""Of an ops port at a time."""


class PortInUse(OSError):
    """The address to listen on is taken, or is not ours; names the address."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"cannot listen on {address}: {problem}")
        self.address = address


@dataclass(slots=True)
class Readiness:
    """Whether a role can do its work: its dependencies answer and it is not stopping."""

    role: str
    checks: Mapping[str, Check] = field(default_factory=dict)
    stopping: bool = False

    def stop(self) -> None:
        """From now on unready, so that nobody sends new work here."""
        self.stopping = True

    async def report(self) -> dict[str, object]:
        """`{"role", "ready", "checks": {name: "ok" | what is wrong}}`."""
        answers = await asyncio.gather(*(_ask(check) for check in self.checks.values()))
        checks = dict(zip(self.checks, answers, strict=True))
        if self.stopping:
            checks["lifecycle"] = "stopping"
        return {"role": self.role, "ready": all(answer == "ok" for answer in checks.values()), "checks": checks}


async def _ask(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001 - whatever a dependency's client raises is the answer
        return f"{type(error).__name__}: {error}"
    return "ok"


def ops_routes(readiness: Readiness) -> list[Route]:
    """The three routes, to be mounted into a role's own application or served alone."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        report = await readiness.report()
        return JSONResponse(report, status_code=200 if report["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


@asynccontextmanager
async def serve_ops(address: str, readiness: Readiness) -> AsyncIterator[str]:
    """Serves the three routes alone; yields the address it listens on (port 0 takes a free one)."""
    async with serve_http(Starlette(routes=ops_routes(readiness)), address) as bound:
        yield bound


@asynccontextmanager
async def serve_http(
    app: ASGIApp,
    address: str,
    *,
    drain_timeout_ms: int = 5_000,
    connections_max: int = CONNECTIONS_MAX,
    certificate: str | None = None,
    key: str | None = None,
) -> AsyncIterator[str]:
    """An ASGI application in this event loop, without signal handlers; yields `host:port`. Raises PortInUse.

    HTTPS with `certificate` and `key`, paths of PEM files. Beyond `connections_max` requests are answered 503.
    """
    host, _, port = address.rpartition(":")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, drain_timeout_ms // 1000),
        limit_concurrency=connections_max,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    try:
        listening = _bind(host.strip("[]"), int(port))
    except OSError as error:
        raise PortInUse(address, error.strerror or str(error)) from error
    await server.startup(sockets=[listening])
    loop_task = asyncio.create_task(server.main_loop(), name=f"http {address}")
    try:
        yield f"{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await loop_task
        await server.shutdown(sockets=[listening])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off for what is accepted here; otherwise the body of an
    # answer, written after its head, would wait 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
