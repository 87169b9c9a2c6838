"""What the roles' own metrics say. Reads over HTTP, and only the metrics that a rule looks at."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from seckill.alerts.metric_rules import WATCHED_COUNTERS, WATCHED_GAUGES
from seckill.alerts.snapshot import Roles, Sample, Snapshot, Source
from seckill.client import front_url, reason_of

ANSWER_BYTES_MAX = 16_777_216
"""Of one role's metrics; what comes after is not read."""

Samples = Mapping[Sample, float]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a role shows its metrics. `name` is for people. `dispensable`: an answer without metrics is fine."""

    name: str
    address: str  # host:port, or a URL
    dispensable: bool = False

    @property
    def url(self) -> str:
        return f"{front_url(self.address)}/metrics"


class RoleMetrics:
    """All roles at once. A role that does not answer is told as silent, and the others are read all the same.

    Of a metric that several roles show the highest counts, for gauges and for growth. What a counter had grown by
    before it was first read is not counted; after a role was started anew, everything since is.
    """

    def __init__(self, places: Sequence[Place], *, tls: ssl.SSLContext | None, within_s: float) -> None:
        self._places = places
        self._tls = tls
        self._within_s = within_s
        self._before: dict[Place, Samples] = {}

    async def read(self, now_ms: int) -> Snapshot:
        timeout = aiohttp.ClientTimeout(total=self._within_s)
        connector = aiohttp.TCPConnector(ssl=self._tls or True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            answers = await asyncio.gather(*(_ask(session, place) for place in self._places))
        silent: dict[str, str] = {}
        gauges: dict[Sample, float] = {}
        grown: dict[Sample, float] = {}
        for place, answer in zip(self._places, answers, strict=True):
            if isinstance(answer, str):
                silent[place.name] = answer
                continue
            _highest(gauges, {each: value for each, value in answer.items() if each[0] in WATCHED_GAUGES})
            _highest(grown, growth(self._before.get(place), answer))
            self._before[place] = answer
        unread = frozenset({Source.ROLES}) if silent else frozenset()
        return Snapshot(now_ms, roles=Roles(gauges, grown), silent=silent, unread=unread)


def growth(before: Samples | None, now: Samples) -> Samples:
    """By how much each counter has grown. A lower number than before is that of a process that was started anew."""
    if before is None:
        return {}
    counters = {each: value for each, value in now.items() if each[0] in WATCHED_COUNTERS}
    return {
        each: value - (before.get(each, 0.0) if value >= before.get(each, 0.0) else 0.0)
        for each, value in counters.items()
        if value != before.get(each, 0.0)
    }


def samples_of(text: str) -> Samples:
    """The metrics that are looked at, of an answer. Raises ValueError when it cannot be read."""
    watched = WATCHED_GAUGES | WATCHED_COUNTERS
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in watched]
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families("\n".join([*lines, ""]))
        for sample in family.samples
    }


def _highest(into: dict[Sample, float], found: Samples) -> None:
    for each, value in found.items():
        into[each] = max(value, into.get(each, value))


async def _ask(session: aiohttp.ClientSession, place: Place) -> Samples | str:
    """The samples, or what is wrong."""
    try:
        async with session.get(place.url) as response:
            if place.dispensable and response.status == HTTPStatus.NOT_FOUND:
                return {}
            if response.status != HTTPStatus.OK:
                return f"{place.address} answers HTTP {response.status}"
            return samples_of(await _text(response))
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{place.address}: {reason_of(error)}"
    except ValueError as error:
        return f"{place.address}: no metrics: {error}"


async def _text(response: aiohttp.ClientResponse) -> str:
    """Raises ValueError for what is too long, or no metrics at all."""
    body = b""
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError(f"more than {ANSWER_BYTES_MAX} bytes")
    text = body.decode()
    if "# TYPE " not in text:
        raise ValueError("it is something else")
    return text
