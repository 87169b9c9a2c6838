"""Many letters at once: page after page of a filter, and one letter after another at a bounded rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import TypeVar

from seckill.dlq.desk import LetterDesk
from seckill.dlq.judging import busy
from seckill.dlq.model import Considered, Filter, Letter

T = TypeVar("T")

PAGE = 500


async def all_of(desk: LetterDesk, wanted: Filter, *, most: int | None = None) -> list[Letter]:
    """Every letter that the filter means, newest first, at most `most`; the filter's own limit does not count."""
    found: list[Letter] = []
    while most is None or len(found) < most:
        limit = PAGE if most is None else min(PAGE, most - len(found))
        before_id = found[-1].letter_id if found else wanted.before_id
        page = await desk.find(replace(wanted, limit=limit, before_id=before_id))
        found += page
        if len(page) < limit:
            break
    return found


async def paced(items: Iterable[T], *, per_s: float) -> AsyncIterator[T]:
    """The items, no faster than so many a second; the first at once."""
    due_s = time.monotonic()
    for item in items:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        due_s = max(due_s, time.monotonic() - 1 / per_s) + 1 / per_s
        yield item


def discardable(letter: Letter, *, force: bool = False) -> Considered:
    """What a discard would do, as far as the letter's row tells. Pure."""
    return Considered(letter, busy(letter, force=force), None)
