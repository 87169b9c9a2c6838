"""The error tree. The type says whether trying again can help; nothing looks at message texts.

SeckillError
├── InvalidOrder            a record or request that is no order; names the field
├── InvalidTransition       a change of a sale that its state or numbers do not allow
├── SaleNotFound
├── Unfit                   a dependency that answers and cannot serve; names setting, address and remedy
├── ProductUnavailable*     the product service did not answer, or answered with a transient error
├── OrderUnavailable*       the same of the order service
├── CoordinatorUnavailable* the same of the coordinator
├── AdmissionUnavailable*   Redis did not answer; whether the script ran is unknown
├── PublishUnknown*         Kafka did not acknowledge in time; the record may be there
├── ConsumerEnded*          Kafka will not serve this consumer any more; another one may join
├── RecordTooLarge          Kafka does not take a record of this size
└── BranchFailed            a branch answered with an error that trying again will not mend
(* retryable)
"""

from __future__ import annotations

from seckill.domain.reasons import DeadLetterReason


class SeckillError(Exception):
    """The root. `retryable` says whether the same work may succeed when it is tried again."""

    retryable: bool = False
    dead_letter_reason: DeadLetterReason = DeadLetterReason.RETRIES_EXHAUSTED


class InvalidOrder(SeckillError):
    """Not an order: `field` names what is wrong, `problem` says how."""

    dead_letter_reason = DeadLetterReason.INVALID_FIELD

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnreadableRecord(InvalidOrder):
    """Not JSON at all: the bytes are set aside untouched."""

    dead_letter_reason = DeadLetterReason.UNREADABLE

    def __init__(self, problem: str) -> None:
        super().__init__("record", problem)


class OrderIdReused(InvalidOrder):
    """The order id came before with another buyer, sale or quantity."""

    dead_letter_reason = DeadLetterReason.ID_REUSED

    def __init__(self, order_id: str) -> None:
        super().__init__("order_id", f"{order_id} came before with other contents")
        self.order_id = order_id


class InvalidTransition(SeckillError):
    """A change of a sale that its state or its numbers do not allow."""

    def __init__(self, sale_id: int, problem: str) -> None:
        super().__init__(f"sale {sale_id}: {problem}")
        self.sale_id = sale_id
        self.problem = problem


class Unfit(SeckillError):
    """Something answers that cannot serve the pipeline, and will not by itself: a person has to change it.

    `what` answers at `address`, which comes from `setting`; `problem` and `remedy` are for who mends it.
    """

    def __init__(self, what: str, address: str, setting: str, problem: str, remedy: str) -> None:
        super().__init__(f"{what} at {address} ({setting}): {problem}; {remedy}")
        self.what = what
        self.address = address
        self.setting = setting
        self.problem = problem
        self.remedy = remedy


class SaleNotFound(SeckillError):
    def __init__(self, sale_id: int) -> None:
        super().__init__(f"sale {sale_id} does not exist")
        self.sale_id = sale_id


class _Unavailable(SeckillError):
    """A dependency that did not answer, or answered that it cannot now."""

    retryable = True
    what = "dependency"

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"{self.what} at {address}: {detail}")
        self.address = address
        self.detail = detail


class ProductUnavailable(_Unavailable):
    what = "product service"


class OrderUnavailable(_Unavailable):
    what = "order service"


class CoordinatorUnavailable(_Unavailable):
    what = "coordinator"


class AdmissionUnavailable(_Unavailable):
    what = "redis"


class PublishUnknown(_Unavailable):
    """The record may be in the topic: what was admitted for it must not be undone."""

    what = "kafka"


class ConsumerEnded(SeckillError):
    """Kafka will not serve this consumer any more. Nothing is lost: a new one reads on from the committed offsets."""

    retryable = True

    def __init__(self, detail: str) -> None:
        super().__init__(f"kafka has ended this worker's consumer: {detail}")
        self.detail = detail


class RecordTooLarge(SeckillError):
    """Kafka does not take a record of this size, however often it is sent."""

    def __init__(self, topic: str, size_bytes: int) -> None:
        super().__init__(f"topic {topic} does not take a record with a value of {size_bytes} bytes")
        self.topic = topic
        self.size_bytes = size_bytes


class TransactionCancelled(SeckillError):
    """The global transaction was rolled back; nothing holds the order and a new gid may try."""

    retryable = True

    def __init__(self, gid: str, detail: str) -> None:
        super().__init__(f"transaction {gid} was cancelled: {detail}")
        self.gid = gid
        self.detail = detail


class AdmissionClosed(SeckillError):
    """An order that came past the front met a paused sale or a full ledger: later it may be admitted.

    `rebuilding`: Redis has lost the sale, and will get it again by itself.
    """

    retryable = True

    def __init__(self, order_id: str, code: str, *, rebuilding: bool = False) -> None:
        super().__init__(f"{order_id} is not admitted now: {code}")
        self.order_id = order_id
        self.code = code
        self.rebuilding = rebuilding


class BranchFailed(SeckillError):
    """A branch answered with an error that is neither a refusal nor transient."""

    dead_letter_reason = DeadLetterReason.BRANCH_FAILED

    def __init__(self, method: str, code: str, detail: str) -> None:
        super().__init__(f"{method} answered {code}: {detail}")
        self.method = method
        self.code = code
        self.detail = detail
