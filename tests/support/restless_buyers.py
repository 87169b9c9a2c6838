"""Buyers who keep ordering while parts of the system die, and remember everything that they were told."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from uuid_utils import uuid7

from seckill.client import FrontClient, FrontUnavailable, Problem
from seckill.domain.errors import PublishUnknown
from seckill.domain.order import Order, order_id_from_key
from seckill.messaging.publisher import Publisher
from seckill.settings import KafkaSettings

ENDED = ("confirmed", "rejected")
ASK_EVERY_S = 0.02
PERSISTENT_S = 15  # a buyer with a key asks again for so long
BUYERS = 1_000


@dataclass
class Crowd:
    """`wrong` fills with sentences: each is an answer that no fault excuses."""

    front: FrontClient
    publisher: Publisher
    kafka: KafkaSettings
    products: Sequence[int]
    chance: random.Random
    answers: Counter[str] = field(default_factory=Counter)
    accepted: dict[str, None] = field(default_factory=dict)  # order ids of 202 replies
    unsure: dict[str, None] = field(default_factory=dict)  # of 503 PENDING replies
    direct: dict[str, None] = field(default_factory=dict)  # acknowledged by Kafka
    told: dict[str, tuple[str, str]] = field(default_factory=dict)  # the first end that a buyer was told
    unreadable: set[bytes] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    number: int = 0
    buyers: int = BUYERS  # the fewer, the more of them meet their limit

    async def order_for(self, seconds: float, *, per_second: float) -> None:
        """Begins `per_second` orders each second, whatever becomes of the earlier ones; returns when all have ended."""
        acts = [self._once, self._with_key, self._directly, self._array, self._unreadable, self._nonsense]
        ends = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < ends:
                act = self.chance.choices(acts, weights=[50, 25, 12, 6, 3, 4])[0]
                group.create_task(act())
                await asyncio.sleep(self.chance.expovariate(per_second))

    async def rush(self, orders: int) -> None:
        """So many orders at once; returns when all have been answered."""
        acts = [self._once, self._with_key, self._directly]
        await asyncio.gather(*(act() for act in self.chance.choices(acts, weights=[3, 4, 2], k=orders)))

    async def rush_to_the_front(self, orders: int) -> None:
        """So many orders at once that all ask for admission."""
        acts = [self._once, self._with_key]
        await asyncio.gather(*(act() for act in self.chance.choices(acts, k=orders)))

    async def rush_past_the_front(self, orders: int) -> None:
        """So many records at once that no admission has seen."""
        await asyncio.gather(*(self._directly() for _ in range(orders)))

    async def keep_asking(self) -> None:
        """Asks for one known order after the other until cancelled: an end that was told must stay."""
        while True:
            if known := [*self.accepted, *self.unsure]:
                await self.ask(self.chance.choice(known))
            await asyncio.sleep(ASK_EVERY_S)

    async def ask(self, order_id: str) -> dict[str, Any] | None:
        """What the front says of an order that it once named; None when it is dead or busy."""
        reply = await self._answer("GET", self.front.order_result(order_id))
        if isinstance(reply, Problem):
            if reply.code != "UNAVAILABLE":
                self.wrong.append(f"order {order_id}, which the front has named, is answered {reply}")
            return None
        if reply is not None:
            self._note_end(reply)
        return reply

    # --- ways to order -------------------------------------------------------------------------------------------

    def _wish(self) -> dict[str, Any]:
        return {"user_id": self.chance.randint(1, self.buyers), "product_id": self.chance.choice(self.products)}

    async def _once(self) -> None:
        self._note_order(await self._answer("POST", self.front.order(**self._wish())))

    async def _with_key(self) -> None:
        """Twice with one key, and again as long as there is no clear answer: never more than one order."""
        self.number += 1
        wish, key = self._wish(), f"key-{self.number}"
        ids: set[str] = set()
        for _ in range(2):
            ends = time.monotonic() + PERSISTENT_S
            while time.monotonic() < ends:
                reply = await self._answer("POST", self.front.order(**wish, request_id=key))
                if order_id := self._note_order(reply):
                    ids.add(order_id)
                if reply is not None and not (isinstance(reply, Problem) and reply.status == 503):
                    break
                await asyncio.sleep(self.chance.uniform(0.2, 0.6))
        if len(ids) > 1:
            self.wrong.append(f"one key, several orders: {sorted(ids)}")

    async def _directly(self) -> None:
        wish = self._wish()
        order_id = order_id_from_key(wish["product_id"], uuid7().bytes)
        order = Order(order_id, 0, wish["user_id"], wish["product_id"], 1, time.time_ns() // 1_000_000)
        try:
            await self.publisher.publish(order)
        except PublishUnknown:
            return
        self.direct[order_id] = None

    async def _array(self) -> None:
        wishes = [self._wish() for _ in range(self.chance.randint(1, 3))]
        items = [{"uid": wish["user_id"], "pid": wish["product_id"]} for wish in wishes]
        with suppress(PublishUnknown):  # whether it is there, the topic tells
            await self.publisher.send(self.kafka.topic, key=None, value=msgspec.json.encode(items))

    async def _unreadable(self) -> None:
        self.number += 1
        form = self.chance.choice([b"\xff\xfe%d", b'{"order_id": "%d"}', b"[{}, %d]", b"not json %d"])
        value = form % self.number
        try:
            await self.publisher.send(self.kafka.topic, key=b"nonsense", value=value)
        except PublishUnknown:
            return
        self.unreadable.add(value)

    async def _nonsense(self) -> None:
        """Requests that are no orders: refused, never an order, never a 5xx of their own."""
        wish = self._wish() | self.chance.choice([{"quantity": 0}, {"quantity": 99}, {"product_id": 999_999}])
        reply = await self._answer("POST", self.front.order(**wish))
        if isinstance(reply, dict):
            self.wrong.append(f"{wish} was taken as an order: {reply}")

    # --- what was answered ---------------------------------------------------------------------------------------

    async def _answer(self, method: str, call: Any) -> dict[str, Any] | Problem | None:
        """The reply, or the problem document; None when there was no answer. Notes what a front may not answer."""
        try:
            reply: dict[str, Any] = await call
        except Problem as problem:
            self.answers[f"{method} {problem.status} {problem.code}"] += 1
            if problem.status >= 500 and (problem.status != 503 or not problem.retry_after_s):
                self.wrong.append(
                    f"{method} was answered {problem.status} {problem} (Retry-After {problem.retry_after_s})"
                )
            return problem
        except FrontUnavailable as error:
            self.answers[f"{method} no answer"] += 1
            if isinstance(error.__cause__, msgspec.DecodeError):
                self.wrong.append(f"{method}: {error}")
            return None
        self.answers[f"{method} {reply['status']}"] += 1
        return reply

    def _note_order(self, reply: dict[str, Any] | Problem | None) -> str:
        """The id of the order that the reply says was taken; empty when there is none."""
        if isinstance(reply, Problem):
            order_id = str(reply.facts["order_id"]) if reply.code == "PENDING" else ""
            if order_id:
                self.unsure[order_id] = None
            return order_id
        if reply is None:
            return ""
        self.accepted[reply["order_id"]] = None
        self._note_end(reply)
        return str(reply["order_id"])

    def _note_end(self, reply: dict[str, Any]) -> None:
        order_id, now = reply["order_id"], (reply["status"], reply.get("reason", ""))
        before = self.told.get(order_id)
        if before is not None and before != now:
            self.wrong.append(f"order {order_id} was told {before}, and later {now}")
        elif now[0] in ENDED:
            self.told[order_id] = now
