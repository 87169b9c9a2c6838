"""Fixtures of the integration suites: the services past the topic and their carrier; a front and its product.

On the real side DTM coordinates; a test that stops the coordinator is marked `own_coordinator` and gets ours there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from consumers.reconcile import Reconciler
from consumers.sales_watch import SalesWatch
from consumers.seckill_rmq import SeckillCarrier
from seckill.embedded import embedded_redis
from seckill.wiring import open_carrier, open_reconciler
from tests.support.backbone import Backbone, open_backbone
from tests.support.fronts import RunningFront, running_front, running_product
from tests.support.letters import letter_services, letters, letters_side
from tests.support.pipeline import own_redis
from tests.support.rebuilds import open_watch
from tests.support.redis_servers import Backend
from tests.support.rigs import Rig, open_rig
from tests.support.sides import Side

__all__ = ["letter_services", "letters", "letters_side"]

FRONT_DATABASE = 2
"""Of a real Redis server."""


@pytest.fixture
async def backbone(request: pytest.FixtureRequest, side: Side, tmp_path: Path) -> AsyncIterator[Backbone]:
    ours = request.node.get_closest_marker("own_coordinator") is not None
    async with AsyncExitStack() as stack:
        if request.node.get_closest_marker("own_redis") is not None:
            side = await stack.enter_async_context(own_redis(side))
        yield await stack.enter_async_context(open_backbone(side, tmp_path, own_coordinator=ours))


@pytest.fixture
async def rig(backbone: Backbone) -> AsyncIterator[Rig]:
    async with open_rig(backbone) as opened:
        yield opened


@pytest.fixture
async def carrier(backbone: Backbone) -> AsyncIterator[SeckillCarrier]:
    async with AsyncExitStack() as stack:
        opened, _ = await stack.enter_async_context(open_carrier(backbone.settings))
        assert isinstance(opened, SeckillCarrier)
        yield opened


@pytest.fixture
async def reconciler(backbone: Backbone) -> AsyncIterator[Reconciler]:
    """Looks after every product of the backbone's Redis: the test is marked `own_redis`."""
    async with open_reconciler(backbone.settings) as (opened, _):
        yield opened


@pytest.fixture
async def watch(backbone: Backbone) -> AsyncIterator[SalesWatch]:
    """Looks after every sale of the backbone's databases: the test is marked `own_redis`."""
    async with open_watch(backbone) as opened:
        yield opened


@pytest.fixture(scope="module")
def front_redis(side: Side) -> Iterator[Backend]:
    """A server of the module's own: a front publishes whatever is due in the Redis that it is given."""
    if side.kind == "embedded":
        with embedded_redis() as url:
            yield Backend(url, run_id_check=False)
    else:
        yield Backend(side.empty_redis(FRONT_DATABASE), run_id_check=True)


@pytest.fixture
async def product_address(side: Side, tmp_path: Path) -> AsyncIterator[str]:
    async with running_product(await side.database("product", tmp_path)) as address:
        yield address


@pytest.fixture
async def front(front_redis: Backend, product_address: str) -> AsyncIterator[RunningFront]:
    async with running_front(front_redis, product_address) as running:
        yield running
