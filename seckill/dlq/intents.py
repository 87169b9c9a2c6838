"""What was begun with a letter and has to be finished: written down before the first effect, closed after the last.

Each is in the caller's transaction. Every change of a letter's state compares the state that it starts from, so of two
who want it, one gets it; and a letter whose `open_intent` is set belongs to whoever finishes that, which anybody may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dlq.index import letter_of, log, now_ms, order_in, order_of, order_values
from seckill.dlq.model import Action, By, Letter, LetterState
from seckill.domain.order import Order
from seckill.dtm.database import affected
from seckill.messaging.letters import letter as letters
from seckill.messaging.letters import letter_action as actions

REPLAY, DISCARD = "replay", "discard"


async def intend_replay(
    session: AsyncSession, letter: Letter, by: By, *, order: Order | None, edit: bytes | None
) -> tuple[bool, Letter]:
    """Writes down that the letter is replayed once more; False: somebody was quicker. And the letter as it is then.

    `order`: what the published record holds, which is the letter's order from here on.
    """
    at_ms = now_ms()
    values: dict[str, Any] = {"state": LetterState.REPLAYING, "open_intent": REPLAY, "intent_ms": at_ms}
    values |= {"replays": letter.replays + 1, "replayed_ms": at_ms, "updated_ms": at_ms}
    if order is not None:
        values |= order_values(order) | {"claims": None}
    return await _begin(session, letter, by, values, edit=edit)


async def intend_discard(session: AsyncSession, letter: Letter, by: By, *, order: Order | None) -> tuple[bool, Letter]:
    """The same of a discard."""
    values: dict[str, Any] = {"open_intent": DISCARD, "intent_ms": now_ms(), "updated_ms": now_ms()}
    if order is not None:
        values |= order_values(order) | {"claims": None}
    return await _begin(session, letter, by, values)


async def _begin(
    session: AsyncSession, letter: Letter, by: By, values: dict[str, Any], *, edit: bytes | None = None
) -> tuple[bool, Letter]:
    try:
        begun = await affected(session, update(letters).where(*_untouched(letter)), values)
    except IntegrityError:  # another letter has got the order's id since that was looked at
        begun = 0
    if begun:
        await log(session, letter.letter_id, values["open_intent"], by, payload=edit)
    return bool(begun), await _again(session, letter)


def _untouched(letter: Letter) -> tuple[ColumnElement[bool], ...]:
    """It is in the state that it was read in, nobody has begun anything with it, and it was not replayed since."""
    column = letters.c
    return (
        column.letter_id == letter.letter_id,
        column.state == letter.state,
        column.open_intent == "",
        column.replays == letter.replays,
    )


async def finish(
    session: AsyncSession, letter: Letter, *, state: LetterState, outcome: str = "", action: str = "", note: str = ""
) -> Letter:
    """Closes the letter's intent, if that is still open, and says what came of it; the letter as it is then.

    Nothing changes when it came back, or was finished by another, in between.
    """
    values = {"state": state, "outcome": outcome, "open_intent": ""}
    return await _changed(session, letter, values, action=action, note=note)


async def withdraw(session: AsyncSession, letter: Letter, *, why: str) -> Letter:
    """The same, as if nothing had been begun, but for the log. A replay that was none does not count as one."""
    values: dict[str, Any] = {"state": letter.state, "open_intent": ""}
    if letter.open_intent == REPLAY:
        values = {"state": LetterState.NEW, "open_intent": "", "replays": letter.replays - 1}
    return await _changed(session, letter, values, action="withdrawn", note=why)


async def reopen(session: AsyncSession, letter: Letter, *, why: str) -> Letter:
    """The letter is new again, as if its record had come back."""
    values = {"state": LetterState.NEW, "outcome": "", "open_intent": ""}
    return await _changed(session, letter, values, action="reopened", note=why)


async def give_up_id(session: AsyncSession, letter: Letter) -> Letter:
    """The letter is discarded; its order's id, which is another order's, is left to that order's letter."""
    values = {"state": LetterState.DISCARDED, "outcome": "", "open_intent": ""}
    gone = {"order_id": None, "claims": letter.order_id} if letter.order_id is not None else {}
    return await _changed(session, letter, values | gone)


async def _changed(
    session: AsyncSession, letter: Letter, values: Mapping[str, Any], *, action: str = "", note: str = ""
) -> Letter:
    as_it_was = (
        letters.c.letter_id == letter.letter_id,
        letters.c.state == letter.state,
        letters.c.open_intent == letter.open_intent,
        letters.c.replays == letter.replays,
    )
    changed = await affected(session, update(letters).where(*as_it_was), {**values, "updated_ms": now_ms()})
    if changed and action:
        await log(session, letter.letter_id, action, By("", note))
    return await _again(session, letter)


async def _again(session: AsyncSession, letter: Letter) -> Letter:
    row = (await session.execute(select(letters).where(letters.c.letter_id == letter.letter_id))).one()
    return letter_of(row, letter.letter.topic)


async def touch(session: AsyncSession, letter: Letter) -> None:
    """Its intent was looked at now: others come first in the next look."""
    await affected(session, update(letters).where(letters.c.letter_id == letter.letter_id), {"intent_ms": now_ms()})


async def unfinished(session: AsyncSession, *, topic: str, idle_ms: int, limit: int) -> list[Letter]:
    """Letters with an open intent that nobody has looked at for so long, oldest first."""
    idle = (letters.c.open_intent.in_((REPLAY, DISCARD)), letters.c.intent_ms <= now_ms() - idle_ms)
    chosen = select(letters).where(*idle).order_by(letters.c.intent_ms).limit(limit)
    return [letter_of(row, topic) for row in await session.execute(chosen)]


async def replay_of(session: AsyncSession, letter: Letter) -> tuple[Action | None, Order | None]:
    """The action that the open replay was written down with, and the order that is published."""
    letter_id = letter.letter_id
    chosen = select(actions).where(actions.c.letter_id == letter_id, actions.c.action == REPLAY)
    row = (await session.execute(chosen.order_by(actions.c.action_id.desc()).limit(1))).first()
    order = await order_of(session, letter_id) if letter.order_id is not None else None
    return Action(**row._mapping) if row is not None else None, order


async def open_orders(
    session: AsyncSession, state: LetterState, *, topic: str, after_id: int, limit: int
) -> list[tuple[Letter, Order]]:
    """Letters in this state that have an order and no open intent, by number, from the one after `after_id`."""
    column = letters.c
    where = (column.state == state, column.open_intent == "", column.order_id.is_not(None), column.letter_id > after_id)
    chosen = select(letters).where(*where).order_by(column.letter_id).limit(limit)
    found = [(letter_of(row, topic), order_in(row)) for row in await session.execute(chosen)]
    return [(letter, order) for letter, order in found if order is not None]
