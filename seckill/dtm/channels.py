"""Connections to gRPC servers: how one is dialled, and a channel per branch address, opened on first use.

Payloads are bytes here, never parsed. Credentials come from outside: this package reads no files.
"""

from __future__ import annotations

import asyncio
from typing import Self

import grpc

from seckill.dtm.errors import BadTarget, call_failed
from seckill.dtm.protocol import Metadata

# Loopback and private networks: no proxy. A server that comes back is found within seconds, not gRPC's two minutes.
# One that vanishes without a word: what was sent and is not acknowledged within the keepalive time-out ends the
# connection (gRPC sets TCP_USER_TIMEOUT to it once keepalive is on). Pings on idle connections are as rare as a Go
# server such as DTM wants them (5 minutes); for more of them it would close the connection.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel to `host:port`, with TLS if there are credentials. It connects on first use; the caller closes it."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def split_target(target: str) -> tuple[str, str]:
    """`host:port/pkg.Service/Method` as (`host:port`, `/pkg.Service/Method`). Raises BadTarget."""
    server, slash, method = target.partition("/")
    if not server or not slash or not method or "://" in target:
        raise BadTarget(target)
    return server, slash + method


class Channels:
    """A cache of channels; close it, or use it as an asynchronous context manager."""

    def __init__(self, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def call(self, target: str, payload: bytes, metadata: Metadata, *, timeout_ms: int) -> bytes:
        """One unary call; returns the reply's bytes. Raises BadTarget, Refused, Ongoing or Unavailable."""
        method = self._methods.get(target) or self._open(target)
        try:
            return await method(payload, timeout=timeout_ms / 1000, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise call_failed(target, error) from error

    def _open(self, target: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        server, path = split_target(target)
        channel = self._channels.get(server)
        if channel is None:
            channel = self._channels[server] = open_channel(server, self._credentials)
        # Without serializers: bytes in, bytes out.
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path, None, None)
        self._methods[target] = method
        return method

    async def close(self) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        self._methods.clear()
        await asyncio.gather(*(channel.close(None) for channel in channels))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
