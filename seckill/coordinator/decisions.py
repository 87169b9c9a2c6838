"""Submit and Abort: what was asked for is written, and only then carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from seckill.coordinator import refusals
from seckill.coordinator.attempt import Hands
from seckill.coordinator.commands import Decide, Decided, Finish, Insert
from seckill.coordinator.metrics import TRANSACTIONS
from seckill.coordinator.pattern import Contents
from seckill.coordinator.patterns import PLANNED
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.running import Running
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.dtm.protocol import MSG, TransOptions

log = structlog.get_logger(__name__)


class Decisions:
    def __init__(self, hands: Hands, running: Running) -> None:
        self._hands = hands
        self._running = running

    async def submit(
        self, gid: str, trans_type: str, options: TransOptions, contents: Contents, branches: Sequence[BranchOp]
    ) -> None:
        """`branches` are those of a transaction that nobody prepared; empty for types that register theirs."""
        wait = options.wait_result
        pattern = PLANNED.get(trans_type)
        if pattern is not None:
            opened = await self._submit_new(gid, trans_type, options, contents, branches)
            if opened is not None:
                await self._process(opened, options, wait=wait)
                return
        delay_ms = pattern.delay_ms(contents) if pattern is not None else 0
        match await self.decide(gid, (Status.PREPARED,), Status.SUBMITTED, options, wait=wait, delay_ms=delay_ms):
            case None:
                raise refusals.cannot_submit_unknown(gid)
            case Decided(ours=True) as decided:
                await self._process(decided, options, wait=wait)
            case Decided(transaction=Transaction(status=Status.SUBMITTED)):
                await self._join(gid, wait=wait)
            case Decided(transaction=transaction):
                raise refusals.cannot_submit(transaction.status)

    async def abort(self, gid: str, trans_type: str, reason: str) -> None:
        found = await self._hands.store.find(gid)
        if found is None:
            raise refusals.cannot_abort_unknown(gid)
        transaction, _ = found
        if transaction.trans_type == MSG and transaction.status is Status.PREPARED and await self.drop(gid):
            return
        options = transaction.options
        if trans_type not in {"tcc", "xa"}:
            raise refusals.cannot_abort(transaction.trans_type, transaction.status)
        if gid in self._running and transaction.status is Status.ABORTING:
            await self._join(gid, wait=options.wait_result)
            return
        only_from = (Status.PREPARED, Status.ABORTING)
        decided = await self.decide(gid, only_from, Status.ABORTING, options, wait=options.wait_result, reason=reason)
        match decided:
            case None:
                raise refusals.cannot_abort_unknown(gid)
            case Decided(ours=True):
                await self._process(decided, options, wait=options.wait_result)
            case Decided(transaction=Transaction(status=Status.ABORTING)):
                await self._join(gid, wait=options.wait_result)
            case Decided(transaction=Transaction(trans_type=its_type, status=status)):
                raise refusals.cannot_abort(its_type, status)

    async def decide(
        self,
        gid: str,
        only_from: Sequence[Status],
        to: Status,
        options: TransOptions,
        *,
        wait: bool,
        reason: str = "",
        delay_ms: int = 0,
    ) -> Decided | None:
        """Writes the decision. What has to wait for its time is left to a cron run; so is, when too many transactions
        are running, one that nobody waits for.
        """
        at_once = not delay_ms and (wait or self._running.free() > 0)
        decision = Decide(
            gid=gid,
            only_from=only_from,
            to=to,
            owner=self._hands.owner if at_once else "",
            lease_ms=self._hands.timing.lease_ms(options),
            interval_s=self._hands.timing.first_interval_s(options),
            reason=reason,
            delay_ms=delay_ms,
        )
        with self._running.reserved(1 if at_once else 0):
            decided = await self._hands.store.write(decision)
        if decided is not None and decided.ours:
            _tell(decided, reason)
        return decided

    async def drop(self, gid: str) -> bool:
        """Ends a message that is not to be sent; whether it was still prepared."""
        dropped = await self._hands.store.write(Finish(gid, Status.PREPARED, Status.FAILED))
        if dropped:
            TRANSACTIONS.labels(trans_type=MSG, status=Status.FAILED).inc()
            log.info("transaction_finished", gid=gid, status=Status.FAILED.value)
        return dropped

    async def _submit_new(
        self, gid: str, trans_type: str, options: TransOptions, contents: Contents, branches: Sequence[BranchOp]
    ) -> Decided | None:
        """Opens a transaction that is submitted from the start. None: its gid is known already."""
        at_once = options.wait_result or self._running.free() > 0
        now = now_ms()
        opened = Transaction(
            gid=gid,
            trans_type=trans_type,
            status=Status.SUBMITTED,
            options=options,
            created_ms=now,
            updated_ms=now,
            next_cron_ms=now + (self._hands.timing.lease_ms(options) if at_once else 0),
            next_cron_interval_s=self._hands.timing.first_interval_s(options),
            owner=self._hands.owner if at_once else "",
            query_prepared=contents.query_prepared,
            custom_data=contents.custom_data,
        )
        with self._running.reserved(1 if at_once else 0):
            before = await self._hands.store.write(Insert(opened, tuple(branches)))
        if before is not None:
            return None
        decided = Decided(opened, tuple(branches), ours=True)
        _tell(decided, "")
        return decided

    async def _process(self, decided: Decided, options: TransOptions, *, wait: bool) -> None:
        """Starts calling the branches; `wait`: until that has succeeded, or failed for the first time."""
        if decided.transaction.owner:
            task = self._running.start(decided, options)
            if wait:
                _raise(await asyncio.shield(task))
        elif wait:
            raise refusals.not_succeeded("")

    async def _join(self, gid: str, *, wait: bool) -> None:
        """A request for what was decided before: nothing changes, and its result is the running attempt's."""
        if not wait:
            return
        task = self._running.find(gid)
        if task is None:
            raise refusals.still_ongoing()
        _raise(await asyncio.shield(task))


def _raise(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise refusal


def _tell(decided: Decided, reason: str) -> None:
    transaction = decided.transaction
    TRANSACTIONS.labels(trans_type=transaction.trans_type, status=transaction.status).inc()
    log.info(
        "transaction_decided",
        gid=transaction.gid,
        status=transaction.status.value,
        branches=len(decided.branches),
        reason=reason,
    )
