"""The vocabulary of DTM's gRPC protocol (v1.19): options, the identity of a branch call, the state of a transaction.

Values only: nothing here talks to anyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from seckill.dtm.errors import MissingMetadata
from seckill.wire.dtmgimp_pb2 import DtmTransOptions

GID = "dtm-gid"
TRANS_TYPE = "dtm-trans_type"
BRANCH_ID = "dtm-branch_id"
OP = "dtm-op"
DTM = "dtm-dtm"

TCC = "tcc"
SAGA = "saga"
XA = "xa"
MSG = "msg"

TRY = "try"
CONFIRM = "confirm"
CANCEL = "cancel"
ACTION = "action"
COMPENSATE = "compensate"
COMMIT = "commit"
ROLLBACK = "rollback"
MSG_OP = "msg"  # a message's local part, and the question how it ended

MSG_BRANCH = "00"

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class TransOptions:
    """How a coordinator treats one transaction. Zero means the coordinator's default; times are whole seconds."""

    wait_result: bool = False  # answer Submit and Abort only after the branches have been called
    timeout_to_fail_s: int = 0  # cancel when it is still prepared after this time
    retry_interval_s: int = 0  # first pause before a failed branch call is repeated; doubles
    request_timeout_s: int = 0  # of one branch call
    branch_headers: Mapping[str, str] = field(default_factory=dict)  # metadata added to every branch call
    retry_limit: int = 0

    def message(self) -> DtmTransOptions:
        return DtmTransOptions(
            WaitResult=self.wait_result,
            TimeoutToFail=self.timeout_to_fail_s,
            RetryInterval=self.retry_interval_s,
            BranchHeaders=self.branch_headers,
            RequestTimeout=self.request_timeout_s,
            RetryLimit=self.retry_limit,
        )

    @classmethod
    def from_message(cls, message: DtmTransOptions) -> Self:
        return cls(
            wait_result=message.WaitResult,
            timeout_to_fail_s=message.TimeoutToFail,
            retry_interval_s=message.RetryInterval,
            request_timeout_s=message.RequestTimeout,
            branch_headers=dict(message.BranchHeaders),
            retry_limit=message.RetryLimit,
        )


DEFAULTS = TransOptions()


def header_metadata(headers: Mapping[str, str]) -> Metadata:
    """Branch headers as gRPC metadata: keys in lower case, the values of `-bin` keys as bytes."""
    pairs = ((key.lower(), value) for key, value in headers.items())
    return tuple((key, value.encode() if key.endswith("-bin") else value) for key, value in pairs)


@dataclass(frozen=True, slots=True)
class BranchContext:
    """Who is calling a branch: the transaction, the branch, the operation, and the coordinator's address if known."""

    gid: str
    trans_type: str
    branch_id: str
    op: str
    dtm: str = ""

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]] | None) -> Self:
        """Reads a call's metadata. Raises MissingMetadata naming every key that is absent or empty."""
        found = {key: value for key, value in metadata or () if isinstance(value, str)}
        missing = [key for key in (GID, TRANS_TYPE, BRANCH_ID, OP) if not found.get(key)]
        if missing:
            raise MissingMetadata(missing)
        return cls(found[GID], found[TRANS_TYPE], found[BRANCH_ID], found[OP], found.get(DTM, ""))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (
            (GID, self.gid),
            (TRANS_TYPE, self.trans_type),
            (BRANCH_ID, self.branch_id),
            (OP, self.op),
            (DTM, self.dtm),
        )


@dataclass(frozen=True, slots=True)
class BranchState:
    """One operation of one branch as the coordinator knows it: `prepared`, `succeed` or `failed`."""

    branch_id: str
    op: str
    status: str
    url: str


@dataclass(frozen=True, slots=True)
class GlobalTransaction:
    """A transaction as the coordinator tells it: `prepared`, `submitted`, `aborting`, `succeed` or `failed`."""

    gid: str
    trans_type: str
    status: str
    created_at: datetime | None
    updated_at: datetime | None
    next_cron_at: datetime | None  # when the coordinator looks at it next
    options: TransOptions
    rollback_reason: str = ""
    branches: tuple[BranchState, ...] = ()  # empty when it comes from a list
    next_cron_interval_s: int = 0  # the pause before that look

    @property
    def finished(self) -> bool:
        """Whether the coordinator will do no more about it."""
        return self.status in {"succeed", "failed"}

    def failed_calls(self, first_interval_s: int) -> int:
        """How often its Confirm or Cancel has failed since one last succeeded: each failure doubles the pause.

        `first_interval_s`: the coordinator's own first pause, where the transaction names none. Source: DTM v1.19,
        dtmsvr/trans_status.go. Answers that ask for time (FAILED_PRECONDITION) leave the pause as it is.
        """
        if self.status not in {"submitted", "aborting"}:
            return 0
        first_s = max(1, self.options.retry_interval_s or first_interval_s)
        return max(0, (self.next_cron_interval_s // first_s).bit_length() - 1)
