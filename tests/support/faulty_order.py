"""The order service with a defect that only some buyers' orders meet.

`python faulty_order.py PRODUCT USER,USER,…` serves what `seckill order` serves, on the same settings, except that a Try
of a group that holds an order of one of these buyers for that product raises an error that nobody foresaw. Restarted
as `seckill order` it is mended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection
from functools import partial

import grpc
import structlog

from seckill.draining import Drain
from seckill.dtm.database import create_engine
from seckill.dtm.serving import serve_on_database
from seckill.dtm.xa_branch import XaBranches
from seckill.log import configure_logging
from seckill.ops import Readiness, serve_ops
from seckill.order.service import NAMES, Context, OrderService, Sessions, status_of
from seckill.schema import require
from seckill.settings import Settings, load_settings
from seckill.wire import order_pb2, order_pb2_grpc
from seckill.wiring.process import until_stopped

log = structlog.get_logger()


class FaultyOrders(OrderService):
    def __init__(
        self, sessions: Sessions, xa: Callable[[], XaBranches], product_id: int, buyers: Collection[int]
    ) -> None:
        super().__init__(sessions, xa)
        self._product_id = product_id
        self._buyers = frozenset(buyers)

    async def CreateOrderCheck(
        self, request: order_pb2.CreateOrderRequest, context: Context
    ) -> order_pb2.CreateOrderResponse:
        if request.pid == self._product_id and self._buyers & {item.user_id for item in request.items}:
            raise RuntimeError("a defect of the order service")
        return await super().CreateOrderCheck(request, context)


async def serve(settings: Settings, product_id: int, buyers: Collection[int]) -> None:
    """Until SIGTERM."""
    drain = Drain(settings.order.drain_timeout_ms)
    engine = create_engine(
        settings.order.database_url.get_secret_value(),
        pool_size=settings.order.pool_size,
        lock_wait_s=settings.order.lock_wait_s,
    )

    def register(server: grpc.aio.Server, sessions: Sessions) -> None:
        orders = FaultyOrders(sessions, partial(XaBranches, engine), product_id, buyers)
        order_pb2_grpc.add_OrderServicer_to_server(orders, server)

    service = serve_on_database(
        settings.order.grpc,
        register,
        engine=engine,
        require_schema=partial(require, "order"),
        names=NAMES,
        status_of=status_of,
        drain=drain,
    )
    async with service as served:
        readiness = Readiness("order", {"database": served.check})
        async with serve_ops(settings.order.ops, readiness, drain):
            log.info("role_started", role="order")
            await until_stopped()
            drain.begin()


if __name__ == "__main__":
    chosen = load_settings()
    configure_logging(chosen.log.level, json_lines=chosen.log.json_lines)
    asyncio.run(serve(chosen, int(sys.argv[1]), [int(buyer) for buyer in sys.argv[2].split(",")]))
