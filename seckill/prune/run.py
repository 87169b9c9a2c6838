"""The straight path of a prune: what may still come back is read first, then each kind of row goes in small pieces.

Order matters. A sale is closed for ever before the first of its reservations goes. Reservations go before decisions,
and the order service's decisions before the product service's: so at no moment, and wherever a run is cut off, do the
stores contradict each other (`seckill audit`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from seckill.doctor.start import opening_database
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import create_engine, session_factory
from seckill.dtm.protocol import CONFIRM
from seckill.product.branches import OWN_STOCK
from seckill.prune import branches, coordinator, product
from seckill.prune.evidence import gather
from seckill.prune.rules import Evidence, Kept, why_kept
from seckill.schema import DATABASES, found_revision, require, setting_of
from seckill.security import database_context
from seckill.settings import Settings

Sessions = async_sessionmaker[AsyncSession]
Using = Callable[[str], AbstractAsyncContextManager[None]]
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: rows that changed before `cutoff_ms` may go, `piece` at a time, with pauses between."""

    cutoff_ms: int
    now_ms: int
    piece: int = 500
    pause_ms: int = 50
    dry_run: bool = False


@dataclass(slots=True)
class Pruned:
    """Rows that went, or would go, by `database.table`; the sales whose reservations went; and those that stay."""

    rows: Counter[str] = field(default_factory=Counter)
    sales: list[int] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    coordinator: bool = True  # False: its database has no schema, so DTM keeps its transactions itself


async def prune(settings: Settings, plan: Plan) -> Pruned:
    """Whoever does not answer may hold an order.

    Raises SchemaOutdated, DatabaseUnavailable, and what the stores' clients raise.
    """
    async with _databases(settings) as engines:
        run = _Run(plan, {name: session_factory(engine) for name, engine in engines.items()}, partial(_using, settings))
        ended = await run.read("product", lambda session: product.ended_sales(session, cutoff_ms=plan.cutoff_ms))
        products = {product_id for _, product_id, _ in ended}
        async with _using(settings, "dead_letters"):
            run.evidence = await gather(settings, engines["dead_letters"], products)
        for sale_id, _, pruned_before in ended:
            await run.prune_sale(sale_id, pruned_before=pruned_before)
        await run.prune_own_stock()
        await run.prune_order_branches()
        await run.prune_product_branches()
        if "coordinator" in engines:
            await run.prune_coordinator()
        else:
            run.done.coordinator = False
        return run.done


@asynccontextmanager
async def _databases(settings: Settings) -> AsyncIterator[Mapping[str, AsyncEngine]]:
    """Engines of all databases in use, each on the newest schema. Raises SchemaOutdated, DatabaseUnavailable."""
    engines: dict[str, AsyncEngine] = {}
    try:
        for name in DATABASES:
            section = getattr(settings, name)
            engine = create_engine(
                section.database_url.get_secret_value(), pool_size=1, lock_wait_s=3, tls=database_context(name, section)
            )
            engines[name] = engine
            async with _using(settings, name):
                if name == "coordinator" and await found_revision(engine) is None:
                    await engines.pop(name).dispose()
                    continue
                await require(name, engine)
        yield engines
    finally:
        for engine in engines.values():
            await engine.dispose()


def _using(settings: Settings, name: str) -> AbstractAsyncContextManager[None]:
    """Raises DatabaseUnavailable for what this database says to the block."""
    return opening_database(setting_of(name), getattr(settings, name).database_url.get_secret_value())


class _Run:
    """One run: its plan, its databases, and what it has done so far. Each method raises DatabaseUnavailable."""

    def __init__(self, plan: Plan, sessions: Mapping[str, Sessions], using: Using) -> None:
        self.plan = plan
        self.done = Pruned()
        self.evidence = Evidence()
        self._sessions = sessions
        self._using = using

    async def read(self, database: str, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        async with self._using(database):
            return await in_transaction(self._sessions[database], work)

    async def _delete(self, database: str, work: Callable[[AsyncSession], Awaitable[Mapping[str, int]]]) -> None:
        """One piece: a transaction of its own, counted, and a pause when it changed something."""
        deleted = await self.read(database, work)
        self.done.rows.update({f"{database}.{table}": count for table, count in deleted.items() if count})
        if any(deleted.values()) and not self.plan.dry_run:
            await asyncio.sleep(self.plan.pause_ms / 1000)

    # --- reservations ------------------------------------------------------------------------------------------------

    async def prune_sale(self, sale_id: int, *, pruned_before: bool) -> None:
        """The whole sale or nothing of it; one that an earlier run had begun is finished."""
        if not pruned_before and not await self._may_go(sale_id):
            return
        cursor: product.Cursor | None = product.START
        while cursor is not None:
            stays, limit = self.evidence.set_aside, self.plan.piece
            piece = partial(product.reservations_of_sale, sale_id=sale_id, after=cursor, stays=stays, limit=limit)
            keys, cursor = await self.read("product", piece)
            await self._delete_reservations(keys)

    async def _may_go(self, sale_id: int) -> bool:
        """Judges the sale under its row lock, and closes it for ever in the same transaction."""

        async def judge(session: AsyncSession) -> Kept | None:
            sale = await product.read_sale(session, sale_id)
            reason = why_kept(sale, self.evidence, cutoff_ms=self.plan.cutoff_ms)
            if reason is not None:
                return Kept(sale_id, sale.product_id, reason)
            if not self.plan.dry_run:
                await product.close_for_ever(session, sale_id, now_ms=self.plan.now_ms)
            return None

        kept = await self.read("product", judge)
        if kept is not None:
            self.done.kept.append(kept)
            return False
        self.done.sales.append(sale_id)
        log.info("sale_pruned", sale_id=sale_id, dry_run=self.plan.dry_run)
        return True

    async def prune_own_stock(self) -> None:
        """Reservations that took units from a product's own stock."""
        cursor: product.Cursor | None = product.START
        while cursor is not None:
            piece = partial(
                product.reservations_of_products,
                after=cursor,
                cutoff_ms=self.plan.cutoff_ms,
                unfinished=self.evidence.unfinished,
                limit=self.plan.piece,
            )
            keys, cursor = await self.read("product", piece)
            await self._delete_reservations(keys)

    async def _delete_reservations(self, keys: list[bytes]) -> None:
        async def delete(session: AsyncSession) -> Mapping[str, int]:
            count = len(keys) if self.plan.dry_run else await product.delete_reservations(session, keys)
            return {"stock_reservation": count}

        if keys:
            await self._delete("product", delete)

    # --- what branches keep ------------------------------------------------------------------------------------------

    async def prune_order_branches(self) -> None:
        """A confirm's decision goes only when all orders of its gid are of sales that nobody audits any more."""
        pruned = await self.read("product", product.pruned_sales) | {OWN_STOCK, *self.done.sales}
        async for old in self._decided("order"):
            confirmed = [branch.gid for branch in old if branch.op == CONFIRM]
            sales = await self.read("order", partial(branches.sales_of_orders, gids=confirmed))
            audited = {gid for gid in confirmed if not sales.get(gid) or not sales[gid] <= pruned}
            await self._delete_branches("order", old, keep_decision=audited)

    async def prune_product_branches(self) -> None:
        """A decision stays as long as a reservation of its gid, or the order service's decision about it."""
        async for old in self._decided("product"):
            gids = [branch.gid for branch in old]
            reserving = await self.read("product", partial(product.reserving_gids, gids=gids))
            decided = await self.read("order", partial(branches.decided_gids, gids=gids))
            await self._delete_branches("product", old, keep_decision=reserving.keys() | decided)

    async def _decided(self, database: str) -> AsyncIterator[list[branches.Decided]]:
        """Decided before the cut-off, finished at the coordinator, and with nothing frozen; a piece at a time."""
        cursor: branches.Cursor | None = branches.START
        while cursor is not None:
            found, cursor = await self.read(database, partial(branches.decided, after=cursor, limit=self.plan.piece))
            old = [
                branch
                for branch in found
                if branch.at_ms < self.plan.cutoff_ms and branch.gid not in self.evidence.unfinished
            ]
            frozen = await self._frozen([branch.gid for branch in old])
            if old := [branch for branch in old if branch.gid not in frozen]:
                yield old

    async def _frozen(self, gids: list[str]) -> set[str]:
        reserving = await self.read("product", partial(product.reserving_gids, gids=gids))
        return {gid for gid, frozen in reserving.items() if frozen}

    async def _delete_branches(
        self, database: str, old: list[branches.Decided], *, keep_decision: Collection[str]
    ) -> None:
        work = branches.count_branches if self.plan.dry_run else branches.delete_branches
        await self._delete(database, partial(work, branches=old, keep_decision=keep_decision))

    # --- the coordinator ---------------------------------------------------------------------------------------------

    async def prune_coordinator(self) -> None:
        cursor: int | None = 0
        work = coordinator.count_transactions if self.plan.dry_run else coordinator.delete_transactions
        while cursor is not None:
            cutoff_ms, limit = self.plan.cutoff_ms, self.plan.piece
            piece = partial(coordinator.finished, after=cursor, cutoff_ms=cutoff_ms, limit=limit)
            gids, cursor = await self.read("coordinator", piece)
            frozen = await self._frozen(gids)
            if gone := [gid for gid in gids if gid not in frozen]:
                await self._delete("coordinator", partial(work, gids=gone))
