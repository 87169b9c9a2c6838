"""`dtmgimp.Dtm` over gRPC: unpacks requests, and says which status a refusal has."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from seckill.coordinator.engine import Coordinator
from seckill.coordinator.pattern import Contents
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.store import StoreUnavailable
from seckill.dtm.protocol import TransOptions
from seckill.dtm.serving import Status
from seckill.wire.dtmgimp_pb2 import DtmBranchRequest, DtmGidReply, DtmRequest
from seckill.wire.dtmgimp_pb2_grpc import DtmServicer

Context = grpc.aio.ServicerContext[Any, Any]


def status_of(error: Exception) -> Status | None:
    match error:
        case Refusal(code=code, message=message):
            return Status(code, message)
        case StoreUnavailable():
            return Status(grpc.StatusCode.UNAVAILABLE, f"the coordinator's log: {error}")
        case _:
            return None


def _contents(request: DtmRequest) -> Contents:
    return Contents(request.QueryPrepared, request.Steps, request.BinPayloads, request.CustomedData)


class DtmApi(DtmServicer):
    """One coordinator as a gRPC service. Raises what it raises."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def NewGid(self, request: Empty, context: Context) -> DtmGidReply:
        return DtmGidReply(Gid=self._coordinator.new_gid())

    async def Prepare(self, request: DtmRequest, context: Context) -> Empty:
        options = TransOptions.from_message(request.TransOptions)
        await self._coordinator.prepare(request.Gid, request.TransType, options, _contents(request))
        return Empty()

    async def RegisterBranch(self, request: DtmBranchRequest, context: Context) -> Empty:
        await self._coordinator.register_branch(
            request.Gid, request.TransType, request.BranchID, request.Data, request.BusiPayload
        )
        return Empty()

    async def Submit(self, request: DtmRequest, context: Context) -> Empty:
        options = TransOptions.from_message(request.TransOptions)
        await self._coordinator.submit(request.Gid, request.TransType, options, _contents(request))
        return Empty()

    async def Abort(self, request: DtmRequest, context: Context) -> Empty:
        await self._coordinator.abort(request.Gid, request.TransType, request.RollbackReason)
        return Empty()
