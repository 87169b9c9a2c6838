"""How the coordinator says no: DTM's status codes and messages to the letter, its spelling included.

Source: github.com/dtm-labs/dtm v1.19, dtmsvr/api.go and the error mapping of client/dtmgrpc/type.go. Two refusals are
ours alone: a Submit for a gid that nobody prepared, and requests that this coordinator cannot serve.
"""

from __future__ import annotations

import grpc

from seckill.coordinator.state import Status
from seckill.dtm.errors import BadTarget, CallFailed, Ongoing, Refused, Unavailable

FAILURE = "FAILURE"
ONGOING = "ONGOING"

_RETRIED = (
    "your http/grpc result should be specified as in:\n"
    "http://d.dtm.pub/practice/arch.html#proto\n"
    "unkown result will be retried: "
)


class Refusal(Exception):
    """A request that was not served: the gRPC status to answer with."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def cannot_prepare(status: Status) -> Refusal:
    return Refusal(grpc.StatusCode.ABORTED, f"current status '{status}', cannot prepare. {FAILURE}")


def cannot_submit(status: Status) -> Refusal:
    return Refusal(grpc.StatusCode.ABORTED, f"current status '{status}', cannot sumbmit. {FAILURE}")


def cannot_submit_unknown(gid: str) -> Refusal:
    """DTM would make an empty transaction of it, and call that a success."""
    return Refusal(grpc.StatusCode.ABORTED, f"no trans with gid: {gid} found, cannot submit. {FAILURE}")


def cannot_abort(trans_type: str, status: Status) -> Refusal:
    text = f"trans type: '{trans_type}' current status '{status}', cannot abort. {FAILURE}"
    return Refusal(grpc.StatusCode.ABORTED, text)


def cannot_abort_unknown(gid: str) -> Refusal:
    return Refusal(grpc.StatusCode.INTERNAL, unknown_gid(gid))


def unknown_gid(gid: str) -> str:
    return f"no TransGlobal with gid: {gid} found"


def cannot_register(gid: str) -> Refusal:
    return Refusal(grpc.StatusCode.ABORTED, f"no trans with gid: {gid} status: {Status.PREPARED} found {FAILURE}")


def registered_twice() -> Refusal:
    return Refusal(grpc.StatusCode.UNKNOWN, "storage: UniqueKeyConflict")


def unknown_branch_type(trans_type: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNKNOWN, f"unknow trans type: {trans_type}")


def unsupported(trans_type: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"transactions of type {trans_type!r} are not supported")


def invalid(problem: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, problem)


def still_ongoing() -> Refusal:
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, ONGOING)


def not_succeeded(reason: str) -> Refusal:
    """What one who waits for a saga or a message is told when it has not succeeded: in time, or at all."""
    text = _failure(reason) if reason else f"wait result not return success: {FAILURE}"
    return Refusal(grpc.StatusCode.ABORTED, text)


def is_still_ongoing(refusal: Refusal) -> bool:
    return refusal.code is grpc.StatusCode.FAILED_PRECONDITION


def why_refused(url: str, error: Refused) -> str:
    """The reason of a rollback, when an action has refused."""
    return f"url:{url} return failed: {_failure(error.detail)}"


def is_ongoing(error: CallFailed) -> bool:
    """Branches on DTM clients before 1.10 say ABORTED with this message when they mean FAILED_PRECONDITION."""
    return isinstance(error, Ongoing) or (isinstance(error, Refused) and error.detail == ONGOING)


def branch_failed(error: CallFailed | BadTarget) -> Refusal:
    """What one who waits for the result is told when a branch call failed; it will be repeated."""
    match error:
        case BadTarget(target=target) if "://" in target:
            problem = f"call dtmdriver.Use() before you use custom scheme for '{target}'"
            return Refusal(grpc.StatusCode.UNKNOWN, _RETRIED + problem)
        case BadTarget(target=target):
            return Refusal(grpc.StatusCode.UNKNOWN, f"{_RETRIED}bad url: '{target}'. no '/' found")
        case Refused(detail=detail):
            return Refusal(grpc.StatusCode.ABORTED, _RETRIED + _failure(detail))
        case Unavailable(code=grpc.StatusCode.DEADLINE_EXCEEDED):
            return Refusal(error.code, _RETRIED + _go_error(error.code, "context deadline exceeded"))
        case CallFailed():
            return Refusal(error.code, _RETRIED + _go_error(error.code, error.detail))


def _failure(detail: str) -> str:
    """A detail that ends with the word once."""
    return f"{detail.removesuffix(' ' + FAILURE)} {FAILURE}"


def _go_error(code: grpc.StatusCode, detail: str) -> str:
    """How a gRPC error reads when grpc-go prints it."""
    name = "Canceled" if code is grpc.StatusCode.CANCELLED else "".join(map(str.capitalize, code.name.split("_")))
    return f"rpc error: code = {name} desc = {detail}"
