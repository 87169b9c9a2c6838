"""A saga as its starter sees it: steps with an action and a compensation each, handed over in one call.

    saga = Saga(client, await client.new_gid())
    saga.add(create_order, order).add(take_stock, stock)
    await saga.submit()

The coordinator calls the actions one after the other. When one refuses, it calls the compensations of all that it has
called, the last one first, the refused one's among them: a branch has to know what it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import msgspec

from seckill.dtm.client import DtmClient
from seckill.dtm.protocol import DEFAULTS, TransOptions


@dataclass(frozen=True, slots=True)
class Step:
    """The two operations of a branch, each `host:port/pkg.Service/Method`."""

    action: str
    compensate: str


class Saga:
    """One global transaction. Not for use by several tasks at once."""

    def __init__(self, client: DtmClient, gid: str, *, options: TransOptions = DEFAULTS) -> None:
        self.gid = gid
        self._client = client
        self._options = options
        self._steps: list[Step] = []
        self._payloads: list[bytes] = []
        self._submitted = False

    def add(self, step: Step, payload: bytes) -> Self:
        """The next branch (ids `01`, `02`, …); its action and its compensation get the same payload."""
        self._steps.append(step)
        self._payloads.append(payload)
        return self

    async def submit(self, *, timeout_ms: int | None = None) -> None:
        """Starts it. Once: a second call raises RuntimeError, whatever the first one's outcome was.

        With `wait_result` it returns when every action has succeeded, and raises Refused otherwise: DTM says ABORTED
        of a saga that was compensated and of one that it still repeats, so that `query` has to tell which. Without
        it, only that the saga was taken is answered. Unavailable: the outcome is unknown.
        """
        if self._submitted:
            raise RuntimeError(f"transaction {self.gid} was submitted before")
        if not self._steps:
            raise ValueError("a saga needs a step")
        self._submitted = True
        await self._client.submit(
            self.gid,
            trans_type="saga",
            options=self._options,
            steps=msgspec.json.encode(self._steps).decode(),
            payloads=self._payloads,
            timeout_ms=timeout_ms,
        )
