"""What the buyers are told to do, and what they tell in return: the messages between the demo and its crowd."""

from __future__ import annotations

import math

import msgspec


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One JSON document on the buyers' stdin."""

    url: str
    products: list[int]
    unknown_product: int  # one that has no sale
    buyers: int
    seed: int
    concurrency: int = 64
    timeout_s: float = 30.0
    body_bytes_max: int = 16_384  # the front's bound, to send something larger
    ca: str | None = None  # PEM file of the authority of an HTTPS front; None: the system's


class Progress(msgspec.Struct, tag_field="type", tag="progress"):
    """One line of the buyers' stdout, several times a second. Counts so far; `accepted` ids since the last line."""

    requests: int
    accepted: list[str]
    rejected: dict[str, int]


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds, from sending a request to its answer."""

    p50: float
    p95: float
    p99: float
    count: int


class Done(msgspec.Struct, tag_field="type", tag="done"):
    """The last line. `requests` = accepted + repeated + the sum of `rejected` + pending + unanswered."""

    requests: int
    accepted: int  # order ids, each counted once
    repeated: int  # answers that named an order id once more
    rejected: dict[str, int]  # by code
    pending: list[str]  # order ids of answers 503 PENDING: they may still succeed
    unanswered: int  # time-outs and lost connections
    unexpected: list[str]  # answers that the kind of request does not allow, at most 20 described
    unexpected_count: int
    seconds: float
    accept: Latency  # of accepted orders
    answer: Latency  # of every request


Message = Progress | Done


def latency(milliseconds: list[float]) -> Latency:
    """Percentiles by the nearest-rank method: the smallest value that so large a share is not above; 0 for nothing."""
    ordered = sorted(milliseconds)

    def rank(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 2) if ordered else 0.0

    return Latency(p50=rank(0.50), p95=rank(0.95), p99=rank(0.99), count=len(ordered))
