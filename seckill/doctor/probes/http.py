"""HTTP: what a role says of itself, what a coordinator tells, and the time that a server's answers carry."""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec

from seckill.client import reason_of
from seckill.doctor.facts import Clock, CoordinatorFacts, RoleFacts
from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.wire import HTTP, raise_stranger

ASK_TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 1_000_000
HALF_A_SECOND_MS = 500.0  # the Date of an answer is cut to the second

FAR_FUTURE_MS = 9_000_000_000_000_000
"""A moment in the year 287,166: SQL knows years to 9999 only, DTM's other stores do not care."""

NO_NUMBER = "seckill-doctor"

Json = dict[str, Any]


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: Json | None  # None: not a JSON object
    clock: Clock | None


async def ask_role(url: str, context: ssl.SSLContext | None = None) -> RoleFacts:
    """`/readyz` of a role. Raises Silent or Stranger."""
    async with _session(context) as session:
        answer = await _get(session, f"{url}/readyz")
    if answer.body is None or "role" not in answer.body:
        raise Stranger("an HTTP server that is no role of ours answers")
    checks = answer.body.get("checks", {})
    return RoleFacts(str(answer.body["role"]), bool(answer.body.get("ready")), dict(checks), answer.clock)


async def ask_coordinator_http(url: str) -> CoordinatorFacts:
    """Whether DTM's query API answers at the URL, and what it tells of itself. Raises Silent or Stranger.

    DTM does not say what it stores in. Its SQL store cannot take a year of six digits, its SQL and Redis stores need a
    position that is a number, its boltdb store minds neither: two questions that only read tell which it is. Each
    leaves one line of error in DTM's log.
    """
    async with _session() as session:
        known = await _get(session, f"{url}/api/dtmsvr/query?gid={NO_NUMBER}")
        if known.status != 200 or known.body is None or "transaction" not in known.body:
            raise Stranger("an HTTP server that is not DTM answers")
        told = await _get(session, f"{url}/api/dtmsvr/version")
        body = told.body if told.status == 200 and told.body is not None else {}
        version, store = str(body.get("version", "")), body.get("store")
        own = store is not None
        if store is None:
            store = await _store_of_dtm(session, url)
        return CoordinatorFacts(version, own, str(store) if store else None, known.clock)


async def _store_of_dtm(session: aiohttp.ClientSession, url: str) -> str | None:
    far = await _get(session, f"{url}/api/dtmsvr/all?limit=1&createTimeEnd={FAR_FUTURE_MS}")
    worded = await _get(session, f"{url}/api/dtmsvr/all?limit=1&position={NO_NUMBER}")
    match far.status == 200, worded.status == 200:
        case False, False:
            return "sql"
        case True, False:
            return "redis"
        case True, True:
            return "boltdb"
        case _:
            return None


def _session(context: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=context if context is not None else True)
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S), trust_env=False
    )


async def _get(session: aiohttp.ClientSession, url: str) -> _Answer:
    before = time.time()
    try:
        async with session.get(url) as response:
            raw = await response.content.read(ANSWER_BYTES_MAX)
            clock = _clock(response.headers.get("Date"), before, time.time())
            return _Answer(response.status, _object(raw), clock)
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        await raise_stranger(url.split("/")[2], expected=HTTP)
        raise Silent(reason_of(error)) from error
    except aiohttp.ClientError as error:
        await raise_stranger(url.split("/")[2], expected=HTTP)
        raise Stranger("something that does not speak HTTP answers") from error


def _object(raw: bytes) -> Json | None:
    try:
        return msgspec.json.decode(raw, type=Json)
    except msgspec.DecodeError:
        return None


def _clock(date: str | None, before_s: float, after_s: float) -> Clock | None:
    """The server wrote its time, cut to the second, at some moment between the two."""
    try:
        told_s = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    middle_s = (before_s + after_s) / 2
    ahead_ms = (told_s - middle_s) * 1000 + HALF_A_SECOND_MS
    return Clock(ahead_ms, HALF_A_SECOND_MS + (after_s - before_s) * 500)
