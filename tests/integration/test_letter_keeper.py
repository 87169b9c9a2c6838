"""The consumer of the dead-letter topic keeps the index, by itself and after a restart, whatever is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from consumers.dead_letter import KeeperLimits, LetterKeeper
from seckill.crashpoints import CrashPoint
from seckill.dlq.model import By, Filter, Letter, LetterState
from seckill.messaging.lag import group_lag
from seckill.wiring import open_consumer
from tests.support.letters import Letters, record, record_of
from tests.support.rebuilds import at_point

LIMITS = KeeperLimits(look_every_ms=50, poll_timeout_ms=50, commit_timeout_ms=3_000, resumed_after_ms=100)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def keeping(letters: Letters) -> AsyncIterator[LetterKeeper]:
    """The keeper runs, and is stopped as a role stops it."""
    kafka = letters.settings.kafka
    async with open_consumer(kafka, group=kafka.dead_letter_group) as consumer:
        keeper = LetterKeeper(consumer, letters.desk, LIMITS)
        running = asyncio.create_task(keeper.run(kafka.dead_letter_topic))
        try:
            yield keeper
        finally:
            keeper.stop()
            await running


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.05)


async def states(letters: Letters) -> list[str]:
    return [letter.state for letter in await letters.desk.find(Filter())]


async def committed(letters: Letters) -> bool:
    kafka = letters.settings.kafka
    lags = await group_lag(kafka, kafka.dead_letter_group, [kafka.dead_letter_topic])
    return sum(each.lag for each in lags) == 0


async def test_letters_are_indexed_and_resolved(letters: Letters) -> None:
    """Every letter becomes a row; that of an order which has ended resolves itself; a second keeper reads on."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    await letters.bury(record_of(order))
    async with keeping(letters):
        await until(lambda: is_state(letters, [LetterState.NEW]))
        await letters.hold(order)
        await letters.end_hold(order, sold=True)
        await until(lambda: is_state(letters, [LetterState.RESOLVED]))
        await until(lambda: committed(letters))
    assert await letters.told(order) == "confirmed"
    await letters.bury(record(b"{"))
    async with keeping(letters):
        await until(lambda: is_state(letters, [LetterState.NEW, LetterState.RESOLVED]))


async def is_state(letters: Letters, wanted: list[LetterState]) -> bool:
    return await states(letters) == wanted


async def test_an_interrupted_replay_is_finished_by_the_role(letters: Letters) -> None:
    """Whoever began it is taken for dead after a while; the role publishes in its place."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    await cut_short(letters, letter)
    async with keeping(letters):
        await until(lambda: has_published(letters, 1))
    assert (await letters.desk.get(order.order_id)).open_intent == ""


async def has_published(letters: Letters, count: int) -> bool:
    return len(await letters.published()) == count


async def cut_short(letters: Letters, letter: Letter) -> None:
    """A replay whose operator dies at once."""

    class Died(BaseException):
        pass

    def dies(_: CrashPoint) -> None:
        raise Died

    with at_point(CrashPoint.REPLAY_INTENDED, dies), pytest.raises(Died):
        await letters.desk.replay(letter, By("anna", "dies"))


async def test_letters_wait_for_the_index(letters: Letters) -> None:
    """While its database refuses, nothing is committed and nothing lost; then every letter is taken in."""
    await letters.backbone.query("dead_letters", "ALTER TABLE letter RENAME TO moved")
    await letters.bury(record(b"{"))
    async with keeping(letters):
        await asyncio.sleep(0.3)  # some of its looks
        assert not await committed(letters)
        await letters.backbone.query("dead_letters", "ALTER TABLE moved RENAME TO letter")
        await until(lambda: is_state(letters, [LetterState.NEW]))


async def test_the_product_service_is_not_needed_to_index(letters: Letters) -> None:
    """Orders are not resolved while it is down, and their letters are there all the same."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    await letters.backbone.stop("product")
    try:
        await letters.bury(record_of(order))
        async with keeping(letters):
            await until(lambda: is_state(letters, [LetterState.NEW]))
    finally:
        await letters.backbone.start("product")
