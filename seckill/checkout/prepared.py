"""XA branches that their databases hold prepared: no row tells of them until they are committed.

A coordinator commits product first. So of a gid that it has lost, or calls finished, product's own rows decide:

    a reservation of the gid can be seen ─▶ product has committed: commit both
    none                                 ─▶ roll back order ─▶ only after its OK: product
"""

from __future__ import annotations

import time

import grpc
import structlog
from google.protobuf.empty_pb2 import Empty

from seckill.domain.errors import OrderUnavailable, ProductUnavailable
from seckill.wire import order_pb2_grpc, product_pb2, product_pb2_grpc

log = structlog.get_logger()


class PreparedBranches:
    """Opens nothing. Raises ProductUnavailable and OrderUnavailable."""

    def __init__(
        self,
        product: grpc.aio.Channel,
        order: grpc.aio.Channel,
        *,
        product_address: str,
        order_address: str,
        timeout_ms: int,
    ) -> None:
        self._product = product_pb2_grpc.ProductStub(product)
        self._order = order_pb2_grpc.OrderStub(order)
        self._product_address = product_address
        self._order_address = order_address
        self._timeout_s = timeout_ms / 1000
        self._seen_s: dict[str, float] = {}

    async def in_product(self) -> set[str]:
        """The gids that product holds prepared."""
        try:
            reply = await self._product.PreparedXa(Empty(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if not _shows_none(self._product_address, error):
                raise ProductUnavailable(self._product_address, f"PreparedXa: {error.code().name}") from error
            return set()
        return {branch.gid for branch in reply.branches}

    async def in_order(self) -> set[str]:
        try:
            reply = await self._order.PreparedXa(Empty(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if not _shows_none(self._order_address, error):
                raise OrderUnavailable(self._order_address, f"PreparedXa: {error.code().name}") from error
            return set()
        return {branch.gid for branch in reply.branches}

    async def ages_ms(self) -> dict[str, int]:
        """The gids that either holds prepared, and for how long this process has seen each of them: a database does not
        tell since when.
        """
        now_s = time.monotonic()
        found = await self.in_product() | await self.in_order()
        self._seen_s = {gid: self._seen_s.get(gid, now_s) for gid in sorted(found)}
        return {gid: int((now_s - since_s) * 1_000) for gid, since_s in self._seen_s.items()}

    async def committed_by_product(self, gid: str) -> bool:
        request = product_pb2.ReservationsOfGidRequest(gid=gid)
        try:
            reply = await self._product.ReservationsOfGid(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise ProductUnavailable(self._product_address, f"ReservationsOfGid: {error.code().name}") from error
        return bool(reply.reservations)


def _shows_none(address: str, error: grpc.aio.AioRpcError) -> bool:
    """Whether there is nothing to be seen: no XA in that database or that version of the service, or no privilege to
    look, which keeps nobody from looking after the other patterns.
    """
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        log.warning("prepared_xa_hidden", address=address, detail=error.details())
        return True
    return error.code() is grpc.StatusCode.UNIMPLEMENTED
