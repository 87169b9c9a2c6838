"""What a branch server answers for the errors of the branch modules, and for calls that a method does not serve."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from seckill.dtm import BranchContext, CallFailed, Channels
from seckill.dtm.message_branch import RolledBack
from seckill.dtm.saga_branch import ActionRefused, ActionTooLate
from seckill.dtm.serving import add_methods, branch_context, serve
from seckill.dtm.tcc_branch import DecisionLost, TryMissing, TryTooLate
from seckill.dtm.xa_branch import XaBusy, XaMissing, XaRepeated, XaTooLate, XaUnsupported

ABORTED = grpc.StatusCode.ABORTED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

CONTEXT = BranchContext("gid-1", "xa", "01", "action")


async def answered(error: Exception | None, context: BranchContext = CONTEXT) -> tuple[grpc.StatusCode, str]:
    """The status of a call to a method of XA whose business raises this."""

    async def method(_request: bytes, call: Any) -> bytes:
        branch_context(call, op=("action", "commit"), trans_type=("xa", "msg"))
        if error is not None:
            raise error
        return b""

    async with (
        serve("127.0.0.1:0", lambda server: add_methods(server, "test.Branch", {"Sell": method})) as address,
        Channels() as channels,
    ):
        try:
            await channels.call(f"{address}/test.Branch/Sell", b"", context.metadata(), timeout_ms=2_000)
        except CallFailed as failed:
            return failed.code, failed.detail
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RolledBack(CONTEXT), ABORTED),
        (XaTooLate(CONTEXT), ABORTED),
        (ActionRefused("short"), ABORTED),
        (ActionTooLate(CONTEXT), ABORTED),
        (TryTooLate(CONTEXT), ABORTED),
        (DecisionLost(CONTEXT, "commit"), FAILED_PRECONDITION),
        (TryMissing(CONTEXT), FAILED_PRECONDITION),
        (XaMissing(CONTEXT), FAILED_PRECONDITION),
        (XaRepeated(CONTEXT), FAILED_PRECONDITION),
        (XaBusy(CONTEXT), grpc.StatusCode.UNAVAILABLE),
        (XaUnsupported("sqlite"), grpc.StatusCode.UNIMPLEMENTED),
        (LookupError("anything else"), grpc.StatusCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
async def test_an_error_has_its_meaning_in_the_protocol(error: Exception, code: grpc.StatusCode) -> None:
    """ABORTED only where nothing was done and nothing will be; a contradiction and what can be repeated never so."""
    assert (await answered(error))[0] is code


@pytest.mark.parametrize(
    ("trans_type", "op", "code"),
    [
        ("xa", "commit", grpc.StatusCode.OK),
        ("msg", "action", grpc.StatusCode.OK),
        ("xa", "rollback", grpc.StatusCode.INVALID_ARGUMENT),
        ("tcc", "action", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_method_serves_what_it_names(trans_type: str, op: str, code: grpc.StatusCode) -> None:
    """A method may serve several operations of several patterns; any other call is refused, and told what is served."""
    answer, detail = await answered(None, BranchContext("gid-1", trans_type, "01", op))
    assert answer is code
    if code is not grpc.StatusCode.OK:
        assert "this method serves" in detail
