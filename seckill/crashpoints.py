"""Named places at which a test lets the process die, hang or lose its connections.

In a running system nothing happens at them: each is one comparison, made once or twice for an order and some dozen
times for a whole group of them. No setting, option, variable or signal arms them; a test's own program does, with
`arm`, before it starts a role. Standard library only.

Between two effects there is one place: what has happened before the next thing happens. `…ING` is about to, `…ED` has.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class CrashPoint(StrEnum):
    """Where the path of an order, or what mends it, can be cut."""

    # Admission, of the front and of a worker for orders that came past it; then the record.
    ADMITTING = "admitting"
    ADMITTED = "admitted"
    PUBLISHED = "published"

    # A worker's transaction. A branch is registered before its Try is called.
    PREPARING = "preparing"
    PREPARED = "prepared"
    PRODUCT_REGISTERED = "product_registered"
    PRODUCT_TRIED = "product_tried"
    ORDER_REGISTERED = "order_registered"
    ORDER_TRIED = "order_tried"
    SUBMITTED = "submitted"
    ABORTING = "aborting"
    ABORTED = "aborted"

    # The ledger, as a worker and reconcile write it.
    SETTLING = "settling"
    SETTLED = "settled"
    POSTPONING = "postponing"
    POSTPONED = "postponed"
    PUTTING_OFF = "putting_off"
    PUT_OFF = "put_off"  # the entry counts as published, and the retry record is not written
    CLAIMING = "claiming"
    CLAIMED = "claimed"
    PARKING = "parking"  # the letter is written
    PARKED = "parked"

    # Kafka, as a worker writes it.
    BURYING = "burying"
    BURIED = "buried"
    RETRY_SENT = "retry_sent"
    OFFSETS_COMMITTING = "offsets_committing"
    OFFSETS_COMMITTED = "offsets_committed"

    # The branches: all has been written and nothing is committed; or it is, and nobody has been told.
    PRODUCT_TRY_WRITTEN = "product_try_written"
    PRODUCT_TRY_COMMITTED = "product_try_committed"
    PRODUCT_CONFIRM_WRITTEN = "product_confirm_written"
    PRODUCT_CONFIRM_COMMITTED = "product_confirm_committed"
    PRODUCT_CANCEL_WRITTEN = "product_cancel_written"
    PRODUCT_CANCEL_COMMITTED = "product_cancel_committed"
    PRODUCT_REJECT_WRITTEN = "product_reject_written"
    PRODUCT_REJECT_COMMITTED = "product_reject_committed"
    SAGA_TAKEN_WRITTEN = "saga_taken_written"
    SAGA_TAKEN_COMMITTED = "saga_taken_committed"
    MESSAGE_TAKEN_WRITTEN = "message_taken_written"
    MESSAGE_TAKEN_COMMITTED = "message_taken_committed"
    PRODUCT_COMPENSATION_WRITTEN = "product_compensation_written"
    PRODUCT_COMPENSATION_COMMITTED = "product_compensation_committed"
    HOLDS_CONFIRM_WRITTEN = "holds_confirm_written"
    HOLDS_CONFIRM_COMMITTED = "holds_confirm_committed"
    ORDER_TRY_WRITTEN = "order_try_written"
    ORDER_TRY_COMMITTED = "order_try_committed"
    ORDER_CONFIRM_WRITTEN = "order_confirm_written"
    ORDER_CONFIRM_COMMITTED = "order_confirm_committed"
    ORDER_CANCEL_WRITTEN = "order_cancel_written"
    ORDER_CANCEL_COMMITTED = "order_cancel_committed"
    ORDER_ACTION_WRITTEN = "order_action_written"
    ORDER_ACTION_COMMITTED = "order_action_committed"
    ORDER_COMPENSATION_WRITTEN = "order_compensation_written"
    ORDER_COMPENSATION_COMMITTED = "order_compensation_committed"

    # The branches of XA: prepared, and nobody has been told; ended, and the coordinator has not been told.
    PRODUCT_XA_PREPARED = "product_xa_prepared"
    PRODUCT_XA_COMMITTED = "product_xa_committed"
    PRODUCT_XA_ROLLED_BACK = "product_xa_rolled_back"
    ORDER_XA_PREPARED = "order_xa_prepared"
    ORDER_XA_COMMITTED = "order_xa_committed"
    ORDER_XA_ROLLED_BACK = "order_xa_rolled_back"

    # The coordinator's calls of branches, and the writes of its log by kind: before COMMIT, and after it.
    CONFIRM_CALLING = "confirm_calling"
    CONFIRM_CALLED = "confirm_called"
    CANCEL_CALLING = "cancel_calling"
    CANCEL_CALLED = "cancel_called"
    ACTION_CALLING = "action_calling"
    ACTION_CALLED = "action_called"
    COMPENSATE_CALLING = "compensate_calling"
    COMPENSATE_CALLED = "compensate_called"
    COMMIT_CALLING = "commit_calling"
    COMMIT_CALLED = "commit_called"
    ROLLBACK_CALLING = "rollback_calling"
    ROLLBACK_CALLED = "rollback_called"
    QUERY_CALLING = "query_calling"
    QUERY_CALLED = "query_called"
    LOG_INSERT_WRITTEN = "log_insert_written"
    LOG_INSERT_COMMITTED = "log_insert_committed"
    LOG_REGISTER_WRITTEN = "log_register_written"
    LOG_REGISTER_COMMITTED = "log_register_committed"
    LOG_DECIDE_WRITTEN = "log_decide_written"
    LOG_DECIDE_COMMITTED = "log_decide_committed"
    LOG_TURN_BACK_WRITTEN = "log_turn_back_written"
    LOG_TURN_BACK_COMMITTED = "log_turn_back_committed"
    LOG_BRANCH_DONE_WRITTEN = "log_branch_done_written"
    LOG_BRANCH_DONE_COMMITTED = "log_branch_done_committed"
    LOG_POSTPONE_WRITTEN = "log_postpone_written"
    LOG_POSTPONE_COMMITTED = "log_postpone_committed"
    LOG_FINISH_WRITTEN = "log_finish_written"
    LOG_FINISH_COMMITTED = "log_finish_committed"
    LOG_CLAIM_WRITTEN = "log_claim_written"
    LOG_CLAIM_COMMITTED = "log_claim_committed"
    LOG_RESET_WRITTEN = "log_reset_written"
    LOG_RESET_COMMITTED = "log_reset_committed"

    # A transaction that is ended for a coordinator that has lost it.
    ORPHAN_FOUND = "orphan_found"
    ORPHAN_ORDER_CANCELLED = "orphan_order_cancelled"
    ORPHAN_ENDED = "orphan_ended"

    # A Redis that is made anew.
    REBUILD_CLOSED = "rebuild_closed"
    REBUILD_STAGED = "rebuild_staged"
    REBUILD_INSTALLED = "rebuild_installed"

    # What operators do with dead letters: written down, then one effect after the other.
    REPLAY_INTENDED = "replay_intended"
    REPLAY_UNPARKED = "replay_unparked"
    REPLAY_PUBLISHED = "replay_published"
    DISCARD_INTENDED = "discard_intended"
    DISCARD_REJECTED = "discard_rejected"
    DISCARD_SETTLED = "discard_settled"


Deed = Callable[[CrashPoint], None]

_deed: Deed | None = None


def arm(deed: Deed | None) -> None:
    """What happens at every point from here on; None: nothing. For tests only."""
    global _deed  # noqa: PLW0603 - one process, one deed; a parameter would have to go through every room
    _deed = deed


def reach(point: CrashPoint) -> None:
    """Marks a point. Costs one comparison unless a test armed it."""
    if _deed is not None:
        _deed(point)
