"""A two-phase message as its starter sees it: what a local transaction has done is told to others, surely.

    message = Message(client, await client.new_gid()).add(create_order, order)
    await message.do_and_submit(query_prepared, take_stock)

Prepared first; then the local transaction runs under the barrier (`message_branch.run_local`), and Submit has the
actions called until each answers OK: they can never refuse. Whoever dies between the local commit and Submit: the
coordinator asks `query_prepared` after `timeout_to_fail_s`, and sends or drops the message by its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import msgspec
import structlog

from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed, Refused
from seckill.dtm.protocol import DEFAULTS, MSG, MSG_BRANCH, MSG_OP, BranchContext, TransOptions, header_metadata
from seckill.dtm.starter import Starter

QUERY_TIMEOUT_MS = 3_000

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Step:
    action: str


class _CustomData(msgspec.Struct):
    """Source: DTM v1.19, client/dtmcli/trans_msg.go."""

    delay: int


class Message(Starter):
    """One global transaction. Not for use by several tasks at once."""

    trans_type = MSG

    def __init__(self, client: DtmClient, gid: str, *, options: TransOptions = DEFAULTS) -> None:
        super().__init__(client, gid, options)
        self._steps: list[_Step] = []
        self._payloads: list[bytes] = []
        self._delay_s = 0
        self._query_prepared = ""

    def add(self, action: str, payload: bytes) -> Self:
        """The next action (branch ids `01`, `02`, …), `host:port/pkg.Service/Method`."""
        self._steps.append(_Step(action))
        self._payloads.append(payload)
        return self

    def delay(self, seconds: int) -> Self:
        """The actions are called no earlier than this, counted from `prepare`."""
        self._delay_s = seconds
        return self

    @property
    def local(self) -> BranchContext:
        """Under which identity the local transaction passes its barrier."""
        return BranchContext(self.gid, self.trans_type, MSG_BRANCH, MSG_OP, self._client.address)

    async def prepare(self, query_prepared: str) -> None:
        """Makes the message known; `query_prepared` tells how the local transaction ended. May be repeated.

        Raises Refused when it was decided before, Unavailable when that is unknown.
        """
        if not self._steps:
            raise ValueError("a message needs an action")
        self._query_prepared = query_prepared
        await self._client.prepare(
            self.gid,
            trans_type=self.trans_type,
            options=self._options,
            query_prepared=query_prepared,
            steps=self._encoded_steps(),
            payloads=self._payloads,
            custom_data=self._custom_data(),
        )

    async def submit(self, *, timeout_ms: int | None = None) -> None:
        """Sends it. Once: a second call raises RuntimeError, whatever the first one's outcome was.

        With `wait_result` it returns when every action has answered OK. Raises Refused when a query has dropped the
        message before, and also when an action did not answer OK yet: `query` has to tell which.
        """
        self._submit_once()
        await self._client.submit(
            self.gid,
            trans_type=self.trans_type,
            options=self._options,
            steps=self._encoded_steps(),
            payloads=self._payloads,
            custom_data=self._custom_data(),
            query_prepared=self._query_prepared,
            timeout_ms=timeout_ms,
        )

    async def abort(self, *, reason: str = "") -> None:
        """Drops it: right only when the local transaction has surely not happened. Refused: decided before."""
        self._require_undecided()
        await self._client.abort(self.gid, trans_type=self.trans_type, options=self._options, reason=reason)

    async def do_and_submit(
        self,
        query_prepared: str,
        local: Callable[[BranchContext], Awaitable[T]],
        *,
        failure: type[Exception] | tuple[type[Exception], ...] = Refused,
    ) -> T:
        """Prepares, runs `local` (a transaction under the barrier of the context that it gets), and submits.

        What `local` raises is raised again. Before that: a `failure` drops the message; after any other error
        `query_prepared` is asked how the transaction ended, and the message is sent or dropped by its answer. Nobody
        knows it, or the caller was cancelled: the message stays as it is, and the coordinator asks later.
        """
        await self.prepare(query_prepared)
        try:
            result = await local(self.local)
        except failure as error:
            await self._drop(error)
            raise
        except Exception as error:
            await self._decide_by_query(error)
            raise
        await self.submit()
        return result

    async def _decide_by_query(self, cause: Exception) -> None:
        metadata = self.local.metadata() + header_metadata(self._options.branch_headers)
        try:
            await self._client.channels.call(self._query_prepared, b"", metadata, timeout_ms=QUERY_TIMEOUT_MS)
            await self.submit()
        except Refused:
            await self._drop(cause)
        except CallFailed as error:
            log.warning("message_undecided", gid=self.gid, error=str(error))

    async def _drop(self, cause: Exception) -> None:
        try:
            await self.abort(reason=repr(cause))
        except CallFailed as error:
            log.warning("abort_failed", gid=self.gid, error=str(error))

    def _encoded_steps(self) -> str:
        return msgspec.json.encode(self._steps).decode()

    def _custom_data(self) -> str:
        return msgspec.json.encode(_CustomData(self._delay_s)).decode() if self._delay_s else ""
