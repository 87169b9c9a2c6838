"""Transactions whose pause, lease or time is over are taken up, by whichever coordinator is first."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog

from seckill.coordinator.attempt import Hands
from seckill.coordinator.commands import Claim, Decided, Postpone
from seckill.coordinator.decisions import Decisions
from seckill.coordinator.dispatch import Denied, Succeeded, Unfinished
from seckill.coordinator.message import delay_left_ms, question_of
from seckill.coordinator.metrics import STUCK
from seckill.coordinator.running import Running
from seckill.coordinator.state import Status, Transaction, now_ms
from seckill.coordinator.store import StoreUnavailable
from seckill.dtm.protocol import MSG, SAGA

CLAIM_MAX = 50  # transactions that a cron run takes up at once
STUCK_AFTER_MS = 60_000

log = structlog.get_logger(__name__)


class Cron:
    def __init__(self, hands: Hands, running: Running, decisions: Decisions) -> None:
        self._hands = hands
        self._running = running
        self._decisions = decisions
        self._stopping = asyncio.Event()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def stop(self) -> None:
        """No more transactions are taken up."""
        self._stopping.set()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Questions about messages that are under way."""
        return list(self._asking.values())

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.is_set():
            try:
                await self._take_up_due()
                STUCK.set(await self._hands.store.stuck(older_than_ms=STUCK_AFTER_MS))
            except StoreUnavailable as error:
                log.warning("cron_run_failed", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._hands.timing.cron_interval_ms / 1000)

    async def _take_up_due(self) -> None:
        while (free := self._running.free()) > 0 and not self._stopping.is_set():
            limit = min(free, CLAIM_MAX)
            with self._running.reserved(limit):
                due = await self._hands.store.due(limit=limit)
                await asyncio.gather(*(self._take_up(each) for each in due if not self._is_busy(each.gid)))
            if len(due) < limit:
                return

    def _is_busy(self, gid: str) -> bool:
        return gid in self._running or gid in self._asking

    async def _take_up(self, due: Transaction) -> None:
        """Claims a transaction whose pause, lease or time is over; another coordinator may have been quicker."""
        lease_ms = self._hands.timing.lease_ms(due.options)
        claimed = await self._hands.store.write(Claim(due.gid, self._hands.owner, lease_ms))
        if claimed is not None and claimed.transaction.status is Status.PREPARED:
            claimed = await self._time_out(claimed.transaction)
        if claimed is None or due.gid in self._running:
            return
        log.info("transaction_taken_up", gid=due.gid, status=claimed.transaction.status.value)
        self._running.start(claimed, claimed.transaction.options)

    async def _time_out(self, prepared: Transaction) -> Decided | None:
        """Ends what nobody decided in time. None: it has time left, or others have, or it is being asked."""
        to_fail_ms = self._hands.timing.to_fail_ms(prepared.options)
        left_ms = prepared.created_ms + to_fail_ms - now_ms()
        if left_ms > 0:
            await self._put_off(prepared, left_ms, prepared.next_cron_interval_s)
            return None
        if prepared.trans_type == SAGA:  # it waits for its Submit however long that takes, as in DTM
            await self._put_off(prepared, to_fail_ms, prepared.next_cron_interval_s)
            return None
        if prepared.trans_type == MSG:
            self._ask(prepared)
            return None
        reason = f"Timeout after {to_fail_ms // 1_000} seconds"
        decided = await self._decisions.decide(
            prepared.gid, (Status.PREPARED,), Status.ABORTING, prepared.options, wait=True, reason=reason
        )
        return decided if decided is not None and decided.ours else None

    async def _put_off(self, prepared: Transaction, delay_ms: int, interval_s: int) -> None:
        put_off = Postpone(prepared.gid, self._hands.owner, delay_ms, interval_s, only_from=(Status.PREPARED,))
        await self._hands.store.write(put_off)

    # Messages that nobody submitted

    def _ask(self, prepared: Transaction) -> None:
        gid = prepared.gid
        task = self._asking[gid] = asyncio.create_task(self._ask_one(prepared), name=f"question-{gid}")
        task.add_done_callback(lambda _: self._asking.pop(gid, None))

    async def _ask_one(self, prepared: Transaction) -> None:
        with self._running.reserved(1), structlog.contextvars.bound_contextvars(gid=prepared.gid):
            try:
                await self._settle(prepared)
            except StoreUnavailable as error:
                log.warning("transaction_left_to_recovery", error=str(error))
            except Exception:  # a fault of one transaction must not end the others; its lease brings it back
                log.exception("question_broke")

    async def _settle(self, prepared: Transaction) -> None:
        """Asks whether its local part was committed. A Submit or an Abort that comes meanwhile decides instead."""
        options = prepared.options
        timeout_ms = self._hands.timing.timeout_ms(options)
        answer = await self._hands.dispatch.call(prepared, question_of(prepared), options, timeout_ms=timeout_ms)
        match answer:
            case Succeeded():
                await self._send(prepared)
            case Denied():
                await self._decisions.drop(prepared.gid)
            case Unfinished(ongoing=ongoing, error=error):
                first_s = self._hands.timing.first_interval_s(options)
                interval_s = first_s if ongoing else 2 * prepared.next_cron_interval_s
                log.warning("question_repeats", ongoing=ongoing, retry_in_s=interval_s, error=error)
                await self._put_off(prepared, 1_000 * interval_s, interval_s)

    async def _send(self, prepared: Transaction) -> None:
        decided = await self._decisions.decide(
            prepared.gid,
            (Status.PREPARED,),
            Status.SUBMITTED,
            prepared.options,
            wait=True,
            delay_ms=delay_left_ms(prepared, now_ms()),
        )
        if decided is not None and decided.ours and decided.transaction.owner:
            self._running.start(decided, prepared.options)
