"""The coordinator itself: takes requests, decides transactions in its log, calls branches until they have answered.

It keeps nothing that the log does not have: a coordinator that is killed at any moment is replaced by a new one, or by
another one on the same log. Whoever calls a transaction's branches owns it for a lease that each answer renews; when
the lease ends, or the pause after a failed call, a cron run of any coordinator takes it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Self

import structlog
from uuid_utils import uuid7

from seckill.coordinator import refusals
from seckill.coordinator.attempt import Hands
from seckill.coordinator.checks import check_branches, check_contents, check_gid, check_options
from seckill.coordinator.commands import Insert, Register, Registered, Reset
from seckill.coordinator.cron import STUCK_AFTER_MS, Cron
from seckill.coordinator.decisions import Decisions
from seckill.coordinator.dispatch import Dispatch
from seckill.coordinator.metrics import TRANSACTIONS
from seckill.coordinator.pattern import NO_CONTENTS, Contents
from seckill.coordinator.patterns import PLANNED, registering, require_served
from seckill.coordinator.running import Running
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.coordinator.store import Store
from seckill.coordinator.tables import REASON_LENGTH_MAX
from seckill.coordinator.timing import Timing
from seckill.draining import Drain
from seckill.dtm.channels import Channels
from seckill.dtm.protocol import TransOptions

DRAIN_TIMEOUT_MS = 10_000

log = structlog.get_logger(__name__)


class Coordinator:
    """Serves the requests of `dtmgimp.Dtm`; each raises Refusal or StoreUnavailable.

    An asynchronous context manager: inside it the cron runs are on. Leaving it waits, as long as `drain` allows, for
    the branch calls under way; the log has the rest.
    """

    def __init__(self, store: Store, channels: Channels, timing: Timing, drain: Drain | None = None) -> None:
        self._store = store
        self._timing = timing
        self._drain = drain or Drain(DRAIN_TIMEOUT_MS)
        hands = Hands(store, Dispatch(channels), timing, owner=uuid7().hex)
        self._running = Running(hands)
        self._decisions = Decisions(hands, self._running)
        self._cron = Cron(hands, self._running, self._decisions)
        self._cron_task: asyncio.Task[None] | None = None
        self._finishing: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._cron_task = asyncio.create_task(self._cron.run(), name="coordinator-cron")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._cron_task is not None
        self._cron.stop()
        await asyncio.wait({self._cron_task}, timeout=self._drain.work_left_s())  # until then it may begin attempts
        under_way: set[asyncio.Task[Any]] = {
            self._cron_task,
            *self._finishing,
            *self._running.tasks(),
            *self._cron.tasks(),
        }
        await asyncio.wait(under_way, timeout=self._drain.work_left_s())
        left = max(len(self._running), len(self._finishing))
        self._drain.leave("transactions", left)
        for task in under_way:
            task.cancel()  # those that are done stay as they are
        if self._cron_task.done() and not self._cron_task.cancelled():
            await self._cron_task  # raises what nobody foresaw
        log.info("coordinator_drained", under_way=len(under_way) - 1, left_to_recovery=left)

    @property
    def running(self) -> int:
        """How many transactions' branches are being called now."""
        return len(self._running)

    # Requests

    def new_gid(self) -> str:
        return uuid7().hex

    async def prepare(self, gid: str, trans_type: str, options: TransOptions, contents: Contents = NO_CONTENTS) -> None:
        """Opens a transaction; a repeat is fine until it is decided."""
        require_served(trans_type)
        check_gid(gid)
        check_options(options)
        branches = _planned(gid, trans_type, contents)
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
            query_prepared=contents.query_prepared,
            custom_data=contents.custom_data,
        )
        before = await self._store.write(Insert(opened, branches))
        if before is None:
            TRANSACTIONS.labels(trans_type=trans_type, status=Status.PREPARED).inc()
            log.debug("transaction_prepared", gid=gid)
        elif before.status is not Status.PREPARED:
            raise refusals.cannot_prepare(before.status)

    async def register_branch(
        self, gid: str, trans_type: str, branch_id: str, data: Mapping[str, str], payload: bytes
    ) -> None:
        """Adds a branch to a transaction that is still prepared."""
        branches = registering(trans_type).operations(gid, branch_id, data, payload)
        check_branches(branches)
        match await self._store.write(Register(gid, branches)):
            case Registered.NOT_PREPARED:
                raise refusals.cannot_register(gid)
            case Registered.TWICE:
                raise refusals.registered_twice()
            case Registered.YES:
                log.debug("branch_registered", gid=gid, branch_id=branch_id)

    async def submit(self, gid: str, trans_type: str, options: TransOptions, contents: Contents = NO_CONTENTS) -> None:
        """Decides: commit. `options` are those of this request; the log keeps Prepare's for later repeats.

        Sagas and messages may come without a Prepare; of one that was prepared, Prepare's branches are called.
        """
        require_served(trans_type)
        check_gid(gid)
        check_options(options)
        branches = _planned(gid, trans_type, contents)
        await self._to_the_end(self._decisions.submit(gid, trans_type, options, contents, branches))

    async def abort(self, gid: str, trans_type: str, reason: str) -> None:
        """Decides: roll back. May be repeated while branches are being cancelled. A message is dropped at once."""
        await self._to_the_end(self._decisions.abort(gid, trans_type, reason[:REASON_LENGTH_MAX]))

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


def _planned(gid: str, trans_type: str, contents: Contents) -> tuple[BranchOp, ...]:
    """The branches that come with the request. Raises Refusal."""
    if trans_type not in PLANNED:
        return ()
    check_contents(contents)
    branches = PLANNED[trans_type].planned(gid, contents)
    check_branches(branches)
    return branches
