"""An asyncio client of a DTM server: `dtmgimp.Dtm` over gRPC, and its query API over HTTP.

It knows no pattern: `tcc.py` does. Source of the protocol: github.com/dtm-labs/dtm v1.19, `dtmsvr/api*.go`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Self, TypeVar

import aiohttp
import grpc
import msgspec
from google.protobuf.empty_pb2 import Empty

from seckill.dtm.channels import Channels
from seckill.dtm.errors import Unavailable, call_failed
from seckill.dtm.protocol import DEFAULTS, BranchState, GlobalTransaction, TransOptions
from seckill.wire.dtmgimp_pb2 import DtmBranchRequest, DtmRequest
from seckill.wire.dtmgimp_pb2_grpc import DtmStub

PAGE = 100

R = TypeVar("R")


class _Options(msgspec.Struct):
    wait_result: bool = False
    timeout_to_fail: int = 0
    retry_interval: int = 0
    request_timeout: int = 0
    branch_headers: dict[str, str] = {}
    retry_limit: int = 0

    def value(self) -> TransOptions:
        return TransOptions(
            wait_result=self.wait_result,
            timeout_to_fail_s=self.timeout_to_fail,
            retry_interval_s=self.retry_interval,
            request_timeout_s=self.request_timeout,
            branch_headers=self.branch_headers,
            retry_limit=self.retry_limit,
        )


class _Branch(msgspec.Struct):
    branch_id: str = ""
    op: str = ""
    status: str = ""
    url: str = ""


class _Transaction(msgspec.Struct):
    gid: str
    trans_type: str
    status: str
    create_time: datetime | None = None
    update_time: datetime | None = None
    next_cron_time: datetime | None = None
    next_cron_interval: int = 0
    options: str = ""
    rollback_reason: str = ""

    def value(self, branches: list[_Branch]) -> GlobalTransaction:
        options = msgspec.json.decode(self.options, type=_Options).value() if self.options else TransOptions()
        return GlobalTransaction(
            gid=self.gid,
            trans_type=self.trans_type,
            status=self.status,
            created_at=self.create_time,
            updated_at=self.update_time,
            next_cron_at=self.next_cron_time,
            options=options,
            rollback_reason=self.rollback_reason,
            branches=tuple(BranchState(each.branch_id, each.op, each.status, each.url) for each in branches),
            next_cron_interval_s=self.next_cron_interval,
        )


class _QueryReply(msgspec.Struct):
    transaction: _Transaction | None
    branches: list[_Branch] | None = None


class _AllReply(msgspec.Struct):
    transactions: list[_Transaction] | None
    next_position: str = ""


class _ResetReply(msgspec.Struct):
    succeed_count: int = 0
    has_remaining: bool = False


class _Done(msgspec.Struct):
    """An answer that says no more than that."""

    dtm_result: str = ""


GlobalTransactions = list[GlobalTransaction]  # inside the class, `list` is its method


class DtmClient:
    """One coordinator. The gRPC channel is the caller's to close; `close()` ends what the client opened itself.

    `address` (`host:port`) is the channel's, told to branches as `dtm-dtm`; `http_url` is the base of the query
    API, for example `http://127.0.0.1:36789`; `credentials` are for the branches that it calls itself. Every method
    raises Refused, Ongoing or Unavailable.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        address: str,
        http_url: str | None = None,
        timeout_ms: int = 5_000,
        channels: Channels | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        self.channels = channels or Channels(credentials)
        self._owns_channels = channels is None
        self._stub = DtmStub(channel)
        self._http_url = http_url.rstrip("/") if http_url else None
        self._timeout_ms = timeout_ms
        self._http: aiohttp.ClientSession | None = None

    async def new_gid(self) -> str:
        reply = await self._call("NewGid", self._stub.NewGid(Empty(), timeout=self._timeout_ms / 1000))
        return reply.Gid

    async def prepare(
        self,
        gid: str,
        *,
        trans_type: str = "tcc",
        options: TransOptions = DEFAULTS,
        query_prepared: str = "",
        steps: str = "",
        payloads: Sequence[bytes] = (),
        custom_data: str = "",
    ) -> None:
        """Opens the transaction. A repeat succeeds as long as it is still prepared.

        A message brings its branches along, as `submit` says, and `query_prepared`: whom to ask whether it is to be
        sent. `custom_data` is a pattern's own options, JSON.
        """
        request = DtmRequest(
            Gid=gid, TransType=trans_type, TransOptions=options.message(), QueryPrepared=query_prepared, Steps=steps,
            BinPayloads=payloads, CustomedData=custom_data,
        )  # fmt: skip
        await self._call("Prepare", self._stub.Prepare(request, timeout=self._timeout_ms / 1000))

    async def register_branch(
        self, gid: str, *, trans_type: str, branch_id: str, data: Mapping[str, str], payload: bytes, op: str = ""
    ) -> None:
        """Tells what to call for a branch later. Not idempotent: after Unavailable, abort and take a new gid."""
        request = DtmBranchRequest(
            Gid=gid, TransType=trans_type, BranchID=branch_id, Op=op, Data=data, BusiPayload=payload
        )
        await self._call("RegisterBranch", self._stub.RegisterBranch(request, timeout=self._timeout_ms / 1000))

    async def submit(
        self,
        gid: str,
        *,
        trans_type: str = "tcc",
        options: TransOptions = DEFAULTS,
        steps: str = "",
        payloads: Sequence[bytes] = (),
        custom_data: str = "",
        query_prepared: str = "",
        timeout_ms: int | None = None,
    ) -> None:
        """Decides the transaction: commit. Send it once, and only for a gid whose Prepare succeeded.

        A DTM server accepts an unknown gid and confirms nothing, and a second Submit makes it forget the branches.
        A saga and a message bring their branches along: `steps` is JSON, with one of `payloads` for each step.
        """
        request = DtmRequest(
            Gid=gid, TransType=trans_type, TransOptions=options.message(), QueryPrepared=query_prepared, Steps=steps,
            BinPayloads=payloads, CustomedData=custom_data,
        )  # fmt: skip
        await self._call("Submit", self._stub.Submit(request, timeout=(timeout_ms or self._timeout_ms) / 1000))

    async def abort(
        self, gid: str, *, trans_type: str = "tcc", options: TransOptions = DEFAULTS, reason: str = ""
    ) -> None:
        """Decides the transaction: roll back. Waits for the branches only if Prepare asked for `wait_result`."""
        request = DtmRequest(
            Gid=gid, TransType=trans_type, TransOptions=options.message(), RollbackReason=reason[:1024]
        )
        await self._call("Abort", self._stub.Abort(request, timeout=self._timeout_ms / 1000))

    async def query(self, gid: str) -> GlobalTransaction | None:
        """The transaction and its branches; None: the coordinator does not know the gid."""
        reply = await self._get("/api/dtmsvr/query", {"gid": gid}, _QueryReply)
        return reply.transaction.value(reply.branches or []) if reply.transaction else None

    async def reset_cron_time(self, *, later_than_s: int, limit: int = PAGE) -> int:
        """Has unfinished transactions tried again now whose next attempt is further away than that; how many.

        Their pauses have doubled while something was down; call it when that is up again.
        """
        query = {"timeout": str(later_than_s), "limit": str(limit)}
        return (await self._get("/api/dtmsvr/resetCronTime", query, _ResetReply)).succeed_count

    async def reset_next_cron_time(self, gid: str) -> None:
        """Has one unfinished transaction tried again now; nothing changes for one that is finished.

        A gid that the coordinator does not know is Unavailable with HTTP's 500, as any other trouble: query it first.
        """
        await self._http_call("POST", "/api/dtmsvr/resetNextCronTime", {}, _Done, body={"gid": gid})

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
        if self._owns_channels:
            await self.channels.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: str, call: Awaitable[R]) -> R:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise call_failed(f"{self.address}/dtmgimp.Dtm/{method}", error) from error

    async def _get(self, path: str, query: Mapping[str, str], reply: type[R]) -> R:
        return await self._http_call("GET", path, query, reply)

    async def _http_call(
        self, method: str, path: str, query: Mapping[str, str], reply: type[R], *, body: Mapping[str, str] | None = None
    ) -> R:
        if self._http_url is None:
            raise ValueError("this client has no http_url, which queries need")
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_ms / 1000))
        target = self._http_url + path
        try:
            async with self._http.request(method, target, params=query, json=body) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(target, grpc.StatusCode.UNAVAILABLE, repr(error)) from error
        if response.status != HTTPStatus.OK:
            detail = f"HTTP {response.status}: {answer[:300].decode(errors='replace')}"
            raise Unavailable(target, grpc.StatusCode.UNKNOWN, detail)
        try:
            return msgspec.json.decode(answer, type=reply)
        except msgspec.MsgspecError as error:
            raise Unavailable(target, grpc.StatusCode.UNKNOWN, f"no answer of a DTM server: {error}") from error

    async def list(self, *, limit: int = PAGE, status: str | None = None) -> GlobalTransactions:
        """Up to `limit` transactions, newest first where the coordinator's store keeps an order; no branches."""
        found: GlobalTransactions = []
        position = ""
        while len(found) < limit:
            query = {"limit": str(min(PAGE, limit - len(found))), "position": position, "status": status or ""}
            page = await self._get("/api/dtmsvr/all", query, _AllReply)
            found += [each.value([]) for each in page.transactions or []]
            position = page.next_position
            if not position:
                break
        return found
