"""Who is told of alerts in tests: an HTTP server on loopback that takes what Apprise posts to `json://` targets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Told:
    title: str
    message: str


@asynccontextmanager
async def receiving_alerts() -> AsyncIterator[tuple[str, Sequence[Told]]]:
    """The target's URL, and a list that grows with every message."""
    told: list[Told] = []

    async def take(request: web.Request) -> web.Response:
        posted = await request.json()
        told.append(Told(posted["title"], posted["message"]))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"json://{host}:{port}/", told
    finally:
        await runner.cleanup()
