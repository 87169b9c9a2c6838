"""DTM's query API over HTTP.

The answers have the shape of DTM's (dtmsvr/api_http.go, dtmsvr/storage/trans.go): empty fields are left out, times
are RFC 3339, payloads base64, and an unknown gid is `"transaction": null`.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from seckill.coordinator import refusals
from seckill.coordinator.engine import Coordinator
from seckill.coordinator.state import BranchOp, Status, Transaction, options_to_json
from seckill.coordinator.store import StoreUnavailable

PAGE_DEFAULT = 100
PAGE_MAX = 1_000
NUMBER_MAX = 2**63 - 1
BODY_BYTES_MAX = 4_096


def coordinator_app(coordinator: Coordinator, extra_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application: DTM's paths, and what else the server shows."""
    handlers: Mapping[str, Callable[[Coordinator, Request], Awaitable[Response]]] = {
        "/api/dtmsvr/query": _query,
        "/api/dtmsvr/all": _all,
        "/api/dtmsvr/newGid": _new_gid,
        "/api/dtmsvr/resetCronTime": _reset_cron_time,
        "/api/dtmsvr/version": _version,
    }
    own = [Route(path, functools.partial(_served, coordinator, handler)) for path, handler in handlers.items()]
    reset = functools.partial(_served, coordinator, _reset_next_cron_time)
    return Starlette(routes=[*extra_routes, *own, Route("/api/dtmsvr/resetNextCronTime", reset, methods=["POST"])])


class _BadQuery(Exception):
    """A query parameter or a body that cannot be used."""


async def _served(
    coordinator: Coordinator, handler: Callable[[Coordinator, Request], Awaitable[Response]], request: Request
) -> Response:
    try:
        return await handler(coordinator, request)
    except _BadQuery as error:
        return JSONResponse({"message": str(error)}, status_code=400)
    except StoreUnavailable as error:
        return JSONResponse({"message": str(error)}, status_code=503)


async def _query(coordinator: Coordinator, request: Request) -> Response:
    gid = request.query_params.get("gid", "")
    if not gid:
        return JSONResponse({"message": "no gid specified"}, status_code=500)  # as DTM does
    found = await coordinator.find(gid)
    if found is None:
        return JSONResponse({"branches": [], "transaction": None})
    transaction, branches = found
    shown = [_branch(branch, number) for number, branch in enumerate(branches, start=1)]
    return JSONResponse({"branches": shown, "transaction": _transaction(transaction)})


async def _all(coordinator: Coordinator, request: Request) -> Response:
    """Newest first; `next_position` is empty on the last page."""
    gid = request.query_params.get("gid", "")
    if gid:
        found = await coordinator.find(gid)
        return JSONResponse({"next_position": "", "transactions": [_transaction(found[0])] if found else None})
    limit = _number(request, "limit", PAGE_DEFAULT, highest=PAGE_MAX)
    page = await coordinator.page(
        limit=limit,
        before=_optional_number(request, "position"),
        status=request.query_params.get("status") or None,
        trans_type=request.query_params.get("transType") or None,
        created_from_ms=_optional_number(request, "createTimeStart"),
        created_to_ms=_optional_number(request, "createTimeEnd"),
    )
    position = str(page[-1].number) if page and len(page) == limit else ""
    return JSONResponse({"next_position": position, "transactions": [_transaction(each) for each in page]})


async def _new_gid(coordinator: Coordinator, _request: Request) -> Response:
    return JSONResponse({"dtm_result": "SUCCESS", "gid": coordinator.new_gid()})


async def _reset_cron_time(coordinator: Coordinator, request: Request) -> Response:
    limit = _number(request, "limit", PAGE_DEFAULT, highest=PAGE_MAX)
    count = await coordinator.reset_cron(later_than_s=_optional_number(request, "timeout"), limit=limit)
    return JSONResponse({"has_remaining": count == limit, "succeed_count": count})


async def _reset_next_cron_time(coordinator: Coordinator, request: Request) -> Response:
    """Of the one transaction that the body names. A finished one is left as it is, and that is a success, as DTM's."""
    gid = await _gid_in_body(request)
    if not await coordinator.reset_cron_of(gid):
        return JSONResponse({"message": refusals.unknown_gid(gid)}, status_code=500)  # as DTM does
    return JSONResponse({"dtm_result": "SUCCESS"})


async def _gid_in_body(request: Request) -> str:
    """Raises _BadQuery unless the body is a small JSON object; a gid that is left out is empty."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise _BadQuery(f"the body has more than {BODY_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(body, type=_OfOne).gid
    except msgspec.MsgspecError as error:
        raise _BadQuery(f"the body: {error}") from error


class _OfOne(msgspec.Struct):
    """A request about one transaction."""

    gid: str = ""


async def _version(coordinator: Coordinator, _request: Request) -> Response:
    """DTM's answer has the version only; what ours stores in is worth knowing as well."""
    return JSONResponse({"version": f"seckill {version('seckill')}", "store": coordinator.store_kind})


def _number(request: Request, name: str, default: int, *, highest: int) -> int:
    number = _optional_number(request, name)
    if number is None:
        return default
    if not 1 <= number <= highest:
        raise _BadQuery(f"{name} = {number}: 1 to {highest}")
    return number


def _optional_number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(NUMBER_MAX)) or int(text) > NUMBER_MAX:
        raise _BadQuery(f"{name} = {text[:40]!r}: a whole number, not negative")
    return int(text)


def _transaction(transaction: Transaction) -> dict[str, Any]:
    ended = "finish_time" if transaction.status is Status.SUCCEED else "rollback_time"
    fields = {
        "gid": transaction.gid,
        "trans_type": transaction.trans_type,
        "status": transaction.status,
        "protocol": "grpc",
        ended: _time(transaction.finished_ms),
        "options": options_to_json(transaction.options),
        "next_cron_interval": transaction.next_cron_interval_s,
        "next_cron_time": _time(transaction.next_cron_ms),
        "owner": transaction.owner,
        "rollback_reason": transaction.rollback_reason,
        "query_prepared": transaction.query_prepared,
        "custom_data": transaction.custom_data,
    }
    always = {
        "id": transaction.number,
        "create_time": _time(transaction.created_ms),
        "update_time": _time(transaction.updated_ms),
        "concurrent": False,
    }
    return always | {name: value for name, value in fields.items() if value}


def _branch(branch: BranchOp, number: int) -> dict[str, Any]:
    fields = {
        "gid": branch.gid,
        "url": branch.url,
        "bin_data": base64.b64encode(branch.payload).decode(),
        "branch_id": branch.branch_id,
        "op": branch.op,
        "status": branch.status,
        "finish_time": _time(branch.finished_ms),
    }
    changed = _time(branch.finished_ms or branch.created_ms)
    always = {"id": number, "create_time": _time(branch.created_ms), "update_time": changed}
    return always | {name: value for name, value in fields.items() if value}


def _time(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
