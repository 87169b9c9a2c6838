"""Who answers at an address, told from the first bytes that it says to the beginning of an HTTP/2 connection."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from seckill.doctor.probes import Silent, Stranger

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""How an HTTP/2 client begins (RFC 9113, 3.4): the fixed words, and an empty SETTINGS frame."""

LOOK_TIMEOUT_S = 2.0
LOOKED_AT_BYTES = 64

GRPC = "a gRPC server"
HTTP = "an HTTP server"
REDIS = "Redis"
SQL = "MariaDB or MySQL"
NOTHING = "something that says nothing of itself"


async def answering(address: str) -> str:
    """In words, who answers at `host:port`. Raises Silent when nobody accepts a connection."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError as error:
        raise Silent("no answer in time") from error
    except OSError as error:
        raise Silent(in_words(error)) from error
    heard = b""
    try:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                writer.write(PREFACE)
                heard = await reader.read(LOOKED_AT_BYTES)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return recognised(heard)


async def raise_stranger(address: str, *, expected: str) -> None:
    """Raises Stranger when what answers at the address is surely not `expected`, Silent when nobody does."""
    found = await answering(address)
    if found not in {expected, NOTHING}:
        raise Stranger(f"{found} answers")


def in_words(error: OSError) -> str:
    """Why there is no connection, in the system's own words."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)


def recognised(heard: bytes) -> str:
    """The kind of server that begins like this."""
    if heard[3:9] == b"\x04\x00\x00\x00\x00\x00":  # a SETTINGS frame of the connection
        return GRPC
    if heard[4:5] == b"\x0a" and int.from_bytes(heard[:3], "little") > 30:  # the handshake of protocol 10
        return SQL
    if heard[4:5] == b"\xff" and heard[:3] != b"\xff\xff\xff" and heard[3:4] == b"\x00":
        return SQL
    if heard.startswith((b"HTTP/1.", b"<html", b"<!DOCTYPE")):
        return HTTP
    if heard.startswith((b"-ERR", b"-NOAUTH", b"-DENIED", b"-LOADING")):
        return REDIS
    if heard.startswith((b"\x15\x03", b"\x16\x03")):
        return "a TLS port"
    return NOTHING
