"""How scenarios are listed by name, and the words they share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc

from seckill.dtm import TransOptions
from tests.conformance.python_client import Run
from tests.support.branches import Answer

ABORTED = grpc.StatusCode.ABORTED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INTERNAL = grpc.StatusCode.INTERNAL

BROKEN = Answer(INTERNAL, "broken")
NOT_YET = Answer(FAILED_PRECONDITION, "not yet")
SOLD_OUT = Answer(ABORTED, "sold out")

NOTHING = TransOptions()
WAIT = TransOptions(wait_result=True)
WAIT_SHORT = TransOptions(wait_result=True, retry_interval_s=1)

Scenario = Callable[[Run], Awaitable[None]]


class Scenarios(dict[str, Scenario]):
    """By name, in the order of their definition; decorates what plays one."""

    def __call__(self, name: str) -> Callable[[Scenario], Scenario]:
        def add(play: Scenario) -> Scenario:
            self[name] = play
            return play

        return add
