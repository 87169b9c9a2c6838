"""How much of a request's body is read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.types import Message

from seckill.front.orders_api import DROPPED_BYTES_MAX, read_body
from seckill.front.problems import Problem

CHUNK = b"x" * (DROPPED_BYTES_MAX // 2 + 1)


def parts(count: int) -> Iterator[Message]:
    for left in reversed(range(count)):
        yield {"type": "http.request", "body": CHUNK, "more_body": left > 0}


@pytest.mark.parametrize(("bytes_max", "whole"), [(4 * len(CHUNK), True), (3 * len(CHUNK), True), (1_000, False)])
async def test_a_body_is_read_whole_or_not_at_all(bytes_max: int, whole: bool) -> None:
    """Also one that is larger than what is read of a body that is too large."""
    coming = parts(3)

    async def receive() -> Message:
        return next(coming)

    body = await read_body(receive, bytes_max)
    if whole:
        assert body == CHUNK * 3
    else:
        assert isinstance(body, Problem)
