"""An operator at the HTTP API of the dead letters, who does not give up when the role dies under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

ASK_EVERY_S = 0.2
OPEN = ("new", "replaying")


@dataclass
class LetterOperator:
    http: aiohttp.ClientSession

    async def open_letters(self, product_id: int) -> dict[str, int]:
        """How many of a product's letters are in each state in which something has to become of them."""
        wanted = [("product_id", str(product_id)), *(("state", state) for state in OPEN)]
        async with self.http.get("/v1/letters/stats", params=wanted) as reply:
            by_state: dict[str, int] = (await reply.json())["by_state"]
        return {state: count for state, count in by_state.items() if count}

    async def until_indexed(self, product_id: int, letters: int) -> None:
        """Returns when the index has so many letters of the product."""
        while (await self.open_letters(product_id)).get("new", 0) < letters:
            await asyncio.sleep(ASK_EVERY_S)

    async def until_all(self, deed: Literal["replay", "discard"], product_id: int) -> None:
        """Says it again and again, also to a role that does not answer, until nothing is open."""
        while True:
            try:
                if not await self.open_letters(product_id):
                    return
                await self._many(deed, product_id)
            except (aiohttp.ClientError, TimeoutError):
                pass  # it is down, hangs, or was cut off half way: that is what this operator is for
            await asyncio.sleep(ASK_EVERY_S)

    async def _many(self, deed: str, product_id: int) -> None:
        request: dict[str, Any] = {
            "filter": {"product_id": product_id}, "dry_run": False,
            "operator": "an operator", "note": "for the table of crash points",
        }  # fmt: skip
        async with self.http.post(f"/v1/letters/{deed}", json=request) as reply:
            reply.raise_for_status()


@asynccontextmanager
async def letter_operator(address: str, token: str) -> AsyncIterator[LetterOperator]:
    timeout = aiohttp.ClientTimeout(total=4)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(f"http://{address}", headers=headers, timeout=timeout) as http:
        yield LetterOperator(http)
