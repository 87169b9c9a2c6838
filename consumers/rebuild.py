"""Rebuild: what Redis held of a sale, made again from SQL and the topics after Redis was lost or set back.

    close admission ─▶ wait until no publish is under way ─▶ read what survives ─▶ stage ─▶ install and open

**No accepted order is lost.** An order was admitted before the close, or is not admitted at all: from the close on
admission answers PAUSED. If Redis still has its entry, the entry goes into the union. If not, its front has either
published it within the publish bound, which is shorter than the wait, or was stopped for longer:

- published within the bound: its record is in the topic when that is read, from the creation of the sale on and not
  from the committed offsets: an undecided order whose record the group has passed lives in the lost ledger alone.
- published later, by a front that stood still: nobody has counted its units, which were given back to stock. Its record
  names an order that the ledger does not know, so the worker admits it as one that came past the front: under its own
  id and once, or refuses it, which its reservation then says. Until the install admission answers such an order
  PAUSED, and the worker keeps its record in hand. What a worker sent to a transaction before the close had its record
  in the topic before the reading, and is counted by that.
- never published, and not in Redis: its buyer was never told 202.

**None is counted twice, and none that has ended.** Each order is one key of one union. The reservations are read last:
what had ended by then drops out or counts as sold; what ends later keeps its entry, and reconcile settles it, which
gives back its units at that time.

**What buyers were told is told again.** Results are lost with the rest. Who repeats a request with its key must not be
admitted again under the id of an order that has ended: what the buyers' entries do not tell of gets its result back.

**The order of reading**: Redis' entries, then the topics (the main one, the retry topics, the letters), then the
reservations, then the sale's row. A worker that takes a record in between leaves its mark in what is read later.

**The sale opens as its row says.** Who pauses or closes it meanwhile copies the terms to Redis himself, rebuild or not;
the terms of a row are copied once more before and after the install, for one who died between row and copy. Changes of
units move nothing in Redis while it lasts; the row that is installed includes them, and its change ids, so that a
repeated change moves nothing again.

**Retention.** Kafka may have dropped records older than its retention. Then the entries that survive in Redis and the
reservations are what is left: an order that had neither, and whose record is gone, is not known to anybody.

An order that its buyer repeats with the same key after a loss has the same id as before, unless the start of the sale
was moved: Redis alone knew the start that ids are derived from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

import structlog
from structlog.contextvars import bound_contextvars

from consumers.survivors import ENDED, Rebuilt, Rows, Survivors, Trace, Traces, contents_of, end_of
from seckill.admission.ledger import Ledger, LedgerEntry
from seckill.admission.rebuild import RENEW_EVERY_MS, Closed, RebuildBook, RebuildFailed
from seckill.checkout.late import in_sale_of
from seckill.checkout.reservations import Reservations
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import AdmissionUnavailable, InvalidOrder, InvalidTransition
from seckill.domain.order import Order, OrderId, Sale
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.dead_letters import reason_of
from seckill.messaging.envelope import decode
from seckill.messaging.reading import Kept

log = structlog.get_logger()

CLOCKS_MARGIN_MS = 3_600_000
"""How far the clocks of product service and fronts may be apart: the topic is read from so long before the sale."""

Take = Callable[[Sequence[Kept]], Awaitable[None]]
ReadSince = Callable[[int, Take], Awaitable[None]]
"""Hands over a topic's records since a time in ms; `seckill.messaging.lag.read_since`."""


class SaleRows(Protocol):
    """The product service, as far as a rebuild asks it."""

    async def sale(self, sale_id: int) -> Sale: ...

    async def all_sales(self, *, product_id: int = 0, state: str = "") -> list[Sale]: ...

    async def sale_changes(self, sale_id: int) -> frozenset[str]: ...


class Rebuilder:
    """Opens nothing: everything it uses is its caller's. `copy_terms` copies a row to Redis until it is what it was."""

    def __init__(
        self,
        *,
        book: RebuildBook,
        ledger: Ledger,
        reservations: Reservations,
        rows: SaleRows,
        copy_terms: Callable[[Sale], Awaitable[Sale]],
        read_records: ReadSince,
        read_retries: ReadSince,
        read_letters: ReadSince,
        wait_ms: int,
        look_after_ms: int,
        clock_ms: Callable[[], int],
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._reservations = reservations
        self._rows = rows
        self._copy_terms = copy_terms
        self._read_records = read_records
        self._read_retries = read_retries
        self._read_letters = read_letters
        self._wait_ms = wait_ms
        self._look_after_ms = look_after_ms
        self._clock_ms = clock_ms

    async def rebuild(self, sales: Sequence[Sale]) -> list[Rebuilt]:
        """Makes Redis' side of these sales again; one result for each, but for those at which another rebuild is.

        Raises AdmissionUnavailable, PublishUnknown or ProductUnavailable, and what kept a sale back when none could be
        installed. Admission of those that were not stays closed, and the next attempt begins anew with them.
        """
        closed = await self._close(sales)
        if not closed:
            return []
        async with self._kept(closed):
            reach(CrashPoint.REBUILD_CLOSED)
            log.warning("rebuild_began", sales=[each.sale.sale_id for each, _ in closed], wait_ms=self._wait_ms)
            await asyncio.sleep(self._wait_ms / 1_000)
            entries = {each.sale.sale_id: await self._ledger.entries(each.sale.product_id) for each, _ in closed}
            traces = [Traces(each.sale, current) for each, current in closed]
            await self._read_topics(traces)
            done: list[Rebuilt] = []
            failures: list[RebuildFailed | InvalidTransition] = []
            for (each, _), of_sale in zip(closed, traces, strict=True):
                with bound_contextvars(sale_id=each.sale.sale_id, product_id=each.sale.product_id):
                    own, others = _parted(entries[each.sale.sale_id], each.sale)
                    of_sale.forget(others)
                    try:
                        done.append(await self._make(each, own, of_sale.orders))
                    except (RebuildFailed, InvalidTransition) as error:  # of this sale alone: the others are opened
                        log.warning("not_rebuilt", error=str(error))
                        failures.append(error)
            if failures and not done:
                raise failures[0]
            return done

    async def _close(self, sales: Sequence[Sale]) -> list[tuple[Closed, bool]]:
        """Those that are ours to rebuild, and whether each is its product's newest."""
        closed: list[tuple[Closed, bool]] = []
        for sale in sales:
            newest = all(
                other.sale_id <= sale.sale_id for other in await self._rows.all_sales(product_id=sale.product_id)
            )
            if (each := await self._book.close(sale, newest=newest)) is not None:
                closed.append((each, newest))
            else:
                log.info("rebuild_is_anothers", sale_id=sale.sale_id)
        return closed

    @asynccontextmanager
    async def _kept(self, closed: Sequence[tuple[Closed, bool]]) -> AsyncIterator[None]:
        """Renews the tokens; gives back those that were not installed, so that the next attempt need not wait."""
        renewing = {asyncio.create_task(self._renew([each for each, _ in closed]), name="rebuild-token")}
        try:
            yield
        finally:
            for task in renewing:
                task.cancel()
            await asyncio.wait(renewing)
            with suppress(AdmissionUnavailable):  # then they age
                for each, _ in closed:
                    await self._book.release(each)

    async def _renew(self, closed: Collection[Closed]) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_MS / 1_000)
            with suppress(AdmissionUnavailable):  # the install compares the tokens
                for each in closed:
                    await self._book.renew(each)

    # --- reading -------------------------------------------------------------------------------------------------

    async def _read_topics(self, traces: Sequence[Traces]) -> None:
        """Every order of these sales that a record or letter tells of and that had not ended when it was read.

        In the order in which a record moves on: what is put off or buried meanwhile is seen where it goes to.
        """
        since_ms = max(0, min(each.sale.created_at_ms for each in traces) - CLOCKS_MARGIN_MS)

        async def take_records(batch: Sequence[Kept], *, tier: bool = False) -> None:
            told = [(order, kept) for kept in batch for order in _orders_of(kept)]
            for order, kept in await self._not_ended(told, traces):
                for each in traces:
                    if each.is_about(order):
                        each.published(order, kept.record.timestamp_ms, passed=kept.passed, tier=tier)

        async def take_letters(batch: Sequence[Kept]) -> None:
            own = [kept for kept in batch if reason_of(kept.record) is not DeadLetterReason.ID_REUSED]
            told = [(order, kept) for kept in own for order in _orders_of(kept)]
            for order, kept in await self._not_ended(told, traces):
                for each in traces:
                    if each.is_about(order):
                        each.buried(order, kept.record.timestamp_ms)

        await self._read_records(since_ms, take_records)
        await self._read_retries(since_ms, partial(take_records, tier=True))
        await self._read_letters(since_ms, take_letters)

    async def _not_ended(
        self, told: Iterable[tuple[Order, Kept]], traces: Sequence[Traces]
    ) -> list[tuple[Order, Kept]]:
        """Without what other sales own, and what has ended: so that what is kept in memory are open orders."""
        ours = [(order, kept) for order, kept in told if any(each.is_about(order) for each in traces)]
        rows = await self._reservations.of_orders([order for order, _ in ours])
        return [
            (in_sale_of(order, rows.get(order.key)), kept)
            for order, kept in ours
            if order.key not in rows or rows[order.key].state not in ENDED
        ]

    async def _read_rows(self, sale: Sale, asked: frozenset[bytes]) -> Rows:
        rows = Rows(sale.product_id, asked)
        async for page in self._reservations.pages_of_sale(sale.sale_id):
            if untold := rows.add(page):
                await self._ledger.settle([end_of(row) for row in untold])
        return rows

    # --- installing ----------------------------------------------------------------------------------------------

    async def _make(self, closed: Closed, entries: Sequence[LedgerEntry], traces: dict[OrderId, Trace]) -> Rebuilt:
        keys = [entry.order.key for entry in entries] + [trace.order.key for trace in traces.values()]
        rows = await self._read_rows(closed.sale, frozenset(keys))
        sale = await self._rows.sale(closed.sale.sale_id)
        # After the row: of a change in between the units are missing, which is seen and mended, and never doubled.
        known_changes = await self._rows.sale_changes(sale.sale_id)
        found = Survivors(entries, traces, rows, await self._book.changes(sale), known_changes)
        contents, rebuilt = contents_of(
            sale, found, number=closed.number, now_ms=self._clock_ms(), look_after_ms=self._look_after_ms
        )
        await self._book.stage(closed, contents)
        reach(CrashPoint.REBUILD_STAGED)
        before = await self._copy_terms(sale)
        if before.initial != sale.initial:
            raise RebuildFailed(sale, "its units were changed meanwhile")
        await self._book.install(closed, contents)
        reach(CrashPoint.REBUILD_INSTALLED)
        await self._copy_terms(await self._rows.sale(sale.sale_id))
        log.warning("rebuilt", stock=rebuilt.stock, sold=rebuilt.sold, pending=rebuilt.pending, parked=rebuilt.parked,
                    lost_by_redis=rebuilt.lost_by_redis, surplus=rebuilt.surplus)  # fmt: skip
        return rebuilt


def _parted(entries: Sequence[LedgerEntry], sale: Sale) -> tuple[list[LedgerEntry], set[OrderId]]:
    """The sale's own entries, and the ids that other sales of the product hold."""
    own = [entry for entry in entries if entry.order.sale_id == sale.sale_id]
    return own, {entry.order.order_id for entry in entries if entry.order.sale_id != sale.sale_id}


def _orders_of(kept: Kept) -> list[Order]:
    try:
        return decode(kept.record)
    except InvalidOrder:
        return []  # no order, so nothing was admitted for it
