"""Fixtures of the integration suites: the services past the topic and their carrier; a front and its product."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from consumers.seckill_rmq import SeckillCarrier
from seckill.wiring import open_carrier
from tests.support.backbone import Backbone, backbone_settings, open_backbone
from tests.support.fronts import RunningFront, running_front, running_product


@pytest.fixture
async def backbone(tmp_path: Path, redis_server: str, kafka_server: str) -> AsyncIterator[Backbone]:
    async with open_backbone(backbone_settings(tmp_path, redis_server, kafka_server)) as opened:
        yield opened


@pytest.fixture
async def carrier(backbone: Backbone) -> AsyncIterator[SeckillCarrier]:
    async with AsyncExitStack() as stack:
        opened, _ = await stack.enter_async_context(open_carrier(backbone.settings))
        assert isinstance(opened, SeckillCarrier)
        yield opened


@pytest.fixture
async def product_address(tmp_path: Path) -> AsyncIterator[str]:
    async with running_product(tmp_path) as address:
        yield address


@pytest.fixture
async def front(redis_server: str, product_address: str) -> AsyncIterator[RunningFront]:
    async with running_front(redis_server, product_address) as running:
        yield running
