"""Whether a letter may be replayed, and what an edited payload may be. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from seckill.dlq.model import InvalidEdit, Letter, LetterState
from seckill.dlq.reading import at_origin, found_letter
from seckill.domain.errors import InvalidOrder
from seckill.domain.order import MAX_ID, Order, Sale, derived_order_id
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import Record, decode


@dataclass(frozen=True, slots=True)
class Candidate:
    """What would be published: the record, and the orders in it (none: `problem` says why it is no order)."""

    record: Record
    orders: tuple[Order, ...]
    problem: str = ""

    @property
    def order(self) -> Order | None:
        return self.orders[0] if len(self.orders) == 1 else None


def candidate(record: Record) -> Candidate:
    try:
        return Candidate(record, tuple(decode(at_origin(record))))
    except InvalidOrder as error:
        return Candidate(record, (), str(error))


def busy(letter: Letter, *, force: bool = False) -> str:
    """Why nobody may begin anything with the letter; empty when somebody may.

    Who insists (`force`) may also begin with one that was published again and has not ended: that does no harm.
    """
    if letter.open_intent:
        return f"a {letter.open_intent} of it was begun and has not ended"
    if letter.state is LetterState.NEW or (force and letter.state is LetterState.REPLAYING):
        return ""
    return f"it is {letter.state.value}" + (f" ({letter.outcome})" if letter.outcome else "")


def is_impostor(letter: Letter) -> bool:
    """Whether its record names an order id that is another order's."""
    return letter.reason is DeadLetterReason.ID_REUSED


def comes_back(letter: Letter, found: Candidate) -> str:
    """Why publishing these bytes would only make the same letter again; empty when it need not."""
    if not found.orders:
        return f"its record would only come back: {found.problem}"
    if is_impostor(letter):
        return f"its record would only come back: {letter.error}"
    return ""


def enters_another_sale(order: Order, *, arrived_ms: int, current: Sale) -> str:
    """Why an order that names no sale must not enter the product's current one; empty when it may."""
    if max(order.admitted_at_ms, arrived_ms) >= current.created_at_ms:
        return ""
    return f"it names no sale and is older than sale {current.sale_id}, which is its product's sale now"


# --- edits -----------------------------------------------------------------------------------------------------------


def edited(letter: Letter, record: Record, payload: bytes) -> Candidate:
    """The record with another value, which holds exactly one order that admission has not numbered.

    An order without an id gets one that is derived from where the record first arrived. Raises InvalidEdit.
    """
    before = candidate(record)
    impostor = is_impostor(letter)
    _may_be_edited(before, impostor=impostor)
    changed = replace(at_origin(record), value=_with_id(record, payload))
    try:
        orders = decode(changed)
    except InvalidOrder as error:
        raise InvalidEdit(error.field, error.problem) from error
    if len(orders) != 1:
        raise InvalidEdit("record", f"holds {len(orders)} orders, and one is wanted")
    order = orders[0]
    if order.admission_number is not None:
        raise InvalidEdit("number", "only admission numbers orders")
    if impostor and before.order is not None and order.order_id == before.order.order_id:
        raise InvalidEdit("order_id", "is another order's; leave it out to get a new one")
    return Candidate(replace(changed, key=order.order_id.encode()), (order,))


def _may_be_edited(before: Candidate, *, impostor: bool) -> None:
    if len(before.orders) > 1:
        raise InvalidEdit("record", f"the letter holds {len(before.orders)} orders, and one is wanted")
    if before.order is not None and before.order.admission_number is not None and not impostor:
        raise InvalidEdit("number", "admission has taken the order as it is: replay it so, or discard it")


def _with_id(record: Record, payload: bytes) -> bytes:
    """The payload; an order without an id, with one."""
    try:
        fields: Any = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return payload  # whoever decodes it as an order says what is wrong
    product_id = fields.get("product_id") if isinstance(fields, dict) else None
    if not isinstance(product_id, int) or isinstance(product_id, bool) or not 0 < product_id <= MAX_ID:
        return payload
    if "order_id" in fields:
        return payload
    found = found_letter(record)
    order_id = derived_order_id(product_id, "edited", str(found.arrived), at_ms=found.arrived_ms)
    return msgspec.json.encode({"order_id": order_id} | fields)
