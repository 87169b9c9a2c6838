"""A pipeline whose roles are processes, on real servers, through which poison is sent: records that are no orders, and
orders that a service has a defect for. Its Kafka is its own, because it is restarted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import text

from seckill.client import FrontClient, open_front
from seckill.dlq.desk import LetterDesk
from seckill.dlq.model import Filter, Letter
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.settings import Settings
from seckill.wiring.dead_letters import open_letter_desk
from tests.servers import Servers, native
from tests.support import faulty_order
from tests.support.alert_receiver import Told, receiving_alerts
from tests.support.chaos_settings import OPERATOR_TOKEN, coordinator_of, settings_in
from tests.support.role_processes import Program, RoleProcess, our_program, running_roles
from tests.support.sides import real_side
from tests.support.steady_buyers import Front, SteadyBuyers
from tests.support.verdicts import Stores, open_stores

REDIS_DATABASE = 7
FAR_FUTURE_MS = 4_000_000_000_000

OVER: Mapping[str, Mapping[str, Any]] = {
    "retry": {"attempts_max": 3, "base_ms": 100, "cap_ms": 500, "topic_delays_ms": [500, 1_500]},
    "worker": {"circuit_pause_ms": 300},
    "reconcile": {"orphan_after_ms": 5_000},  # so long after an outage DTM, whose pauses double, is told to go on
    "dead_letters": {"operator_token": OPERATOR_TOKEN},
    "alerts": {"every_ms": 1_000, "resolved_after_ms": 3_000, "audit_every_ms": 20_000},
}
MORE_ROLES = ("dead-letters", "alerts")


@dataclass(frozen=True, slots=True)
class Confirmed:
    """When an order was let in and when it was confirmed, as its row in the order database tells. Unix ms."""

    user_id: int
    admitted_at_ms: int
    confirmed_at_ms: int

    @property
    def took_s(self) -> float:
        return (self.confirmed_at_ms - self.admitted_at_ms) / 1_000


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str

    def rows(self) -> Any:
        return json.loads(self.out)


@dataclass
class PoisonSite:
    settings: Settings
    roles: Mapping[str, RoleProcess]
    broker: native.Kafka
    front: FrontClient
    publisher: Publisher
    stores: Stores
    desk: LetterDesk
    told: Sequence[Told]  # what the alerts role has sent, as it comes in
    broker_runs: asyncio.Lock = field(default_factory=asyncio.Lock)  # whoever holds it finds the broker up

    async def open_sale(self, product_id: int, units: int) -> None:
        fields = {"product_id": product_id, "stock": units, "starts_at_ms": 1_000, "ends_at_ms": FAR_FUTURE_MS}
        await self.front.create_sale(fields, change_id=f"poison-{product_id}")

    def buyers(self, product_id: int) -> SteadyBuyers:
        """Buyers who are patient: without a broker nobody is answered."""
        front = Front(f"http://{self.settings.front.http}")
        return SteadyBuyers([front], product_id, repeat_after_s=1, answered_within_s=120, fresh_connections=True)

    async def confirmed(self, product_id: int) -> list[Confirmed]:
        query = text(
            "SELECT user_id, admitted_at_ms, created_at_ms FROM orders WHERE product_id = :product_id AND status = 1"
        )
        async with self.stores.order.connect() as connection:
            rows = await connection.execute(query, {"product_id": product_id})
            return [Confirmed(*row) for row in rows]

    async def until_confirmed(self, product_id: int, buyers: Collection[int], *, within_s: float) -> list[Confirmed]:
        """Returns once every one of these buyers has an order that is confirmed, or when the time is up."""
        ends = time.monotonic() + within_s
        while True:
            found = await self.confirmed(product_id)
            if {each.user_id for each in found} >= set(buyers) or time.monotonic() > ends:
                return found
            await asyncio.sleep(0.2)

    async def replay_over_http(self, letter: Letter, *, payload: str, note: str) -> int:
        """As somebody does who has no command line here: the answer's status."""
        url = f"http://{self.settings.dead_letters.http}/v1/letters/{letter.letter_id}/replay"
        body = {"operator": "somebody", "note": note, "payload": payload}
        headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
        async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as response:
            return response.status

    async def letters(self) -> list[Letter]:
        return await self.desk.find(Filter(limit=500))

    async def statuses(self, letters: Collection[Letter]) -> set[str]:
        """What the buyers of the letters' orders are told."""
        ids = [each.order_id for each in letters if each.order_id is not None]
        return {(await self.front.order_result(order_id))["status"] for order_id in ids}

    async def until_told(self, titles: Collection[str], *, within_s: float) -> None:
        """Returns once an alert of each title has come, or when the time is up."""
        ends = time.monotonic() + within_s
        while not {each.title for each in self.told} >= set(titles) and time.monotonic() < ends:
            await asyncio.sleep(0.1)

    async def restart_role(self, role: str, program: Program) -> None:
        self.roles[role].program = program
        await self.roles[role].drain(down_s=0)
        await self.roles[role].started()

    async def restart_broker(self) -> None:
        async with self.broker_runs:
            await asyncio.to_thread(self.broker.kill)
            await asyncio.to_thread(self.broker.start)

    async def send_bytes(self, value: bytes) -> None:
        """Exactly one record of the topic, past the front."""
        async with self.broker_runs:
            await self.publisher.send(self.settings.kafka.topic, key=None, value=value)

    async def begin_command(self, *arguments: str) -> asyncio.subprocess.Process:
        """`seckill …` on the site's settings; it ends by itself, or whoever began it ends it."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "seckill.cli", *arguments,
            env=dict(self.roles["worker"].environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def command(self, *arguments: str) -> Said:
        process = await self.begin_command(*arguments)
        out, err = await process.communicate()
        assert process.returncode is not None
        return Said(process.returncode, out.decode(), err.decode())


def p99_s(orders: Sequence[Confirmed]) -> float:
    """The time that 99 of 100 orders did not exceed."""
    times = sorted(order.took_s for order in orders)
    return times[len(times) * 99 // 100]


def faulty(product_id: int, buyers: Collection[int]) -> Program:
    """The order service with its defect."""
    return Program((sys.executable, faulty_order.__file__, str(product_id), ",".join(map(str, buyers))))


@asynccontextmanager
async def open_poison_site(servers: Servers, folder: Path, order_service: Program) -> AsyncIterator[PoisonSite]:
    """Everything started. Kafka is the site's own; `order_service` runs as the order service."""
    side = real_side(servers)
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(native.kafka_process(folder / "kafka"))
        side = replace(side, kafka=broker.bootstrap, redis=side.empty_redis(REDIS_DATABASE))
        receiver, told = await stack.enter_async_context(receiving_alerts())
        file, settings = await settings_in(folder, side, {**OVER, "alerts": {**OVER["alerts"], "targets": [receiver]}})
        others = {role: our_program(role) for role in MORE_ROLES}
        others |= {**coordinator_of(side, folder, settings), "order": order_service}
        roles = await stack.enter_async_context(running_roles(file, others))
        yield PoisonSite(
            settings=settings,
            roles=roles,
            broker=broker,
            front=await stack.enter_async_context(open_front(settings.front.http, operator_token=OPERATOR_TOKEN)),
            publisher=await stack.enter_async_context(open_publisher(settings.kafka)),
            stores=await stack.enter_async_context(open_stores(settings)),
            desk=await stack.enter_async_context(open_letter_desk(settings)),
            told=told,
        )
