"""gRPC services: that they are what they say, and serving."""

from __future__ import annotations

import grpc
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc

from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.wire import GRPC, answering
from seckill.dtm.channels import open_channel
from seckill.wire.dtmgimp_pb2_grpc import DtmStub

ASK_TIMEOUT_S = 2.0


async def ask_coordinator(address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
    """Returns when `dtmgimp.Dtm` answers at the address. Raises Silent or Stranger."""
    async with open_channel(address, credentials) as channel:
        try:
            await DtmStub(channel).NewGid(Empty(), timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise Stranger("a gRPC server without dtmgimp.Dtm answers") from error
            await _unanswered(address, error)


async def ask_service(address: str, service: str, credentials: grpc.ChannelCredentials | None = None) -> None:
    """Returns when the health service at the address says that `service` serves. Raises Silent or Stranger."""
    request = health_pb2.HealthCheckRequest(service=service)
    async with open_channel(address, credentials) as channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}:
                raise Stranger(f"a gRPC server without {service} answers") from error
            await _unanswered(address, error)
            return
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise Silent("it says that it does not serve, or is stopping")


async def _unanswered(address: str, error: grpc.aio.AioRpcError) -> None:
    """Who is there instead, if anybody; else what gRPC said."""
    silent = error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    if silent and (found := await answering(address)) != GRPC:
        raise Stranger(f"{found} answers") from error
    raise Silent(f"{error.code().name}: {error.details()}") from error
