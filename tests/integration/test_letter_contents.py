"""Letters that hold no order, or not one alone, or that somebody else wrote; edits; filters; the index made again."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from seckill.dlq.index import Taken
from seckill.dlq.model import By, Filter, InvalidEdit, LetterState, UnknownLetter
from seckill.domain.order import Order, derived_order_id
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import encode
from tests.support.letters import Letters, record_of

NEW, REPLAYING, RESOLVED, DISCARDED = LetterState

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- what is no order ------------------------------------------------------------------------------------------------


async def test_unreadable_bytes_are_replayed_after_an_edit(letters: Letters) -> None:
    """An id is derived from where the record first arrived; the order confirms, and the letter is resolved with it."""
    sale = await letters.backbone.open_sale(stock=5)
    letter = await letters.unreadable(b"{broken")
    assert (letter.order_id, letter.reason) == (None, DeadLetterReason.UNREADABLE)
    assert "would only come back" in (await letters.replay(letter)).refused
    payload = msgspec.json.encode({"user_id": 7, "product_id": sale.product_id, "quantity": 1, "sale_id": sale.sale_id})
    (considered,) = await letters.desk.consider([letter], edit=payload)
    assert considered.refused == ""
    assert considered.payload is not None
    assert b'"order_id"' in considered.payload
    done = await letters.replay(letter, edit=payload)
    assert (done.what, done.letter.user_id, done.letter.subject) == ("published", 7, letter.subject)
    assert (await letters.published())[0].value == considered.payload
    await letters.carry()
    assert await letters.desk.resolve() == 1
    assert (await letters.desk.get(letter.subject)).outcome == "confirmed"
    assert await letters.left(sale) == (4, 4, 0)
    (action, _) = (await letters.desk.story(letter)).actions
    assert action.payload == considered.payload


async def test_an_edited_order_that_fails_again_is_the_same_letter(letters: Letters) -> None:
    """The order that the edit made comes back to the row of the bytes that it was made of."""
    sale = await letters.backbone.open_sale(stock=5)
    letter = await letters.unreadable()
    payload = msgspec.json.encode({"user_id": 7, "product_id": sale.product_id, "quantity": 1, "sale_id": sale.sale_id})
    await letters.replay(letter, edit=payload)
    (published,) = await letters.published()
    await letters.bury(published)
    assert sorted(await letters.index()) == [Taken.NOTHING, Taken.REOPENED]
    (only,) = await letters.desk.find(Filter())
    assert (only.subject, only.state, only.replays) == (letter.subject, NEW, 1)
    assert only.order_id is not None
    assert (await letters.discard(only)).what == "discarded"


async def test_what_an_edit_replaced_is_no_letter_of_its_own(letters: Letters) -> None:
    """The letter that was edited is read again, as when the index is made again: it has a row, with other contents."""
    sale = await letters.backbone.open_sale(stock=5)
    at_ms = sale.created_at_ms
    for user, renamed in ((1, False), (2, True)):
        own_id, new_id = (derived_order_id(sale.product_id, user, name, at_ms=at_ms) for name in ("own", "new"))
        order = Order(own_id, 0, user, sale.product_id, 1, at_ms)
        letter = await letters.buried(replace(order, quantity=9))
        mended = replace(order, order_id=new_id if renamed else own_id)
        assert (await letters.replay(letter, edit=encode(mended))).what == "published"
    assert await letters.index() == [Taken.NOTHING] * 2
    await letters.carry()
    assert await letters.desk.resolve() == 2
    assert await letters.index() == [Taken.NOTHING] * 2
    assert await letters.left(sale) == (3, 3, 0)


async def test_unreadable_bytes_that_come_back_are_the_same_letter(letters: Letters) -> None:
    """Replayed unchanged by somebody who insists, they come to another place of the topic and to their own row."""
    letter = await letters.unreadable()
    assert (await letters.replay(letter, force=True)).what == "published"
    await letters.carry()
    assert sorted(await letters.index()) == [Taken.NOTHING, Taken.REOPENED]
    (only,) = await letters.desk.find(Filter())
    assert (only.subject, only.looping) == (letter.subject, True)
    assert (await letters.discard(only)).letter.state is DISCARDED


async def test_what_an_edit_must_not_be(letters: Letters) -> None:
    """Each wrong edit is told by its field, and changes nothing."""
    sale = await letters.backbone.open_sale(stock=5)
    admitted = await letters.buried(await letters.backbone.admit(sale, 1))
    other = await letters.buried(await letters.backbone.admit(sale, 2))
    unreadable = await letters.unreadable()
    fields = {"user_id": 7, "product_id": sale.product_id, "quantity": 1}
    encoded = msgspec.json.encode
    for letter, payload, field in [
        (admitted, encoded(fields), "number"),
        (unreadable, b"{", "record"),
        (unreadable, encoded(fields | {"quantity": 0}), "quantity"),
        (unreadable, encoded(fields | {"product_id": "x"}), "product_id"),
        (unreadable, encoded([{"uid": 1, "pid": 1}, {"uid": 2, "pid": 1}]), "record"),
        (unreadable, encoded(fields | {"number": 3, "sale_id": 1}), "number"),
        (unreadable, encoded(fields | {"order_id": other.order_id}), "order_id"),
    ]:
        with pytest.raises(InvalidEdit) as raised:
            await letters.replay(letter, edit=payload)
        assert raised.value.field == field, payload
    assert {each.state for each in await letters.desk.find(Filter())} == {NEW}
    assert await letters.published() == []


async def test_an_order_does_not_enter_a_sale_that_is_younger(letters: Letters) -> None:
    """It names no sale and never was admitted: replayed now, it would enter one that its buyer never meant."""
    sale = await letters.backbone.open_sale(stock=5)
    order = Order(derived_order_id(sale.product_id, 1, at_ms=1), 0, 1, sale.product_id, 1, 0)
    letter = await letters.buried(order)
    assert "is older than sale" in (await letters.replay(letter)).refused
    named = encode(replace(order, sale_id=sale.sale_id))
    assert (await letters.replay(letter, edit=named)).what == "published"


async def test_what_others_put_there_is_listed_and_discarded(letters: Letters) -> None:
    """A record without any story, and one with Spring's, are letters like any other."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    number = (5).to_bytes(4, "big"), (77).to_bytes(8, "big")
    await letters.put(b"\xff\x00 not ours", (("weird", b"\xfe"),))
    await letters.put(None)
    spring = {
        "kafka_dlt-original-topic": b"orders",
        "kafka_dlt-original-partition": number[0],
        "kafka_dlt-original-offset": number[1],
        "kafka_dlt-exception-fqcn": b"org.springframework.kafka.listener.ListenerExecutionFailedException",
        "kafka_dlt-exception-cause-fqcn": b"java.lang.IllegalStateException",
        "kafka_dlt-exception-message": b"no stock service",
    }
    await letters.put(encode(order), tuple(spring.items()))
    assert await letters.index() == [Taken.ADDED] * 3
    found = await letters.desk.find(Filter(reasons=frozenset({DeadLetterReason.FOREIGN})))
    assert len(found) == 3
    theirs = await letters.desk.get(order.order_id)
    assert (str(theirs.record), theirs.error) == ("orders/5/77", "no stock service")
    assert theirs.exception == "java.lang.IllegalStateException"
    for letter in found:
        assert (await letters.desk.story(letter)).record is not None
        if letter.order_id is None:
            assert (await letters.discard(letter)).letter.state is DISCARDED
    assert (await letters.replay(theirs)).what == "published"


async def test_each_order_of_an_array_goes_its_own_way(letters: Letters) -> None:
    """Another program set a whole array aside: its orders are published one by one, and the letter is done with."""
    sale = await letters.backbone.open_sale(stock=5)
    value = msgspec.json.encode([{"uid": user, "pid": sale.product_id} for user in (1, 2)])
    await letters.put(value)
    await letters.index()
    (letter,) = await letters.desk.find(Filter())
    assert (await letters.replay(letter, force=True)).letter.state is RESOLVED
    await letters.carry()
    assert await letters.left(sale) == (3, 3, 0)


# --- the index -------------------------------------------------------------------------------------------------------


async def test_filters_find_what_they_say(letters: Letters) -> None:
    """By reason, product, buyer, order, state and time; newest first, page by page."""
    sale = await letters.backbone.open_sale(stock=5)
    orders = [await letters.backbone.admit(sale, user) for user in (1, 2, 3)]
    first, second, third = [await letters.buried(order) for order in orders]
    unreadable = await letters.unreadable()
    await letters.discard(second)

    async def found(**wanted: object) -> list[int]:
        return [letter.letter_id for letter in await letters.desk.find(Filter(**wanted))]  # type: ignore[arg-type]

    ids = [each.letter_id for each in (unreadable, third, second, first)]
    assert await found() == ids
    assert await found(limit=2) == ids[:2]
    assert await found(limit=2, before_id=ids[1]) == ids[2:]
    assert await found(reasons=frozenset({DeadLetterReason.UNREADABLE})) == ids[:1]
    assert await found(product_id=sale.product_id, states=frozenset({NEW})) == [ids[1], ids[3]]
    assert await found(user_id=3) == [ids[1]]
    assert await found(order_id=orders[0].order_id) == [ids[3]]
    assert await found(since_ms=first.last_failed_ms, until_ms=first.last_failed_ms + 1) == [ids[3]]
    assert await found(until_ms=5) == []
    stats = await letters.desk.stats(Filter(product_id=sale.product_id))
    assert (stats.total, stats.by_state) == (3, {NEW: 2, DISCARDED: 1})
    assert (await letters.desk.stats(Filter())).by_reason[DeadLetterReason.UNREADABLE] == 1
    for ident in (str(unreadable.letter_id), unreadable.subject):
        assert (await letters.desk.get(ident)).letter_id == unreadable.letter_id
    for ident in ("99999", "nothing", "9" * 30, "é", orders[0].order_id[:-1]):
        with pytest.raises(UnknownLetter):
            await letters.desk.get(ident)


async def test_the_index_is_made_again_from_the_topic(letters: Letters) -> None:
    """Rows that were lost are there again, with what the reservations say; actions and states that are known stay."""
    sale = await letters.backbone.open_sale(stock=5)
    orders = [await letters.backbone.admit(sale, user) for user in (1, 2, 3)]
    await letters.discard(await letters.buried(orders[0]))
    await letters.replay(await letters.buried(orders[1]))
    await letters.carry()
    await letters.bury(record_of(orders[2]))
    told: list[int] = []
    rebuilt = await letters.desk.rebuild(told.append)
    assert (rebuilt.read, rebuilt.added, rebuilt.reopened, rebuilt.resolved) == (3, 1, 0, 1)
    assert told[-1] == 3
    for table in ("letter_action", "letter"):
        await letters.backbone.query("dead_letters", f"DELETE FROM {table}")
    rebuilt = await letters.desk.rebuild(told.append)
    assert (rebuilt.added, rebuilt.resolved) == (3, 2)
    states = [(await letters.desk.get(order.order_id)).state for order in orders]
    assert states == [DISCARDED, RESOLVED, NEW]


async def test_a_record_that_the_topic_has_lost_cannot_be_replayed(letters: Letters) -> None:
    """Its row tells everything but the payload, and its order can be discarded all the same."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    letter = await letters.buried(order)
    moved = "UPDATE letter SET letter_offset = 999"
    await letters.backbone.query("dead_letters", moved)
    letter = await letters.desk.get(order.order_id)
    assert (await letters.replay(letter)).refused == "the topic does not hold its record any more"
    assert (await letters.desk.story(letter)).record is None
    assert (await letters.desk.discard(letter, By("bert", "lost"))).what == "discarded"
    assert await letters.left(sale) == (5, 5, 0)


async def test_bytes_that_stayed_where_they_were_are_replayed_from_there(letters: Letters) -> None:
    """A value that was too large for the dead-letter topic is read from the place that the letter names."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    await letters.publisher.publish(order)
    (original,) = await letters.published()
    story = {"topic": original.topic, "partition": str(original.partition), "offset": str(original.offset)}
    headers = [(f"__dlq.errors.{name}", text.encode()) for name, text in story.items()]
    headers += [("seckill-dlq-reason", b"RETRIES_EXHAUSTED"), ("seckill-dlq-value-left", b"9999999")]
    await letters.publisher.send(letters.settings.kafka.dead_letter_topic, key=None, value=b"", headers=tuple(headers))
    await letters.backbone.ledger.park([order])
    await letters.index()
    (letter,) = await letters.desk.find(Filter())
    assert letter.order_id is None
    done = await letters.replay(letter)
    assert (done.what, done.letter.order_id) == ("published", order.order_id)
    assert [each.value for each in await letters.published()] == [encode(order)] * 2


async def test_no_other_topic_is_read_for_a_letter(letters: Letters) -> None:
    """Where somebody else's letter says that its value was left, only topics of orders are looked into."""
    await letters.put(b"a record of a topic that holds no orders")
    await letters.index()
    (lies,) = [each.letter for each in await letters.desk.find(Filter())]
    told = {"topic": lies.topic, "partition": str(lies.partition), "offset": str(lies.offset + 1)}
    headers = [(f"__dlq.errors.{name}", text.encode()) for name, text in told.items()]
    await letters.put(b"", (*headers, ("seckill-dlq-value-left", b"6")))
    await letters.index()
    letter, _ = await letters.desk.find(Filter())
    assert "does not hold its record" in (await letters.replay(letter, force=True)).refused
    assert await letters.published() == []
