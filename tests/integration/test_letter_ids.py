"""Two orders under one id, one of them a dead letter: which of them a replay or a discard of either is about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seckill.dlq.index import Taken
from seckill.dlq.model import LetterState
from seckill.domain.order import Order, derived_order_id
from seckill.messaging.envelope import encode
from tests.support.letters import Letters

NEW, REPLAYING, RESOLVED, DISCARDED = LetterState

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_admitted_order_has_its_id(letters: Letters) -> None:
    """Somebody else's letter had it first: that one gives it up, and discarding it touches nothing of the order's."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 6)
    await letters.put(encode(replace(order, user_id=5, admission_number=None)))
    await letters.index()
    theirs = await letters.desk.get(order.order_id)
    assert theirs.user_id == 5
    assert (await letters.replay(theirs)).refused == "its order id stands for another order"
    ours = await letters.buried(order)
    assert (ours.order_id, ours.user_id) == (order.order_id, 6)
    theirs = await letters.desk.get(str(theirs.letter_id))
    assert (theirs.order_id, theirs.state) == (None, NEW)
    assert await letters.index() == [Taken.NOTHING] * 2
    assert (await letters.discard(theirs)).what == "discarded"
    assert (await letters.told(order), await letters.left(sale)) == ("delayed", (4, 5, 1))
    assert await letters.index() == [Taken.NOTHING] * 2
    assert (await letters.replay(ours)).what == "published"
    await letters.carry()
    assert (await letters.told(order), await letters.left(sale)) == ("confirmed", (4, 4, 0))


async def test_an_id_that_was_given_up_is_its_orders(letters: Letters) -> None:
    """Both came past the front, and the one that the ledger holds came second: it can be ended after the first."""
    sale = await letters.backbone.open_sale(stock=5)
    order = Order(derived_order_id(sale.product_id, 6, at_ms=sale.created_at_ms), 0, 6, sale.product_id, 1, 0)
    first = await letters.buried(replace(order, user_id=5))
    await letters.backbone.gate.admit_late([order])
    await letters.backbone.ledger.park([replace(order, sale_id=sale.sale_id)])
    second = await letters.buried(order)
    assert (second.user_id, second.order_id) == (6, None)
    assert (await letters.discard(second)).refused == "another letter has its order id: discard that one first"
    assert (await letters.discard(first)).what == "discarded"
    assert (await letters.told(order), await letters.left(sale)) == ("delayed", (4, 5, 1))
    assert (await letters.discard(second)).what == "discarded"
    assert (await letters.told(order), await letters.left(sale)) == ("rejected DISCARDED", (5, 5, 0))
    assert await letters.index() == [Taken.NOTHING] * 2


async def test_a_letter_whose_id_the_database_gave_away_can_be_discarded(letters: Letters) -> None:
    """Nothing holds its units, so nothing is given back, and the other order is left alone."""
    sale = await letters.backbone.open_sale(stock=5)
    at_ms = sale.created_at_ms
    order = Order(derived_order_id(sale.product_id, 5, at_ms=at_ms), 0, 5, sale.product_id, 1, at_ms)
    letter = await letters.buried(order)
    other = replace(order, user_id=6, sale_id=sale.sale_id)
    await letters.hold(other)
    await letters.end_hold(other, sold=True)
    assert (await letters.replay(letter)).refused == "its order id stands for another order"
    letter = await letters.desk.get(order.order_id)
    done = await letters.discard(letter)
    assert (done.what, done.letter.state, done.letter.order_id) == ("discarded", DISCARDED, None)
    assert (await letters.backbone.read_sale(sale)).sold == 1
