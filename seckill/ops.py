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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seckill.draining import Drain
from seckill.http_bounds import HEAD_TIMEOUT_S, BoundedConnections, bounded_http

log = structlog.get_logger()

Check = Callable[[], Awaitable[None]]
"""Asks one dependency; raises when it cannot serve."""

CHECK_TIMEOUT_S = 2.0

CONNECTIONS_MAX = 200
"""Of an ops port at a time."""

TOO_MANY = PlainTextResponse("too many connections\n", 503, {"retry-after": "1", "connection": "close"})

OPS_DRAIN_MS = 5_000

LINGER_S = 0.25
"""How long connections that are open when the port is closed may still send a request, which is answered."""

_CLOSE = (b"connection", b"close")


class PortInUse(OSError):
    """The address to listen on is taken, or is not ours; names the address."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"cannot listen on {address}: {problem}")
        self.address = address


@dataclass(slots=True)
class Readiness:
    """Whether a role can do its work: its dependencies answer and it is not stopping.

    `dispensable`: the names of checks that are told, and do not make it unready.
    """

    role: str
    checks: Mapping[str, Check] = field(default_factory=dict)
    dispensable: frozenset[str] = frozenset()
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
        ready = all(answer == "ok" for name, answer in checks.items() if name not in self.dispensable)
        return {"role": self.role, "ready": ready, "checks": checks}


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
async def serve_ops(address: str, readiness: Readiness, drain: Drain | None = None) -> AsyncIterator[str]:
    """Serves the three routes alone; yields the address it listens on (port 0 takes a free one)."""
    async with serve_http(Starlette(routes=ops_routes(readiness)), address, drain=drain) as bound:
        yield bound


@asynccontextmanager
async def serve_http(
    app: ASGIApp,
    address: str,
    *,
    drain: Drain | None = None,
    connections_max: int = CONNECTIONS_MAX,
    refused: ASGIApp = TOO_MANY,
    head_timeout_s: float = HEAD_TIMEOUT_S,
    certificate: str | None = None,
    key: str | None = None,
) -> AsyncIterator[str]:
    """An ASGI application in this event loop, without signal handlers; yields `host:port`. Raises PortInUse.

    HTTPS with `certificate` and `key`, paths of PEM files. Beyond `connections_max` connections `refused` answers.
    A request whose head is not complete after `head_timeout_s` ends its connection.

    Once `drain` has begun, every answer ends its connection, so that clients go elsewhere without a broken request;
    when the block ends the port is closed, and requests under way have the time that `drain` gives.
    """
    drain = drain or Drain(OPS_DRAIN_MS)
    host, _, port = address.rpartition(":")
    bounded = BoundedConnections(app, refused, connections_max)
    config = uvicorn.Config(
        _Closing(bounded, drain),
        http=bounded_http(connections_max, head_timeout_s),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    server = uvicorn.Server(config)
    bounded.connections = server.server_state.connections
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
        drain.begin()
        server.should_exit = True
        await loop_task
        await _shut(server, listening, drain)


async def _shut(server: uvicorn.Server, listening: socket.socket, drain: Drain) -> None:
    """The port first, then idle connections, then those with a request, whose answers may take what time is left."""
    for accepting in server.servers:
        accepting.close()
    listening.close()
    lingered_s = 0.0
    while server.server_state.connections and lingered_s < min(LINGER_S, drain.work_left_s()):
        await asyncio.sleep(0.05)
        lingered_s += 0.05
    shutting = asyncio.create_task(server.shutdown())
    await asyncio.wait({shutting}, timeout=drain.work_left_s())
    if not shutting.done():
        drain.leave("requests", len(server.server_state.tasks))
        for task in server.server_state.tasks:
            task.cancel()
        for connection in list(server.server_state.connections):
            connection.shutdown()
    await shutting


class _Closing:
    """Has every answer say `Connection: close` once the drain has begun."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if self._drain.begun and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _CLOSE]
            await send(message)

        await self._app(scope, receive, send_closing)


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
