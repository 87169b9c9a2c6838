"""Every role is restarted with SIGTERM, one after the other, under a steady load: nobody loses anything, and nobody
sees a broken connection.

Fronts run twice, and on real servers workers do (two of them in one group are too much for the stand-in for Kafka).
The services and the coordinator run once: while one of them is away, workers wait. On real servers the coordinator is a
DTM.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from seckill.client import open_front
from seckill.messaging.reading import read_topic
from seckill.settings import Settings, variable
from tests.chaos.test_killed_roles import (
    HEAL_S,
    fresh,
    healed,
    order_letters,
    unexpected_ends,
    unforeseen,
)
from tests.servers.ports import free_ports
from tests.support.chaos_settings import OPERATOR_TOKEN, coordinator_of, settings_in
from tests.support.role_processes import RoleProcess, our_program, running_roles
from tests.support.sides import Side
from tests.support.steady_buyers import Front, SteadyBuyers
from tests.support.verdicts import judge, open_stores, read_facts

PRODUCT_ID = 81
STOCK = 20_000
PER_SECOND = 40
BETWEEN_S = 1.0
"""Pause between two restarts; the one that was restarted is up again by then."""

EXIT_S = 2.0
"""What Python needs to end, on a busy machine, past a role's own deadline."""

ORDER = ("front", "front 2", "worker", "worker 2", "reconcile", "order", "product", "coordinator")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@asynccontextmanager
async def doubled(
    roles: Mapping[str, RoleProcess], settings: Settings, side: Side
) -> AsyncIterator[dict[str, RoleProcess]]:
    """With a second front, and a second worker where the side bears one."""
    ports = [f"127.0.0.1:{port}" for port in free_ports(3)]
    second = {"front 2": ("front", {"front.http": ports[0], "front.grpc": ports[1]})}
    if side.kind == "real":
        second["worker 2"] = ("worker", {"worker.ops": ports[2]})
    more = {}
    for name, (role, addresses) in second.items():
        environment = {**roles[role].environment, **{variable(key): value for key, value in addresses.items()}}
        log = roles[role].log.with_name(f"{name}.log")
        more[name] = RoleProcess(name, our_program(role), environment, log)
    async with AsyncExitStack() as stack:
        for process in more.values():
            await process.start()
            stack.push_async_callback(process.close)
        await asyncio.gather(*(process.started() for process in more.values()))
        yield {**roles, **more}


async def restart_each(roles: Mapping[str, RoleProcess]) -> None:
    for name in ORDER:
        if name in roles:
            await roles[name].drain(down_s=0.1)
            await roles[name].started()
            await asyncio.sleep(BETWEEN_S)


def late(process: RoleProcess, settings: Settings) -> list[str]:
    """Ends of our own roles that took longer than their delay and deadline."""
    section = getattr(settings, process.role.split()[0])
    limit_s = (getattr(section, "drain_delay_ms", 0) + section.drain_timeout_ms) / 1_000 + EXIT_S
    return [f"{role} took {took_s:.1f} of {limit_s:g} s" for role, _, took_s in process.drains if took_s > limit_s]


def fronts_of(roles: Mapping[str, RoleProcess], settings: Settings) -> list[Front]:
    second = roles["front 2"].environment[variable("front.http")]
    return [Front(f"http://{address}") for address in (settings.front.http, second)]


async def test_a_rolling_restart_loses_nothing_and_breaks_no_connection(side: Side, tmp_path: Path) -> None:
    """2xx, 4xx and 503 with Retry-After are all that anybody is answered; every 202 ends, the invariants hold, and each
    process ends with 0 within its deadline.
    """
    async with fresh(side) as here:
        file, settings = await settings_in(tmp_path, here)
        async with (
            running_roles(file, coordinator_of(here, tmp_path, settings)) as single,
            doubled(single, settings, here) as roles,
            open_stores(settings) as stores,
        ):
            async with open_front(settings.front.http, operator_token=OPERATOR_TOKEN) as front:
                terms = {
                    "product_id": PRODUCT_ID,
                    "stock": STOCK,
                    "starts_at_ms": 1_000,
                    "ends_at_ms": 4_000_000_000_000,
                }
                await front.create_sale(terms, change_id="rolling")
            buyers = SteadyBuyers(fronts_of(roles, settings), PRODUCT_ID)
            async with buyers.ordering(per_second=PER_SECOND):
                await asyncio.sleep(2)
                await restart_each(roles)
            left, healed_s = await healed(stores, settings, HEAL_S[side.kind], [PRODUCT_ID])
            verdict = judge(await read_facts(stores, accepted=buyers.accepted, product_ids=[PRODUCT_ID]))
            letters = order_letters(await read_topic(settings.kafka, settings.kafka.dead_letter_topic))
    ours = [process for process in roles.values() if process.ours]
    drains = [f"{name} {code} {took_s:.1f} s" for each in roles.values() for name, code, took_s in each.drains]
    story = f"{dict(buyers.answers)}; {', '.join(drains)}; at rest after {healed_s:.1f} s: {left or 'yes'}; {tmp_path}"
    print(story)  # shown when the test fails, or with -s
    assert not buyers.wrong, "\n".join([*buyers.wrong[:20], story])
    assert not left, story
    breaches = [f"{name}: {each}" for name, found in verdict.breaches.items() for each in found]
    assert verdict.holds, "\n".join([*breaches, story])
    assert not letters, "\n".join([*letters, story])
    assert verdict.confirmed == len(buyers.accepted) > 200, story
    bad_ends = itertools.chain.from_iterable(unexpected_ends(each) + late(each, settings) for each in ours)
    assert not (told := list(bad_ends)), "\n".join([*told, story])
    assert not (errors := [line for each in ours for line in unforeseen(each)]), "\n".join([*errors[:5], story])
    assert len(buyers.unready_seen) == len(buyers.fronts), story
