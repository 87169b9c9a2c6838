"""The index of the dead-letter topic: taking letters in and finding them, each in the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dlq.model import Action, By, Filter, Letter, LetterState, Place, Stats
from seckill.dlq.reading import FoundLetter
from seckill.domain.order import Order, OrderId
from seckill.domain.reasons import DeadLetterReason
from seckill.dtm.barrier import Raced
from seckill.dtm.database import affected, dialect_of, in_chunks, insert_ignore
from seckill.messaging.letters import letter as letters
from seckill.messaging.letters import letter_action as actions

MINUTE_MS = 60_000


class Taken(StrEnum):
    """What a letter of the topic changed in the index."""

    ADDED = "added"
    REOPENED = "reopened"
    NOTHING = "nothing"


# --- letters of the topic --------------------------------------------------------------------------------------------


async def take_all(session: AsyncSession, found: Sequence[FoundLetter], *, topic: str) -> list[Taken]:
    return [await take(session, each, topic=topic) for each in found]


async def take(session: AsyncSession, found: FoundLetter, *, topic: str) -> Taken:
    """Writes the letter's row, or sees that it is known. One that came back after a replay is new again.

    A copy of a letter changes nothing, whatever has become of the letter since.
    """
    found, row = await _placed(session, found)
    if row is None:
        return await _add(session, found)
    known = letter_of(row, topic)
    edited_away = found.order is not None and known.order_id not in (None, found.order.order_id)
    if edited_away or not _is_newer(found, known, replayed_ms=row.replayed_ms):
        return Taken.NOTHING
    again = {"state": LetterState.NEW, "replays": max(known.replays, found.replays), "outcome": "", "open_intent": ""}
    first_failed_ms = min(known.first_failed_ms, found.first_failed_ms)
    values = story_values(found) | again | {"first_failed_ms": first_failed_ms}
    if found.named is not None:
        values |= _owner(found)
    await affected(session, update(letters).where(letters.c.letter_id == known.letter_id), values)
    if known.state is LetterState.NEW:
        return Taken.NOTHING
    await log(session, known.letter_id, "reopened", By("", f"{found.reason}: {found.error}"))
    return Taken.REOPENED


async def _add(session: AsyncSession, found: FoundLetter) -> Taken:
    """Under its subject, or, when another letter has that, under the place where it arrived, or where it lies."""
    for subject in (found.subject, str(found.arrived), str(found.letter)):
        if await session.scalar(select(letters.c.letter_id).where(letters.c.subject == subject)) is None:
            values = story_values(found) | _owner(found) | {"subject": subject, "replays": found.replays}
            values["created_ms"] = values["updated_ms"]
            if not await affected(session, insert_ignore(letters, dialect_of(session)), values):
                raise Raced
            return Taken.ADDED
    return Taken.NOTHING


def _is_newer(found: FoundLetter, known: Letter, *, replayed_ms: int) -> bool:
    """Whether the letter tells of a failure that came after what the row tells. Pure."""
    if found.letter == known.letter:  # whatever the clocks of writer and replay say
        return False
    match known.state:
        case LetterState.REPLAYING:
            return found.replays >= known.replays or found.last_failed_ms > replayed_ms
        case LetterState.NEW:
            return found.replays > known.replays and not known.open_intent
        case _:
            return False


async def _placed(session: AsyncSession, found: FoundLetter) -> tuple[FoundLetter, Row[Any] | None]:
    """The letter's row; None: it has none yet. And the letter, which is an impostor's from now on if its order's id is
    that of another one, with other contents.

    Of two such orders that which admission has numbered has the id, else that which was there first.
    """
    order = found.order
    if order is None:
        subjects = [subject for subject in (found.of, str(found.arrived)) if subject]
        return found, await _first_row(session, *(letters.c.subject == subject for subject in subjects))
    holder = await _first_row(session, letters.c.order_id == order.order_id)
    if holder is not None and await _is_of(session, holder, order):
        return found, holder
    rows = [await _first_row(session, letters.c.subject == each) for each in (found.subject, str(found.arrived))]
    its = [row for row in rows if row is not None and await _is_of(session, row, order)]
    own = its[0] if its else None
    if holder is None:
        return found, own
    if own is None and order.admission_number is not None and not _looks_admitted(holder):
        await _give_up_id(session, holder)
        return found, None
    return replace(found, impostor=True), own


async def _first_row(session: AsyncSession, *ways: ColumnElement[bool]) -> Row[Any] | None:
    """The row that the first of these ways leads to, locked."""
    for way in ways:
        row = (await session.execute(select(letters).where(way).with_for_update())).first()
        if row is not None:
            return row
    return None


async def _is_of(session: AsyncSession, row: Row[Any], order: Order) -> bool:
    """Whether the row is the order's: it has its contents, or those that an edit has put in their place."""
    if (row.product_id, row.user_id, row.quantity) == (order.product_id, order.user_id, order.quantity):
        return True
    edits = select(actions.c.action_id).where(actions.c.letter_id == row.letter_id, actions.c.payload.is_not(None))
    return await session.scalar(edits.limit(1)) is not None


def _looks_admitted(row: Row[Any]) -> bool:
    """Whether the row's order came through the front, as far as a row tells. Somebody else's letter proves nothing."""
    return bool(row.reason != DeadLetterReason.FOREIGN and row.sale_id != 0 and row.admitted_at_ms != 0)


async def _give_up_id(session: AsyncSession, row: Row[Any]) -> None:
    values = {"order_id": None, "claims": row.order_id, "updated_ms": now_ms()}
    await affected(session, update(letters).where(letters.c.letter_id == row.letter_id), values)
    await log(session, row.letter_id, "id given up", By("", "an admitted order has its order id, with other contents"))


def story_values(found: FoundLetter) -> dict[str, Any]:
    return {
        "reason": found.reason,
        "error": found.error,
        "exception": found.exception,
        "record_topic": found.record.topic,
        "record_partition": found.record.partition,
        "record_offset": found.record.offset,
        "letter_partition": found.letter.partition,
        "letter_offset": found.letter.offset,
        "first_failed_ms": found.first_failed_ms,
        "last_failed_ms": found.last_failed_ms,
        "attempts": found.attempts,
        "updated_ms": now_ms(),
    }


def _owner(found: FoundLetter) -> dict[str, Any]:
    """An impostor has everything of the order that it says it is, but the id."""
    owner = order_values(found.named)
    return owner | {"order_id": None, "claims": found.claims} if found.impostor else owner


def order_values(order: Order | None) -> dict[str, Any]:
    names = ("order_id", "product_id", "sale_id", "user_id", "quantity", "admitted_at_ms")
    return {name: getattr(order, name) if order is not None else None for name in names}


# --- reading ---------------------------------------------------------------------------------------------------------


async def find(session: AsyncSession, wanted: Filter, *, topic: str) -> list[Letter]:
    before = [letters.c.letter_id < wanted.before_id] if wanted.before_id is not None else []
    chosen = select(letters).where(*_meant(wanted), *before).order_by(letters.c.letter_id.desc()).limit(wanted.limit)
    return [letter_of(row, topic) for row in await session.execute(chosen)]


async def by_numbers(session: AsyncSession, numbers: Collection[int], *, topic: str) -> list[Letter]:
    found: list[Letter] = []
    for part in in_chunks(sorted(numbers)):
        chosen = select(letters).where(letters.c.letter_id.in_(part))
        found += [letter_of(row, topic) for row in await session.execute(chosen)]
    return found


async def get(session: AsyncSession, ident: str, *, topic: str) -> Letter | None:
    """By number, order id or subject; of several, that whose order it is."""
    number = int(ident) if ident.isascii() and ident.isdigit() and len(ident) < 19 else 0
    ways = (letters.c.letter_id == number, letters.c.order_id == ident, letters.c.subject == ident)
    for way in ways if ident.isascii() else ():
        row = (await session.execute(select(letters).where(way))).first()
        if row is not None:
            return letter_of(row, topic)
    return None


async def actions_of(session: AsyncSession, letter_id: int) -> tuple[Action, ...]:
    """Oldest first."""
    chosen = select(actions).where(actions.c.letter_id == letter_id).order_by(actions.c.action_id)
    return tuple(Action(**row._mapping) for row in await session.execute(chosen))


async def stats(session: AsyncSession, wanted: Filter) -> Stats:
    async def by(column: ColumnElement[Any]) -> dict[Any, int]:
        counted = _where(select(column, func.count()), wanted).group_by(column)
        return {key: count for key, count in await session.execute(counted) if key is not None}

    async def one(what: ColumnElement[Any], *where: ColumnElement[bool]) -> int | None:
        found: int | None = await session.scalar(_where(select(what), wanted).where(*where))
        return found

    states = {LetterState(state): count for state, count in (await by(letters.c.state)).items()}
    reasons = {DeadLetterReason(reason): count for reason, count in (await by(letters.c.reason)).items()}
    is_open = letters.c.state.in_((LetterState.NEW, LetterState.REPLAYING))
    last_minute = letters.c.last_failed_ms > now_ms() - MINUTE_MS
    looping = and_(letters.c.state == LetterState.NEW, letters.c.replays > 0)
    return Stats(
        total=sum(states.values()),
        by_state=states,
        by_reason=reasons,
        by_product=await by(letters.c.product_id),
        oldest_ms=await one(func.min(letters.c.first_failed_ms), is_open),
        last_minute=await one(func.count(), last_minute) or 0,
        looping=await one(func.count(), looping) or 0,
    )


def _where(statement: Select[Any], wanted: Filter) -> Select[Any]:
    return statement.select_from(letters).where(*_meant(wanted))


def _meant(wanted: Filter) -> list[ColumnElement[bool]]:
    column = letters.c
    meant: list[ColumnElement[bool]] = []
    if wanted.since_ms is not None:  # an inequality cannot be built with None
        meant.append(column.last_failed_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        meant.append(column.last_failed_ms < wanted.until_ms)
    if wanted.product_id is not None:
        meant.append(column.product_id == wanted.product_id)
    if wanted.user_id is not None:
        meant.append(column.user_id == wanted.user_id)
    if wanted.order_id is not None:
        meant.append(or_(column.order_id == wanted.order_id, column.claims == wanted.order_id))
    if wanted.reasons:
        meant.append(column.reason.in_(sorted(wanted.reasons)))
    if wanted.states:
        meant.append(column.state.in_(sorted(wanted.states)))
    return meant


def letter_of(row: Row[Any], topic: str) -> Letter:
    return Letter(
        letter_id=row.letter_id,
        subject=row.subject,
        order_id=row.order_id,
        product_id=row.product_id,
        sale_id=row.sale_id,
        user_id=row.user_id,
        state=LetterState(row.state),
        reason=DeadLetterReason(row.reason),
        error=row.error,
        exception=row.exception,
        record=Place(row.record_topic, row.record_partition, row.record_offset),
        letter=Place(topic, row.letter_partition, row.letter_offset),
        first_failed_ms=row.first_failed_ms,
        last_failed_ms=row.last_failed_ms,
        attempts=row.attempts,
        replays=row.replays,
        outcome=row.outcome,
        open_intent=row.open_intent,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
    )


async def order_of(session: AsyncSession, letter_id: int) -> Order | None:
    """The letter's order, or what its impostor says it is, as far as reservation, ledger and settling need it."""
    row = (await session.execute(select(letters).where(letters.c.letter_id == letter_id))).one()
    return order_in(row)


def order_in(row: Row[Any]) -> Order | None:
    order_id = row.order_id or row.claims
    if order_id is None:
        return None
    return Order(OrderId(order_id), row.sale_id, row.user_id, row.product_id, row.quantity, row.admitted_at_ms, None)


async def is_others(session: AsyncSession, order_id: str, letter_id: int) -> bool:
    """Whether another letter has this order."""
    found = select(letters.c.letter_id).where(letters.c.order_id == order_id, letters.c.letter_id != letter_id)
    return await session.scalar(found) is not None


# --- the log ---------------------------------------------------------------------------------------------------------


async def log(session: AsyncSession, letter_id: int, action: str, by: By, *, payload: bytes | None = None) -> None:
    values = {"letter_id": letter_id, "operator": by.operator[:100], "action": action, "note": by.note[:1_000]}
    await session.execute(actions.insert().values(**values, at_ms=now_ms(), payload=payload))


def now_ms() -> int:
    return time.time_ns() // 1_000_000
