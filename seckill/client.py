"""An asyncio client of the front's HTTP API: what the command line, the demo and applications talk through.

Answers come back as the front's own JSON objects; refusals as `Problem`, which carries the stable code; silence as
`FrontUnavailable`, which says whether the request may have been carried out all the same.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from seckill.domain.errors import SeckillError

Json = dict[str, Any]

POLL_S_MAX = 20.0
"""Longest single wait asked of the front; longer ones are made of several."""

_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class FrontUnavailable(SeckillError):
    """The front did not answer. `maybe_done`: the request had left, and may have been carried out."""

    retryable = True

    def __init__(self, url: str, detail: str, *, maybe_done: bool) -> None:
        super().__init__(f"the front at {url}: {detail}")
        self.url = url
        self.detail = detail
        self.maybe_done = maybe_done


class Problem(SeckillError):
    """The front answered with a problem document (RFC 9457). `facts` are its members beyond the standard ones."""

    def __init__(self, status: int, code: str, detail: str, facts: Mapping[str, Any], retry_after_s: float) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.status = status
        self.code = code
        self.detail = detail
        self.facts = facts
        self.retry_after_s = retry_after_s  # 0: the same request will not succeed later


class FrontClient:
    """One front, as its clients see it. Made by `open_front`."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, operator_token: str | None) -> None:
        self._session = session
        self.base_url = base_url
        self._operator = {"Authorization": f"Bearer {operator_token}"} if operator_token else {}

    # --- buyers ---------------------------------------------------------------------------------------------------

    async def order(self, *, user_id: int, product_id: int, quantity: int = 1, request_id: str | None = None) -> Json:
        """Places an order: `{"order_id", "status", …}`. A repeat with the same `request_id` is the same order."""
        body = {"user_id": user_id, "product_id": product_id, "quantity": quantity}
        headers = {"Idempotency-Key": request_id} if request_id else {}
        return await self._call("POST", "/v1/orders", body=body, headers=headers)

    async def order_result(self, order_id: str, *, wait_s: float = 0) -> Json:
        """`{"order_id", "status", "reason"}`; with `wait_s` it returns early only when the order has ended."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            query = {"wait": f"{min(left_s, POLL_S_MAX):.3f}"} if left_s else {}
            result = await self._call("GET", f"/v1/orders/{order_id}", query=query, waits_s=min(left_s, POLL_S_MAX))
            if result["status"] != "processing" or left_s <= POLL_S_MAX:
                return result

    # --- operators ------------------------------------------------------------------------------------------------

    async def sales(self, *, product_id: int | None = None, state: str | None = None) -> list[Json]:
        query = {"product_id": str(product_id)} if product_id is not None else {}
        if state:
            query["state"] = state
        listed: list[Json] = (await self._call("GET", "/v1/sales", query=query))["sales"]
        return listed

    async def sale(self, sale_id: int) -> Json:
        """The sale's row, with `redis`: Redis' own view of it, or None."""
        return await self._call("GET", f"/v1/sales/{sale_id}")

    async def create_sale(self, fields: Json, *, change_id: str) -> Json:
        """A repeat with the same `change_id` answers the sale that the first one made."""
        return await self._change("POST", "/v1/sales", fields, change_id)

    async def update_sale(self, sale_id: int, fields: Json, *, change_id: str) -> Json:
        """`stock_delta` among the fields adds or takes units; `taken` in the answer says how many could be taken."""
        return await self._change("PATCH", f"/v1/sales/{sale_id}", fields, change_id)

    async def set_sale_state(self, sale_id: int, action: str) -> Json:
        """`action`: pause, resume or close. Harmless to repeat."""
        return await self._call("POST", f"/v1/sales/{sale_id}/{action}", headers=self._operator)

    async def status(self) -> Json:
        """The front's readiness and the ledger of every sale."""
        return await self._call("GET", "/v1/status", accept=(200, 503))

    async def _change(self, method: str, path: str, fields: Json, change_id: str) -> Json:
        headers = {**self._operator, "Idempotency-Key": change_id}
        return await self._call(method, path, body=fields, headers=headers)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        waits_s: float = 0,
        accept: tuple[int, ...] = (200, 201, 202),
    ) -> Json:
        try:
            async with self._session.request(
                method,
                f"{self.base_url}{path}",
                data=None if body is None else msgspec.json.encode(body),
                params=query,
                headers={"Content-Type": "application/json", **(headers or {})},
                timeout=aiohttp.ClientTimeout(total=(self._session.timeout.total or 30) + waits_s),
            ) as response:
                raw = await response.read()
                if response.status in accept:
                    return _object(raw, self.base_url)
                raise _problem(response, raw, self.base_url)
        except _NEVER_SENT as error:
            raise FrontUnavailable(self.base_url, reason_of(error), maybe_done=False) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FrontUnavailable(self.base_url, reason_of(error), maybe_done=True) from error


@asynccontextmanager
async def open_front(
    address: str,
    *,
    operator_token: str | None = None,
    timeout_s: float = 15,
    connections_max: int = 100,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[FrontClient]:
    """A client of the front at `host:port` (or a whole `http(s)://` URL). Connects on first use; HTTPS with `tls`."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections_max, ssl=tls or True),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=5),
        trust_env=False,
    ) as session:
        yield FrontClient(session, front_url(address, https=tls is not None), operator_token)


def front_url(address: str, *, https: bool = False) -> str:
    """The URL of an address as the settings write it; one that listens everywhere is reached on loopback."""
    if "://" in address:
        return address.rstrip("/")
    host, _, port = address.rpartition(":")
    reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - where to connect, not to listen
    return f"http{'s' if https else ''}://{reached}:{port}"


def _object(raw: bytes, base_url: str) -> Json:
    try:
        return msgspec.json.decode(raw, type=Json)
    except msgspec.DecodeError as error:
        raise FrontUnavailable(
            base_url, f"answered with something that is not its API ({error})", maybe_done=True
        ) from error


def _problem(response: aiohttp.ClientResponse, raw: bytes, base_url: str) -> SeckillError:
    """The front refuses with a problem document that has a code; whatever refuses without one is no front."""
    try:
        document = msgspec.json.decode(raw, type=Json)
    except msgspec.DecodeError:
        document = {}
    if "code" not in document:
        detail = f"answered with HTTP {response.status} and no problem document, as no front does"
        return FrontUnavailable(base_url, detail, maybe_done=response.status >= 500)
    facts = {key: value for key, value in document.items() if key not in {"type", "title", "status", "detail", "code"}}
    return Problem(
        response.status,
        str(document["code"]),
        str(document.get("detail") or document.get("title") or response.reason or ""),
        facts,
        _seconds(response.headers.get("Retry-After")),
    )


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isascii() and header.isdigit() else 0.0


def reason_of(error: BaseException) -> str:
    """In a few words, why an HTTP request got no answer."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        return os.strerror(error.os_error.errno)
    return f"{type(error).__name__}: {error}"
