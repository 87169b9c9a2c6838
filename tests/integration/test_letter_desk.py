"""Dead letters at the desk: indexed, shown, replayed, discarded, resolved, with real services, Redis and Kafka."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seckill.dlq.index import Taken
from seckill.dlq.model import Filter, LetterState
from seckill.domain.order import Order, derived_order_id
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import encode
from tests.support.letters import ANNA, Letters, record_of
from tests.support.sides import Side

NEW, REPLAYING, RESOLVED, DISCARDED = LetterState

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def letters_side(side: Side) -> Side:
    """On both sides."""
    return side


async def test_a_replayed_order_confirms(letters: Letters) -> None:
    """Its entry is pending again, its record published untouched; when it has confirmed, the letter is resolved."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    assert (letter.state, letter.reason, letter.attempts) == (NEW, DeadLetterReason.BRANCH_FAILED, 3)
    assert await letters.told(order) == "delayed"

    done = await letters.replay(letter)
    assert (done.what, done.letter.state, done.letter.open_intent) == ("published", REPLAYING, "")
    (published,) = await letters.published()
    assert (published.key, published.value) == (order.order_id.encode(), encode(order))
    headers = dict(published.headers)
    assert headers["seckill-dlq-replays"] == b"1"
    assert not [name for name in headers if name.startswith("__dlq.errors.")]
    assert await letters.told(order) == "processing"

    await letters.carry()
    assert await letters.desk.resolve() == 1
    letter = await letters.desk.get(order.order_id)
    assert (letter.state, letter.outcome) == (RESOLVED, "confirmed")
    assert await letters.told(order) == "confirmed"
    assert await letters.left(sale) == (4, 4, 0)


async def test_one_that_comes_back_is_new_again(letters: Letters) -> None:
    """The letter of a replay reopens its row, once; the copies of older letters change nothing."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    await letters.replay(letter)
    assert await letters.index() == [Taken.NOTHING]
    (published,) = await letters.published()
    await letters.bury(published)
    assert sorted(await letters.index()) == [Taken.NOTHING, Taken.REOPENED]
    letter = await letters.desk.get(order.order_id)
    assert (letter.state, letter.replays, letter.looping) == (NEW, 1, True)
    assert await letters.index() == [Taken.NOTHING] * 2
    assert (await letters.desk.stats(Filter())).looping == 1
    story = await letters.desk.story(letter)
    assert [(each.operator, each.action) for each in story.actions] == [("anna", "replay"), ("", "reopened")]
    assert story.actions[0].note == ANNA.note
    assert story.record is not None
    assert any("reservation" in event.what for event in story.events)


async def test_a_held_order_is_published_once_its_transaction_has_released_it(letters: Letters) -> None:
    """Nothing is published while a transaction has the order; resume goes on when that has ended without it."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    await letters.hold(order)
    letter = await letters.buried(order)
    assert (await letters.replay(letter)).what == "held"
    assert [done.what for done in await letters.desk.resume()] == ["held"]
    assert await letters.published() == []
    refused = await letters.discard(await letters.desk.get(order.order_id))
    assert refused.refused == "a replay of it was begun and has not ended"
    await letters.end_hold(order, sold=False)
    assert [done.what for done in await letters.desk.resume()] == ["published"]
    await letters.carry()
    assert await letters.desk.resolve() == 1
    assert await letters.left(sale) == (4, 4, 0)


async def test_a_discarded_order_gives_back_what_it_took(letters: Letters) -> None:
    """It ends rejected(DISCARDED), its unit and its buyer's allowance are free again, once; and it stays so."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    assert await letters.left(sale) == (4, 5, 1)
    done = await letters.discard(letter)
    assert (done.what, done.letter.state, done.letter.outcome) == ("discarded", DISCARDED, "rejected:DISCARDED")
    assert (await letters.told(order), await letters.left(sale)) == ("rejected DISCARDED", (5, 5, 0))
    assert (await letters.discard(letter)).refused == "it is discarded (rejected:DISCARDED)"
    assert (await letters.replay(letter)).refused == "it is discarded (rejected:DISCARDED)"
    await letters.carry([record_of(order)])
    assert (await letters.told(order), await letters.left(sale)) == ("rejected DISCARDED", (5, 5, 0))
    again = await letters.backbone.admit(sale, 1)
    assert again.order_id != order.order_id
    assert await letters.index() == [Taken.NOTHING]


async def test_an_order_past_the_front_is_discarded_where_it_was_admitted(letters: Letters) -> None:
    """Its record names no sale; its entry is found in the sale that took it, and replaying it finds that as well."""
    sale = await letters.backbone.open_sale(stock=5, per_user_limit=2)
    nameless = []
    for user in (1, 2):
        order = Order(derived_order_id(sale.product_id, user, at_ms=sale.created_at_ms), 0, user, sale.product_id, 1, 0)
        (admitted,) = await letters.backbone.gate.admit_late([order])
        await letters.backbone.ledger.park([replace(order, sale_id=sale.sale_id)])
        assert await letters.told(order) == "delayed", admitted
        nameless.append(order)
    discarded, replayed = [await letters.buried(order) for order in nameless]
    assert (await letters.discard(discarded)).what == "discarded"
    assert await letters.left(sale) == (4, 5, 1)
    assert (await letters.replay(replayed)).what == "published"
    await letters.carry()
    assert (await letters.told(nameless[1]), await letters.left(sale)) == ("confirmed", (4, 4, 0))
