"""Clients that are slow, huge or many: each loses its own connection, and the server keeps its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from starlette.responses import PlainTextResponse

from seckill.http_bounds import HEAD_BYTES_MAX, REFUSALS_MAX
from seckill.ops import serve_http

CONNECTIONS_MAX = 20
HEAD_TIMEOUT_S = 0.4
GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


@asynccontextmanager
async def serving(*, head_timeout_s: float) -> AsyncIterator[tuple[str, int]]:
    app = PlainTextResponse("ok")
    async with serve_http(app, "127.0.0.1:0", connections_max=CONNECTIONS_MAX, head_timeout_s=head_timeout_s) as bound:
        host, _, port = bound.rpartition(":")
        yield host, int(port)


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    async with serving(head_timeout_s=HEAD_TIMEOUT_S) as bound:
        yield bound


async def said(reader: asyncio.StreamReader) -> bytes:
    """The first line of the answer; empty when the connection was closed without one."""
    async with asyncio.timeout(5):
        try:
            return (await reader.readline()).strip()
        except ConnectionError:
            return b""


async def test_a_head_that_does_not_end_is_not_waited_for(address: tuple[str, int]) -> None:
    """Byte by byte, or nothing at all: 408, and the place is free again."""
    silent, _ = await asyncio.open_connection(*address)
    slow, writer = await asyncio.open_connection(*address)
    for byte in GET[:10]:
        writer.write(bytes([byte]))
        await asyncio.sleep(HEAD_TIMEOUT_S / 20)
    assert await said(silent) == b"HTTP/1.1 408 Request Timeout"
    assert await said(slow) == b"HTTP/1.1 408 Request Timeout"


async def test_a_later_head_is_bounded_too(address: tuple[str, int]) -> None:
    """On a connection that has been served before, the next request's head has no more time."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(GET)
    assert await said(reader) == b"HTTP/1.1 200 OK"
    await reader.readuntil(b"ok")
    writer.write(GET[:10])
    assert await said(reader) == b"HTTP/1.1 408 Request Timeout"


async def test_a_request_in_time_is_served_for_longer_than_a_head_may_take(address: tuple[str, int]) -> None:
    """The clock stops with the head: a connection lives on between its requests."""
    reader, writer = await asyncio.open_connection(*address)
    for _ in range(3):
        writer.write(GET[:5])
        await asyncio.sleep(0.05)
        writer.write(GET[5:])
        assert await said(reader) == b"HTTP/1.1 200 OK"
        await reader.readuntil(b"ok")
        await asyncio.sleep(HEAD_TIMEOUT_S * 0.8)


async def test_a_huge_head_is_not_kept(address: tuple[str, int]) -> None:
    """Above the bound: 431, though no single header is too large."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET / HTTP/1.1\r\n")
    for number in range(17):
        writer.write(b"x-%d: " % number + b"a" * (HEAD_BYTES_MAX // 16) + b"\r\n")
        await asyncio.sleep(0.001)
    assert (await said(reader)).startswith(b"HTTP/1.1 431")


async def test_one_connection_too_many_is_refused_quickly() -> None:
    """Above the bound: 503 with Retry-After; far above it the connection is closed unheard; then all is well again."""
    async with serving(head_timeout_s=60) as address:
        await fill(address)
        async with asyncio.timeout(5):
            while await answer_on_a_new_connection(address) != b"HTTP/1.1 200 OK":
                await asyncio.sleep(0.05)


async def answer_on_a_new_connection(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(GET)
    line = await said(reader)
    writer.close()
    return line


async def fill(address: tuple[str, int]) -> None:
    """Opens as many as are served, then as many as are refused, then one more; closes them all."""
    async with AsyncExitStack() as stack:
        opened = [await asyncio.open_connection(*address) for _ in range(CONNECTIONS_MAX)]
        for _, writer in opened:
            stack.callback(writer.close)
            writer.write(GET)
        assert [await said(reader) for reader, _ in opened] == [b"HTTP/1.1 200 OK"] * CONNECTIONS_MAX
        reader, writer = await asyncio.open_connection(*address)
        stack.callback(writer.close)
        writer.write(GET)
        assert await said(reader) == b"HTTP/1.1 503 Service Unavailable"
        assert b"retry-after: 1\r\n" in await reader.readuntil(b"\r\n\r\n")
        for _ in range(REFUSALS_MAX):
            _, more = await asyncio.open_connection(*address)
            stack.callback(more.close)
        reader, writer = await asyncio.open_connection(*address)
        stack.callback(writer.close)
        assert await said(reader) == b""
