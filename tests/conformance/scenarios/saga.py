"""Sagas: the scenarios of `go/saga.go` for our own client."""

from __future__ import annotations

import asyncio

from seckill.dtm import TransOptions
from seckill.dtm.protocol import SAGA
from seckill.dtm.saga import Saga, Step
from tests.conformance.python_client import Run, payload
from tests.conformance.scenarios.registry import (
    ABORTED,
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

SOLD_OUT_LATER = Answer(ABORTED, "sold out", pause_ms=400)


def four(run: Run) -> Saga:
    """A concurrent saga in which 03 follows 01, and 04 follows 02 and 03."""
    return run.saga(4, WAIT, concurrent=True).order(2, [0]).order(3, [1, 2])


@scenario("saga: success")
async def success(run: Run) -> None:
    await run.submit_saga(run.saga(3, TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"})))


@scenario("saga: success without waiting")
async def success_without_waiting(run: Run) -> None:
    run.script("01", "action", Answer(pause_ms=2_500))
    async with run.not_waiting("Submit", 2.4):
        await run.submit_saga(run.saga(2, NOTHING))
    await run.wait(2)


async def refused_at(run: Run, branch_id: str) -> None:
    run.script(branch_id, "action", SOLD_OUT)
    await run.submit_saga(run.saga(3, WAIT))


@scenario("saga: first action refused")
async def first_action_refused(run: Run) -> None:
    await refused_at(run, "01")


@scenario("saga: second action refused")
async def second_action_refused(run: Run) -> None:
    await refused_at(run, "02")


@scenario("saga: third action refused")
async def third_action_refused(run: Run) -> None:
    await refused_at(run, "03")


@scenario("saga: action refused, nobody waits")
async def refused_without_waiting(run: Run) -> None:
    run.script("02", "action", SOLD_OUT)
    await run.submit_saga(run.saga(2, NOTHING))
    await run.wait(4)


@scenario("saga: action fails twice")
async def action_fails_twice(run: Run) -> None:
    run.script("02", "action", BROKEN, BROKEN)
    await run.submit_saga(run.saga(3, WAIT_SHORT))
    await run.wait(5)


@scenario("saga: action is ongoing twice")
async def action_is_ongoing_twice(run: Run) -> None:
    run.script("02", "action", NOT_YET, NOT_YET)
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.wait(4)


@scenario("saga: action times out")
async def action_times_out(run: Run) -> None:
    run.script("02", "action", Answer(pause_ms=2_000))
    await run.submit_saga(run.saga(2, TransOptions(wait_result=True, request_timeout_s=1, retry_interval_s=3)))
    await run.wait(3)


@scenario("saga: action fails, then is refused")
async def action_fails_then_is_refused(run: Run) -> None:
    run.script("02", "action", BROKEN, SOLD_OUT)
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.wait(5)


@scenario("saga: first compensation fails once")
async def first_compensation_fails(run: Run) -> None:
    run.script("02", "action", SOLD_OUT)
    run.script("01", "compensate", BROKEN)
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.wait(5)


@scenario("saga: second compensation fails once")
async def second_compensation_fails(run: Run) -> None:
    run.script("02", "action", SOLD_OUT)
    run.script("02", "compensate", BROKEN)
    await run.submit_saga(run.saga(2, WAIT_SHORT))  # DTM waits six seconds for nothing
    await run.wait(5)


@scenario("saga: compensation refuses")
async def compensation_refuses(run: Run) -> None:
    run.script("01", "action", SOLD_OUT)
    run.script("01", "compensate", SOLD_OUT)
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.wait(3)


@scenario("saga: compensation is ongoing")
async def compensation_is_ongoing(run: Run) -> None:
    run.script("01", "action", SOLD_OUT)
    run.script("01", "compensate", NOT_YET)
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.wait(3)


@scenario("saga: concurrent")
async def concurrent(run: Run) -> None:
    await run.submit_saga(run.saga(3, WAIT, concurrent=True))


@scenario("saga: concurrent, second action refused")
async def concurrent_refused(run: Run) -> None:
    run.script("02", "action", SOLD_OUT_LATER)
    await run.submit_saga(run.saga(3, WAIT, concurrent=True))


@scenario("saga: concurrent, refused while another action runs")
async def concurrent_refused_meanwhile(run: Run) -> None:
    run.script("01", "action", Answer(pause_ms=1_200))
    run.script("02", "action", SOLD_OUT_LATER)
    await run.submit_saga(run.saga(2, WAIT, concurrent=True))
    await asyncio.sleep(1.2)  # the action's answer is noted all the same


@scenario("saga: concurrent, an action fails once")
async def concurrent_fails_once(run: Run) -> None:
    run.script("02", "action", BROKEN)
    await run.submit_saga(run.saga(3, WAIT_SHORT, concurrent=True))
    await run.wait(4)


@scenario("saga: concurrent with orders")
async def ordered(run: Run) -> None:
    run.script("02", "action", Answer(pause_ms=400))
    await run.submit_saga(four(run))


@scenario("saga: concurrent with orders, last action refused")
async def ordered_last_refused(run: Run) -> None:
    run.script("02", "action", Answer(pause_ms=400))
    run.script("04", "action", SOLD_OUT)
    run.script("03", "compensate", Answer(pause_ms=400))
    await run.submit_saga(four(run))


@scenario("saga: concurrent with orders, refused in the middle")
async def ordered_refused_in_the_middle(run: Run) -> None:
    run.script("01", "action", Answer(pause_ms=1_200))
    run.script("02", "action", SOLD_OUT_LATER)
    await run.submit_saga(four(run))
    await asyncio.sleep(1.2)


@scenario("saga: time is up while an action fails")
async def time_is_up_between_calls(run: Run) -> None:
    run.script("02", "action", BROKEN, BROKEN, BROKEN)
    await run.submit_saga(run.saga(3, TransOptions(wait_result=True, timeout_to_fail_s=2, retry_interval_s=2)))
    await run.wait(4)


@scenario("saga: time is up while an action runs")
async def time_is_up_during_a_call(run: Run) -> None:
    run.script("01", "action", Answer(pause_ms=1_600))
    await run.submit_saga(run.saga(3, TransOptions(wait_result=True, timeout_to_fail_s=1, retry_interval_s=8)))


@scenario("saga: last action succeeds when the time is up")
async def late_success(run: Run) -> None:
    run.script("01", "action", Answer(pause_ms=1_600))
    await run.submit_saga(run.saga(1, TransOptions(wait_result=True, timeout_to_fail_s=1, retry_interval_s=8)))


@scenario("saga: retry limit exceeded")
async def retry_limit_exceeded(run: Run) -> None:
    run.script("02", "action", BROKEN, BROKEN, BROKEN)
    await run.submit_saga(run.saga(3, TransOptions(wait_result=True, retry_limit=2)))


@scenario("saga: action succeeds within the retry limit")
async def retry_limit_kept(run: Run) -> None:
    run.script("02", "action", BROKEN, BROKEN)
    await run.submit_saga(run.saga(3, TransOptions(wait_result=True, retry_limit=2)))


@scenario("saga: retry limit is for all actions together")
async def retry_limit_of_all(run: Run) -> None:
    run.script("01", "action", BROKEN)
    run.script("02", "action", BROKEN, BROKEN)
    await run.submit_saga(run.saga(2, TransOptions(wait_result=True, retry_limit=2)))


@scenario("saga: ongoing counts for the retry limit")
async def retry_limit_and_ongoing(run: Run) -> None:
    run.script("01", "action", NOT_YET, NOT_YET)
    await run.submit_saga(run.saga(2, TransOptions(wait_result=True, retry_limit=1)))


@scenario("saga: submit after the end")
async def submit_after_the_end(run: Run) -> None:
    await run.submit_saga(run.saga(1, WAIT))
    await run.submit_saga(run.saga(1, WAIT))
    await run.prepare_saga(1, WAIT)
    await run.abort(WAIT, trans_type=SAGA)


@scenario("saga: submit after a refusal")
async def submit_after_a_refusal(run: Run) -> None:
    run.script("01", "action", SOLD_OUT)
    await run.submit_saga(run.saga(1, WAIT))
    await run.submit_saga(run.saga(1, WAIT))


@scenario("saga: second submit while an action is repeated")
async def second_submit(run: Run) -> None:
    run.script("02", "action", BROKEN)
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.submit_saga(run.saga(2, WAIT_SHORT))
    await run.wait(4, 4)
    await asyncio.sleep(2.5)  # nobody calls again


@scenario("saga: prepare, abort, submit")
async def prepared(run: Run) -> None:
    await run.prepare_saga(2, WAIT)
    await run.prepare_saga(2, WAIT)
    await run.abort(WAIT, trans_type=SAGA)
    await run.submit_saga(run.saga(2, WAIT))


@scenario("saga: abort while an action is repeated")
async def abort_while_submitted(run: Run) -> None:
    run.script("01", "action", BROKEN)
    await run.submit_saga(run.saga(1, WAIT_SHORT))
    await run.abort(WAIT_SHORT, trans_type=SAGA)
    await run.wait(2)


@scenario("saga: steps without addresses")
async def steps_without_addresses(run: Run) -> None:
    run.script("03", "action", SOLD_OUT)
    saga = run.saga(1, WAIT).add(Step("", ""), payload("02")).add(Step(run.url("Action"), ""), payload("03"))
    await run.submit_saga(saga)


@scenario("saga: no steps")
async def no_steps(run: Run) -> None:
    await run.submit(WAIT, trans_type=SAGA)
