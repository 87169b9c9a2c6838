"""What the roles' own metrics say. Reads over HTTP, and only the metrics that a rule looks at."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from seckill.alerts.metric_rules import WATCHED_COUNTERS, WATCHED_GAUGES
from seckill.alerts.snapshot import Roles, Sample, Snapshot, Source
from seckill.client import front_url, reason_of

ANSWER_BYTES_MAX = 16_777_216
"""Of one role's metrics; what comes after is not read."""

RESOLVED_WITHIN_S = 2.0
"""How long a name server has to tell the addresses of a name."""

KEPT_MAX = 1_000
"""Processes whose counters are remembered."""

Samples = Mapping[Sample, float]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IPv4 addresses of a host's name and port; none when they cannot be told."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a role shows its metrics. `name` is for people. `dispensable`: an answer without metrics is fine."""

    name: str
    address: str  # host:port, or a URL
    dispensable: bool = False

    @property
    def url(self) -> str:
        return f"{front_url(self.address)}/metrics"


@dataclass(frozen=True, slots=True)
class Door:
    """One process behind a place's name. `address`: its own; empty: nobody knows. `url` is asked, as that of `host`."""

    place: Place
    address: str
    url: str
    shown: str
    host: str | None = None  # None: the URL names it already


class RoleMetrics:
    """All roles at once, each process of a role. Who does not answer is told as silent, under the role's name, and the
    others are read all the same.

    Of a metric that several processes show the highest counts, for gauges and for growth. What a counter had grown by
    before its role was first read is not counted; after a process was started anew, also at another address, everything
    since is.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        tls: ssl.SSLContext | None,
        within_s: float,
        resolve: Resolve | None = None,
    ) -> None:
        self._places = places
        self._tls = tls
        self._within_s = within_s
        self._resolve = resolve or addresses_of
        self._before: dict[tuple[Place, str], Samples] = {}
        self._known: set[Place] = set()

    async def read(self, now_ms: int) -> Snapshot:
        timeout = aiohttp.ClientTimeout(total=self._within_s)
        connector = aiohttp.TCPConnector(ssl=self._tls or True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            found = await asyncio.gather(*(doors_of(place, self._resolve) for place in self._places))
            doors = [door for each in found for door in each]
            answers = await asyncio.gather(*(_ask(session, door) for door in doors))
        silent: dict[str, str] = {}
        gauges: dict[Sample, float] = {}
        grown: dict[Sample, float] = {}
        for door, answer in zip(doors, answers, strict=True):
            if isinstance(answer, str):
                silent[door.place.name] = answer
                continue
            _highest(gauges, {each: value for each, value in answer.items() if each[0] in WATCHED_GAUGES})
            _highest(grown, self._grown(door, answer))
        self._known |= {door.place for door, answer in zip(doors, answers, strict=True) if not isinstance(answer, str)}
        unread = frozenset({Source.ROLES}) if silent else frozenset()
        return Snapshot(now_ms, roles=Roles(gauges, grown), silent=silent, unread=unread)

    def _grown(self, door: Door, now: Samples) -> Samples:
        at = door.place, door.address
        before = self._before.pop(at, {} if door.address and door.place in self._known else None)
        self._before[at] = now
        if len(self._before) > KEPT_MAX:
            del self._before[next(iter(self._before))]
        return growth(before, now)


async def doors_of(place: Place, resolve: Resolve) -> list[Door]:
    """Each address of a name that has several, as that of a role that runs more than once; else the name itself."""
    parts = urlsplit(place.url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = sorted(set(await resolve(host, port)))
    if len(addresses) < 2:
        return [Door(place, next(iter(addresses), ""), place.url, place.address)]
    ends = {each: f"{each}:{port}" for each in addresses}
    return [
        Door(place, each, urlunsplit(parts._replace(netloc=end)), f"{place.address} ({end})", host)
        for each, end in ends.items()
    ]


async def addresses_of(host: str, port: int) -> Sequence[str]:
    """As the system resolves it. IPv4 alone: of a process with an address of each kind one must do."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVED_WITHIN_S):
            found = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # whoever asks the name is told what is wrong with it
        return []
    return [str(address[0]) for *_, address in found]


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


async def _ask(session: aiohttp.ClientSession, door: Door) -> Samples | str:
    """The samples, or what is wrong."""
    headers = {"Host": urlsplit(door.place.url).netloc} if door.host else None
    try:
        async with session.get(door.url, headers=headers, server_hostname=door.host) as response:
            if door.place.dispensable and response.status == HTTPStatus.NOT_FOUND:
                return {}
            if response.status != HTTPStatus.OK:
                return f"{door.shown} answers HTTP {response.status}"
            return samples_of(await _text(response))
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{door.shown}: {reason_of(error)}"
    except ValueError as error:
        return f"{door.shown}: no metrics: {error}"


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
