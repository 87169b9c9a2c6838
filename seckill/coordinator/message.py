"""Two-phase message: its actions one after the other once it is submitted, until each has answered OK.

Source: github.com/dtm-labs/dtm v1.19, dtmsvr/trans_type_msg.go. DTM's gRPC protocol has no way to ask for the actions
of a message to be called at once, and topics live in a DTM server's own configuration: neither is served.
"""

from __future__ import annotations

import msgspec

from seckill.coordinator import refusals
from seckill.coordinator.checks import check_seconds
from seckill.coordinator.pattern import Contents, Later, Progress, Step, in_turn
from seckill.coordinator.plans import decoded, steps_of
from seckill.coordinator.refusals import Refusal, is_still_ongoing
from seckill.coordinator.state import BranchOp, Status, Transaction, now_ms
from seckill.dtm.protocol import ACTION, MSG, MSG_BRANCH, MSG_OP

TOPIC = "topic://"


class MessageJson(msgspec.Struct, frozen=True):
    """A message's custom data."""

    delay: int = 0  # seconds


class Message:
    """Its branches are the steps that come with Prepare, or with a Submit that nobody prepared."""

    trans_type = MSG

    def planned(self, gid: str, contents: Contents) -> tuple[BranchOp, ...]:
        now = now_ms()
        self.delay_ms(contents)
        steps = steps_of(contents)
        for _, step, _ in steps:
            if step.action.startswith(TOPIC):
                raise refusals.invalid(f"topics are not supported: {step.action}")
        return tuple(BranchOp(gid, branch_id, ACTION, step.action, payload, now) for branch_id, step, payload in steps)

    def delay_ms(self, contents: Contents) -> int:
        return _delay_ms(contents.custom_data)

    def next_step(self, progress: Progress) -> Step:
        transaction = progress.transaction
        left_ms = delay_left_ms(transaction, progress.now_ms)
        if left_ms:
            return Later(left_ms)
        return in_turn([branch for branch in progress.branches if branch.status is Status.PREPARED], progress)

    def result(self, transaction: Transaction, refusal: Refusal | None) -> Refusal | None:
        """A branch that asks for time, or a delay, is told as no success; a call that failed as it is."""
        if transaction.status is Status.SUCCEED:
            return None
        if refusal is None or is_still_ongoing(refusal):
            return refusals.not_succeeded(transaction.rollback_reason)
        return refusal


def question_of(transaction: Transaction) -> BranchOp:
    """What a message is asked that nobody submitted in time: whether its local part was committed."""
    return BranchOp(transaction.gid, MSG_BRANCH, MSG_OP, transaction.query_prepared, b"", now_ms())


def delay_left_ms(transaction: Transaction, at_ms: int) -> int:
    """How long a message still waits for its own delay."""
    return max(0, transaction.created_ms + _delay_ms(transaction.custom_data) - at_ms) if transaction.custom_data else 0


def _delay_ms(custom_data: str) -> int:
    delay_s = decoded(custom_data, MessageJson, "custom data").delay
    check_seconds(delay_s)
    return 1_000 * delay_s
