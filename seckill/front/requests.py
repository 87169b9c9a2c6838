"""What an order request must look like: decoding and checking, without I/O."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from seckill.admission.gate import Wanted
from seckill.domain.order import MAX_ID, MAX_KEY_LENGTH
from seckill.front.problems import Problem, invalid

PositiveId = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]

_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_LENGTH}}}", re.ASCII)


class OrderRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /v1/orders`."""

    user_id: PositiveId
    product_id: PositiveId
    quantity: PositiveId | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(OrderRequest)


def read_order(body: bytes, key: bytes | None) -> Wanted | Problem:
    """The buyer's wish, or what is wrong with the request. `key` is the Idempotency-Key header."""
    try:
        request = _decoder.decode(body)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, not an order, or nested beyond reason
        return _explain(body)
    # Every member's value is a number, so the quotes are those of the names: more of them are repeated names.
    members = 2 if request.quantity is msgspec.UNSET else 3
    if body.count(b'"') != 2 * members:
        return invalid(("body", "a member comes twice"))
    quantity = 1 if request.quantity is msgspec.UNSET else request.quantity
    if key is None:
        return Wanted(request.product_id, request.user_id, quantity)
    problem = key_problem(key_text := key.decode("latin-1"))
    if problem is not None:
        return invalid(("Idempotency-Key", problem))
    return Wanted(request.product_id, request.user_id, quantity, key_text)


def key_problem(key: str) -> str | None:
    """Why this cannot be an idempotency key; None when it can."""
    return None if _KEY.fullmatch(key) else f"expected 1 to {MAX_KEY_LENGTH} visible ASCII characters"


def _explain(body: bytes) -> Problem:
    """Every field's problem: only for requests that were refused already."""
    try:
        members: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        return Problem("MALFORMED_JSON", str(error))
    if not isinstance(members, dict):
        return invalid(("body", "expected an object"))
    fields = {field.name: field for field in msgspec.structs.fields(OrderRequest)}
    errors = [(name, "there is no such member") for name in members if name not in fields]
    for name, field in fields.items():
        if name in members:
            try:
                msgspec.convert(members[name], field.type)
            except msgspec.ValidationError as error:
                errors.append((name, str(error)))
        elif field.required:
            errors.append((name, "is missing"))
    return invalid(*((name[:80], problem) for name, problem in errors[:10]))
