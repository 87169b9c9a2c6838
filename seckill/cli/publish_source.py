"""Lines of a file or of stdin for code that must not block: a pipe that is slow must not stop orders in flight."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from seckill.cli.errors import WrongUsage
from seckill.cli.publish_input import BadHeader, InputFormat, Line, raw_lines, read_orders

QUEUE_LINES_MAX = 1_000


async def lines_of(file: Path, form: InputFormat) -> AsyncIterator[Line]:
    """The file's orders and problems; `-` is stdin. Raises WrongUsage when it cannot be read as orders at all."""
    stream = _opened(file)
    lines = read_orders(raw_lines(stream), name=file.name, form=form)
    try:
        async for line in _at_once(lines) if _never_waits(stream) else _threaded(lines):
            yield line
    except BadHeader as error:
        raise WrongUsage(f"{file}: {error}") from error
    except OSError as error:
        raise WrongUsage(f"cannot read {file}: {error.strerror}") from error


def _opened(file: Path) -> BinaryIO:
    if str(file) != "-":
        try:
            return file.open("rb")
        except OSError as error:
            raise WrongUsage(f"cannot read {file}: {error.strerror}") from error
    if _never_waits(sys.stdin.buffer):
        return sys.stdin.buffer
    # A thread that waits in sys.stdin itself would keep the interpreter from ending.
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


def _never_waits(stream: BinaryIO) -> bool:
    """Whether reading waits for nobody else: a file on disk, or bytes in memory."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:
        return True


async def _at_once(lines: Iterator[Line]) -> AsyncIterator[Line]:
    for line in lines:
        yield line


async def _threaded(lines: Iterator[Line]) -> AsyncIterator[Line]:
    """Reads in a daemon thread: one that waits for a terminal cannot be interrupted, so nothing waits for it."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Line | Exception | None] = asyncio.Queue(QUEUE_LINES_MAX)

    def read() -> None:
        last: Exception | None = None
        try:
            for line in lines:
                asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()
        except Exception as error:  # noqa: BLE001 - handed to the reader of the queue, which raises it
            last = error
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(queue.put(last), loop)

    threading.Thread(target=read, name="input lines", daemon=True).start()
    while (item := await queue.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item
