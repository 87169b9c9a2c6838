"""Two-phase messages: the scenarios of `go/msg.go` for our own client."""

from __future__ import annotations

import asyncio

from seckill.dtm import TransOptions
from seckill.dtm.message import Message
from seckill.dtm.protocol import MSG
from tests.conformance.python_client import LocalFailure, LocalTrouble, Run, payload
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

NO = Answer(ABORTED, "rolled back")


async def left(run: Run, calls: int, *answers: Answer) -> Message:
    """Prepares a message and lets its time run out; DTM looks when the time is surely up."""
    run.script("00", "msg", *answers)
    message = run.message(2, TransOptions(wait_result=True, timeout_to_fail_s=1, retry_interval_s=2))
    await run.prepare_message(message)
    await run.wait(calls)
    await asyncio.sleep(0.3)
    return message


@scenario("msg: prepare and submit")
async def success(run: Run) -> None:
    message = run.message(2, TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"}))
    await run.prepare_message(message)
    await run.submit_message(message)


@scenario("msg: submit without prepare")
async def submit_without_prepare(run: Run) -> None:
    await run.submit_message(run.message(2, WAIT))


@scenario("msg: submit without waiting")
async def submit_without_waiting(run: Run) -> None:
    run.script("01", "action", Answer(pause_ms=2_500))
    async with run.not_waiting("Submit", 2.4):
        await run.submit_message(run.message(2, NOTHING))
    await run.wait(2)


@scenario("msg: nobody submits, the query says yes")
async def query_says_yes(run: Run) -> None:
    await run.submit_message(await left(run, 3))


@scenario("msg: nobody submits, the query says no")
async def query_says_no(run: Run) -> None:
    await run.submit_message(await left(run, 1, NO))


@scenario("msg: nobody submits, the query is ongoing, then says yes")
async def query_is_ongoing(run: Run) -> None:
    await left(run, 4, NOT_YET)


@scenario("msg: nobody submits, the query fails, then says yes")
async def query_fails_then_says_yes(run: Run) -> None:
    await left(run, 4, BROKEN)


@scenario("msg: nobody submits, the query fails, then says no")
async def query_fails_then_says_no(run: Run) -> None:
    await left(run, 2, BROKEN, NO)


@scenario("msg: nobody submits, the query says yes, an action fails once")
async def query_says_yes_and_an_action_fails(run: Run) -> None:
    run.script("02", "action", BROKEN)
    await left(run, 4)


@scenario("msg: abort, then submit")
async def abort_then_submit(run: Run) -> None:
    message = run.message(2, WAIT)
    await run.prepare_message(message)
    await run.note("Abort", message.abort())
    await run.note("Abort", message.abort())
    await run.submit_message(message)
    await run.prepare_message(message)


@scenario("msg: abort after the end")
async def abort_after_the_end(run: Run) -> None:
    await run.submit_message(run.message(1, WAIT))
    await run.abort(WAIT, trans_type=MSG)


@scenario("msg: abort while an action is repeated")
async def abort_while_submitted(run: Run) -> None:
    run.script("01", "action", BROKEN)
    await run.submit_message(run.message(1, WAIT_SHORT))
    await run.abort(WAIT_SHORT, trans_type=MSG)
    await run.wait(2)


@scenario("msg: prepare twice, and after the end")
async def prepare_twice(run: Run) -> None:
    message = run.message(1, WAIT)
    await run.prepare_message(message)
    await run.prepare_message(message)
    await run.submit_message(message)
    await run.prepare_message(message)


@scenario("msg: submit after the end")
async def submit_after_the_end(run: Run) -> None:
    await run.submit_message(run.message(1, WAIT))
    await run.submit_message(run.message(1, WAIT))


@scenario("msg: second submit while an action is repeated")
async def second_submit(run: Run) -> None:
    run.script("02", "action", BROKEN)
    await run.submit_message(run.message(2, WAIT_SHORT))
    await run.submit_message(run.message(2, WAIT_SHORT))
    await run.wait(4, 4)
    await asyncio.sleep(2.5)  # nobody calls again


@scenario("msg: submit brings other steps than prepare")
async def other_steps(run: Run) -> None:
    await run.prepare_message(run.message(1, WAIT))
    await run.submit_message(run.message(2, WAIT))


@scenario("msg: delayed")
async def delayed(run: Run) -> None:
    message = run.message(2, WAIT).delay(2)
    await run.prepare_message(message)
    await run.submit_message(message)
    await run.wait(2)


@scenario("msg: second action fails twice")
async def second_action_fails_twice(run: Run) -> None:
    run.script("02", "action", BROKEN, BROKEN)
    await run.submit_message(run.message(3, WAIT_SHORT))
    await run.wait(5)


@scenario("msg: action is ongoing twice")
async def action_is_ongoing_twice(run: Run) -> None:
    run.script("01", "action", NOT_YET, NOT_YET)
    await run.submit_message(run.message(2, WAIT_SHORT))
    await run.wait(4)


@scenario("msg: action refuses")
async def action_refuses(run: Run) -> None:
    run.script("01", "action", SOLD_OUT)
    await run.submit_message(run.message(2, WAIT_SHORT))
    await run.wait(3)


@scenario("msg: steps without addresses")
async def steps_without_addresses(run: Run) -> None:
    await run.submit_message(run.message(1, WAIT).add("", payload("02")))


@scenario("msg: no steps")
async def no_steps(run: Run) -> None:
    query = run.url("QueryPrepared")
    await run.note("Prepare", run.client.prepare(run.gid, trans_type=MSG, options=WAIT, query_prepared=query))
    await run.note("Submit", run.client.submit(run.gid, trans_type=MSG, options=WAIT, query_prepared=query))


@scenario("msg: local transaction succeeds")
async def local_succeeds(run: Run) -> None:
    await run.do_and_submit(None)


@scenario("msg: local transaction refuses")
async def local_refuses(run: Run) -> None:
    await run.do_and_submit(LocalFailure("FAILURE"))


@scenario("msg: local transaction breaks, the query says yes")
async def local_breaks_and_the_query_says_yes(run: Run) -> None:
    await run.do_and_submit(LocalTrouble("broken"))


@scenario("msg: local transaction breaks, the query says no")
async def local_breaks_and_the_query_says_no(run: Run) -> None:
    run.script("00", "msg", NO)
    await run.do_and_submit(LocalTrouble("broken"))
