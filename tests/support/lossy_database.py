"""A relay before a MariaDB server that loses what a network may lose: connections, a COMMIT, or the answer to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

from sqlalchemy.engine import make_url

COMMIT = b"\x03COMMIT"  # COM_QUERY and its statement
CHUNK = 65_536


class Loss(Enum):
    """What happens to the next COMMIT."""

    REQUEST = "it never arrives"
    ANSWER = "it is carried out, and its answer is lost"


@dataclass(slots=True)
class LossyDatabase:
    url: str
    lose: Loss | None = None
    lost: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Every connection breaks; new ones are taken."""
        for writer in list(self._open):
            writer.close()

    async def serve(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, until one side ends it or something is lost."""
        upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        self._open |= {writer, upstream_writer}
        down = asyncio.create_task(self._relay(upstream_reader, writer))
        try:
            while (chunk := await reader.read(CHUNK)) and not (self.lose and COMMIT in chunk):
                upstream_writer.write(chunk)
                await upstream_writer.drain()
            if chunk:
                await self._lose(chunk, down, upstream_reader, upstream_writer)
        except OSError:
            pass  # the connection is gone, which is all that there is to know here
        finally:
            down.cancel()
            for each in (writer, upstream_writer):
                self._open.discard(each)
                each.close()

    async def _lose(
        self,
        commit: bytes,
        down: asyncio.Task[None],
        upstream_reader: asyncio.StreamReader,
        upstream_writer: asyncio.StreamWriter,
    ) -> None:
        loss, self.lose = self.lose, None
        self.lost += 1
        down.cancel()
        await asyncio.wait([down])
        if loss is Loss.ANSWER:
            upstream_writer.write(commit)
            await upstream_reader.read(CHUNK)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass  # as above
        finally:
            writer.close()


@asynccontextmanager
async def lossy_database(url: str) -> AsyncIterator[LossyDatabase]:
    """The database at `url`, by way of the relay."""
    target = make_url(url)
    assert target.host is not None
    assert target.port is not None
    host, port = target.host, target.port
    lossy = LossyDatabase("")
    server = await asyncio.start_server(lambda reader, writer: lossy.serve(host, port, reader, writer), "127.0.0.1", 0)
    own_port = server.sockets[0].getsockname()[1]
    lossy.url = target.set(host="127.0.0.1", port=own_port).render_as_string(hide_password=False)
    try:
        yield lossy
    finally:
        server.close()
        lossy.cut()
