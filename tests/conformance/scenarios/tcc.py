"""Try, Confirm, Cancel: the scenarios of `go/tcc.go` for our own client."""

from __future__ import annotations

import asyncio

from seckill.dtm import TransOptions
from tests.conformance.python_client import Run
from tests.conformance.scenarios.registry import (
    ABORTED,
    BROKEN,
    FAILED_PRECONDITION,
    NOTHING,
    WAIT,
    WAIT_SHORT,
    Scenarios,
)
from tests.support.branches import Answer

scenario = Scenarios()


@scenario("success")
async def success(run: Run) -> None:
    await run.tcc(TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"}))


@scenario("success without waiting")
async def success_without_waiting(run: Run) -> None:
    run.script("02", "confirm", Answer(pause_ms=2_500))
    async with run.not_waiting("Submit", 2.4):
        await run.tcc(NOTHING)
    await run.wait(4, 5)


@scenario("second Try refused")
async def second_try_refused(run: Run) -> None:
    run.script("02", "try", Answer(ABORTED, "sold out"))
    await run.tcc(WAIT)
    await run.abort(WAIT)


@scenario("Confirm fails twice")
async def confirm_fails_twice(run: Run) -> None:
    run.script("02", "confirm", BROKEN, BROKEN)
    await run.tcc(WAIT_SHORT)
    await run.wait(6, 20)


@scenario("Confirm is ongoing twice")
async def confirm_is_ongoing_twice(run: Run) -> None:
    run.script("01", "confirm", *[Answer(FAILED_PRECONDITION, "not yet")] * 2)
    await run.tcc(WAIT_SHORT)
    await run.wait(6, 20)


@scenario("Confirm refuses")
async def confirm_refuses(run: Run) -> None:
    run.script("01", "confirm", Answer(ABORTED, "no"))
    await run.tcc(WAIT_SHORT)
    await run.wait(5, 20)


@scenario("Confirm refuses in the old way of saying ongoing")
async def confirm_refuses_as_of_old(run: Run) -> None:
    run.script("01", "confirm", Answer(ABORTED, "ONGOING"))
    await run.tcc(WAIT_SHORT)
    await run.wait(5, 20)


@scenario("Confirm times out")
async def confirm_times_out(run: Run) -> None:
    run.script("02", "confirm", Answer(pause_ms=2_000))
    # The interval is longer than the call: DTM's cron would take it for one that was left.
    await run.tcc(TransOptions(wait_result=True, retry_interval_s=3, request_timeout_s=1))
    await run.wait(5, 20)


@scenario("Cancel fails once")
async def cancel_fails_once(run: Run) -> None:
    run.script("02", "cancel", BROKEN)
    await run.prepare(WAIT_SHORT)
    await run.register("01")
    await run.register("02")
    await run.abort(WAIT_SHORT)
    await run.wait(3, 20)
    await asyncio.sleep(0.2)
    await run.abort(WAIT_SHORT)


@scenario("abort waits as Prepare said")
async def abort_waits_as_prepare_said(run: Run) -> None:
    run.script("01", "cancel", BROKEN)
    await run.prepare(TransOptions(retry_interval_s=1))
    await run.register("01")
    await run.abort(WAIT)
    await run.wait(2, 20)


@scenario("nobody submits")
async def nobody_submits(run: Run) -> None:
    await run.prepare(TransOptions(timeout_to_fail_s=2))
    await run.register("01")
    await run.register("02")
    await run.wait(2, 20)
    await asyncio.sleep(0.2)
    await run.submit(WAIT)


@scenario("prepare twice, and after the end")
async def prepare_twice(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.prepare(NOTHING)
    await run.submit(WAIT)
    await run.prepare(NOTHING)


@scenario("submit after the end")
async def submit_after_the_end(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.register("01")
    await run.submit(WAIT)
    await run.submit(WAIT)
    await run.abort(WAIT)


@scenario("submit after abort")
async def submit_after_abort(run: Run) -> None:
    await run.prepare(WAIT)
    await run.register("01")
    await run.abort(NOTHING)
    await run.submit(WAIT)


@scenario("second submit while the first is confirming")
async def second_submit(run: Run) -> None:
    run.script("01", "confirm", BROKEN)
    await run.prepare(WAIT_SHORT)
    await run.register("01")
    await run.submit(WAIT_SHORT)
    await run.submit(TransOptions(retry_interval_s=1))
    await run.wait(2, 8)


@scenario("submit of an unknown gid")
async def submit_unknown(run: Run) -> None:
    await run.submit(WAIT)


@scenario("abort of an unknown gid")
async def abort_unknown(run: Run) -> None:
    await run.abort(WAIT)


@scenario("register for an unknown gid")
async def register_unknown(run: Run) -> None:
    await run.register("01")


@scenario("register after submit")
async def register_after_submit(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.submit(WAIT)
    await run.register("01")


@scenario("register twice")
async def register_twice(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.register("01")
    await run.register("01")
    await run.submit(WAIT)


@scenario("register of an unknown type")
async def register_of_an_unknown_type(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.register("01", trans_type="nonsense", confirm="", cancel="")


@scenario("branch without an address")
async def branch_without_an_address(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.register("01", confirm="", cancel="")
    await run.register("02")
    await run.submit(WAIT)


@scenario("branch with an address nobody can call")
async def branch_with_a_bad_address(run: Run) -> None:
    await run.prepare(NOTHING)
    await run.register("01", confirm="nowhere", cancel="nowhere")
    await run.submit(WAIT)


@scenario("branches are called by the order of registration")
async def branches_by_registration(run: Run) -> None:
    await run.prepare(NOTHING)
    for branch_id in ("02", "01", "03"):
        await run.register(branch_id)
    await run.submit(WAIT)
