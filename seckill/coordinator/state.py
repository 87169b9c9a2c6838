"""What the coordinator knows about a transaction and its branch operations: values, as they are in the log."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from seckill.dtm.protocol import TransOptions


class Status(StrEnum):
    """Of a transaction; a branch operation is PREPARED until it has answered OK, then SUCCEED.

    An action of a saga that refused is FAILED.
    """

    PREPARED = "prepared"
    SUBMITTED = "submitted"
    ABORTING = "aborting"
    SUCCEED = "succeed"
    FAILED = "failed"


UNFINISHED = (Status.PREPARED, Status.SUBMITTED, Status.ABORTING)
DECIDED = (Status.SUBMITTED, Status.ABORTING)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Transaction:
    """A global transaction. `owner` is the coordinator that is calling its branches, empty when none is."""

    gid: str
    trans_type: str
    status: Status
    options: TransOptions
    created_ms: int
    updated_ms: int
    next_cron_ms: int  # when a cron run takes it up; while it has an owner, when the owner's lease ends
    next_cron_interval_s: int
    owner: str = ""
    finished_ms: int | None = None
    rollback_reason: str = ""
    query_prepared: str = ""  # whom to ask about a message that nobody submitted
    custom_data: str = ""  # JSON: a saga's orders, a message's delay
    number: int = 0  # given by the log: larger is newer


@dataclass(frozen=True, slots=True)
class BranchOp:
    """One operation of a branch, called when the decision is the one that it belongs to."""

    gid: str
    branch_id: str
    op: str
    url: str  # host:port/pkg.Service/Method; empty: nothing to call
    payload: bytes
    created_ms: int
    status: Status = Status.PREPARED
    finished_ms: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the other operations of its transaction."""
        return self.branch_id, self.op

    def answered(self, status: Status) -> BranchOp:
        """It after its final answer."""
        return replace(self, status=status, finished_ms=now_ms())


class OptionsJson(msgspec.Struct, omit_defaults=True):
    """`options` as DTM keeps and tells them (`TransOptions` of client/dtmcli/dtmimp/trans_base.go)."""

    wait_result: bool = False
    timeout_to_fail: int = 0
    request_timeout: int = 0
    retry_interval: int = 0
    branch_headers: dict[str, str] = {}
    retry_limit: int = 0


def options_to_json(options: TransOptions) -> str:
    shown = OptionsJson(
        wait_result=options.wait_result,
        timeout_to_fail=options.timeout_to_fail_s,
        request_timeout=options.request_timeout_s,
        retry_interval=options.retry_interval_s,
        branch_headers=dict(options.branch_headers),
        retry_limit=options.retry_limit,
    )
    return msgspec.json.encode(shown).decode()


def options_from_json(text: str) -> TransOptions:
    shown = msgspec.json.decode(text, type=OptionsJson)
    return TransOptions(
        wait_result=shown.wait_result,
        timeout_to_fail_s=shown.timeout_to_fail,
        request_timeout_s=shown.request_timeout,
        retry_interval_s=shown.retry_interval,
        branch_headers=shown.branch_headers,
        retry_limit=shown.retry_limit,
    )
