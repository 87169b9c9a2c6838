"""What is concluded from a service that does not say what its database holds prepared."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from seckill.checkout.prepared import PreparedBranches
from seckill.domain.errors import ProductUnavailable
from seckill.dtm.serving import serve
from seckill.dtm.xa_branch import XaHidden, XaUnsupported
from seckill.wire import product_pb2, product_pb2_grpc


class Product(product_pb2_grpc.ProductServicer):
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def PreparedXa(
        self, _request: Empty, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> product_pb2.PreparedXaReply:
        raise self._error


async def seen_of(error: Exception) -> set[str]:
    """What is seen of a product service that fails with this."""
    add = product_pb2_grpc.add_ProductServicer_to_server
    async with (
        serve("127.0.0.1:0", lambda server: add(Product(error), server)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        prepared = PreparedBranches(channel, channel, product_address=address, order_address=address, timeout_ms=5_000)
        return await prepared.in_product()


@pytest.mark.parametrize("error", [XaUnsupported("sqlite"), XaHidden()])
async def test_what_cannot_be_seen_keeps_nobody_from_the_rest(error: Exception) -> None:
    """A database without XA has nothing prepared; one that does not show it is told in the log, and no obstacle."""
    assert await seen_of(error) == set()


async def test_a_service_that_breaks_is_no_empty_one() -> None:
    """Any other failure is raised: an orphan must not be overlooked for it."""
    with pytest.raises(ProductUnavailable, match="PreparedXa: INTERNAL"):
        await seen_of(RuntimeError("broken"))
