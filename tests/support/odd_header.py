"""A program that writes a record with a header whose name is not UTF-8, as a client in C may: `BOOTSTRAP TOPIC VALUE…`.

The values are written to partition 0, in one batch, and the odd record after the first of them. aiokafka's own encoder
takes names that are text; the one in Python, which a variable chooses, asks the name for its bytes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from aiokafka import AIOKafkaProducer


class OddName(str):
    """No text at all."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


async def write_odd_header(bootstrap: str, topic: str, *values: bytes) -> None:
    """Runs the program."""
    environment = {**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}
    arguments = ["-m", "tests.support.odd_header", bootstrap, topic, *(value.decode() for value in values)]
    program = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
    assert await program.wait() == 0


async def _main(bootstrap: str, topic: str, *values: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=300)
    await producer.start()
    try:
        written = [(value.encode(), []) for value in values]
        written.insert(1, (b"odd", [(OddName("x"), b"1")]))
        sent = [await producer.send(topic, value, headers=headers, partition=0) for value, headers in written]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
