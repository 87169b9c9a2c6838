"""SAGA: every action after Submit; when one refuses, the compensations of those that may have taken effect.

Source: github.com/dtm-labs/dtm v1.19, dtmsvr/trans_type_saga.go. An action runs when the actions that it comes after
have succeeded, a compensation when those of the actions after it are done. In a saga that is not concurrent each
action comes after the one before it.

Two things differ: actions that are being called are waited for before anything is compensated, and actions that have
all succeeded end the saga even when its time was over by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import msgspec

from seckill.coordinator import refusals
from seckill.coordinator.pattern import Calls, Contents, Finished, Pause, Progress, RollBack, Step
from seckill.coordinator.plans import decoded, steps_of
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.dtm.protocol import ACTION, COMPENSATE, SAGA


class SagaJson(msgspec.Struct, frozen=True):
    """A saga's custom data: which steps, counted from 0, come after which others."""

    orders: dict[int, list[int]] | None = None
    concurrent: bool = False


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a saga as they stand: entry i of each is about step i."""

    actions: Sequence[BranchOp]
    compensations: Sequence[BranchOp]
    after: Sequence[frozenset[int]]  # the steps that it comes after
    called: frozenset[int]  # those whose actions this attempt has called

    @classmethod
    def of(cls, progress: Progress) -> Steps:
        actions = [branch for branch in progress.branches if branch.op == ACTION]
        compensations = [branch for branch in progress.branches if branch.op == COMPENSATE]
        after = order_of(progress.transaction.custom_data, len(actions))
        called = frozenset(step for step, action in enumerate(actions) if action.key in progress.called)
        return cls(actions, compensations, after, called)

    def ready(self) -> list[int]:
        """Steps whose actions have no final answer, and come after none but succeeded ones."""
        return [
            step for step, action in enumerate(self.actions) if action.status is Status.PREPARED and self._free(step)
        ]

    def to_undo(self) -> set[int]:
        """Steps whose actions may have taken effect, and that are not compensated. A refusal may be half a success.

        An attempt that calls actions calls all that are ready: what is ready and not called became so too late. Of
        other attempts nobody knows which of the ready ones they have called.
        """
        ended = {step for step, action in enumerate(self.actions) if action.status is not Status.PREPARED}
        maybe_run = ended.union(self.called or self.ready())
        return {step for step in maybe_run if self.compensations[step].status is not Status.SUCCEED}

    def _free(self, step: int) -> bool:
        return all(self.actions[before].status is Status.SUCCEED for before in self.after[step])


class Saga:
    """Its branches are the steps that come with Submit."""

    trans_type = SAGA

    def planned(self, gid: str, contents: Contents) -> tuple[BranchOp, ...]:
        """Two operations a step. Raises Refusal for an order that no saga can have."""
        now = now_ms()
        steps = steps_of(contents)
        order_of(contents.custom_data, len(steps))
        return tuple(
            BranchOp(gid, branch_id, op, url, payload, now)
            for branch_id, step, payload in steps
            for op, url in ((COMPENSATE, step.compensate), (ACTION, step.action))
        )

    def delay_ms(self, contents: Contents) -> int:
        return 0

    def next_step(self, progress: Progress) -> Step:
        steps = Steps.of(progress)
        if progress.transaction.status is Status.SUBMITTED:
            return _forwards(steps, progress)
        return _backwards(steps, progress)

    def result(self, transaction: Transaction, refusal: Refusal | None) -> Refusal | None:
        """DTM tells no failed call, only whether the saga has succeeded by now."""
        if transaction.status is Status.SUCCEED:
            return None
        return refusals.not_succeeded(transaction.rollback_reason)


def order_of(custom_data: str, count: int) -> list[frozenset[int]]:
    """For each step the ones that it comes after. Raises Refusal."""
    custom = decoded(custom_data, SagaJson, "custom data")
    orders = custom.orders or {}
    named = {step for step, before in orders.items() for step in (step, *before)}
    if not named <= set(range(count)):
        raise refusals.invalid(f"the orders name step {max(named, key=abs)} of {count}, counted from 0")
    before = [{step - 1} if step and not custom.concurrent else set[int]() for step in range(count)]
    after = [frozenset(own.union(orders.get(step, ()))) for step, own in enumerate(before)]
    _require_no_circle(dict(enumerate(after)))
    return after


def _require_no_circle(after: Mapping[int, frozenset[int]]) -> None:
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        raise refusals.invalid(f"the orders go round in a circle: {error.args[1]}") from error


def _forwards(steps: Steps, progress: Progress) -> Step:
    if all(action.status is Status.SUCCEED for action in steps.actions):
        return Finished()
    reason = _why_back(steps, progress)
    if reason:
        return Pause() if progress.calling else RollBack(reason)
    may_repeat = progress.transaction.options.retry_limit > 0
    kept_back = progress.calling if may_repeat else progress.calling | progress.unfinished
    return _calls([steps.actions[step] for step in steps.ready()], kept_back)


def _why_back(steps: Steps, progress: Progress) -> str:
    """Why the saga has to be rolled back; empty while it has not."""
    transaction = progress.transaction
    options = transaction.options
    if any(action.status is Status.FAILED for action in steps.actions):
        return progress.refused
    if 0 < options.timeout_to_fail_s <= (progress.now_ms - transaction.created_ms) / 1_000:
        return f"Timeout after {options.timeout_to_fail_s} seconds"
    if 0 < options.retry_limit < progress.repeats + len(progress.unfinished):
        return f"RetryCount is greater than RetryLimit, RetryLimit: {options.retry_limit}"
    return ""


def _backwards(steps: Steps, progress: Progress) -> Step:
    to_undo = steps.to_undo()
    if not to_undo:
        return Finished()
    waiting_for = {step: {later for later in to_undo if step in steps.after[later]} for step in to_undo}
    ready = [steps.compensations[step] for step in sorted(to_undo, reverse=True) if not waiting_for[step]]
    return _calls(ready, progress.calling | progress.unfinished)


def _calls(ready: Sequence[BranchOp], kept_back: frozenset[tuple[str, str]]) -> Step:
    calls = tuple(branch for branch in ready if branch.key not in kept_back)
    return Calls(calls) if calls else Pause()
