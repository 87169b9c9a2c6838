"""A relay in front of a gRPC service: calls go through, unless a test has them held, lost, or answered badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc


@dataclass(frozen=True, slots=True)
class Poison:
    """A call whose request holds `item` is not passed on: it is answered with `told`, which may be bytes that are no
    reply, or never, when that is None.
    """

    item: bytes
    told: grpc.StatusCode | bytes | None


@dataclass(slots=True)
class Relay:
    """What is done to the next calls of a method; a call whose caller has gone meanwhile is not passed on."""

    address: str = ""
    held: dict[str, asyncio.Event] = field(default_factory=dict)  # not passed on before the event
    lost: dict[str, list[grpc.StatusCode]] = field(default_factory=dict)  # answered so, and not passed on
    answers: dict[str, list[grpc.StatusCode]] = field(default_factory=dict)  # answered so after the work was done
    poison: dict[str, Poison] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failed: list[tuple[str, grpc.StatusCode]] = field(default_factory=list)  # what the service itself answered so

    async def until_called(self, method: str, *, within_s: float = 30) -> None:
        async with asyncio.timeout(within_s):
            while method not in self.calls:
                await asyncio.sleep(0.02)


class _Forward(grpc.GenericRpcHandler):
    def __init__(self, relay: Relay, channel: grpc.aio.Channel) -> None:
        self._relay = relay
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        method = path.rpartition("/")[2]
        forward: Any = self._channel.unary_unary(path, None, None)
        relay = self._relay

        async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            relay.calls.append(method)
            if method in relay.held:
                await relay.held[method].wait()
            poison = relay.poison.get(method)
            if poison is not None and poison.item in request:
                return await _poisoned(poison.told, context)
            if told := relay.lost.get(method):
                await context.abort(told.pop(0), "lost on the way")
            try:
                reply: bytes = await forward(request, metadata=_own_keys(context.invocation_metadata()))
            except grpc.aio.AioRpcError as error:
                relay.failed.append((method, error.code()))
                trailing: Any = _own_keys(error.trailing_metadata())
                await context.abort(error.code(), error.details() or "", tuple(trailing))
            if told := relay.answers.get(method):
                await context.abort(told.pop(0), "after the work was done")
            return reply

        return grpc.unary_unary_rpc_method_handler(answer)


async def _poisoned(told: grpc.StatusCode | bytes | None, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    if isinstance(told, bytes):
        return told
    if told is not None:
        await context.abort(told, "it cannot digest this")
    await asyncio.Event().wait()  # the caller's deadline ends it
    raise AssertionError("unreachable: nobody sets the event")


def _own_keys(metadata: Any) -> list[tuple[str, str | bytes]]:
    """What the peer wrote itself, without what its gRPC library added."""
    return [(key, value) for key, value in metadata or () if key.startswith(("dtm-", "seckill-"))]


@asynccontextmanager
async def relay_to(address: str) -> AsyncIterator[Relay]:
    relay = Relay()
    async with grpc.aio.insecure_channel(address) as channel:
        server = grpc.aio.server(handlers=[_Forward(relay, channel)])
        relay.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield relay
        finally:
            for event in relay.held.values():
                event.set()
            await server.stop(0)
