"""A gRPC server for branches: errors become DTM's statuses in one place, health, bounded load, a graceful end.

May import gRPC, SQLAlchemy's errors, and the branch modules beside it. Handlers only raise; what a caller sees is
decided here, and never holds a traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import Counter
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from seckill.dtm.barrier import InvalidMetadata, Raced
from seckill.dtm.database import session_factory
from seckill.dtm.ending import ALONE, Ending
from seckill.dtm.errors import MissingMetadata
from seckill.dtm.health import CheckingHealth, check_database
from seckill.dtm.message_branch import RolledBack
from seckill.dtm.protocol import BRANCH_ID, GID, OP, TRANS_TYPE, BranchContext, Metadata
from seckill.dtm.saga_branch import ActionRefused, ActionTooLate
from seckill.dtm.tcc_branch import DecisionLost, InvalidRequest, TryMissing, TryRefused, TryTooLate
from seckill.dtm.xa_branch import XaBusy, XaHidden, XaMissing, XaRepeated, XaTooLate, XaUnsupported

CONCURRENT_CALLS_MAX = 1_000
"""Calls in one server at a time; above it callers get RESOURCE_EXHAUSTED, which coordinators repeat."""

GRACE_S_MAX = 86_400.0
"""gRPC's own limit for running calls; ours is the drain's."""

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a partner
    ("grpc.keepalive_time_ms", 300_000),  # a caller that vanished is found out, and its connection closed
    ("grpc.keepalive_timeout_ms", 10_000),
)

UNDECIDABLE = Counter(
    "dtm_branch_undecidable_total",
    "Confirms and Cancels that contradict what was decided before. Each one needs a person.",
    ["method"],
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """What a failed call answers."""

    code: grpc.StatusCode
    detail: str
    trailing: Metadata = ()


StatusOf = Callable[[Exception], Status | None]
"""The meaning of a service's own errors; None for one that it does not know."""

BytesMethod = Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


def _none(_error: Exception) -> None:
    """The meaning of errors for a service that has none of its own."""


def add_methods(server: grpc.aio.Server, service: str, methods: Mapping[str, BytesMethod]) -> None:
    """Has `/service/method` answered for each of these, bytes in and out: for who has no generated servicer."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])


def branch_context(
    context: grpc.aio.ServicerContext[Any, Any],
    *,
    op: str | Collection[str],
    trans_type: str | Collection[str] = "tcc",
) -> BranchContext:
    """Who calls, for a method that serves these operations of these patterns.

    Raises MissingMetadata and InvalidMetadata.
    """
    branch = BranchContext.from_metadata(context.invocation_metadata())
    _require_served(TRANS_TYPE, branch.trans_type, trans_type)
    _require_served(OP, branch.op, op)
    return branch


def _require_served(name: str, value: str, served: str | Collection[str]) -> None:
    allowed = (served,) if isinstance(served, str) else tuple(served)
    if value not in allowed:
        raise InvalidMetadata(name, f"{value[:45]!r}, this method serves {', '.join(map(repr, allowed))}")


@asynccontextmanager
async def serve(
    address: str,
    register: Callable[[grpc.aio.Server], None],
    *,
    names: Sequence[str] = (),
    status_of: StatusOf = _none,
    drain: Ending = ALONE,
    credentials: grpc.ServerCredentials | None = None,
    only: Collection[str] = (),
    check: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[str]:
    """Serves at `host:port` until the block ends; yields the address with the port that was really taken.

    With `credentials` it speaks TLS alone. `only`: the methods (`/pkg.Service/Method`) that are served here, of those
    that `register` adds; empty: all of them.

    `names` are the full names of the services, for the health service, which says NOT_SERVING while `check` raises, and
    for good once `drain` has begun; when the block ends no new call is taken (UNAVAILABLE), and running ones have the
    time that `drain` gives.
    """
    calls = _ErrorsToStatuses(status_of)
    server = grpc.aio.server(
        interceptors=[*([_Only(only)] if only else []), calls],
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
    )
    register(server)
    health_of = Health(server, drain, check)
    port = add_port(server, address, credentials)
    try:
        await asyncio.shield(server.start())  # a start that is cut off half way could not be stopped
        await health_of.serving(names)
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await health_of.stopping()
        await stop_server(server, drain, running=lambda: calls.running)


class Health:
    """The health service of one server. It says NOT_SERVING from the moment in which `drain` begins."""

    def __init__(
        self, server: grpc.aio.Server, drain: Ending, check: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._servicer = CheckingHealth(check)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        self._telling: asyncio.Task[None] | None = None
        drain.when_begun(self._tell)

    async def serving(self, names: Sequence[str]) -> None:
        for name in ("", *names):
            await self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stopping(self) -> None:
        await self._servicer.enter_graceful_shutdown()

    def _tell(self) -> None:
        self._telling = asyncio.create_task(self.stopping())


async def stop_server(server: grpc.aio.Server, drain: Ending, *, running: Callable[[], int]) -> None:
    """Takes no new call, and waits for the running ones as long as `drain` allows; then they are cancelled."""
    stopping = asyncio.create_task(server.stop(GRACE_S_MAX))
    await asyncio.wait({stopping}, timeout=drain.work_left_s())
    if not stopping.done():
        drain.leave("calls", running())
        await server.stop(0)
    await stopping


@dataclass(frozen=True, slots=True)
class BranchPort:
    """A second port without TLS, for a coordinator that dials branches in plaintext; it serves these methods only."""

    address: str
    methods: Collection[str]


@dataclass(frozen=True, slots=True)
class BranchServer:
    """A running service: where it listens, and a check that raises when its database does not answer."""

    address: str
    check: Callable[[], Awaitable[None]]
    branch_address: str | None = None


@asynccontextmanager
async def serve_on_database(
    address: str,
    register: Callable[[grpc.aio.Server, async_sessionmaker[AsyncSession]], None],
    *,
    engine: AsyncEngine,
    require_schema: Callable[[AsyncEngine], Awaitable[None]],
    names: Sequence[str],
    status_of: StatusOf,
    drain: Ending,
    credentials: grpc.ServerCredentials | None = None,
    branch_port: BranchPort | None = None,
) -> AsyncIterator[BranchServer]:
    """As `serve`, on a database of the service's own, whose engine is closed at the end.

    `require_schema` raises when the database is not as the service needs it; then nothing is served.
    """
    sessions = session_factory(engine)

    async def check() -> None:
        await check_database(sessions)

    try:
        await require_schema(engine)
        serve_at = partial(
            serve,
            register=lambda server: register(server, sessions),
            names=names,
            status_of=status_of,
            drain=drain,
            check=check,
        )
        async with AsyncExitStack() as stack:
            bound = await stack.enter_async_context(serve_at(address, credentials=credentials))
            branches = None
            if branch_port is not None:
                branches = await stack.enter_async_context(serve_at(branch_port.address, only=branch_port.methods))
            log.info("service_serving", services=names, address=bound, branch_address=branches)
            yield BranchServer(bound, check, branches)
    finally:
        await engine.dispose()


def add_port(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Listens at `host:port`, with TLS if there are credentials; the port that was taken. Raises RuntimeError."""
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)


class _Only(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Serves the named methods and the health service; any other is unknown here."""

    def __init__(self, methods: Collection[str]) -> None:
        self._methods = frozenset(methods)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        if method in self._methods or method.startswith(f"/{health.SERVICE_NAME}/"):
            return await continuation(handler_call_details)
        return None  # type: ignore[return-value]  # gRPC's word for a method that is not there; the stubs forgot it


class _ErrorsToStatuses(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every unary handler, so that handlers only raise."""

    def __init__(self, status_of: StatusOf) -> None:
        self._status_of = status_of
        self.running = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary, handler_call_details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, call: Any, method: str) -> Any:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            self.running += 1
            try:
                return await call(request, context)
            except Exception as error:  # noqa: BLE001 - the boundary to the caller: every error becomes a status
                status = self._status_of(error) or _protocol_status(error) or _INTERNAL
                _report(error, status, method, context)
            finally:
                self.running -= 1
            return await context.abort(status.code, status.detail, status.trailing)

        return answer


_INTERNAL = Status(grpc.StatusCode.INTERNAL, "internal error")


def _protocol_status(error: Exception) -> Status | None:
    match error:
        case MissingMetadata() | InvalidMetadata() | InvalidRequest():
            return Status(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        case TryRefused():
            return Status(grpc.StatusCode.ABORTED, str(error), error.trailing)
        case TryTooLate() | ActionRefused() | ActionTooLate() | RolledBack() | XaTooLate():
            return Status(grpc.StatusCode.ABORTED, str(error))
        case DecisionLost() | TryMissing() | XaMissing() | XaRepeated():
            return Status(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        case XaUnsupported():
            return Status(grpc.StatusCode.UNIMPLEMENTED, str(error))
        case XaHidden():
            return Status(grpc.StatusCode.PERMISSION_DENIED, str(error))
        case OperationalError() | InterfaceError() | PoolTimeout() | Raced() | XaBusy():
            return Status(grpc.StatusCode.UNAVAILABLE, "the database cannot do this now")
        case _:
            return None


def _report(error: Exception, status: Status, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    who = {key: value for key, value in context.invocation_metadata() or () if key in (GID, BRANCH_ID)}
    facts = {
        "method": method, "gid": who.get(GID), "branch_id": who.get(BRANCH_ID),
        "code": status.code.name, "detail": status.detail,
    }  # fmt: skip
    match error:
        case DecisionLost() | TryMissing() | XaMissing():
            UNDECIDABLE.labels(method).inc()
            log.error("branch_contradicted", **facts)
        case _ if status is _INTERNAL:
            log.error("call_failed", **facts, exc_info=error)
        case _ if status.code is grpc.StatusCode.UNAVAILABLE:
            log.warning("call_unavailable", **facts, error=repr(error))
        case _:
            log.info("call_refused", **facts)
