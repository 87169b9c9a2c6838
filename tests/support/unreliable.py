"""A DTM client and branch channels that lose what the network may lose: a request on its way, or its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any

import grpc

from seckill.dtm.channels import Channels
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed, Unavailable
from seckill.dtm.protocol import Metadata


class Loss(Enum):
    REQUEST = "the request never arrives, and looks as if it had been answered"
    ANSWER = "the request takes effect, the answer is lost"
    GID = "the server has lost the transaction when the request arrives"
    TWICE = "nothing is lost, but the request arrives a second time"


def lost(target: str) -> Unavailable:
    return Unavailable(target, grpc.StatusCode.DEADLINE_EXCEEDED, "lost on the way")


class UnreliableClient(DtmClient):
    """Loses Submits as told, in order, and counts them; loses as many Aborts as told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.submit_losses: list[Loss] = []
        self.submits = 0
        self.aborts_lost = 0
        self.forget: Callable[[str], Awaitable[None]] | None = None  # makes the server lose a gid

    async def submit(self, gid: str, **options: Any) -> None:
        self.submits += 1
        match self.submit_losses.pop(0) if self.submit_losses else None:
            case None:
                await super().submit(gid, **options)
            case Loss.ANSWER:
                await super().submit(gid, **options)
                raise lost("Submit")
            case Loss.REQUEST:
                return
            case Loss.GID:
                assert self.forget is not None
                await self.forget(gid)
                await super().submit(gid, **options)
            case Loss.TWICE:
                with suppress(CallFailed):
                    await super().submit(gid, **options)
                await super().submit(gid, **options)

    async def abort(self, gid: str, **options: Any) -> None:
        if self.aborts_lost > 0:
            self.aborts_lost -= 1
            raise lost("Abort")
        await super().abort(gid, **options)


class UnreliableChannels(Channels):
    """Loses the answers of branch calls whose target ends with a name, as often as told.

    Calls of a method that stands in `delayed` are put there instead of being sent, for the test to send later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer_losses: dict[str, int] = {}
        self.delayed: dict[str, list[Callable[[], Awaitable[bytes]]]] = {}

    async def call(self, target: str, payload: bytes, metadata: Metadata, *, timeout_ms: int) -> bytes:
        method = target.rpartition("/")[2]
        if method in self.delayed:
            self.delayed[method].append(partial(super().call, target, payload, metadata, timeout_ms=timeout_ms))
            raise lost(target)
        reply = await super().call(target, payload, metadata, timeout_ms=timeout_ms)
        if self.answer_losses.get(method, 0) > 0:
            self.answer_losses[method] -= 1
            raise lost(target)
        return reply


@asynccontextmanager
async def open_unreliable(
    grpc_address: str, http_address: str
) -> AsyncIterator[tuple[UnreliableClient, UnreliableChannels]]:
    channels = UnreliableChannels()
    async with channels, grpc.aio.insecure_channel(grpc_address) as channel:
        client = UnreliableClient(
            channel, address=grpc_address, http_url=f"http://{http_address}", channels=channels, timeout_ms=3_000
        )
        async with client:
            yield client, channels
