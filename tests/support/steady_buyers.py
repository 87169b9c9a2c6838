"""Buyers behind a load balancer: orders at a steady pace to whichever front is ready, and every answer remembered."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

LOOK_EVERY_S = 0.1
"""How often a balancer asks whether a front is ready: below the roles' `drain_delay_ms`."""


@dataclass(slots=True)
class Front:
    """A front as a balancer sees it."""

    url: str
    ready: bool = False
    listening: bool = False  # and not about to end


@dataclass
class SteadyBuyers:
    """`wrong` fills with what may never be answered. Each order has its key, and is repeated until it is answered with
    something else than 503.
    """

    fronts: Sequence[Front]
    product_id: int
    repeat_after_s: float = 0.2
    answered_within_s: float = 20
    fresh_connections: bool = False  # for each request one: none is used that the front has just closed as idle
    answers: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    unready_seen: set[str] = field(default_factory=set)  # fronts that said 503 to /readyz while they still answered
    _number: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def ordering(self, *, per_second: float) -> AsyncIterator[None]:
        """Orders are placed until the block ends; then those that were begun are answered."""
        ended = asyncio.Event()
        async with self._balanced() as (http, group):
            placing = group.create_task(self._place_until(ended, group, http, per_second))
            try:
                yield
            finally:
                ended.set()
                await placing

    async def place(self, count: int, *, per_second: float) -> None:
        """So many orders, of the buyers 1, 2, …, paced by the clock; returns when all of them are answered."""
        loop = asyncio.get_running_loop()
        async with self._balanced() as (http, group):
            began, orders = loop.time(), []
            for placed in range(1, count + 1):
                orders.append(group.create_task(self._order(http, next(self._number))))
                await asyncio.sleep(began + placed / per_second - loop.time())
            await asyncio.wait(orders)

    @asynccontextmanager
    async def _balanced(self) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncio.TaskGroup]]:
        """A session and a group for orders; as long as the block runs, the fronts are looked at."""
        connector = aiohttp.TCPConnector(force_close=self.fresh_connections)
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
            looking = [group.create_task(self._look(http, front)) for front in self.fronts]
            try:
                yield http, group
            finally:
                for task in looking:
                    task.cancel()

    async def _place_until(
        self, ended: asyncio.Event, group: asyncio.TaskGroup, http: aiohttp.ClientSession, per_second: float
    ) -> None:
        orders: set[asyncio.Task[None]] = set()
        while not ended.is_set():
            task = group.create_task(self._order(http, next(self._number)))
            orders.add(task)
            task.add_done_callback(orders.discard)
            await asyncio.sleep(1 / per_second)
        if orders:
            await asyncio.wait(orders)

    async def _look(self, http: aiohttp.ClientSession, front: Front) -> None:
        while True:
            try:
                async with http.get(f"{front.url}/readyz") as response:
                    stopping = "lifecycle" in (await response.json())["checks"]
                front.ready, front.listening = response.status == 200, not stopping
                if stopping:
                    self.unready_seen.add(front.url)
            except aiohttp.ClientError:
                front.ready = front.listening = False
            await asyncio.sleep(LOOK_EVERY_S)

    async def _order(self, http: aiohttp.ClientSession, user_id: int) -> None:
        try:
            async with asyncio.timeout(self.answered_within_s):
                while not await self._post(http, user_id):
                    await asyncio.sleep(self.repeat_after_s)
        except TimeoutError:
            self.wrong.append(f"buyer {user_id} had no answer for {self.answered_within_s} s")

    async def _post(self, http: aiohttp.ClientSession, user_id: int) -> bool:
        """Whether that was an answer for good."""
        # Where none is ready, because what they all need is away, a balancer goes on with those that it has.
        ready = [front for front in self.fronts if front.ready] or [front for front in self.fronts if front.listening]
        if not ready:
            self.answers["no front"] += 1
            return False
        front = ready[next(self._turn) % len(ready)]
        wish, key = {"user_id": user_id, "product_id": self.product_id}, {"Idempotency-Key": f"buyer-{user_id}"}
        try:
            async with http.post(f"{front.url}/v1/orders", json=wish, headers=key) as response:
                self.answers[str(response.status)] += 1
                if response.status == HTTPStatus.REQUEST_TIMEOUT:
                    return False  # this process was held up between its connecting and its sending
                document = await response.json(content_type=None)
        except aiohttp.ClientConnectorError:
            self.answers["refused"] += 1  # nobody listens there; the balancer will see it as well
            return False
        except aiohttp.ClientError as error:
            self.wrong.append(f"buyer {user_id}: {type(error).__name__}: {error}")
            return False
        with suppress(KeyError):
            self.accepted.add(document["order_id"])
        self._judge(response.status, response.headers.get("retry-after"), document)
        return response.status != 503

    def _judge(self, status: int, retry_after: str | None, document: object) -> None:
        if not (200 <= status < 300 or 400 <= status < 500 or (status == 503 and retry_after)):
            self.wrong.append(f"{status} {document} (Retry-After: {retry_after})")
