"""`seckill up` in a process of its own, and what a test needs to fill its topics and to use `seckill dlq` on it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner, Result

from seckill.cli.app import app

T = TypeVar("T")

WITHIN_S = 30
LOOK_EVERY_S = 0.1

TOPIC = "seckill-topic"
DEAD_LETTERS = "seckill-topic-dlt"


@dataclass(frozen=True, slots=True)
class Office:
    """`environment` makes commands find the running pipeline, whose addresses are `addresses`."""

    environment: Mapping[str, str]
    addresses: Mapping[str, str]
    runner: CliRunner = field(default_factory=CliRunner)

    def seckill(self, *arguments: str, stdin: str | None = None) -> Result:
        """A command in this process, which saves the time of a new one."""
        return self.runner.invoke(app, arguments, input=stdin, env=self.environment)

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What a command that ends with `code` prints with --json."""
        ended = self.seckill(*arguments, "--json")
        assert ended.exit_code == code, (ended.stderr, ended.stdout)
        return json.loads(ended.stdout.splitlines()[-1])

    # --- filling the topics ------------------------------------------------------------------------------------------

    def send(self, *values: bytes, topic: str = TOPIC, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Records as anybody could write them."""
        asyncio.run(self._send(values, topic, headers))

    async def _send(self, values: Sequence[bytes], topic: str, headers: Sequence[tuple[str, bytes]]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.addresses["kafka.bootstrap"]) as producer:
            for value in values:
                await producer.send_and_wait(topic, value, headers=list(headers))

    def sale(self, *, stock: int = 10) -> tuple[int, int]:
        """Product and sale of a new, open sale."""
        product_id = uuid4().int % 10**9 + 1
        sale = self.json("sale", "create", "--product", str(product_id), "--stock", str(stock))
        return product_id, int(sale["sale_id"])

    def stranded(self, product_id: int, sale_id: int, *, users: Sequence[int]) -> list[dict[str, Any]]:
        """Letters of orders that came past the front while the sale was paused; it is paused still."""
        self.json("sale", "pause", str(sale_id))
        for user in users:
            self.json("publish", "--user", str(user), "--product", str(product_id), "--direct", "--sale", str(sale_id))
        return self.letters("--product", str(product_id), count=len(users))

    # --- looking -----------------------------------------------------------------------------------------------------

    def letters(self, *filters: str, count: int = 1) -> list[dict[str, Any]]:
        """As many letters as that, newest first, once they are in the index."""

        def look() -> list[dict[str, Any]] | None:
            ended = self.seckill("dlq", "list", *filters, "--json")
            assert ended.exit_code in (0, 1), ended.stderr
            found: list[dict[str, Any]] = json.loads(ended.stdout)["letters"]
            return found if len(found) >= count else None

        return until(look, f"{count} letters with {filters}")

    def letter(self, letter_id: int) -> dict[str, Any]:
        found: dict[str, Any] = self.json("dlq", "show", str(letter_id))["letter"]
        return found


def until(look: Callable[[], T | None], what: str) -> T:
    """What `look` finds, once it finds something."""
    ends = time.monotonic() + WITHIN_S
    while (found := look()) is None:
        assert time.monotonic() < ends, f"not within {WITHIN_S} s: {what}"
        time.sleep(LOOK_EVERY_S)
    return found
