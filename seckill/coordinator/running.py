"""The attempts that are under way in this process, one a transaction, and how much room there is for more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import grpc
import structlog
from structlog.contextvars import bound_contextvars

from seckill.coordinator.attempt import Attempt, Hands
from seckill.coordinator.commands import Decided
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.store import StoreUnavailable
from seckill.dtm.protocol import TransOptions

log = structlog.get_logger(__name__)


class Running:
    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._tasks: dict[str, asyncio.Task[Refusal | None]] = {}
        self._starting = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, gid: str) -> bool:
        return gid in self._tasks

    def find(self, gid: str) -> asyncio.Task[Refusal | None] | None:
        """The attempt at a transaction: None when it is finished, else what to tell one who waits."""
        return self._tasks.get(gid)

    def tasks(self) -> list[asyncio.Task[Refusal | None]]:
        return list(self._tasks.values())

    def free(self) -> int:
        return self._hands.timing.running_max - len(self._tasks) - self._starting

    @contextlib.contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Room for transactions whose decision or claim is being written, so that `running_max` holds meanwhile."""
        self._starting += count
        try:
            yield
        finally:
            self._starting -= count

    def start(self, decided: Decided, options: TransOptions) -> asyncio.Task[Refusal | None]:
        """Begins an attempt, or joins the one that is there."""
        gid = decided.transaction.gid
        there = self._tasks.get(gid)
        if there is not None:
            return there
        task = self._tasks[gid] = asyncio.create_task(self._run(decided, options), name=f"transaction-{gid}")
        task.add_done_callback(lambda _: self._tasks.pop(gid, None))
        return task

    async def _run(self, decided: Decided, options: TransOptions) -> Refusal | None:
        with bound_contextvars(gid=decided.transaction.gid):
            try:
                return await Attempt(self._hands, decided, options).run()
            except StoreUnavailable as error:
                log.warning("transaction_left_to_recovery", error=str(error))
                return Refusal(grpc.StatusCode.UNAVAILABLE, str(error))
            except Exception as error:  # a fault of one transaction must not end the others; its lease brings it back
                log.exception("transaction_attempt_broke")
                return Refusal(grpc.StatusCode.INTERNAL, f"dtm panic: {error}")
