"""Every role is killed, frozen and drained under load; the stores then show that no order was lost or decided twice.

Redis, Kafka and the databases live through it. On real servers the coordinator is a DTM of the test's own, killed like
the others. `SECKILL_CHAOS_SEED` is another schedule, `SECKILL_CHAOS_SECONDS` a longer one; a failure prints both.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from seckill.cli.errors import UNREACHABLE
from seckill.client import FrontClient, open_front
from seckill.domain.errors import InvalidOrder
from seckill.embedded import embedded_kafka, embedded_redis
from seckill.messaging.envelope import Record, decode
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_topic
from seckill.settings import Settings
from seckill.wiring import open_dtm
from tests.support.chaos_settings import OPERATOR_TOKEN, coordinator_of, settings_in
from tests.support.faults import Fault, inflict, schedule
from tests.support.restless_buyers import Crowd
from tests.support.role_processes import RoleProcess, running_roles
from tests.support.sides import Side
from tests.support.verdicts import Stores, Verdict, judge, open_gids, open_stores, read_facts, rest

SECONDS = float(os.environ.get("SECKILL_CHAOS_SECONDS", "18"))
SEED = int(os.environ.get("SECKILL_CHAOS_SEED", "27"))
ORDERS_PER_SECOND = 50
HEAL_S = {"embedded": 45, "real": 100}
"""DTM doubles its pauses without a bound: what failed during the faults is repeated half a minute later."""

REDIS_DATABASE = 5
SCARCE, PLENTY = 71, 72
UNITS = {SCARCE: 150, PLENTY: 5_000}
PER_USER_LIMIT = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


@dataclass(frozen=True, slots=True)
class Campaign:
    """What happened, for the judgement and for whoever reads a failure."""

    faults: list[Fault]
    crowd: Crowd
    roles: Mapping[str, RoleProcess]
    restless: str  # what was still under way when the time to heal was up
    healed_s: float
    verdict: Verdict
    letters: list[Record]
    folder: Path

    def story(self) -> str:
        lines = [
            f"SECKILL_CHAOS_SEED={SEED} SECKILL_CHAOS_SECONDS={SECONDS:g}; logs in {self.folder}",
            *map(str, self.faults),
            f"answers: {dict(sorted(self.crowd.answers.items()))}",
            f"at rest after {self.healed_s:.1f} s: {self.restless or 'yes'}",
            f"confirmed {self.verdict.confirmed}, rejected {dict(self.verdict.rejected)}",
            *(f"drained: {drain}" for role in self.roles.values() for drain in role.drains),
            *(f"warnings of {role}: {_warnings(process)}" for role, process in self.roles.items() if process.ours),
        ]
        return "\n".join(lines)


def _warnings(process: RoleProcess) -> dict[str, int]:
    return dict(Counter(each["event"][:150] for each in process.events() if each["level"] not in ("info", "debug")))


@asynccontextmanager
async def fresh(side: Side) -> AsyncIterator[Side]:
    """A Redis and a Kafka that nobody else has filled."""
    if side.kind == "embedded":
        with embedded_redis() as redis, embedded_kafka() as kafka:
            yield replace(side, redis=redis, kafka=kafka)
    else:
        yield replace(side, redis=side.empty_redis(REDIS_DATABASE))


@pytest.fixture
async def campaign(side: Side, tmp_path: Path) -> Campaign:
    """The whole run: load and faults at once, then peace, then what the stores say."""
    async with fresh(side) as here:
        file, settings = await settings_in(tmp_path, here)
        async with (
            running_roles(file, coordinator_of(here, tmp_path, settings)) as roles,
            open_front(settings.front.http, operator_token=OPERATOR_TOKEN, timeout_s=10) as front,
            open_publisher(settings.kafka) as publisher,
            open_stores(settings) as stores,
        ):
            await open_sales(front)
            crowd = Crowd(front, publisher, settings.kafka, list(UNITS), random.Random(SEED))
            faults = schedule(SEED, SECONDS)
            async with asking(crowd):
                await asyncio.gather(
                    crowd.order_for(SECONDS, per_second=ORDERS_PER_SECOND),
                    inflict(faults, roles),
                )
                restless, healed_s = await healed(stores, settings, HEAL_S[side.kind])
            verdict = await judged(stores, settings, crowd)
            letters = await read_topic(settings.kafka, settings.kafka.dead_letter_topic)
            result = Campaign(faults, crowd, roles, restless, healed_s, verdict, letters, tmp_path)
    print(result.story())  # shown when the test fails, or with -s
    return result


async def open_sales(front: FrontClient) -> None:
    now_ms = time.time_ns() // 1_000_000
    for product_id, units in UNITS.items():
        fields = {
            "product_id": product_id, "stock": units, "per_user_limit": PER_USER_LIMIT,
            "starts_at_ms": now_ms - 1_000, "ends_at_ms": now_ms + 3_600_000,
        }  # fmt: skip
        await front.create_sale(fields, change_id=f"chaos-{product_id}")


@asynccontextmanager
async def asking(crowd: Crowd) -> AsyncIterator[None]:
    """Meanwhile some buyers never stop asking for their orders."""
    task = asyncio.create_task(crowd.keep_asking())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def healed(
    stores: Stores, settings: Settings, heal_s: int, product_ids: Collection[int] = tuple(UNITS)
) -> tuple[str, float]:
    """Waits until nothing is under way, in the stores and at the coordinator; what is left, and how long it took."""
    began = time.monotonic()
    left = await rest(stores, product_ids, timeout_s=heal_s)
    async with open_dtm(settings) as dtm:
        while True:
            gids = await open_gids(dtm)
            if not gids or time.monotonic() - began > heal_s:
                break
            await asyncio.sleep(0.2)
    took_s = time.monotonic() - began
    return left or (f"transactions {gids}" if gids else ""), took_s


async def judged(stores: Stores, settings: Settings, crowd: Crowd) -> Verdict:
    """The six invariants, for every order that anybody was promised: 202 replies, and all that the topic holds."""
    promised = {*crowd.accepted, *crowd.direct}
    for record in await read_topic(settings.kafka, settings.kafka.topic):
        with suppress(InvalidOrder):
            promised |= {order.order_id for order in decode(record)}
    for order_id in sorted(promised | crowd.unsure.keys()):
        await crowd.ask(order_id)
    return judge(await read_facts(stores, accepted=promised, product_ids=list(UNITS)))


def order_letters(letters: list[Record]) -> list[str]:
    """Letters that hold orders, and why they were set aside."""
    found = []
    for letter in letters:
        with suppress(InvalidOrder):
            ids = [order.order_id for order in decode(letter)]
            found.append(f"{ids}: { {name: value.decode() for name, value in letter.headers} }")
    return found


def unexpected_ends(role: RoleProcess) -> list[str]:
    """Deaths and hung stops, but for a worker whose consumer Kafka has ended: that one says so, and is started again.

    The stand-in for Kafka ends a consumer when two are in the group during a rebalance; a broker does not.
    """
    ended_by_kafka = [each for each in role.deaths if each.code == UNREACHABLE and "ended this worker's" in each.log]
    deaths = [str(each) for each in role.deaths if each not in ended_by_kafka]
    bad_drains = [f"{name} drained with exit code {code}" for name, code, _ in role.drains if code != 0]
    return [*deaths, *role.hung, *bad_drains]


def unforeseen(role: RoleProcess) -> list[str]:
    """Log lines with a traceback: a fault that the code knows costs a line, never a traceback."""
    return [f"{role.role}: {each}" for each in role.events() if "exception" in each or "Traceback" in each["event"]]


async def test_killed_roles_lose_nothing(campaign: Campaign) -> None:
    """Whatever role dies at whatever moment, every order ends once, the units add up, and what was told stays."""
    story = campaign.story()
    crowd, roles = campaign.crowd, campaign.roles.values()
    assert not campaign.restless, story
    breaches = [f"{name}: {each}" for name, found in campaign.verdict.breaches.items() for each in found]
    assert campaign.verdict.holds, "\n".join([*breaches, *campaign.verdict.lost, story])
    assert not crowd.wrong, "\n".join([*crowd.wrong, story])
    assert not order_letters(campaign.letters), "\n".join([*order_letters(campaign.letters), story])
    assert {letter.value for letter in campaign.letters} == crowd.unreadable, story
    unended = sorted((crowd.accepted.keys() | crowd.unsure.keys() | crowd.direct.keys()) - crowd.told.keys())
    assert not unended, f"{unended}\n{story}"
    ends = [each for role in roles for each in unexpected_ends(role)]
    assert not ends, "\n".join([*ends, story])
    errors = [each for role in roles for each in unforeseen(role)]
    assert not errors, "\n".join([*errors[:5], story])
    assert campaign.verdict.confirmed > 100, story
