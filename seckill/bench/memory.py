"""Whether memory grows with the requests: each role's resident size after some of them, and after many more.

As in a flash sale, most requests are refused: one sale follows the other, and each sells out within its round.
Everything that was accepted has ended before a size is read.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from seckill.admission import Admission, open_admission
from seckill.bench.backlog import ADDRESSES, STALLED_AFTER_S, BacklogStalled, make_topics, new_sale, with_overrides
from seckill.bench.front import Told, load, order_script, require_generator
from seckill.bench.roles import RunningRole, free_addresses, running_role
from seckill.front.product_client import ProductClient
from seckill.settings import Settings
from seckill.wiring import open_channel

ROUND_S = 5
USERS_PER_ROUND = 1_000_000
KEYED_EVERY = 10
LOOK_EVERY_S = 0.2
LOOK_TIMEOUT_MS = 30_000
"""Of the measurement's own look at Redis: a machine that is busy with its load is no reason to give up."""

SETTLE_S = 2.0
"""Rest before a size is read: tasks end, connections that were closed are freed."""

RATIO_MAX = 1.1


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """Sizes are read after `first` and after `requests` requests; a round sells `units`."""

    requests: int = 1_000_000
    first: int = 200_000
    units: int = 5_000
    connections: int = 64
    partitions: int = 4
    own_coordinator: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Resident bytes of each role after so many requests, of which so many were accepted."""

    requests: int
    accepted: int
    resident_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class MemoryResult:
    seconds: float
    sales: int
    first: Reading
    last: Reading

    def ratios(self) -> dict[str, float]:
        """The last size of each role by its first."""
        before = self.first.resident_bytes
        return {name: size / before[name] for name, size in self.last.resident_bytes.items()}

    def grown(self) -> list[str]:
        """The roles that have grown more than they may."""
        return [name for name, ratio in self.ratios().items() if ratio > RATIO_MAX]


async def run_memory(settings: Settings, options: MemoryOptions, *, config: Path | None = None) -> MemoryResult:
    """Starts every role, sells sale after sale. Raises NoGenerator, RoleFailed, GeneratorFailed and BacklogStalled."""
    require_generator()
    run = uuid.uuid4().hex[:8]
    overrides = free_addresses([*ADDRESSES, "front.http", "front.grpc", "worker.ops", "reconcile.ops"]) | {
        "kafka.topic": f"bench-{run}",
        "kafka.dead_letter_topic": f"bench-{run}-dlt",
        "kafka.group": f"bench-{run}",
    }
    if options.own_coordinator:
        overrides |= {"dtm.grpc": overrides["coordinator.grpc"], "dtm.http": overrides["coordinator.http"]}
    names = ("coordinator",) * options.own_coordinator + ("product", "order", "worker", "reconcile", "front")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-bench-")))
        settings = with_overrides(settings, overrides)
        await make_topics(settings, options.partitions)
        roles = [await stack.enter_async_context(running_role(name, folder, config, overrides)) for name in names]
        patient = settings.redis.model_copy(update={"command_timeout_ms": LOOK_TIMEOUT_MS})
        admission = await stack.enter_async_context(open_admission(patient, settings.ledger))
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        sales = Sales(settings, options, admission, ProductClient(channel, address=settings.product.grpc), folder)
        began = time.perf_counter()
        first = await sales.until(options.first, roles)
        last = await sales.until(max(options.requests, first.requests + 1), roles)  # at least one more sale
        return MemoryResult(time.perf_counter() - began, len(sales.products), first, last)


class Sales:
    """One sale after the other, each with more buyers than units."""

    def __init__(
        self, settings: Settings, options: MemoryOptions, admission: Admission, product: ProductClient, folder: Path
    ) -> None:
        self._settings = settings
        self._options = options
        self._admission = admission
        self._product = product
        self._script = folder / "orders.lua"
        self.products: list[int] = []
        self.requests = 0
        self.accepted = 0

    async def until(self, requests: int, roles: Sequence[RunningRole]) -> Reading:
        """Sells until so many requests have been answered in all; then waits for rest, and reads."""
        while self.requests < requests:
            await self._round()
            for role in roles:
                role.alive()
        await self._rest()
        await asyncio.sleep(SETTLE_S)
        return Reading(self.requests, self.accepted, {role.name: role.resident_bytes() for role in roles})

    async def _round(self) -> None:
        made = await self._product.create_sale(uuid.uuid4().hex, new_sale(self._options.units))
        await self._admission.sales.warm(made.sale, first=made.first)
        first_user = USERS_PER_ROUND * len(self.products)
        self.products.append(made.sale.product_id)
        script = order_script(made.sale.product_id, first_user=first_user, keyed_every=KEYED_EVERY)
        self._script.write_text(script, encoding="ascii")
        told: Told = await load(
            self._settings.front.http, self._script, seconds=ROUND_S, connections=self._options.connections
        )
        self.requests += told.requests
        self.accepted += told.requests - told.status_errors

    async def _rest(self) -> None:
        """Waits until no order of any of the sales is under way. Raises BacklogStalled."""
        left, changed = -1, time.perf_counter()
        while left:
            await asyncio.sleep(LOOK_EVERY_S)
            stats = [await self._admission.ledger.stats(product_id) for product_id in self.products]
            if parked := sum(each.parked for each in stats):
                raise BacklogStalled(f"{parked} orders were dead-lettered")
            if (now_left := sum(each.entries for each in stats)) != left:
                left, changed = now_left, time.perf_counter()
            elif time.perf_counter() - changed > STALLED_AFTER_S:
                raise BacklogStalled(f"{left} orders have not ended, and none did for {STALLED_AFTER_S:g} s")
