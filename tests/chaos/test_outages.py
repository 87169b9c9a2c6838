"""MariaDB, DTM or a service is down for far longer than an order's attempts last: the worker waits, nothing is lost.

Real Kafka and Redis; MariaDB and DTM are the test's own, because they are killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from seckill.domain.order import Sale
from seckill.messaging.reading import read_topic
from seckill.wiring import ROLES, Role
from tests.servers import Servers, native
from tests.support.pipeline import Pipeline, open_pipeline
from tests.support.sides import real_side

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OUTAGE_S = 12
"""Attempts last a tenth of a second here, a session of the group six seconds."""

HEAL_S = 100

OVER = {
    "kafka": {"session_timeout_ms": 6_000},
    "worker": {"inflight_max": 20, "circuit_pause_ms": 300},
    "ledger": {"republish_after_ms": 2_000, "undecided_wait_ms": 1_000},
}


@dataclass(frozen=True, slots=True)
class Running:
    """A pipeline, whose worker and reconcile run, on a MariaDB and a DTM that may be killed."""

    pipeline: Pipeline
    worker: Role
    mariadb: native.MariaDb
    dtm: native.Dtm
    sale: Sale

    async def accepted(self, first_user: int, count: int) -> list[str]:
        users = range(first_user, first_user + count)
        return [await self.pipeline.accepted(user_id=user, product_id=self.sale.product_id) for user in users]

    async def circuits(self) -> str:
        """What the worker's readiness says of them."""
        url = f"http://{self.worker.addresses['worker.ops']}/readyz"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            return str((await response.json())["checks"]["circuits"])

    async def until_held_back(self) -> None:
        async with asyncio.timeout(30):
            while "down" not in await self.circuits():
                await asyncio.sleep(0.2)

    async def waited_out(self) -> None:
        """The worker finds out and waits for the length of the outage."""
        await self.until_held_back()
        await asyncio.sleep(OUTAGE_S)
        assert self.worker.task is not None
        assert not self.worker.task.done()

    async def all_confirmed(self, ids: list[str]) -> None:
        """What was under way when the outage began waits for DTM, whose pauses have doubled meanwhile."""
        async with asyncio.timeout(HEAL_S):
            for order_id in ids:
                while (end := await self.pipeline.end(order_id)) == ("processing", ""):
                    pass
                assert end == ("confirmed", "")
        assert await self.circuits() == "ok"
        kafka = self.pipeline.settings.kafka
        assert await read_topic(kafka, kafka.dead_letter_topic) == []


@asynccontextmanager
async def _running(servers: Servers, folder: Path) -> AsyncIterator[Running]:
    with (
        native.mariadb_process(folder / "mariadb") as mariadb,
        native.dtm_process(folder / "dtm", store="mysql", mariadb_url=mariadb.url) as dtm,
    ):
        side = real_side(replace(servers, mariadb=mariadb.url, dtm=dtm.address))
        async with (
            open_pipeline(side, folder, OVER) as pipeline,
            ROLES["reconcile"](pipeline.settings),
            pipeline.worker() as worker,
        ):
            sale = await pipeline.backbone.open_sale(stock=1_000)
            yield Running(pipeline, worker, mariadb, dtm, sale)


async def test_outages_of_what_the_worker_needs(servers: Servers, tmp_path: Path) -> None:
    """MariaDB frozen, MariaDB killed, DTM killed, product killed: all orders confirm, by a worker that never left."""
    for name in ("mariadb", "dtm"):
        (tmp_path / name).mkdir()
    with capture_logs() as told:
        async with _running(servers, tmp_path) as running:
            await _all_outages(running)
            events = Counter(each["event"] for each in told)
    assert events["circuit_opened"] == events["circuit_closed"] >= 4
    assert (events["partitions_assigned"], events["order_buried"]) == (1, 0)


async def _all_outages(running: Running) -> None:
    ids = await running.accepted(1, 20)
    await running.all_confirmed(ids)

    running.mariadb.freeze()
    ids = await running.accepted(100, 60)
    await running.waited_out()
    running.mariadb.thaw()
    await running.all_confirmed(ids)

    running.mariadb.kill()
    ids = await running.accepted(200, 60)
    await running.waited_out()
    running.mariadb.start()
    await running.all_confirmed(ids)

    running.dtm.kill()
    ids = await running.accepted(300, 60)
    await running.waited_out()
    running.dtm.start()
    await running.all_confirmed(ids)

    await running.pipeline.backbone.stop("product")
    ids = await running.accepted(400, 60)
    await running.waited_out()
    await running.pipeline.backbone.start("product")
    await running.all_confirmed(ids)
