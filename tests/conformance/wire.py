"""A gRPC proxy before a coordinator: passes everything on, and remembers what each transaction's requests were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.unknown_fields import UnknownFieldSet

from seckill.wire.dtmgimp_pb2 import DtmBranchRequest, DtmRequest

Context = grpc.aio.ServicerContext[bytes, bytes]

TRANSPORT = ("user-agent", "grpc-", ":")
"""Metadata that gRPC itself adds."""


@dataclass(slots=True)
class Wire:
    """Where the proxy listens, and by gid what was sent: method, metadata and every field of the message."""

    address: str
    requests: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def note(self, method: str, request: bytes, metadata: list[tuple[str, str | bytes]]) -> None:
        kind = DtmBranchRequest if method.endswith("/RegisterBranch") else DtmRequest
        message = kind.FromString(request)
        assert not len(UnknownFieldSet(message)), f"{method} was sent with fields that nobody knows"
        fields = MessageToDict(message, preserving_proto_field_name=True)
        self.requests[message.Gid].append({"method": method, "metadata": dict(metadata), "message": fields})


class _Forward(grpc.GenericRpcHandler):
    def __init__(self, wire: Wire, channel: grpc.aio.Channel) -> None:
        self._wire = wire
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        async def forward(request: bytes, context: Context) -> bytes:
            sent = [pair for pair in context.invocation_metadata() or () if not pair[0].startswith(TRANSPORT)]
            if not method.endswith("/NewGid"):
                self._wire.note(method, request, sent)
            call: Any = self._channel.unary_unary(method, None, None)
            try:
                reply: bytes = await call(request, metadata=sent, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            return reply

        return grpc.unary_unary_rpc_method_handler(forward)


@asynccontextmanager
async def wire_to(coordinator: str) -> AsyncIterator[Wire]:
    """A proxy to the coordinator at `host:port`."""
    async with grpc.aio.insecure_channel(coordinator) as channel:
        wire = Wire("")
        server = grpc.aio.server(handlers=[_Forward(wire, channel)])
        wire.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield wire
        finally:
            await server.stop(0)
