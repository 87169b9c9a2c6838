"""Fetch, group, carry, commit: the consumer's loop, without a word of what carrying an order means.

Records are taken off their partitions as they come and wait in one lane per sale. While a lane's groups are being
carried, what arrives behind them forms the next group: at low load a group is one order, at the peak the backlog
itself makes them large. A record's offset is committed only after everything in it has been routed.

    fetch ─▶ lane (sale A) ─▶ carry up to batch_max ─▶ progress ─▶ commit
          └▶ lane (sale B) ─▶ …
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import ConsumerEnded, InvalidOrder, UnreadableRecord
from seckill.draining import Drain
from seckill.messaging.delivery import Arrival, Carrier, Delivered, record_of
from seckill.messaging.due_gate import Gate, OpenGate
from seckill.messaging.envelope import Record, decode
from seckill.messaging.fetching import Batches, Fetched, fetch
from seckill.messaging.metrics import COMMITS, FETCHED, GROUP_SIZE, INFLIGHT
from seckill.messaging.offsets import PartitionProgress

log = structlog.get_logger()

COMMIT_EVERY_S = 0.1
COMMIT_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Lane:
    """What waits for one sale, and how many groups of it are being carried."""

    waiting: deque[Delivered] = field(default_factory=deque)
    carrying: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    batch_max: int
    groups_per_sale_max: int
    inflight_max: int
    poll_timeout_ms: int
    drain_timeout_ms: int


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Runs until `stop()` or until its task is cancelled, and drains in both cases: within `drain`, which it shares
    with the rest of its process, else within `drain_timeout_ms` of its limits.

    While `held_back` says so nothing is fetched. The consumer stays in its group, as heartbeats do not need a fetch.
    `gate`: what of a fetch is to wait, and is read again later; by default nothing.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        carrier: Carrier,
        limits: WorkerLimits,
        *,
        held_back: Callable[[], bool] = lambda: False,
        gate: Gate | None = None,
        drain: Drain | None = None,
    ) -> None:
        self._own_drain = drain
        self._consumer = consumer
        self._carrier = carrier
        self._limits = limits
        self._held_back = held_back
        self._gate = gate or OpenGate()
        self._topics: Sequence[str] = ()
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._progress: dict[TopicPartition, PartitionProgress] = {}
        self._inflight = 0  # orders fetched and not routed
        self._moved = asyncio.Event()  # something was routed
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = asyncio.Event()
        self.joined = asyncio.Event()  # the group has given this worker its partitions, be they none
        self._rebalancing = False
        self._tasks: asyncio.TaskGroup
        self._work: set[asyncio.Task[None]] = set()
        self._commit_lock = asyncio.Lock()

    def stop(self) -> None:
        """Stops fetching; `run` returns when what was fetched has been routed and committed, or the deadline passes."""
        self._stopping.set()

    async def run(self, topics: Sequence[str]) -> None:
        """Consumes `topics` with the (started) consumer. An unforeseen error ends the run, uncommitted.

        Raises ConsumerEnded, after what was fetched has been finished: aiokafka's consumer does not come back from an
        error of its group, and a new process is the surest way to join it again.
        """
        self._topics = list(topics)
        self._consumer.subscribe(self._topics, listener=self)
        ended: KafkaError | None = None
        async with asyncio.TaskGroup() as self._tasks:
            committer = self._tasks.create_task(self._commit_regularly(), name="commit")
            try:
                while not self._stopping.is_set():
                    fetched = await self._fetch()
                    self._accept(fetched.batches)
                    self._bury_unread(fetched.unreadable)
            except KafkaError as error:
                ended = error
            finally:
                await self._drain()
                committer.cancel()
        if ended is not None:
            raise ConsumerEnded(str(ended)) from ended

    # --- fetch ---------------------------------------------------------------------------------------------------

    async def _fetch(self) -> Fetched:
        """What has come and need not wait; nothing while enough is in flight, partitions are being handed over, or work
        is held back.
        """
        room = self._limits.inflight_max - self._inflight
        if room <= 0 or self._rebalancing or self._held_back():
            self._moved.clear()
            await _within(self._limits.poll_timeout_ms, self._moved.wait())
            return Fetched()
        within_ms = self._gate.open(self._consumer, at_most_ms=self._limits.poll_timeout_ms)
        return self._let_through(await fetch(self._consumer, timeout_ms=within_ms, max_records=room))

    def _let_through(self, fetched: Fetched) -> Fetched:
        if self._rebalancing:
            return Fetched()  # they came at the moment in which their partitions were revoked, and will be read again
        return replace(fetched, batches=self._gate.let_through(self._consumer, fetched.batches))

    def _accept(self, batches: Batches) -> None:
        for partition, records in batches.items():
            progress = self._progress.setdefault(partition, PartitionProgress())
            FETCHED.inc(len(records))
            for fetched in records:
                progress.take(fetched.offset)
                self._sort(Arrival(partition, progress, record_of(fetched)))
        for key in list(self._lanes):
            self._dispatch(key)

    def _bury_unread(self, unreadable: Mapping[TopicPartition, int]) -> None:
        """A letter for each says where it is: more than that nobody knows here."""
        for partition, offset in unreadable.items():
            progress = self._progress.setdefault(partition, PartitionProgress())
            progress.take(offset)
            FETCHED.inc()
            record = Record(partition.topic, partition.partition, offset, time.time_ns() // 1_000_000, None, None)
            error = UnreadableRecord("the name of one of its headers is not UTF-8; the record is left where it is")
            self._count(1)
            self._start(self._bury(Arrival(partition, progress, record), error))

    def _sort(self, arrival: Arrival) -> None:
        """Into the lane of its sale, or aside when it holds no order."""
        try:
            orders = decode(arrival.record)
        except InvalidOrder as error:
            self._count(1)
            self._start(self._bury(arrival, error))
            return
        arrival.unrouted = len(orders)
        self._count(len(orders))
        for order in orders:
            lane = self._lanes.setdefault((order.product_id, order.sale_id), Lane())
            lane.waiting.append(Delivered(order, arrival.record, arrival, alone=len(orders) == 1))

    # --- carry ---------------------------------------------------------------------------------------------------

    def _dispatch(self, key: tuple[int, int]) -> None:
        lane = self._lanes[key]
        while lane.waiting and lane.carrying < self._limits.groups_per_sale_max:
            size = min(len(lane.waiting), self._limits.batch_max)
            group = [lane.waiting.popleft() for _ in range(size)]
            lane.carrying += 1
            GROUP_SIZE.observe(size)
            self._start(self._carry(key, group))
        if not lane.waiting and not lane.carrying:
            del self._lanes[key]

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._tasks.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _carry(self, key: tuple[int, int], group: list[Delivered]) -> None:
        await self._carrier.carry(group)
        for delivered in group:
            self._routed(delivered.arrival)
        self._lanes[key].carrying -= 1
        self._dispatch(key)

    async def _bury(self, arrival: Arrival, error: InvalidOrder) -> None:
        await self._carrier.bury(arrival.record, error)
        self._routed(arrival)

    def _routed(self, arrival: Arrival) -> None:
        arrival.unrouted -= 1
        if arrival.unrouted == 0:
            arrival.progress.finish(arrival.record.offset)
        self._count(-1)
        self._moved.set()

    def _count(self, change: int) -> None:
        self._inflight += change
        INFLIGHT.inc(change)
        if self._inflight:
            self._idle.clear()
        else:
            self._idle.set()

    # --- commit --------------------------------------------------------------------------------------------------

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await self._commit()

    async def _commit(self, within_s: float = COMMIT_TIMEOUT_S) -> bool:
        """Commits what moved, per partition and explicitly; whether nothing is left of it. A commit that fails is
        repeated with the next one, unless the group has taken the partitions away.
        """
        async with self._commit_lock:
            assigned = self._consumer.assignment()
            moved = {
                partition: progress.uncommitted
                for partition, progress in self._progress.items()
                if partition in assigned and progress.uncommitted is not None
            }
            if not moved:
                return True
            reach(CrashPoint.OFFSETS_COMMITTING)
            try:
                async with asyncio.timeout(within_s):
                    await self._consumer.commit(moved)
            except (CommitFailedError, IllegalStateError, KafkaError, TimeoutError) as error:
                # The records come again and find themselves decided: a lost commit costs work, never an order.
                COMMITS.labels("failed").inc()
                log.warning("commit_failed", error=f"{type(error).__name__}: {error}")
                return isinstance(error, (CommitFailedError, IllegalStateError))
            reach(CrashPoint.OFFSETS_COMMITTED)
            COMMITS.labels("ok").inc()
            for partition, offset in moved.items():
                self._progress[partition].committed = offset
            return True

    # --- rebalance and end ---------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Another worker takes over: finish what is in hand, within the deadline, and hand over clean offsets."""
        self._rebalancing = True
        await _within(self._limits.drain_timeout_ms, self._idle.wait())
        await self._commit()
        for partition in revoked:
            self._progress.pop(partition, None)
        self._gate.forget(revoked)
        log.info("partitions_revoked", topics=self._topics, partitions=sorted(p.partition for p in revoked))

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._rebalancing = False
        self.joined.set()
        log.info("partitions_assigned", topics=self._topics, partitions=sorted(p.partition for p in assigned))

    async def _drain(self) -> None:
        """Finishes what was fetched and commits it; what the deadline cuts off is not committed and comes again."""
        drain = self._own_drain or Drain(self._limits.drain_timeout_ms)
        if not await _within(drain.work_left_s() * 1_000, self._idle.wait()):
            drain.leave("orders", self._inflight)
            for task in self._work:
                task.cancel()
        while not await self._commit(within_s=drain.closing_s(COMMIT_TIMEOUT_S)):
            if not drain.work_left_s():
                drain.leave("commits", 1)
                return
            await asyncio.sleep(COMMIT_EVERY_S)


async def _within(limit_ms: float, waiting: Awaitable[object]) -> bool:
    """Whether it happened within the limit."""
    try:
        async with asyncio.timeout(limit_ms / 1000):
            await waiting
    except TimeoutError:
        return False
    return True
