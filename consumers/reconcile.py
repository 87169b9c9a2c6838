"""Reconcile: what accepted orders and undecided transactions need when somebody died in between.

    ledger entries past their time ─▶ read the reservation ─▶ sold, rejected  ─▶ settle
                                                           ├▶ frozen          ─▶ wait on
                                                           ├▶ another order's ─▶ a letter, once
                                                           └▶ released, none  ─▶ publish again, if its record is gone by
    branches undecided for long    ─▶ ask the coordinator  ─▶ carries it      ─▶ try again now
                                                           └▶ lost, finished  ─▶ end it as it stands

Two of them do no harm: an entry is claimed by compare-and-set, settling is idempotent, and a branch is decided once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter as Metric
from prometheus_client import Gauge

from consumers import ledger_gauges
from consumers.conflicts import Conflicts
from seckill.admission.ledger import Ledger, LedgerEntry
from seckill.checkout.orphans import End, Hold, Orphans
from seckill.checkout.reservations import Reservations, outcome_of
from seckill.domain.errors import BranchFailed, PublishUnknown, SeckillError
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Confirmed, Failed, Rejected, Undecided
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed
from seckill.messaging.publisher import Publisher

log = structlog.get_logger()

DONE = Metric("seckill_reconciled_total", "What reconcile did, by kind", ["what"])
FAILED = Metric("seckill_reconcile_failed_total", "Looks that a dependency cut short", ["look"])
ORPHANS = Gauge("seckill_undecided_branches", "Branches that hold units and are undecided for long")

PRODUCT_FAILURES_MAX = 3
"""Products whose ledgers may fail in a look before the rest is left for the next one."""

ORPHAN_FAILURES_MAX = 3
"""Old branches that may fail in a look before the rest is left for the next one."""

LOOK_BACK_MARGIN_MS = 5_000
"""Overlap of one look for old branches with the one before, for clocks that count whole seconds."""

SaleById = Callable[[int], Awaitable[Sale | None]]
"""The sale of that id in the product database; None: it has none."""

Watermark = Callable[[], Awaitable[int | None]]
"""When the oldest record that the group has not committed was written (ms); None: everything has been passed."""


@dataclass(frozen=True, slots=True)
class ReconcileLimits:
    every_ms: int
    batch_max: int  # entries of one product in a look
    republish_after_ms: int
    publish_within_ms: int  # from an entry's time of publishing to its record's own time, clocks included
    undecided_wait_ms: int
    orphan_after_ms: int
    orphans_max: int  # branches in a look


@dataclass(slots=True)
class Findings:
    """What a look found and did: `settled`, `waiting`, `unread`, `republished`, `publish_unknown`, `slow`,
    `conflicting`, `orphan_confirmed`, `orphan_cancelled`, `carried`, `contradicting`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    cut_short: dict[str, Exception] = field(default_factory=dict)  # look → the error that ended it

    def note(self, what: str, number: int = 1) -> None:
        if number:
            self.counts[what] += number
            DONE.labels(what).inc(number)


@dataclass(slots=True)
class _Sorted:
    """The entries of a look by what their reservations say."""

    ended: list[tuple[Order, Confirmed | Rejected]] = field(default_factory=list)
    waiting: list[Order] = field(default_factory=list)
    free: list[LedgerEntry] = field(default_factory=list)
    conflicting: list[Order] = field(default_factory=list)
    unread: list[Order] = field(default_factory=list)


class Reconciler:
    """Opens nothing: everything it uses is its caller's."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sale: SaleById,
        reservations: Reservations,
        orphans: Orphans,
        client: DtmClient,
        publisher: Publisher,
        conflicts: Conflicts,
        watermark: Watermark,
        limits: ReconcileLimits,
    ) -> None:
        self._ledger = ledger
        self._sale = sale
        self._reservations = reservations
        self._orphans = orphans
        self._client = client
        self._publisher = publisher
        self._conflicts = conflicts
        self._watermark = watermark
        self._limits = limits
        self._stopping = asyncio.Event()
        self._looked_at_s: float | None = None  # monotonic: when old branches were last looked for
        self._oldest_age_ms = 0  # of those that were found then

    def stop(self) -> None:
        """`run` returns after the step that is under way: the entries of a product, or one transaction."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. A dependency that is down is waited for; nothing here ends a role."""
        while not self._stopping.is_set():
            findings = await self.once()
            if findings.counts:
                log.info("reconciled", **findings.counts)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.every_ms / 1_000):
                    await self._stopping.wait()

    async def once(self) -> Findings:
        """One look at everything; each part is tried whatever becomes of the others."""
        findings = Findings()
        await self._attempt("ledger", self._look_at_ledger(findings), findings)
        if not self._stopping.is_set():
            await self._attempt("orphans", self._look_for_orphans(findings), findings)
        return findings

    async def _attempt(self, look: str, work: Awaitable[None], findings: Findings) -> bool:
        """Whether it came to its end."""
        try:
            await work
        except SeckillError as error:
            FAILED.labels(look).inc()
            findings.cut_short[look] = error
            log.warning("reconcile_waits", look=look, error=str(error))
        except Exception as error:
            FAILED.labels(look).inc()
            findings.cut_short[look] = error
            log.exception("reconcile_failed", look=look)  # the loop must outlive what nobody foresaw
        else:
            return True
        return False

    # --- the ledger ----------------------------------------------------------------------------------------------

    async def _look_at_ledger(self, findings: Findings) -> None:
        """Product by product: what fails with one of them, for ever perhaps, keeps nobody from the others."""
        failed = 0
        for product_id in await self._ledger.products():
            if self._stopping.is_set() or failed == PRODUCT_FAILURES_MAX:
                return
            failed += not await self._attempt("ledger", self._look_at_product(product_id, findings), findings)

    async def _look_at_product(self, product_id: int, findings: Findings) -> None:
        ledger_gauges.show(product_id, await self._ledger.stats(product_id))
        due = await self._ledger.due(product_id, limit=self._limits.batch_max)
        if due:
            await self._handle(await self._ours(product_id, due), findings)

    async def _ours(self, product_id: int, due: Sequence[LedgerEntry]) -> list[LedgerEntry]:
        """Without the entries of sales that our database does not know: they are another pipeline's on this Redis."""
        found = [await self._sale(sale_id) for sale_id in sorted({entry.order.sale_id for entry in due})]
        known = {sale.sale_id for sale in found if sale is not None and sale.product_id == product_id}
        strange = [entry.order for entry in due if entry.order.sale_id not in known]
        if strange:
            log.error("ledger_of_strange_sales", product_id=product_id, orders=len(strange), first=strange[0].order_id)
        return [entry for entry in due if entry.order.sale_id in known]

    async def _handle(self, due: Sequence[LedgerEntry], findings: Findings) -> None:
        """Entries of one product that are past their time."""
        if not due:
            return
        rows, unread = await self._reservations.readable([entry.order for entry in due])
        found = _Sorted()
        for entry in due:
            order = entry.order
            match outcome_of(order, rows.get(order.key), gid=""):
                case _ if order.key in unread:
                    log.error("reservation_unread", order_id=order.order_id, error=str(unread[order.key]))
                    found.unread.append(order)
                case Confirmed() | Rejected() as end:
                    found.ended.append((order, end))
                case Undecided():
                    found.waiting.append(order)
                case Failed():
                    found.conflicting.append(order)
                case _:
                    found.free.append(entry)
        if found.ended:
            await self._ledger.settle(found.ended)
        await self._ledger.postpone(found.waiting + found.unread, delay_ms=self._limits.undecided_wait_ms)
        await self._conflicts.set_aside(found.conflicting)
        findings.note("settled", len(found.ended))
        findings.note("waiting", len(found.waiting))
        findings.note("unread", len(found.unread))
        findings.note("conflicting", len(found.conflicting))
        if found.free:
            await self._publish_lost(found.free, findings)

    async def _publish_lost(self, entries: Sequence[LedgerEntry], findings: Findings) -> None:
        """Publishes again what the group has passed, or never got; what is only slow waits on."""
        oldest_ms = await self._watermark()
        passed: list[LedgerEntry] = []
        slow: list[Order] = []
        for entry in entries:
            if oldest_ms is None or entry.published_at_ms + self._limits.publish_within_ms < oldest_ms:
                passed.append(entry)
            else:
                slow.append(entry.order)
        await self._ledger.postpone(slow, delay_ms=self._limits.republish_after_ms)
        findings.note("slow", len(slow))
        taken = await self._ledger.claim(passed, republish_after_ms=self._limits.republish_after_ms)
        acknowledged = sum(await asyncio.gather(*map(self._publish, taken)))
        findings.note("republished", acknowledged)
        findings.note("publish_unknown", len(taken) - acknowledged)

    async def _publish(self, order: Order) -> bool:
        try:
            await self._publisher.publish(order)
        except PublishUnknown as error:
            log.warning("republish_unknown", order_id=order.order_id, error=str(error))
            return False  # it is due again later
        return True

    # --- undecided branches --------------------------------------------------------------------------------------

    async def _look_for_orphans(self, findings: Findings) -> None:
        """Branches that have held units for long: each is asked for at its coordinator."""
        began_s = time.monotonic()
        holds = await self._orphans.holds(
            older_than_ms=self._limits.orphan_after_ms,
            newer_than_ms=self._look_back_ms(began_s),
            limit=self._limits.orphans_max,
        )
        ORPHANS.set(len(holds))
        ends: Counter[End | None] = Counter()
        failures: list[SeckillError] = []
        for hold in {hold.gid: hold for hold in holds if hold.by_checkout}.values():
            if self._stopping.is_set():
                return  # the next look goes back as far as this one
            try:
                ends[await self._end_orphan(hold, findings)] += 1
            except SeckillError as error:  # of this gid alone, perhaps: the others are looked at all the same
                failures.append(error)
                if len(failures) == ORPHAN_FAILURES_MAX:
                    break
        if ends[End.CARRIED]:
            await self._hasten()
            findings.note("carried", ends[End.CARRIED])
        if failures:
            raise failures[-1]
        # Only now: had a look failed half way, the next one has to go back as far again.
        self._looked_at_s = began_s
        self._oldest_age_ms = max((hold.age_ms for hold in holds), default=0)

    async def _end_orphan(self, hold: Hold, findings: Findings) -> End | None:
        """None: the branches contradict, which needs a person; the next look comes upon it again."""
        try:
            end = await self._orphans.end(await self._orphans.look(hold.gid, hold.trans_type))
        except BranchFailed as error:
            log.error("orphan_contradicts", gid=hold.gid, error=str(error))  # noqa: TRY400 - the line says it all
            findings.note("contradicting")
            return None
        if end is not End.CARRIED:
            findings.note(f"orphan_{end.value}")
        return end

    def _look_back_ms(self, now_s: float) -> int | None:
        """How old a branch may be to be new to us, or known from the last look; None: the first look, at all."""
        if self._looked_at_s is None:
            return None
        since_ms = int((now_s - self._looked_at_s) * 1_000)
        return since_ms + max(self._oldest_age_ms, self._limits.orphan_after_ms) + LOOK_BACK_MARGIN_MS

    async def _hasten(self) -> None:
        """Pauses double while something is down; it may be up again."""
        try:
            count = await self._client.reset_cron_time(later_than_s=self._limits.orphan_after_ms // 1_000)
        except CallFailed as error:
            log.warning("coordinator_not_hastened", error=str(error))
        else:
            if count:
                log.info("coordinator_hastened", transactions=count)
