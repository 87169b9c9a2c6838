"""One attempt at a decided transaction: calls what its pattern says, writes each answer before what depends on it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import structlog

from seckill.coordinator import refusals
from seckill.coordinator.commands import BranchDone, Decided, Finish, Postpone, TurnBack
from seckill.coordinator.dispatch import Answer, Denied, Dispatch, Succeeded, Unfinished
from seckill.coordinator.metrics import TRANSACTIONS
from seckill.coordinator.pattern import Calls, Finished, Later, Pause, Progress, RollBack
from seckill.coordinator.patterns import PATTERNS
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.state import BranchOp, Status, now_ms
from seckill.coordinator.store import Store
from seckill.coordinator.tables import REASON_LENGTH_MAX
from seckill.coordinator.timing import Timing
from seckill.dtm.protocol import TransOptions

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Hands:
    """What an attempt works with; `owner` is the coordinator that it works for."""

    store: Store
    dispatch: Dispatch
    timing: Timing
    owner: str


class Attempt:
    """Goes on until everything is called, or the rest has to wait for another attempt. `run` it once."""

    def __init__(self, hands: Hands, decided: Decided, options: TransOptions) -> None:
        self._hands = hands
        self._options = options
        self._gid = decided.transaction.gid
        self._pattern = PATTERNS[decided.transaction.trans_type]
        self._progress = Progress(decided.transaction, decided.branches, now_ms())
        self._interval_s = decided.transaction.next_cron_interval_s
        self._calls: dict[asyncio.Task[tuple[Answer, int]], BranchOp] = {}
        self._unwritten: tuple[BranchOp, ...] = ()  # answered for good, which is not in the log yet
        self._refusal: Refusal | None = None  # of the last call that has to be repeated

    async def run(self) -> Refusal | None:
        """Returns None when it is finished, else what to tell one who waits. Raises StoreUnavailable."""
        try:
            while True:
                step = self._pattern.next_step(replace(self._progress, now_ms=now_ms()))
                match step:
                    case Finished():
                        await self._finish()
                        return self._result()
                    case Later(delay_ms=delay_ms):
                        await self._give_back(delay_ms)
                        return self._result()
                    case RollBack(reason=reason):
                        ours = await self._turn_back(reason[:REASON_LENGTH_MAX])
                    case Calls() | Pause():
                        ours = await self._still_ours(step)
                if not ours:
                    return refusals.still_ongoing()
                if isinstance(step, Calls):
                    self._call(step.branches)
                if self._calls:
                    await self._take_answers()
                elif isinstance(step, Pause):
                    await self._give_back(1_000 * self._interval_s)
                    return self._result()
        finally:
            await _cancel(self._calls)

    def _result(self) -> Refusal | None:
        return self._pattern.result(self._progress.transaction, self._refusal)

    # Calls

    def _call(self, branches: tuple[BranchOp, ...]) -> None:
        for branch in branches:
            self._calls[asyncio.create_task(self._ask(branch))] = branch
        keys = frozenset(branch.key for branch in branches)
        before = self._progress
        self._progress = replace(
            before,
            calling=before.calling | keys,
            called=before.called | keys,
            unfinished=before.unfinished - keys,
            repeats=before.repeats + len(before.unfinished & keys),
        )

    async def _ask(self, branch: BranchOp) -> tuple[Answer, int]:
        """The answer to one call, and how many milliseconds it took."""
        began = time.monotonic()
        timeout_ms = self._hands.timing.timeout_ms(self._options)
        transaction = self._progress.transaction
        answer = await self._hands.dispatch.call(transaction, branch, self._options, timeout_ms=timeout_ms)
        return answer, int(1_000 * (time.monotonic() - began))

    async def _take_answers(self) -> None:
        """Waits for one answer at least."""
        await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in self._calls if task.done()]:
            branch = self._calls.pop(task)
            self._take(branch, *task.result())

    def _take(self, branch: BranchOp, answer: Answer, took_ms: int) -> None:
        self._progress = replace(self._progress, calling=self._progress.calling - {branch.key})
        match answer:
            case Succeeded():
                self._end(branch.answered(Status.SUCCEED), took_ms)
            case Denied(reason=reason):
                self._progress = replace(self._progress, refused=reason)
                self._end(branch.answered(Status.FAILED), took_ms)
            case Unfinished():
                self._keep(branch, answer)

    def _end(self, answered: BranchOp, took_ms: int) -> None:
        """An operation has its final answer."""
        branches = tuple(answered if each.key == answered.key else each for each in self._progress.branches)
        self._progress = replace(self._progress, branches=branches)
        self._unwritten += (answered,)
        self._interval_s = self._hands.timing.interval_after_answer_s(self._interval_s, self._options, took_ms)

    def _keep(self, branch: BranchOp, answer: Unfinished) -> None:
        """It has to be called again: the pause stays when the branch asked for time, and doubles when it failed."""
        self._progress = replace(self._progress, unfinished=self._progress.unfinished | {branch.key})
        self._refusal = answer.refusal
        self._interval_s *= 1 if answer.ongoing else 2
        log.warning(
            "branch_call_repeats",
            branch_id=branch.branch_id,
            op=branch.op,
            ongoing=answer.ongoing,
            retry_in_s=self._interval_s,
            error=answer.error,
        )

    # The log

    async def _still_ours(self, step: Calls | Pause) -> bool:
        """Writes what has been answered, before anything else is called; the lease is renewed with it, or for a call
        that is repeated at once.
        """
        again = isinstance(step, Calls) and any(each.key in self._progress.unfinished for each in step.branches)
        if not self._unwritten and not again:
            return True
        lease_ms = self._hands.timing.lease_ms(self._options)
        done = BranchDone(self._gid, self._hands.owner, lease_ms, self._interval_s, self._unwritten)
        ours = await self._hands.store.write(done)
        self._unwritten = ()
        return ours or self._lost()

    async def _turn_back(self, reason: str) -> bool:
        lease_ms = self._hands.timing.lease_ms(self._options)
        owner = self._hands.owner
        turned = await self._hands.store.write(
            TurnBack(self._gid, owner, lease_ms, self._interval_s, reason, self._unwritten)
        )
        if turned is None:
            return self._lost()
        self._unwritten = ()
        self._progress = replace(self._progress, transaction=turned)
        TRANSACTIONS.labels(trans_type=turned.trans_type, status=turned.status).inc()
        log.info("transaction_turned_back", reason=reason)
        return True

    def _lost(self) -> bool:
        log.warning("transaction_taken_over", left=len(self._calls))
        return False

    async def _give_back(self, delay_ms: int) -> None:
        """Until the next attempt."""
        await self._hands.store.write(Postpone(self._gid, self._hands.owner, delay_ms, self._interval_s))

    async def _finish(self) -> None:
        before = self._progress.transaction
        to = Status.SUCCEED if before.status is Status.SUBMITTED else Status.FAILED
        if await self._hands.store.write(Finish(self._gid, before.status, to, self._unwritten)):
            TRANSACTIONS.labels(trans_type=before.trans_type, status=to).inc()
            log.info("transaction_finished", status=to.value)
        self._progress = replace(self._progress, transaction=replace(before, status=to))


async def _cancel(calls: dict[asyncio.Task[tuple[Answer, int]], BranchOp]) -> None:
    """What nobody waits for any more; whether it took effect the next attempt will learn."""
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
