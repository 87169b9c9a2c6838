"""A saga as its starter sees it: steps with an action and a compensation each, handed over in one call.

    saga = Saga(client, await client.new_gid())
    saga.add(create_order, order).add(take_stock, stock)
    await saga.submit()

The coordinator calls the actions one after the other, or at once where `concurrent` allows it. When one refuses, it
calls the compensations of all that it has called, the last one first, the refused one's among them: a branch has to
know what it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from seckill.dtm.client import DtmClient
from seckill.dtm.protocol import DEFAULTS, SAGA, TransOptions
from seckill.dtm.starter import Starter


@dataclass(frozen=True, slots=True)
class Step:
    """The two operations of a branch, each `host:port/pkg.Service/Method`."""

    action: str
    compensate: str


class _CustomData(msgspec.Struct):
    """Source: DTM v1.19, client/dtmcli/trans_saga.go. The keys of a JSON object are strings; these are numbers."""

    orders: dict[int, list[int]]
    concurrent: bool


class Saga(Starter):
    """One global transaction. Not for use by several tasks at once.

    With `concurrent` all actions run at once, and all compensations, but for what `order` says.
    """

    trans_type = SAGA

    def __init__(
        self, client: DtmClient, gid: str, *, options: TransOptions = DEFAULTS, concurrent: bool = False
    ) -> None:
        super().__init__(client, gid, options)
        self._concurrent = concurrent
        self._steps: list[Step] = []
        self._payloads: list[bytes] = []
        self._orders: dict[int, list[int]] = {}

    def add(self, step: Step, payload: bytes) -> Self:
        """The next branch (ids `01`, `02`, …); its action and its compensation get the same payload."""
        self._steps.append(step)
        self._payloads.append(payload)
        return self

    def order(self, branch: int, after: Sequence[int]) -> Self:
        """In a concurrent saga: the action of step `branch` runs when those of `after` have succeeded; its
        compensation before theirs. Steps are counted from 0, in the order of `add`; `after` are earlier ones.
        """
        if not self._concurrent:
            raise ValueError("only a concurrent saga takes an order")
        if any(not 0 <= each < branch for each in after):
            raise ValueError(f"step {branch} can only run after earlier ones, not after {list(after)}")
        self._orders[branch] = list(after)
        return self

    async def submit(self, *, timeout_ms: int | None = None) -> None:
        """Starts it. Once: a second call raises RuntimeError, whatever the first one's outcome was.

        With `wait_result` it returns when every action has succeeded, and raises Refused otherwise: DTM says ABORTED
        of a saga that was compensated and of one that it still repeats, so that `query` has to tell which. Without
        it, only that the saga was taken is answered. Unavailable: the outcome is unknown.
        """
        if not self._steps:
            raise ValueError("a saga needs a step")
        if self._orders and max(self._orders) >= len(self._steps):
            raise ValueError(f"an order names step {max(self._orders)}, of {len(self._steps)}")
        self._submit_once()
        await self._client.submit(
            self.gid,
            trans_type=self.trans_type,
            options=self._options,
            steps=msgspec.json.encode(self._steps).decode(),
            payloads=self._payloads,
            custom_data=self._custom_data(),
            timeout_ms=timeout_ms,
        )

    def _custom_data(self) -> str:
        if not self._concurrent:
            return ""
        return msgspec.json.encode(_CustomData(self._orders, self._concurrent)).decode()
