"""Problem documents (RFC 9457) with stable codes: everything that is not success, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from seckill.domain.outcomes import Refused
from seckill.domain.reasons import Refusal

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

TITLES: Mapping[str, tuple[int, str]] = {
    "SOLD_OUT": (409, "Not enough units are left"),
    "ALREADY_ORDERED": (409, "The buyer's allowance is used up"),
    "LIMIT_EXCEEDED": (422, "More than the buyer may buy"),
    "NOT_STARTED": (409, "The sale has not started"),
    "ENDED": (409, "The sale is over"),
    "PAUSED": (503, "The sale is paused"),
    "UNKNOWN_PRODUCT": (404, "The product has no sale"),
    "KEY_REUSED": (422, "The idempotency key came before with another quantity"),
    "RATE_LIMITED": (429, "Too many requests"),
    "OVERLOADED": (503, "Too many orders are under way"),
    "PENDING": (503, "The order may still succeed"),
    "UNAVAILABLE": (503, "A part of the system does not answer"),
    "INVALID_REQUEST": (422, "The request's values are not valid"),
    "MALFORMED_JSON": (400, "The body is not JSON"),
    "BODY_TOO_LARGE": (413, "The body is too large"),
    "INVALID_ORDER_ID": (400, "Not an order id"),
    "UNKNOWN_ORDER": (404, "There is no such order"),
    "UNKNOWN_SALE": (404, "There is no such sale"),
    "SALE_CONFLICT": (409, "The sale does not allow this"),
    "UNKNOWN_LETTER": (404, "There is no such dead letter"),
    "LETTER_REFUSED": (409, "The dead letter does not allow this"),
    "UNAUTHORIZED": (401, "The operator token is missing or wrong"),
    "CLOSED": (403, "No operator token is configured"),
    "NOT_FOUND": (404, "There is nothing here"),
    "METHOD_NOT_ALLOWED": (405, "This method is not allowed here"),
    "INTERNAL": (500, "An error that nobody foresaw"),
}
"""Code → HTTP status and title. Codes are part of the public contract."""

_RETRYABLE = frozenset({"PAUSED", "RATE_LIMITED", "OVERLOADED", "PENDING", "UNAVAILABLE"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `facts` become members of the document."""

    code: str
    detail: str
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return TITLES[self.code][0]

    @property
    def retry_after_s(self) -> int:
        """Above 0 when the same request may succeed later."""
        return RETRY_AFTER_S if self.code in _RETRYABLE else 0

    def document(self) -> bytes:
        status, title = TITLES[self.code]
        return msgspec.json.encode(
            {
                "type": "about:blank",
                "title": title,
                "status": status,
                "detail": self.detail,
                "code": self.code,
                **self.facts,
            }
        )

    def headers(self) -> dict[str, str]:
        headers = {"content-type": MEDIA_TYPE}
        if self.retry_after_s:
            headers["retry-after"] = str(self.retry_after_s)
        if self.code == "UNAUTHORIZED":
            headers["www-authenticate"] = "Bearer"
        return headers


class ProblemError(Exception):
    """Ends a request with a problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail}")
        self.problem = problem


def invalid(*errors: tuple[str, str]) -> Problem:
    """INVALID_REQUEST with `errors`: (field, problem) pairs."""
    detail = "; ".join(f"{name}: {problem}" for name, problem in errors)
    return Problem("INVALID_REQUEST", detail, {"errors": [{"field": name, "problem": what} for name, what in errors]})


def of_refusal(refused: Refused) -> Problem:
    """The problem that tells a buyer why an order was not accepted."""
    match refused:
        case Refused(Refusal.SOLD_OUT, left=left):
            return Problem("SOLD_OUT", f"{left} units are left", {"left": left})
        case Refused(Refusal.LIMIT_EXCEEDED, left=left):
            return Problem("LIMIT_EXCEEDED", f"the buyer may still buy {left} units", {"left": left})
        case Refused(Refusal.ALREADY_ORDERED, order_id=order_id):
            return Problem("ALREADY_ORDERED", "the buyer has ordered as much as is allowed", {"order_id": order_id})
        case Refused(Refusal.NOT_STARTED, at_ms=at_ms):
            return Problem("NOT_STARTED", "the sale starts later", {"starts_at_ms": at_ms})
        case Refused(Refusal.ENDED, at_ms=at_ms):
            return Problem("ENDED", "the sale takes no more orders", {"ended_at_ms": at_ms})
        case Refused(code):
            return Problem(code.value, _DETAILS[code])


_DETAILS: Mapping[Refusal, str] = {
    Refusal.PAUSED: "the sale takes no orders at the moment",
    Refusal.UNKNOWN_PRODUCT: "the product has no sale",
    Refusal.KEY_REUSED: "the idempotency key belongs to an order with another quantity",
    Refusal.OVERLOADED: "more orders than can be taken at the moment: too many have not ended yet, or come at once",
    Refusal.RATE_LIMITED: "this buyer asks too often",
}


def openapi_schema() -> dict[str, Any]:
    """The schema of a problem document for the OpenAPI description."""
    text, number = {"type": "string"}, {"type": "integer"}
    return {
        "type": "object",
        "description": "RFC 9457. `code` is stable; further members depend on it.",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": text,
            "title": text,
            "status": number,
            "detail": text,
            "code": {"type": "string", "enum": list(TITLES)},
            "order_id": {**text, "description": "ALREADY_ORDERED: the first order. PENDING: ask for this one."},
            "left": {**number, "description": "SOLD_OUT: units of the stock. LIMIT_EXCEEDED: of the allowance."},
            "starts_at_ms": {**number, "description": "NOT_STARTED"},
            "ended_at_ms": {**number, "description": "ENDED"},
            "errors": {
                "type": "array",
                "description": "INVALID_REQUEST",
                "items": {"type": "object", "properties": {"field": text, "problem": text}},
            },
        },
    }


def openapi_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that may answer with these codes."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(TITLES[code][0], []).append(code)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": ", ".join(codes), "content": content} for status, codes in by_status.items()}
