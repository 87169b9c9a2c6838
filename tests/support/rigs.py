"""A checkout by itself, between services that are real and a network that a test tells what to lose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from seckill.checkout.plan import Plan
from seckill.checkout.reservations import Reservations
from seckill.checkout.tcc import TccCheckout
from seckill.dtm.protocol import TransOptions
from seckill.wiring import open_channel
from tests.support.backbone import Backbone
from tests.support.unreliable import UnreliableChannels, UnreliableClient, open_unreliable


@dataclass(frozen=True, slots=True)
class Rig:
    backbone: Backbone
    client: UnreliableClient
    channels: UnreliableChannels
    checkout: TccCheckout
    reservations: Reservations


@asynccontextmanager
async def open_rig(backbone: Backbone, *, order_address: str | None = None) -> AsyncIterator[Rig]:
    """`order_address`: where checkout and coordinator find the order service, if not at its own address."""
    settings = backbone.settings
    async with (
        open_unreliable(settings.dtm.grpc, settings.dtm.http) as (client, channels),
        open_channel(settings.product.grpc) as channel,
    ):
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=3_000)
        plan = Plan(
            product_address=settings.product.grpc,
            order_address=order_address or settings.order.grpc,
            try_timeout_ms=2_000,
            submit_timeout_ms=3_000,
            batch_max=100,
            batch_bytes_max=60_000,
            options=TransOptions(wait_result=True, timeout_to_fail_s=1, retry_interval_s=1, request_timeout_s=1),
        )
        yield Rig(backbone, client, channels, TccCheckout(client, reservations, plan), reservations)
