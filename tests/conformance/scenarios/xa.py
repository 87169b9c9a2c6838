"""XA: the scenarios of `go/xa.go` for our own client."""

from __future__ import annotations

import asyncio

from seckill.dtm import TransOptions
from seckill.dtm.protocol import XA
from tests.conformance.python_client import Run
from tests.conformance.scenarios.registry import (
    BROKEN,
    NOT_YET,
    NOTHING,
    SOLD_OUT,
    WAIT,
    WAIT_SHORT,
    Scenarios,
)
from tests.support.branches import Answer

scenario = Scenarios()


@scenario("xa: success")
async def success(run: Run) -> None:
    await run.xa(TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"}))


@scenario("xa: success without waiting")
async def success_without_waiting(run: Run) -> None:
    run.script("01", "commit", Answer(pause_ms=2_500))
    async with run.not_waiting("Submit", 2.4):
        await run.xa(NOTHING)
    await run.wait(4)


@scenario("xa: second action refused")
async def second_action_refused(run: Run) -> None:
    run.script("02", "action", SOLD_OUT)
    await run.xa(WAIT)


@scenario("xa: first commit fails twice")
async def first_commit_fails_twice(run: Run) -> None:
    run.script("01", "commit", BROKEN, BROKEN)
    await run.xa(WAIT_SHORT)
    await run.wait(6)


@scenario("xa: second commit fails once")
async def second_commit_fails_once(run: Run) -> None:
    run.script("02", "commit", BROKEN)
    await run.xa(WAIT_SHORT)
    await run.wait(5)


@scenario("xa: commit is ongoing twice")
async def commit_is_ongoing_twice(run: Run) -> None:
    run.script("01", "commit", NOT_YET, NOT_YET)
    await run.xa(WAIT_SHORT)
    await run.wait(6)


@scenario("xa: commit refuses")
async def commit_refuses(run: Run) -> None:
    run.script("01", "commit", SOLD_OUT)
    await run.xa(WAIT_SHORT)
    await run.wait(5)


@scenario("xa: rollback fails once")
async def rollback_fails_once(run: Run) -> None:
    run.script("01", "rollback", BROKEN)
    await run.open_xa(WAIT_SHORT, "01", "02")
    await run.abort(WAIT_SHORT, trans_type=XA)
    await run.wait(3)
    await asyncio.sleep(0.2)
    await run.abort(WAIT_SHORT, trans_type=XA)


@scenario("xa: abort again while a rollback is repeated")
async def abort_again(run: Run) -> None:
    patient = TransOptions(wait_result=True, retry_interval_s=3)
    run.script("02", "rollback", BROKEN)
    await run.open_xa(patient, "01", "02")
    await run.abort(patient, trans_type=XA)
    await asyncio.sleep(1.1)  # DTM's SQL store breaks on an Abort within the same second
    await run.abort(patient, trans_type=XA)


@scenario("xa: nobody submits")
async def nobody_submits(run: Run) -> None:
    await run.open_xa(TransOptions(wait_result=True, timeout_to_fail_s=1, retry_interval_s=2), "01", "02")
    await run.wait(2)
    await asyncio.sleep(0.3)
    await run.submit(WAIT, trans_type=XA)


@scenario("xa: prepare twice, and after the end")
async def prepare_twice(run: Run) -> None:
    await run.open_xa(WAIT)
    await run.open_xa(WAIT, "01")
    await run.submit(WAIT, trans_type=XA)
    await run.open_xa(WAIT, "02")


@scenario("xa: submit after the end")
async def submit_after_the_end(run: Run) -> None:
    await run.open_xa(WAIT, "01")
    await run.submit(WAIT, trans_type=XA)
    await run.submit(WAIT, trans_type=XA)
    await run.abort(WAIT, trans_type=XA)


@scenario("xa: submit after abort")
async def submit_after_abort(run: Run) -> None:
    await run.open_xa(WAIT, "01")
    await run.abort(WAIT, trans_type=XA)
    await run.submit(WAIT, trans_type=XA)


@scenario("xa: second submit while the first is committing")
async def second_submit(run: Run) -> None:
    run.script("01", "commit", BROKEN)
    await run.open_xa(WAIT_SHORT, "01")
    await run.submit(WAIT_SHORT, trans_type=XA)
    await run.submit(TransOptions(retry_interval_s=1), trans_type=XA)
    await run.wait(2, 6)


@scenario("xa: submit of an unknown gid")
async def submit_unknown(run: Run) -> None:
    await run.submit(WAIT, trans_type=XA)


@scenario("xa: abort of an unknown gid")
async def abort_unknown(run: Run) -> None:
    await run.abort(WAIT, trans_type=XA)


@scenario("xa: register for an unknown gid")
async def register_unknown(run: Run) -> None:
    await run.register_xa("01")


@scenario("xa: branch without an address")
async def branch_without_an_address(run: Run) -> None:
    await run.open_xa(WAIT, "01")
    await run.register_xa("02", "")
    await run.submit(WAIT, trans_type=XA)


@scenario("xa: branches are called by the order of registration")
async def branches_by_registration(run: Run) -> None:
    await run.open_xa(WAIT, "02", "01", "03")
    await run.abort(WAIT, trans_type=XA)
