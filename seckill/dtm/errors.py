"""What can go wrong between a DTM client, a coordinator and branches. The type says whether trying again can help.

DtmError
├── MissingMetadata   a branch call without its identity
├── BadTarget         an address that is not `host:port/pkg.Service/Method`
└── CallFailed        an RPC that did not answer OK
    ├── Refused       ABORTED: a business failure; the same call will fail again
    ├── Ongoing*      FAILED_PRECONDITION: not decided yet, ask later
    └── Unavailable*  anything else; whether the call took effect is unknown
(* retryable)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import grpc


class DtmError(Exception):
    """The root. `retryable` says whether the same work may succeed when it is tried again."""

    retryable: bool = False


class MissingMetadata(DtmError):
    """A call that lacks the metadata of a branch; `names` are the missing keys."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"missing metadata: {', '.join(names)}")
        self.names = tuple(names)


class BadTarget(DtmError):
    """An address of a branch operation that nobody can call."""

    def __init__(self, target: str) -> None:
        super().__init__(f"{target!r} is not host:port/pkg.Service/Method")
        self.target = target


class CallFailed(DtmError):
    """An RPC that did not answer OK.

    `target` is what was called, `code` its status, `detail` its message, `trailing` its trailing metadata.
    """

    def __init__(
        self,
        target: str,
        code: grpc.StatusCode,
        detail: str,
        trailing: Mapping[str, str | bytes] | None = None,
    ) -> None:
        super().__init__(f"{target} answered {code.name}: {detail}")
        self.target = target
        self.code = code
        self.detail = detail
        self.trailing: Mapping[str, str | bytes] = trailing or {}


class Refused(CallFailed):
    """A business failure: roll back."""


class Ongoing(CallFailed):
    """Not decided yet: ask again later."""

    retryable = True


class Unavailable(CallFailed):
    """No usable answer: a time-out, no connection, or a code that has no meaning in the protocol."""

    retryable = True


def call_failed(target: str, error: grpc.aio.AioRpcError) -> CallFailed:
    """The error's meaning in DTM's protocol: only its code counts."""
    kinds = {grpc.StatusCode.ABORTED: Refused, grpc.StatusCode.FAILED_PRECONDITION: Ongoing}
    kind = kinds.get(error.code(), Unavailable)
    trailing = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
    return kind(target, error.code(), error.details() or "", trailing)
