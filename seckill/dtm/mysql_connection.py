"""A connection of asyncmy whose beginning and end are bounded in time. May import asyncmy only; imported when needed.

asyncmy bounds what it reads, and each read of the handshake by what the longest statement may take. And it gives up a
connection by writing a last word, waiting until all is written and TLS has said goodbye: with a server that takes
nothing, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asyncmy.connection import Connection
from asyncmy.constants.CR import CR_CONN_HOST_ERROR
from asyncmy.errors import OperationalError

CONNECT_TIMEOUT_S = 8.0
"""From the first packet to a session that is ready: TLS, login and the first command included."""

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
    """As `asyncmy.connect`. Raises OperationalError (2003) when all of it has not ended in CONNECT_TIMEOUT_S."""
    connection = BoundedConnection(**arguments)  # type: ignore[no-untyped-call]  # of a compiled module
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await connection.connect()
    except TimeoutError as error:
        raise OperationalError(CR_CONN_HOST_ERROR, f"no answer within {CONNECT_TIMEOUT_S:g} s") from error
    return connection
