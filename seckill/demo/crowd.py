"""Who buys what: the requests of a crowd, decided by the seed alone. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from seckill.demo.plan import Plan

TWICE_SHARE = 0.04  # press the button twice
REPEAT_SHARE = 0.03  # send the same request twice, with an idempotency key
UNKNOWN_SHARE = 0.02
MALFORMED_SHARE = 0.02


class Kind(StrEnum):
    ORDER = "order"
    AGAIN = "again"  # a second press of the same buyer, without a key
    REPEAT = "repeat"  # the same request with the same key
    UNKNOWN = "unknown"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Request:
    kind: Kind
    body: bytes
    key: str | None = None


_BUSY = frozenset({"OVERLOADED", "RATE_LIMITED", "UNAVAILABLE", "PENDING"})
_MALFORMED_CODES = frozenset({"MALFORMED_JSON", "INVALID_REQUEST", "BODY_TOO_LARGE", "LIMIT_EXCEEDED"})


def requests_of(plan: Plan) -> list[Request]:
    """Every buyer's requests, shuffled. Buyer n has the user id n; nobody is two kinds at once."""
    chance = random.Random(plan.seed)  # noqa: S311 - a crowd that can be repeated, not a secret
    requests: list[Request] = []
    for user_id in range(1, plan.buyers + 1):
        product_id = chance.choice(plan.products)
        draw = chance.random()
        body = _body(user_id, product_id)
        if draw < MALFORMED_SHARE:
            requests.append(Request(Kind.MALFORMED, _malformed(chance, plan, user_id, product_id)))
        elif (draw := draw - MALFORMED_SHARE) < UNKNOWN_SHARE:
            requests.append(Request(Kind.UNKNOWN, _body(user_id, plan.unknown_product)))
        elif (draw := draw - UNKNOWN_SHARE) < REPEAT_SHARE:
            key = f"demo-{plan.seed}-{user_id}"
            requests += [Request(Kind.REPEAT, body, key), Request(Kind.REPEAT, body, key)]
        elif draw - REPEAT_SHARE < TWICE_SHARE:
            requests += [Request(Kind.AGAIN, body), Request(Kind.AGAIN, body)]
        else:
            requests.append(Request(Kind.ORDER, body))
    chance.shuffle(requests)
    return requests


def allowed(kind: Kind, status: int, code: str) -> bool:
    """Whether an answer makes sense for the request. `code` is empty for an accepted or repeated one."""
    match kind:
        case Kind.MALFORMED:
            return 400 <= status < 500 and code in _MALFORMED_CODES
        case Kind.UNKNOWN:
            return code == "UNKNOWN_PRODUCT" or code in _BUSY - {"PENDING"}
        case Kind.REPEAT | Kind.ORDER:
            return not code or code == "SOLD_OUT" or code in _BUSY
        case Kind.AGAIN:
            return not code or code in {"SOLD_OUT", "ALREADY_ORDERED"} or code in _BUSY


def _body(user_id: int, product_id: int) -> bytes:
    return msgspec.json.encode({"user_id": user_id, "product_id": product_id, "quantity": 1})


def _malformed(chance: random.Random, plan: Plan, user_id: int, product_id: int) -> bytes:
    order = {"user_id": user_id, "product_id": product_id, "quantity": 1}
    return chance.choice(
        [
            b'{"user_id": 7, "product_id": ',
            b"buy!",
            b"",
            msgspec.json.encode([order]),
            msgspec.json.encode({**order, "quantity": 0}),
            msgspec.json.encode({**order, "quantity": -1}),
            msgspec.json.encode({**order, "quantity": "many"}),
            msgspec.json.encode({**order, "quantity": 1_000_000}),
            msgspec.json.encode({**order, "user_id": None}),
            msgspec.json.encode({"product_id": product_id}),
            msgspec.json.encode({**order, "note": "x" * (4 * plan.body_bytes_max)}),
        ]
    )
