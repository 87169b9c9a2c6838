"""Replays that come to nothing, letters that cannot be finished, a clock that is fast, an index that stalls."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest
from sqlalchemy.engine import make_url

from seckill.crashpoints import CrashPoint
from seckill.dlq.index import Taken
from seckill.dlq.model import By, Done, Filter, InvalidEdit, Letter, LetterState
from seckill.doctor.start import DatabaseUnavailable
from seckill.domain.errors import PublishUnknown
from seckill.domain.order import Order, Sale, derived_order_id
from seckill.messaging.envelope import encode
from seckill.wiring import with_values
from seckill.wiring.dead_letters import open_letter_desk
from tests.support.letters import Letters
from tests.support.rebuilds import at_point

NEW, REPLAYING, RESOLVED, DISCARDED = LetterState

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Died(BaseException):
    """Whoever did it is dead."""


def fails_once(error: BaseException) -> Callable[[CrashPoint], None]:
    """What happens at the first reaching of a point."""
    left = [error]

    def deed(_: CrashPoint) -> None:
        if left:
            raise left.pop()

    return deed


async def cut_short(letters: Letters, letter: Letter) -> None:
    with at_point(CrashPoint.REPLAY_INTENDED, fails_once(Died())), pytest.raises(Died):
        await letters.replay(letter)


def past_front(sale: Sale, user: int) -> Order:
    """An order that names no sale, and that nobody has admitted yet."""
    order_id = derived_order_id(sale.product_id, user, at_ms=sale.created_at_ms)
    return Order(order_id, 0, user, sale.product_id, 1, admitted_at_ms=sale.created_at_ms)


async def parked_after_its_replay(letters: Letters, sale: Sale) -> Order:
    """The worker's letter was indexed and replayed before the worker could park the entry."""
    order = past_front(sale, 1)
    await letters.backbone.gate.admit_late([order])
    letter = await letters.buried(order)
    assert await letters.told(order) == "processing"
    assert (await letters.replay(letter)).what == "published"
    await letters.backbone.ledger.park([replace(order, sale_id=sale.sale_id)])
    assert await letters.told(order) == "delayed"
    return order


# --- replays that come to nothing ------------------------------------------------------------------------------------


async def test_a_replayed_record_is_carried_though_its_entry_was_parked_after_it(letters: Letters) -> None:
    """What set it aside came before the replay: the worker takes the entry back and carries it."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await parked_after_its_replay(letters, sale)
    await letters.carry()
    assert (await letters.told(order), await letters.left(sale)) == ("confirmed", (4, 4, 0))
    assert await letters.desk.resolve() == 1


async def test_a_replayed_letter_whose_entry_is_parked_is_new_again(letters: Letters) -> None:
    """Its published record is gone, however that came: after a while the letter is open to everybody again."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await parked_after_its_replay(letters, sale)
    await letters.desk.resolve(lost_after_ms=60_000)
    assert (await letters.desk.get(order.order_id)).state is REPLAYING
    await letters.desk.resolve(lost_after_ms=0)
    letter = await letters.desk.get(order.order_id)
    assert (letter.state, letter.looping) == (NEW, True)
    assert [each.action for each in (await letters.desk.story(letter)).actions] == ["replay", "reopened"]
    assert (await letters.discard(letter)).what == "discarded"
    assert (await letters.told(order), await letters.left(sale)) == ("rejected DISCARDED", (5, 5, 0))


async def test_who_insists_takes_up_what_was_replayed(letters: Letters) -> None:
    """A record of which no store knows anything may be lost: it is published again, or given up, and counts once."""
    sale = await letters.backbone.open_sale(stock=5, per_user_limit=1)
    again, gone = [await letters.buried(past_front(sale, user)) for user in (1, 2)]
    for letter in (again, gone):
        await letters.replay(letter)
    await letters.desk.resolve(lost_after_ms=0)
    again, gone = [await letters.desk.get(letter.subject) for letter in (again, gone)]
    assert ((await letters.replay(again)).refused, (await letters.discard(gone)).refused) == ("it is replaying",) * 2
    assert (await letters.replay(again, force=True)).what == "published"
    assert (await letters.discard(gone, force=True)).what == "discarded"
    await letters.carry()
    assert [await letters.told(past_front(sale, user)) for user in (1, 2)] == ["confirmed", "rejected DISCARDED"]
    assert await letters.left(sale) == (4, 4, 0)


# --- letters that cannot be finished ---------------------------------------------------------------------------------


async def test_one_letter_does_not_hold_up_the_others(letters: Letters) -> None:
    """What fails at one is told in the end, when everything else has been finished; it stays for the next look."""
    sale = await letters.backbone.open_sale(stock=5)
    orders = [await letters.backbone.admit(sale, user) for user in (1, 2)]
    for order in orders:
        await cut_short(letters, await letters.buried(order))
    done: list[Done] = []
    unknown = PublishUnknown("kafka", "no acknowledgement")
    with at_point(CrashPoint.REPLAY_UNPARKED, fails_once(unknown)), pytest.raises(PublishUnknown):
        await letters.desk.resume(told=done.append)
    assert [(each.letter.order_id, each.what) for each in done] == [(orders[1].order_id, "published")]
    assert (await letters.desk.get(orders[0].order_id)).open_intent == "replay"
    assert [each.what for each in await letters.desk.resume()] == ["published"]


async def test_what_nobody_foresaw_withdraws_a_replay(letters: Letters) -> None:
    """The letter is new again and everybody's, and what was not published is no replay that counts."""
    sale = await letters.backbone.open_sale(stock=5)
    orders = [await letters.backbone.admit(sale, user) for user in (1, 2)]
    for order in orders:
        await cut_short(letters, await letters.buried(order))
    with at_point(CrashPoint.REPLAY_UNPARKED, fails_once(AssertionError("never"))):
        first, second = await letters.desk.resume()
    assert (first.refused, second.what) == ("AssertionError: never", "published")
    letter = await letters.desk.get(orders[0].order_id)
    assert (letter.state, letter.open_intent, letter.replays, letter.looping) == (NEW, "", 0, False)
    assert (await letters.replay(letter)).letter.replays == 1


# --- clocks and stores -----------------------------------------------------------------------------------------------


async def test_a_letter_is_no_news_of_itself(letters: Letters) -> None:
    """Its writer's clock was an hour fast: read again after its replay, it does not reopen its row."""
    sale = await letters.backbone.open_sale(stock=5)
    order = await letters.backbone.admit(sale, 1)
    at_ms = str((await letters.buried(order)).last_failed_ms + 3_600_000).encode()
    other = await letters.backbone.admit(sale, 2)
    await letters.put(encode(other), (("seckill-dlq-reason", b"BRANCH_FAILED"), ("seckill-dlq-last-failed-ms", at_ms)))
    await letters.index()
    await letters.replay(await letters.desk.get(other.order_id))
    assert await letters.index() == [Taken.NOTHING] * 2
    assert (await letters.desk.get(other.order_id)).state is REPLAYING


async def test_an_index_that_stalls_is_unavailable(letters: Letters) -> None:
    """Whoever waits for the lock, and whoever waits for that one's connection, is told so, and may ask again."""
    url = letters.settings.dead_letters.database_url.get_secret_value()
    async with open_letter_desk(with_values(letters.settings, {"dead_letters": {"lock_wait_s": 1}})) as desk:
        with closing(sqlite3.connect(make_url(url).database or "", isolation_level=None)) as stalled:
            stalled.execute("BEGIN EXCLUSIVE")
            ends = await asyncio.gather(*(desk.find(Filter()) for _ in range(2)), return_exceptions=True)
        assert [type(each) for each in ends] == [DatabaseUnavailable] * 2
        assert await desk.find(Filter()) == []


async def test_of_two_edits_one_gets_the_id(letters: Letters) -> None:
    """Both were looked at before either was written down: the second is refused, and its letter is as it was."""
    sale = await letters.backbone.open_sale(stock=5)
    one, two = await letters.unreadable(b"{1"), await letters.unreadable(b"{2")
    edit = encode(replace(past_front(sale, 1), sale_id=sale.sale_id))
    assert "number" in msgspec.json.decode(edit)
    done = await asyncio.gather(
        *(letters.desk.replay(each, By("anna", "n"), edit=edit) for each in (one, two)), return_exceptions=True
    )
    refused = [each for each in done if isinstance(each, InvalidEdit) or (isinstance(each, Done) and each.refused)]
    assert len(refused) == 1, done
    states = sorted([(await letters.desk.get(each.subject)).state for each in (one, two)])
    assert states == [NEW, REPLAYING]
