"""Replays and discards that meet what is in their way: an order that has ended or is held, a death, an impostor."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from seckill.crashpoints import CrashPoint
from seckill.dlq.model import InvalidEdit, LetterState
from seckill.domain.order import Order, derived_order_id
from seckill.domain.reasons import DeadLetterReason
from tests.support.letters import Letters, record_of
from tests.support.rebuilds import at_point

NEW, REPLAYING, RESOLVED, DISCARDED = LetterState

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Died(BaseException):
    """Whoever did it is dead."""


def dies(_: CrashPoint) -> None:
    raise Died


async def test_an_order_that_has_ended_is_not_published(letters: Letters) -> None:
    """A copy had confirmed between the worker's look and its letter: replay settles, and publishes nothing."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    await letters.hold(order)
    await letters.end_hold(order, sold=True)
    letter = await letters.buried(order)
    assert (await letters.replay(letter)).what == "confirmed"
    assert await letters.published() == []
    assert (await letters.told(order), (await letters.desk.get(letter.subject)).state) == ("confirmed", RESOLVED)


@pytest.mark.parametrize("point", [CrashPoint.REPLAY_INTENDED, CrashPoint.REPLAY_UNPARKED, CrashPoint.REPLAY_PUBLISHED])
async def test_a_replay_that_was_cut_short_goes_on(letters: Letters, point: CrashPoint) -> None:
    """Whoever resumes it publishes again what may have been published: the order confirms once."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    with at_point(point, dies), pytest.raises(Died):
        await letters.replay(letter)
    assert (await letters.desk.get(order.order_id)).open_intent == "replay"
    assert await letters.desk.resume(idle_ms=60_000) == []
    assert [done.what for done in await letters.desk.resume()] == ["published"]
    assert await letters.desk.resume() == []
    await letters.carry()
    await letters.carry()
    assert await letters.desk.resolve() == 1
    assert (await letters.told(order), await letters.left(sale)) == ("confirmed", (4, 4, 0))


async def test_replays_are_counted(letters: Letters) -> None:
    """No more than `replays_max` of one letter, unless somebody insists; and only of letters that are new."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    for _ in range(2):
        assert (await letters.replay(letter)).what == "published"
        stale = await letters.replay(letter)
        assert stale.refused == "it is replaying"
        await letters.bury((await letters.published())[-1])
        await letters.index()
        letter = await letters.desk.get(order.order_id)
    assert (await letters.replay(letter)).refused == "it was replayed 2 times, and dead_letters.replays_max is 2"
    assert (await letters.replay(letter, force=True)).what == "published"


@pytest.mark.parametrize(
    "point", [CrashPoint.DISCARD_INTENDED, CrashPoint.DISCARD_REJECTED, CrashPoint.DISCARD_SETTLED]
)
async def test_a_discard_that_was_cut_short_goes_on(letters: Letters, point: CrashPoint) -> None:
    """Whoever resumes it gives back what was not given back yet, and nothing twice."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    with at_point(point, dies), pytest.raises(Died):
        await letters.discard(letter)
    assert (await letters.replay(letter)).refused == "a discard of it was begun and has not ended"
    assert [done.what for done in await letters.desk.resume()] == ["discarded"]
    assert await letters.desk.resume() == []
    assert (await letters.told(order), await letters.left(sale)) == ("rejected DISCARDED", (5, 5, 0))


async def test_a_held_order_is_not_discarded(letters: Letters) -> None:
    """A transaction may confirm it still: the letter is as it was, and what the transaction decides is what counts."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    await letters.hold(order)
    letter = await letters.buried(order)
    assert (await letters.discard(letter)).refused == "transaction g1 has its order; try again when that has ended"
    letter = await letters.desk.get(order.order_id)
    assert (letter.state, letter.open_intent) == (NEW, "")
    await letters.end_hold(order, sold=True)
    assert (await letters.discard(letter)).what == "confirmed"
    assert (await letters.told(order), await letters.left(sale)) == ("confirmed", (4, 4, 0))


async def test_an_impostor_leaves_the_true_order_alone(letters: Letters) -> None:
    """Other contents under an order's id: discarding that letter ends nothing, replaying it would do nothing.

    Whether the true order is in the ledger, or came past the front and is not admitted yet.
    """
    sale = await letters.backbone.open_sale(stock=5, per_user_limit=3)
    admitted = await letters.backbone.admit(sale, 1)
    coming = Order(derived_order_id(sale.product_id, 2, at_ms=1), sale.sale_id, 2, sale.product_id, 1, 0)
    for order in (admitted, coming):
        letter = await letters.buried(replace(order, quantity=3), reason=DeadLetterReason.ID_REUSED)
        assert (letter.order_id, letter.product_id) == (None, sale.product_id)
        assert "would only come back" in (await letters.replay(letter)).refused
        assert (await letters.discard(letter)).what == "discarded"
        assert await letters.told(order) == ("processing" if order is admitted else "")
    await letters.carry([record_of(admitted), record_of(coming)])
    assert [await letters.told(order) for order in (admitted, coming)] == ["confirmed"] * 2
    assert await letters.left(sale) == (3, 3, 0)


async def test_an_impostor_is_replayed_under_another_id(letters: Letters) -> None:
    """An edit without an id gives it one of its own; the id that it had names is not taken for it."""
    sale = await letters.backbone.open_sale(stock=5, per_user_limit=3)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(replace(order, quantity=3), reason=DeadLetterReason.ID_REUSED)
    fields = {"user_id": 9, "product_id": sale.product_id, "quantity": 3, "sale_id": sale.sale_id}
    with pytest.raises(InvalidEdit, match="another order's"):
        await letters.replay(letter, edit=msgspec.json.encode(fields | {"order_id": order.order_id}))
    done = await letters.replay(letter, edit=msgspec.json.encode(fields))
    assert done.letter.order_id not in (None, order.order_id)
    await letters.carry([*await letters.published(), record_of(order)])
    assert await letters.desk.resolve() == 1
    assert (await letters.told(order), await letters.left(sale)) == ("confirmed", (1, 1, 0))


async def test_what_is_begun_twice_is_done_once(letters: Letters) -> None:
    """Of a replay and a discard that both saw the letter new, one gets it; the other is told who was quicker."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    done = await asyncio.gather(letters.replay(letter), letters.discard(letter), letters.discard(letter))
    assert len([each for each in done if not each.refused]) == 1, done
    await letters.carry()
    await letters.desk.resolve()
    ended = await letters.desk.get(order.order_id)
    confirmed = ended.state is RESOLVED
    assert await letters.told(order) == ("confirmed" if confirmed else "rejected DISCARDED")
    assert await letters.left(sale) == ((4, 4, 0) if confirmed else (5, 5, 0))
