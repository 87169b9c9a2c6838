"""A role that cannot finish ends at its deadline all the same, and says what it left; a second signal ends it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import aiohttp
import pytest

from seckill.cli.errors import FAILED, INTERRUPTED, TERMINATED
from seckill.client import FrontClient, open_front
from seckill.settings import Settings
from tests.chaos.test_killed_roles import HEAL_S, fresh, healed
from tests.support.chaos_settings import OPERATOR_TOKEN, coordinator_of, settings_in
from tests.support.role_processes import RoleProcess, running_roles
from tests.support.sides import Side
from tests.support.verdicts import judge, open_stores, read_facts

PRODUCT_ID = 91
ORDERS = 10
END_S = 2.0
"""What Python needs to end, on a busy machine, past a role's own deadline."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@asynccontextmanager
async def ended_by(role: RoleProcess, *numbers: signal.Signals) -> AsyncIterator[tuple[int, float]]:
    """Sends the signals half a second apart; exit code, and the seconds from the last of them to the end. After the
    block the role is started again.
    """
    async with role.lock:
        assert role.process is not None
        role.asked = True
        for number in numbers:
            await asyncio.sleep(0.5)
            role.process.send_signal(number)
        began = time.monotonic()
        code = await asyncio.wait_for(role.process.wait(), 30)
        yield code, time.monotonic() - began
        await role.start()
    await role.started()


@asynccontextmanager
async def frozen(role: RoleProcess) -> AsyncIterator[None]:
    assert role.process is not None
    role.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        role.process.send_signal(signal.SIGCONT)


async def until_ready(settings: Settings) -> None:
    """Until the worker's dependencies have answered it: what is frozen before that is not hung up on, but refused."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"http://{settings.worker.ops}/readyz") as response:
                if response.status == HTTPStatus.OK:
                    return
            await asyncio.sleep(0.1)


async def until_in_hand(settings: Settings) -> None:
    """Until the worker holds orders that it has fetched and not routed."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"http://{settings.worker.ops}/metrics") as response:
                lines = (await response.text()).splitlines()
            if any(line.startswith("seckill_worker_inflight") and float(line.split()[-1]) > 0 for line in lines):
                return
            await asyncio.sleep(0.1)


async def order(front: FrontClient, first_user: int) -> set[str]:
    users = range(first_user, first_user + ORDERS)
    return {(await front.order(user_id=user, product_id=PRODUCT_ID))["order_id"] for user in users}


async def test_a_worker_whose_service_is_frozen_ends_at_its_deadline(side: Side, tmp_path: Path) -> None:
    """With product frozen a worker on SIGTERM ends with 1 before its deadline is over, and tells how many orders it let
    go; a second SIGTERM ends it at once with 143, a second SIGINT with 130. Every order ends later.
    """
    async with fresh(side) as here:
        file, settings = await settings_in(tmp_path, here)
        async with (
            running_roles(file, coordinator_of(here, tmp_path, settings)) as roles,
            open_front(settings.front.http, operator_token=OPERATOR_TOKEN) as front,
            open_stores(settings) as stores,
        ):
            worker = roles["worker"]
            terms = {"product_id": PRODUCT_ID, "stock": 100, "starts_at_ms": 1_000, "ends_at_ms": 4_000_000_000_000}
            await front.create_sale(terms, change_id="frozen")
            accepted: set[str] = set()
            for numbers, expected, within_s in (
                ([signal.SIGTERM], FAILED, settings.worker.drain_timeout_ms / 1_000 + END_S),
                ([signal.SIGTERM, signal.SIGTERM], TERMINATED, END_S),
                ([signal.SIGINT, signal.SIGINT], INTERRUPTED, END_S),
            ):
                await until_ready(settings)
                async with AsyncExitStack() as restarted:  # last, for it wants to hear product before it serves
                    async with frozen(roles["product"]):
                        accepted |= await order(front, len(accepted) + 1)
                        await until_in_hand(settings)
                        code, took_s = await restarted.enter_async_context(ended_by(worker, *numbers))
                    assert (code, took_s < within_s) == (expected, True), worker.log.read_text()[-2_000:]
            (told,) = [each for each in worker.events() if each["event"] == "drain_incomplete"]
            assert 0 < told["left"]["orders"] <= ORDERS
            left, _ = await healed(stores, settings, HEAL_S[side.kind], [PRODUCT_ID])
            assert not left
            verdict = judge(await read_facts(stores, accepted=accepted, product_ids=[PRODUCT_ID]))
            assert verdict.holds, verdict.breaches
            assert verdict.confirmed == len(accepted) == 3 * ORDERS
