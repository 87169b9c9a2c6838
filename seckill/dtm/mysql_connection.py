"""A connection of asyncmy whose end is bounded in time as well. May import asyncmy only, and is imported when needed.

asyncmy bounds what it reads. But it gives up a connection by writing a last word, waiting until all is written and TLS
has said goodbye: with a server that takes nothing, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asyncmy.connection import Connection

CLOSE_TIMEOUT_S = 1.0


class BoundedConnection(Connection):
    """Closes politely within a second, or abruptly after it."""

    async def ensure_closed(self) -> None:
        transport: asyncio.Transport | None = getattr(self, "_transport", None)  # its stubs know nothing of it
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await super().ensure_closed()
        except TimeoutError:
            self.close()
            if transport is not None:
                transport.abort()


async def connect(**arguments: Any) -> BoundedConnection:
    """As `asyncmy.connect`."""
    connection = BoundedConnection(**arguments)  # type: ignore[no-untyped-call]  # of a compiled module
    await connection.connect()
    return connection
