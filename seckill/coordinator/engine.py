"""The coordinator itself: takes requests, decides transactions in its log, calls branches until they have answered.

It keeps nothing that the log does not have: a coordinator that is killed at any moment is replaced by a new one, or by
another one on the same log. Whoever calls a transaction's branches owns it for a lease that each answer renews; when
the lease ends, or the pause after a failed call, a cron run of any coordinator takes it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import grpc
import structlog
from structlog.contextvars import bound_contextvars
from uuid_utils import uuid7

from seckill.coordinator import refusals
from seckill.coordinator.commands import (
    BranchDone,
    Claim,
    Decide,
    Decided,
    Finish,
    Insert,
    Postpone,
    Register,
    Registered,
    Reset,
)
from seckill.coordinator.dispatch import Dispatch, Succeeded, Unfinished
from seckill.coordinator.metrics import STUCK, TRANSACTIONS
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.coordinator.store import Store, StoreUnavailable
from seckill.coordinator.tables import ID_LENGTH_MAX, REASON_LENGTH_MAX, URL_LENGTH_MAX
from seckill.coordinator.tcc import Tcc
from seckill.crashpoints import CrashPoint, reach
from seckill.draining import Drain
from seckill.dtm.channels import Channels
from seckill.dtm.protocol import CANCEL, CONFIRM, TransOptions

SLOW_CALL_MS = 1_500  # DTM resets the pause between repeats after a call that took longer
LEASE_MARGIN_MS = 2_000  # for the log's writes around a branch call
CLAIM_MAX = 50  # transactions that a cron run takes up at once
STUCK_AFTER_MS = 60_000
DRAIN_TIMEOUT_MS = 10_000
SECONDS_MAX = 31_536_000  # a year
HEADERS_BYTES_MAX = 4_096  # gRPC takes 8 KiB of metadata, ours and its own included

CALLING = {CONFIRM: CrashPoint.CONFIRM_CALLING, CANCEL: CrashPoint.CANCEL_CALLING}
CALLED = {CONFIRM: CrashPoint.CONFIRM_CALLED, CANCEL: CrashPoint.CANCEL_CALLED}

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Defaults for transactions that name none, and the pace of the cron runs."""

    branch_timeout_s: int = 3
    retry_interval_s: int = 10
    timeout_to_fail_s: int = 35
    cron_interval_ms: int = 1_000
    running_max: int = 256  # transactions whose branches are being called; more wait for a cron run

    def timeout_ms(self, options: TransOptions) -> int:
        return 1_000 * (options.request_timeout_s or self.branch_timeout_s)

    def lease_ms(self, options: TransOptions) -> int:
        return self.timeout_ms(options) + LEASE_MARGIN_MS

    def to_fail_ms(self, options: TransOptions) -> int:
        return 1_000 * (options.timeout_to_fail_s or self.timeout_to_fail_s)

    def first_interval_s(self, options: TransOptions) -> int:
        """The pause before the first repeat is twice this (getNextCronInterval of dtmsvr/trans_status.go)."""
        if options.retry_interval_s:
            return options.retry_interval_s
        if 0 < options.timeout_to_fail_s < self.retry_interval_s:
            return options.timeout_to_fail_s
        return self.retry_interval_s

    def interval_after_success_s(self, transaction: Transaction, options: TransOptions, took_ms: int) -> int:
        """DTM keeps a short interval that has grown, and resets one above the defaults (execBranch, same file)."""
        grown = transaction.next_cron_interval_s > max(self.retry_interval_s, options.retry_interval_s)
        return self.first_interval_s(options) if grown or took_ms >= SLOW_CALL_MS else transaction.next_cron_interval_s


class Pattern(Protocol):
    """What differs between kinds of transactions."""

    @property
    def trans_type(self) -> str: ...

    def operations(self, gid: str, branch_id: str, data: Mapping[str, str], payload: bytes) -> tuple[BranchOp, ...]: ...

    def remaining(self, decision: Status, branches: Sequence[BranchOp]) -> list[BranchOp]: ...


PATTERNS: Mapping[str, Pattern] = {pattern.trans_type: pattern for pattern in (Tcc(),)}


class Coordinator:
    """Serves the requests of `dtmgimp.Dtm`; each raises Refusal or StoreUnavailable.

    An asynchronous context manager: inside it the cron runs are on. Leaving it waits, as long as `drain` allows, for
    the branch calls under way; the log has the rest.
    """

    def __init__(self, store: Store, channels: Channels, timing: Timing, drain: Drain | None = None) -> None:
        self.owner = uuid7().hex
        self._store = store
        self._dispatch = Dispatch(channels)
        self._timing = timing
        self._drain = drain or Drain(DRAIN_TIMEOUT_MS)
        self._running: dict[str, asyncio.Task[Refusal | None]] = {}
        self._starting = 0
        self._finishing: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._cron: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._cron = asyncio.create_task(self._run_cron(), name="coordinator-cron")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._cron is not None
        self._stopping.set()
        await asyncio.wait({self._cron}, timeout=self._drain.work_left_s())  # until then it may begin attempts
        under_way: set[asyncio.Task[Any]] = {self._cron, *self._finishing, *self._running.values()}
        await asyncio.wait(under_way, timeout=self._drain.work_left_s())
        left = max(len(self._running), len(self._finishing))
        self._drain.leave("transactions", left)
        for task in under_way:
            task.cancel()  # those that are done stay as they are
        if self._cron.done() and not self._cron.cancelled():
            await self._cron  # raises what nobody foresaw
        log.info("coordinator_drained", under_way=len(under_way) - 1, left_to_recovery=left)

    @property
    def running(self) -> int:
        """How many transactions' branches are being called now."""
        return len(self._running)

    # Requests

    def new_gid(self) -> str:
        return uuid7().hex

    async def prepare(self, gid: str, trans_type: str, options: TransOptions) -> None:
        """Opens a transaction; a repeat is fine until it is decided."""
        _pattern(trans_type)
        _check_gid(gid)
        _check_options(options)
        now = now_ms()
        opened = Transaction(
            gid=gid,
            trans_type=trans_type,
            status=Status.PREPARED,
            options=options,
            created_ms=now,
            updated_ms=now,
            next_cron_ms=now + self._timing.to_fail_ms(options),
            next_cron_interval_s=self._timing.first_interval_s(options),
        )
        before = await self._store.write(Insert(opened))
        if before is None:
            TRANSACTIONS.labels(trans_type=trans_type, status=Status.PREPARED).inc()
            log.debug("transaction_prepared", gid=gid)
        elif before.status is not Status.PREPARED:
            raise refusals.cannot_prepare(before.status)

    async def register_branch(
        self, gid: str, trans_type: str, branch_id: str, data: Mapping[str, str], payload: bytes
    ) -> None:
        """Adds a branch to a transaction that is still prepared."""
        pattern = _branch_pattern(trans_type)
        branches = pattern.operations(gid, branch_id, data, payload)
        _check_branches(branches)
        match await self._store.write(Register(gid, branches)):
            case Registered.NOT_PREPARED:
                raise refusals.cannot_register(gid)
            case Registered.TWICE:
                raise refusals.registered_twice()
            case Registered.YES:
                log.debug("branch_registered", gid=gid, branch_id=branch_id)

    async def submit(self, gid: str, trans_type: str, options: TransOptions) -> None:
        """Decides: commit. `options` are those of this request; the log keeps Prepare's for later repeats."""
        _pattern(trans_type)
        _check_options(options)
        await self._to_the_end(self._submit(gid, options))

    async def abort(self, gid: str, trans_type: str, reason: str) -> None:
        """Decides: roll back. May be repeated while branches are being cancelled."""
        await self._to_the_end(self._abort(gid, trans_type, reason[:REASON_LENGTH_MAX]))

    @property
    def store_kind(self) -> str:
        """What the log is kept in: `sqlite`, `mysql` or `mariadb`."""
        return self._store.kind

    async def find(self, gid: str) -> tuple[Transaction, list[BranchOp]] | None:
        return await self._store.find(gid)

    async def page(self, *, limit: int, before: int | None = None, **conditions: Any) -> list[Transaction]:
        """Transactions newest first; conditions as for `Store.page`."""
        return await self._store.page(limit=limit, before=before, **conditions)

    async def reset_cron(self, *, later_than_s: int | None, limit: int) -> int:
        """Makes unfinished transactions due that wait longer than this (default: three time-outs); returns how many.

        For the time after an outage, when pauses have doubled many times.
        """
        after_s = 3 * self._timing.timeout_to_fail_s if later_than_s is None else later_than_s
        waiting = await self._store.later(after_ms=1_000 * after_s, limit=limit)
        reset = await asyncio.gather(*(self._store.write(Reset(each.gid)) for each in waiting))
        return sum(reset)

    async def reset_cron_of(self, gid: str) -> bool:
        """Makes one transaction due, if it is unfinished; whether there is one of that gid."""
        if await self._store.find(gid) is None:
            return False
        await self._store.write(Reset(gid))
        return True

    async def check(self) -> None:
        """Reads from the log. Raises what the database raises."""
        await self._store.stuck(older_than_ms=STUCK_AFTER_MS)

    # Decisions

    async def _submit(self, gid: str, options: TransOptions) -> None:
        match await self._decide(gid, (Status.PREPARED,), Status.SUBMITTED, options, wait=options.wait_result):
            case None:
                raise refusals.cannot_submit_unknown(gid)
            case Decided(ours=True) as decided:
                await self._process(decided, options, wait=options.wait_result)
            case Decided(transaction=Transaction(status=Status.SUBMITTED)):
                await self._join(gid, wait=options.wait_result)
            case Decided(transaction=transaction):
                raise refusals.cannot_submit(transaction.status)

    async def _abort(self, gid: str, trans_type: str, reason: str) -> None:
        found = await self._store.find(gid)
        if found is None:
            raise refusals.cannot_abort_unknown(gid)
        transaction, _ = found
        options = transaction.options
        if trans_type not in {"tcc", "xa"}:
            raise refusals.cannot_abort(transaction.trans_type, transaction.status)
        if gid in self._running and transaction.status is Status.ABORTING:
            await self._join(gid, wait=options.wait_result)
            return
        only_from = (Status.PREPARED, Status.ABORTING)
        decided = await self._decide(gid, only_from, Status.ABORTING, options, wait=options.wait_result, reason=reason)
        match decided:
            case None:
                raise refusals.cannot_abort_unknown(gid)
            case Decided(ours=True):
                await self._process(decided, options, wait=options.wait_result)
            case Decided(transaction=Transaction(status=Status.ABORTING)):
                await self._join(gid, wait=options.wait_result)
            case Decided(transaction=Transaction(trans_type=its_type, status=status)):
                raise refusals.cannot_abort(its_type, status)

    async def _decide(
        self,
        gid: str,
        only_from: Sequence[Status],
        to: Status,
        options: TransOptions,
        *,
        wait: bool,
        reason: str = "",
    ) -> Decided | None:
        """Writes the decision. When too many transactions are running, one nobody waits for is left to a cron run."""
        at_once = wait or self._free() > 0
        decision = Decide(
            gid=gid,
            only_from=only_from,
            to=to,
            owner=self.owner if at_once else "",
            lease_ms=self._timing.lease_ms(options),
            interval_s=self._timing.first_interval_s(options),
            reason=reason,
        )
        with self._reserved(1 if at_once else 0):
            decided = await self._store.write(decision)
        if decided is not None and decided.ours:
            transaction = decided.transaction
            TRANSACTIONS.labels(trans_type=transaction.trans_type, status=to).inc()
            log.info("transaction_decided", gid=gid, status=to.value, branches=len(decided.branches), reason=reason)
        return decided

    async def _process(self, decided: Decided, options: TransOptions, *, wait: bool) -> None:
        """Starts calling the branches; `wait`: until that has succeeded, or failed for the first time."""
        if not decided.transaction.owner:
            return
        task = self._running.get(decided.transaction.gid) or self._start(decided, options)
        if wait:
            _raise(await asyncio.shield(task))

    async def _join(self, gid: str, *, wait: bool) -> None:
        """A request for what was decided before: nothing changes, and its result is the running attempt's."""
        if not wait:
            return
        task = self._running.get(gid)
        if task is None:
            raise refusals.still_ongoing()
        _raise(await asyncio.shield(task))

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on when the caller is cancelled: a decision that is being written must also be carried out."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if not task.cancelled():
            task.exception()  # raised in the caller, who may be gone

    # Branches

    def _free(self) -> int:
        return self._timing.running_max - len(self._running) - self._starting

    @contextlib.contextmanager
    def _reserved(self, count: int) -> Iterator[None]:
        """Room for transactions whose decision or claim is being written, so that `running_max` holds meanwhile."""
        self._starting += count
        try:
            yield
        finally:
            self._starting -= count

    def _start(self, decided: Decided, options: TransOptions) -> asyncio.Task[Refusal | None]:
        gid = decided.transaction.gid
        task = asyncio.create_task(self._run(decided, options), name=f"transaction-{gid}")
        self._running[gid] = task
        task.add_done_callback(lambda _: self._running.pop(gid, None))
        return task

    async def _run(self, decided: Decided, options: TransOptions) -> Refusal | None:
        """One attempt at a decided transaction. Returns None when it is finished, else what to tell who waits."""
        with bound_contextvars(gid=decided.transaction.gid):
            try:
                return await self._call_branches(decided, options)
            except StoreUnavailable as error:
                log.warning("transaction_left_to_recovery", error=str(error))
                return Refusal(grpc.StatusCode.UNAVAILABLE, str(error))
            except Exception as error:  # a fault of one transaction must not end the others; its lease brings it back
                log.exception("transaction_attempt_broke")
                return Refusal(grpc.StatusCode.INTERNAL, f"dtm panic: {error}")

    async def _call_branches(self, decided: Decided, options: TransOptions) -> Refusal | None:
        transaction = decided.transaction
        last: BranchOp | None = None  # has answered OK, which is not written yet: the last one goes with the end
        for branch in PATTERNS[transaction.trans_type].remaining(transaction.status, decided.branches):
            if last is not None and not await self._still_ours(transaction, last, options):
                return refusals.still_ongoing()
            began = time.monotonic()
            timeout_ms = self._timing.timeout_ms(options)
            reach(CALLING[branch.op])
            answer = await self._dispatch.call(transaction, branch, options, timeout_ms=timeout_ms)
            reach(CALLED[branch.op])
            match answer:
                case Unfinished() as unfinished:
                    await self._postpone(transaction, branch, unfinished)
                    return unfinished.refusal
                case Succeeded():
                    took_ms = int(1_000 * (time.monotonic() - began))
                    interval_s = self._timing.interval_after_success_s(transaction, options, took_ms)
                    transaction = replace(transaction, next_cron_interval_s=interval_s)
                    last = branch
        await self._finish(transaction, last)
        return None

    async def _still_ours(self, transaction: Transaction, done: BranchOp, options: TransOptions) -> bool:
        """Writes that an operation has answered OK, before the next one is called; the lease is renewed with it."""
        lease_ms = self._timing.lease_ms(options)
        ours = await self._store.write(BranchDone(done, self.owner, lease_ms, transaction.next_cron_interval_s))
        if not ours:
            log.warning("transaction_taken_over", branch_id=done.branch_id, op=done.op)
        return ours

    async def _postpone(self, transaction: Transaction, branch: BranchOp, unfinished: Unfinished) -> None:
        """Until the next attempt: the pause stays when the branch asked for time, and doubles when it failed."""
        interval_s = transaction.next_cron_interval_s * (1 if unfinished.ongoing else 2)
        log.warning(
            "branch_call_repeats",
            branch_id=branch.branch_id,
            op=branch.op,
            ongoing=unfinished.ongoing,
            retry_in_s=interval_s,
            error=unfinished.error,
        )
        await self._store.write(Postpone(transaction.gid, self.owner, 1_000 * interval_s, interval_s))

    async def _finish(self, transaction: Transaction, last: BranchOp | None) -> None:
        to = Status.SUCCEED if transaction.status is Status.SUBMITTED else Status.FAILED
        if await self._store.write(Finish(transaction.gid, transaction.status, to, last)):
            TRANSACTIONS.labels(trans_type=transaction.trans_type, status=to).inc()
            log.info("transaction_finished", status=to.value)

    # Cron

    async def _run_cron(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._take_up_due()
                STUCK.set(await self._store.stuck(older_than_ms=STUCK_AFTER_MS))
            except StoreUnavailable as error:
                log.warning("cron_run_failed", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._timing.cron_interval_ms / 1000)

    async def _take_up_due(self) -> None:
        while (free := self._free()) > 0 and not self._stopping.is_set():
            limit = min(free, CLAIM_MAX)
            with self._reserved(limit):
                due = await self._store.due(limit=limit)
                await asyncio.gather(*(self._take_up(each) for each in due if each.gid not in self._running))
            if len(due) < limit:
                return

    async def _take_up(self, due: Transaction) -> None:
        """Claims a transaction whose pause, lease or time is over; another coordinator may have been quicker."""
        lease_ms = self._timing.lease_ms(due.options)
        claimed = await self._store.write(Claim(due.gid, self.owner, lease_ms))
        if claimed is not None and claimed.transaction.status is Status.PREPARED:
            claimed = await self._time_out(claimed.transaction)
        if claimed is None or due.gid in self._running:
            return
        log.info("transaction_taken_up", gid=due.gid, status=claimed.transaction.status.value)
        self._start(claimed, claimed.transaction.options)

    async def _time_out(self, prepared: Transaction) -> Decided | None:
        """Cancels a transaction that nobody decided in time. None: it has time left, or was decided meanwhile."""
        to_fail_ms = self._timing.to_fail_ms(prepared.options)
        left_ms = prepared.created_ms + to_fail_ms - now_ms()
        if left_ms > 0:
            await self._store.write(Postpone(prepared.gid, self.owner, left_ms, prepared.next_cron_interval_s))
            return None
        reason = f"Timeout after {to_fail_ms // 1_000} seconds"
        decided = await self._decide(
            prepared.gid, (Status.PREPARED,), Status.ABORTING, prepared.options, wait=True, reason=reason
        )
        return decided if decided is not None and decided.ours else None


def _raise(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise refusal


def _pattern(trans_type: str) -> Pattern:
    if trans_type not in PATTERNS:
        raise refusals.unsupported(trans_type)
    return PATTERNS[trans_type]


def _branch_pattern(trans_type: str) -> Pattern:
    """Only TCC, XA and workflow register branches: DTM answers differently for what is no such type at all."""
    if trans_type not in {"tcc", "xa", "workflow"}:
        raise refusals.unknown_branch_type(trans_type)
    return _pattern(trans_type)


_ID = re.compile(r"[!-~]+")
_HEADER_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")


def _check_gid(gid: str) -> None:
    if len(gid) > ID_LENGTH_MAX or not _ID.fullmatch(gid):
        raise refusals.invalid(f"a gid is 1 to {ID_LENGTH_MAX} visible ASCII characters")


def _check_branches(branches: Sequence[BranchOp]) -> None:
    for branch in branches:
        if len(branch.branch_id) > ID_LENGTH_MAX or not _ID.fullmatch(branch.branch_id):
            raise refusals.invalid(f"a branch id is 1 to {ID_LENGTH_MAX} visible ASCII characters")
        if len(branch.url) > URL_LENGTH_MAX:
            raise refusals.invalid(f"the address for {branch.op} is longer than {URL_LENGTH_MAX} characters")
        if branch.url.startswith(("http://", "https://")):
            raise refusals.invalid(f"branches over HTTP are not supported: {branch.url}")


def _check_options(options: TransOptions) -> None:
    seconds = (options.timeout_to_fail_s, options.retry_interval_s, options.request_timeout_s)
    if not all(0 <= each <= SECONDS_MAX for each in seconds):
        raise refusals.invalid(f"times are 0 to {SECONDS_MAX} seconds")
    if sum(len(name) + len(value.encode()) for name, value in options.branch_headers.items()) > HEADERS_BYTES_MAX:
        raise refusals.invalid(f"branch headers have more than {HEADERS_BYTES_MAX} bytes")
    for name, value in options.branch_headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower().startswith("grpc-"):
            raise refusals.invalid(f"{name!r} cannot be the name of a branch header")
        if not name.lower().endswith("-bin") and not _HEADER_VALUE.fullmatch(value):
            raise refusals.invalid(f"the branch header {name!r} is not printable ASCII")
