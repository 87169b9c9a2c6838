"""The story of an order or a transaction that breaks an invariant: what every store says of it, in order of time.

Reads only. A store that does not answer is a line of the story.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Table, select

from seckill.audit.records import Told, told_by_records
from seckill.audit.rows import STATES
from seckill.audit.rules import Breach, Kind, Verdict
from seckill.audit.stores import Database, Stores, snapshot
from seckill.clients import open_dtm
from seckill.domain.errors import PublishUnknown
from seckill.domain.order import order_id_from_key, parse_order_id
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed
from seckill.order.tables import metadata as order_metadata
from seckill.order.tables import orders
from seckill.order.types import OrderState
from seckill.product.decide import State
from seckill.product.tables import metadata as product_metadata
from seckill.product.tables import stock_reservation as reservations

TABLES: dict[Database, tuple[Table, Table]] = {
    "product": (reservations, product_metadata.tables["barrier"]),
    "order": (orders, order_metadata.tables["barrier"]),
}
DECISIONS: dict[Database, Table] = {
    "product": product_metadata.tables["decision"],
    "order": order_metadata.tables["decision"],
}

ORDERS_OF_ONE = 5
"""Orders of a buyer or a transaction whose stories are told."""


@dataclass(frozen=True, slots=True)
class Event:
    """`at_ms` None: its store keeps no time of it, or none in milliseconds."""

    at_ms: int | None
    store: str
    what: str


@dataclass(frozen=True, slots=True)
class Timeline:
    of: str
    problems: tuple[str, ...]  # `invariant: problem`
    events: tuple[Event, ...]


@dataclass(slots=True)
class _Story:
    """What is found on the way: events, and the transactions that belong to it."""

    events: list[Event] = field(default_factory=list)
    gids: set[str] = field(default_factory=set)


async def timelines(stores: Stores, verdict: Verdict, *, limit: int) -> tuple[list[Timeline], int]:
    """The first `limit` of what breaks an invariant, and how many more there are. A sale has no story of its own.

    Raises AdmissionUnavailable, DatabaseUnavailable.
    """
    subjects = subjects_of(verdict)
    chosen = list(subjects.items())[:limit]
    if not chosen:
        return [], 0
    ids = {what: await _order_ids(stores, breach) for what, (breach, _) in chosen}
    records = await _records(stores, {order_id for each in ids.values() for order_id in each[:ORDERS_OF_ONE]})
    async with open_dtm(stores.settings) as coordinator:
        told = [
            Timeline(what, tuple(problems), await _events(stores, coordinator, records, breach, ids[what]))
            for what, (breach, problems) in chosen
        ]
    return told, len(subjects) - len(chosen)


async def order_events(stores: Stores, order_id: str) -> tuple[Event, ...]:
    """The story of one order, whether it breaks anything or not. Raises AdmissionUnavailable, DatabaseUnavailable."""
    records = await _records(stores, {order_id})
    async with open_dtm(stores.settings) as coordinator:
        return await _events(stores, coordinator, records, Breach(Kind.ORDER, order_id, ""), [order_id])


def subjects_of(verdict: Verdict) -> dict[str, tuple[Breach, list[str]]]:
    """What breaks an invariant and has a story, each with all that is wrong about it; orders first. Pure."""
    found: dict[str, tuple[Breach, list[str]]] = {}
    everything = [(invariant, each) for invariant, breaches in verdict.breaches.items() for each in breaches]
    for kind in (Kind.ORDER, Kind.BUYER, Kind.GID):
        for invariant, breach in everything:
            if breach.kind is kind:
                found.setdefault(breach.what, (breach, []))[1].append(f"{invariant}: {breach.problem}")
    return found


async def _events(
    stores: Stores, coordinator: DtmClient, records: Told | str, breach: Breach, ids: Sequence[str]
) -> tuple[Event, ...]:
    story = _Story(gids={breach.ident} if breach.kind is Kind.GID else set())
    for order_id in ids[:ORDERS_OF_ONE]:
        await _of_order(stores, story, order_id, named=len(ids) > 1 or breach.kind is Kind.GID)
        story.events += _of_records(records, order_id)
    if len(ids) > ORDERS_OF_ONE:
        story.events.append(Event(None, "product", f"and {len(ids) - ORDERS_OF_ONE} more orders"))
    await _of_gids(stores, coordinator, story)
    return tuple(in_order(story.events))


def in_order(events: Iterable[Event]) -> list[Event]:
    """By time; what has none comes last. Pure."""
    return sorted(events, key=lambda each: (each.at_ms is None, each.at_ms or 0))


async def _order_ids(stores: Stores, breach: Breach) -> list[str]:
    places: list[tuple[Database, Table, ColumnElement[bool]]]
    match breach.kind:
        case Kind.ORDER:
            return [breach.ident]
        case Kind.BUYER:
            user_id, _, sale_id = breach.ident.partition(" of sale ")
            theirs = (reservations.c.sale_id == int(sale_id)) & (reservations.c.user_id == int(user_id))
            places = [("product", reservations, theirs)]
        case _:
            places = [(name, table, table.c.gid == breach.ident) for name, (table, _) in TABLES.items()]
    found: set[str] = set()
    for name, table, where in places:
        async with snapshot(stores, name) as connection:
            rows = await connection.execute(select(table.c.product_id, table.c.order_id).where(where))
            found |= {order_id_from_key(product_id, key) for product_id, key in rows}
    return sorted(found)


# --- an order --------------------------------------------------------------------------------------------------------


async def _of_order(stores: Stores, story: _Story, order_id: str, *, named: bool) -> None:
    product_id, key = parse_order_id(order_id)
    name = f"{order_id}: " if named else ""
    async with snapshot(stores, "product") as connection:
        row = (await connection.execute(select(reservations).where(reservations.c.order_id == key))).first()
    if row is None:
        story.events.append(Event(None, "product", f"{name}no reservation"))
    else:
        state = " ".join(filter(None, (STATES[State(row.state)], row.reason)))
        of = f"buyer {row.user_id}, {row.quantity} units of sale {row.sale_id}"
        story.events += [
            Event(row.admitted_at_ms, "product", f"{name}admitted, as the reservation has it ({of})"),
            Event(row.created_at_ms, "product", f"{name}reservation written"),
            Event(row.updated_at_ms, "product", f"{name}reservation {state}, gid {row.gid or '-'}"),
        ]
        story.gids |= {row.gid} - {""}
    async with snapshot(stores, "order") as connection:
        row = (await connection.execute(select(orders).where(orders.c.order_id == key))).first()
    if row is None:
        story.events.append(Event(None, "order", f"{name}no order"))
    else:
        state = OrderState(row.status).name.lower()
        of = f"buyer {row.user_id}, {row.quantity} units of sale {row.sale_id}"
        story.events.append(Event(row.updated_at_ms, "order", f"{name}order {state} ({of}), gid {row.gid or '-'}"))
        story.gids |= {row.gid} - {""}
    story.events += await _in_redis(stores, order_id, product_id, name)


async def _in_redis(stores: Stores, order_id: str, product_id: int, name: str) -> list[Event]:
    events = []
    sale_ids = await stores.inspection.sales_of(product_id)
    for told in await stores.inspection.told(order_id, product_id, sale_ids):
        end = " ".join(filter(None, (told.status, told.reason)))
        events.append(Event(None, "redis", f"{name}the buyer is told {end} (sale {told.sale_id})"))
    for sale_id in sale_ids:
        entry = await stores.inspection.entry(product_id, sale_id, order_id)
        if entry is not None:
            order, until = entry.order, "parked" if entry.state == "parked" else "due"
            events += [
                Event(order.admitted_at_ms, "redis", f"{name}admitted, number {order.admission_number}"),
                Event(entry.published_at_ms, "redis", f"{name}published last"),
                Event(entry.due_ms, "redis", f"{name}{until}"),
            ]
    return events or [Event(None, "redis", f"{name}neither in the ledger nor told to the buyer")]


async def _records(stores: Stores, order_ids: set[str]) -> Told | str:
    """By order id; or why they could not be read."""
    try:
        return await told_by_records(stores.settings, order_ids)
    except PublishUnknown as error:
        return str(error)


def _of_records(records: Told | str, order_id: str) -> list[Event]:
    if isinstance(records, str):
        return [Event(None, "kafka", f"retry topics and dead letters cannot be read: {records}")]
    return [Event(at_ms, "kafka", what) for at_ms, what in records.get(order_id, ())]


# --- its transactions ------------------------------------------------------------------------------------------------


async def _of_gids(stores: Stores, coordinator: DtmClient, story: _Story) -> None:
    for gid in sorted(story.gids)[:ORDERS_OF_ONE]:
        for name in TABLES:
            story.events += await _branches(stores, name, gid)
        story.events += await _at_coordinator(coordinator, gid)


async def _branches(stores: Stores, name: Database, gid: str) -> list[Event]:
    """How the gid's branches of this service were ended, and which calls passed its barrier."""
    decision, barrier = DECISIONS[name].c, TABLES[name][1].c
    async with snapshot(stores, name) as connection:
        decided = (
            await connection.execute(select(decision.op, decision.created_at_ms).where(decision.gid == gid))
        ).all()
        passed = await connection.execute(
            select(barrier.branch_id, barrier.op, barrier.reason).where(barrier.gid == gid).order_by(barrier.id)
        )
        calls = [op if op == reason else f"{op} (by {reason})" for _, op, reason in passed]
    events = [Event(at_ms, name, f"gid {gid}: decided {op}") for op, at_ms in decided]
    if not decided:
        events.append(Event(None, name, f"gid {gid}: undecided"))
    return [*events, Event(None, name, f"gid {gid}: barrier passed by {', '.join(calls) or 'nobody'}")]


async def _at_coordinator(coordinator: DtmClient, gid: str) -> list[Event]:
    try:
        found = await coordinator.query(gid)
    except CallFailed as error:
        return [Event(None, "coordinator", f"gid {gid}: no answer ({error.detail})")]
    if found is None:
        return [Event(None, "coordinator", f"gid {gid}: not known (any more)")]
    branches = ", ".join(f"{each.branch_id} {each.op} {each.status}" for each in found.branches)
    state = f"gid {gid}: {found.status}" + (f" ({branches})" if branches else "")
    return [
        Event(_ms(found.created_at), "coordinator", f"gid {gid}: prepared"),
        Event(_ms(found.updated_at), "coordinator", state),
    ]


def _ms(at: datetime | None) -> int | None:
    return int(at.timestamp() * 1000) if at else None
