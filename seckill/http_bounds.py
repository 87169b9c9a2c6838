"""What uvicorn leaves unbounded: the time and size of a request's head, and the number of connections.

A client that sends its head byte by byte, sends nothing at all, or never ends a header would otherwise hold a place and
memory for ever. Bodies are bounded by the applications, which know how large theirs may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 10
HEAD_BYTES_MAX = 65_536
"""Of a head that came in several parts; what came in one part is smaller than a socket's buffer."""

REFUSALS_MAX = 1_000
"""Connections above the bound that are still answered; above them a connection is closed unheard."""

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with bounds. A request whose head comes in one piece pays two comparisons for them."""

    open_max: int
    head_timeout_s: float
    _in_head = False
    _head_bytes = 0
    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if len(self.connections) > self.open_max:
            transport.abort()
            return
        self._head_due = self.loop.call_later(self.head_timeout_s, self._end, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        continues = self._in_head
        super().data_received(data)
        if not self._in_head:
            return
        if self._head_due is None:
            self._head_due = self.loop.call_later(self.head_timeout_s, self._end, _TOO_SLOW)
        self._head_bytes = self._head_bytes + len(data) if continues else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._end(_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def _stop_clock(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _end(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def bounded_http(connections_max: int, head_timeout_s: float) -> type[BoundedHttp]:
    """The protocol for a server that serves so many connections, and refuses some more with an answer."""
    bounds = {"open_max": connections_max + REFUSALS_MAX, "head_timeout_s": head_timeout_s}
    return type("BoundedHttp", (BoundedHttp,), bounds)


class BoundedConnections:
    """Sends requests to `refused` while there are more connections than `connections_max`.

    `connections` is the server's own collection, set before the first request.
    """

    def __init__(self, app: ASGIApp, refused: ASGIApp, connections_max: int) -> None:
        self._app = app
        self._refused = refused
        self._connections_max = connections_max
        self.connections: Collection[object] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chosen = self._refused if len(self.connections) > self._connections_max else self._app
        await chosen(scope, receive, send)
