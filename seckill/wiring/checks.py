"""How to ask everything that an order needs on its way whether it answers."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from uuid_utils import uuid7

from seckill.admission import Admission
from seckill.domain.errors import OrderUnavailable, ProductUnavailable
from seckill.dtm.client import DtmClient
from seckill.dtm.health import NOT_SERVING_MEANS
from seckill.messaging.publisher import Publisher
from seckill.ops import Check
from seckill.settings import Settings


async def check_service(channel: grpc.aio.Channel, address: str, service: str) -> None:
    """Raises ProductUnavailable or OrderUnavailable unless the gRPC health service says SERVING."""
    unavailable = OrderUnavailable if service == "order.Order" else ProductUnavailable
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
    except grpc.aio.AioRpcError as error:
        raise unavailable(address, f"{error.code().name} {error.details()}") from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise unavailable(address, NOT_SERVING_MEANS)


def dependency_checks(
    settings: Settings,
    admission: Admission,
    publisher: Publisher,
    *,
    product: grpc.aio.Channel,
    order: grpc.aio.Channel,
    client: DtmClient,
) -> dict[str, Check]:
    """How to ask everything that an order needs on its way."""
    return {
        "redis": admission.sales.check,
        "kafka": publisher.check,
        "product": lambda: check_service(product, settings.product.grpc, "product.Product"),
        "order": lambda: check_service(order, settings.order.grpc, "order.Order"),
        "coordinator": lambda: _check_coordinator(client),
    }


async def _check_coordinator(client: DtmClient) -> None:
    await client.new_gid()


async def try_coordinator(client: DtmClient) -> None:
    """Whether it can write its log, which a gid does not need: a transaction without branches, rolled back at once."""
    gid = uuid7().hex
    await client.prepare(gid)
    await client.abort(gid, reason="only to see whether the log can be written")
