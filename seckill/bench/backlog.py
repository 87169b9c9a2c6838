"""A backlog of orders of one hot product, and how fast the pipeline confirms it.

The orders are admitted and published first; only then the worker starts. The clock runs from the last look at which no
order had ended to the first at which all had, so that the worker's start is not counted and its settling is.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from seckill.admission import open_admission
from seckill.admission.gate import AdmissionGate, Wanted
from seckill.admission.ledger import Ledger
from seckill.bench.roles import RunningRole, free_addresses, machine_seconds, running_role
from seckill.domain.errors import SeckillError
from seckill.domain.order import NewSale, Order, Sale
from seckill.domain.outcomes import Admitted
from seckill.front.product_client import ProductClient
from seckill.messaging.connection import connection
from seckill.messaging.publisher import open_publisher
from seckill.messaging.retry_topics import retry_tiers
from seckill.settings import Settings
from seckill.wiring import open_channel, with_values

LOOK_EVERY_S = 0.05
ADMIT_AT_ONCE = 2_000
STALLED_AFTER_S = 60.0
SALE_LASTS_MS = 3_600_000
SERVICES = ("product", "order")
ADDRESSES = ("product.grpc", "product.ops", "order.grpc", "order.ops", "coordinator.grpc", "coordinator.http")


class BacklogStalled(SeckillError):
    """Orders of the backlog did not end."""


@dataclass(frozen=True, slots=True)
class BacklogOptions:
    orders: int = 50_000
    workers: int = 1
    partitions: int = 4
    own_coordinator: bool = False


@dataclass(frozen=True, slots=True)
class BacklogResult:
    """`cpu_seconds`: of each role while the clock ran; `other` is the rest of the machine, servers and strangers."""

    orders: int
    admitted_per_second: float
    seconds: float
    sold: int
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def confirmed_per_second(self) -> float:
        return self.sold / self.seconds


async def run_backlog(settings: Settings, options: BacklogOptions, *, config: Path | None = None) -> BacklogResult:
    """Admits, publishes, starts the worker, and waits. Raises RoleFailed and BacklogStalled, and what servers raise."""
    run = uuid.uuid4().hex[:8]
    overrides = free_addresses(ADDRESSES) | {
        "kafka.topic": f"bench-{run}",
        "kafka.dead_letter_topic": f"bench-{run}-dlt",
        "kafka.group": f"bench-{run}",
    }
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-bench-")))
        if options.own_coordinator:
            overrides |= {"dtm.grpc": overrides["coordinator.grpc"], "dtm.http": overrides["coordinator.http"]}
        roles = [
            await stack.enter_async_context(running_role(name, folder, config, overrides))
            for name in ((("coordinator",) if options.own_coordinator else ()) + SERVICES)
        ]
        room = max(settings.ledger.entries_max, options.orders)  # the backlog is admitted before anybody carries it
        settings = with_values(with_overrides(settings, overrides), {"ledger": {"entries_max": room}})
        await make_topics(settings, options.partitions)
        admission = await stack.enter_async_context(
            open_admission(settings.redis, settings.ledger, batch_max=settings.front.admission_batch_max)
        )
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        product = ProductClient(channel, address=settings.product.grpc)
        sale = (await product.create_sale(uuid.uuid4().hex, new_sale(options.orders))).sale
        await admission.sales.warm(sale)
        began = time.perf_counter()
        await _publish(settings, admission.gate, sale)
        admitted_per_second = options.orders / (time.perf_counter() - began)
        # The clock is there before the workers: one may have begun before the last of them is up.
        clock = asyncio.create_task(_clocked(admission.ledger, sale.product_id, options.orders, roles))
        stack.callback(clock.cancel)

        async def start_worker(number: int) -> None:
            own = overrides | free_addresses(["worker.ops"])
            worker = running_role("worker", folder, config, own, label=f"worker-{number}")
            roles.append(await stack.enter_async_context(worker))

        await asyncio.gather(*(start_worker(number) for number in range(1, options.workers + 1)))
        seconds, used = await clock
        after = await product.sale(sale.sale_id)
        return BacklogResult(options.orders, admitted_per_second, seconds, after.sold, used)


async def _clocked(
    ledger: Ledger, product_id: int, orders: int, roles: list[RunningRole]
) -> tuple[float, dict[str, float]]:
    """Seconds from the last look at a full ledger to the first at an empty one, and processor time in between."""
    left, changed = orders, time.perf_counter()
    began, before = changed, _processor(roles)
    while left:
        await asyncio.sleep(LOOK_EVERY_S)
        for role in roles:
            role.alive()
        now, used = time.perf_counter(), _processor(roles)
        stats = await ledger.stats(product_id)
        if stats.parked:
            raise BacklogStalled(f"{stats.parked} orders were dead-lettered")
        if stats.entries == orders:
            began, before = now, used
        if stats.entries != left:
            left, changed = stats.entries, now
        elif now - changed > STALLED_AFTER_S:
            raise BacklogStalled(f"{left} of {orders} orders have not ended, and none did for {STALLED_AFTER_S:g} s")
    after = _processor(roles)
    used = {name: round(after[name] - before.get(name, 0.0), 2) for name in after}
    used["other"] = round(used.pop("machine") - sum(used.values()), 2)
    return time.perf_counter() - began, used


def _processor(roles: list[RunningRole]) -> dict[str, float]:
    return {role.name: role.cpu_seconds() for role in roles} | {"machine": machine_seconds()}


async def _publish(settings: Settings, gate: AdmissionGate, sale: Sale) -> None:
    """Every unit of the sale as one order of another buyer, published and acknowledged."""
    async with open_publisher(settings.kafka) as publisher:

        async def buy(user_id: int) -> None:
            answer = await gate.admit(Wanted(sale.product_id, user_id, 1))
            if not isinstance(answer, Admitted):
                raise BacklogStalled(f"admission answered {answer}")
            await publisher.publish(_order(answer, user_id, sale))

        for first in range(1, sale.initial + 1, ADMIT_AT_ONCE):
            last = min(first + ADMIT_AT_ONCE, sale.initial + 1)
            await asyncio.gather(*(buy(user_id) for user_id in range(first, last)))


async def make_topics(settings: Settings, partitions: int) -> None:
    """Every topic of the pipeline, with the broker's own settings."""
    kafka, tiers = settings.kafka, retry_tiers(settings.kafka, settings.retry)
    admin = AIOKafkaAdminClient(**connection(kafka))
    await admin.start()
    try:
        names = (kafka.topic, kafka.dead_letter_topic, *(tier.topic for tier in tiers))
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()


def _order(admitted: Admitted, user_id: int, sale: Sale) -> Order:
    return Order(
        admitted.order_id, admitted.sale_id, user_id, sale.product_id, 1,
        admitted.admitted_at_ms, admitted.admission_number,
    )  # fmt: skip


def new_sale(units: int) -> NewSale:
    now_ms = time.time_ns() // 1_000_000
    return NewSale(
        product_id=uuid.uuid4().int % 10**12 + 1,
        name="benchmark",
        starts_at_ms=now_ms - 1_000,
        ends_at_ms=now_ms + SALE_LASTS_MS,
        per_user_limit=1,
        price_cents=1_990,
        stock=units,
    )


def with_overrides(settings: Settings, overrides: Mapping[str, str]) -> Settings:
    sections: dict[str, dict[str, str]] = {}
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return with_values(settings, sections)
