"""The demo's and the audit's result as plain values: what `--json` prints and what the tables show. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from seckill.demo.audit import Invariant, Verdict
from seckill.demo.run import DemoResult

MEANING = {
    Invariant.UNITS_ADD_UP: "stock + frozen + sold = initial; none negative, nothing frozen",
    Invariant.SOLD_IS_CONFIRMED: "sold units = sold reservations = confirmed orders",
    Invariant.LIMIT_HOLDS: "no buyer holds more than the sale allows",
    Invariant.EVERY_ORDER_ENDS: "each accepted order has one end, the one that the buyer is told",
    Invariant.REDIS_AGREES: "Redis' stock + admitted units = initial, and the stores hold the admitted ones",
    Invariant.BRANCHES_AGREE: "both branches of every transaction ended the same way, once",
}

BREACHES_SHOWN = 20


def verdict_report(verdict: Verdict) -> dict[str, Any]:
    """What the stores say. `broken` lists the first breaches of every invariant that does not hold."""
    return {
        "confirmed": verdict.confirmed,
        "dead_lettered": verdict.dead_lettered,
        "lost": len(verdict.lost),
        "lost_orders": list(verdict.lost[:BREACHES_SHOWN]),
        "oversold": verdict.oversold,
        "duplicates": verdict.duplicates,
        "invariants": verdict.invariants,
        "broken": {
            invariant.value: [{"what": each.what, "problem": each.problem} for each in found[:BREACHES_SHOWN]]
            for invariant, found in verdict.breaches.items()
            if found
        },
    }


def demo_report(result: DemoResult) -> dict[str, Any]:
    """One object. `rejected` counts refusals of the front and accepted orders that were rejected later, by code."""
    crowd, options = result.crowd, result.options
    rejected = Counter(crowd.rejected) + Counter(result.verdict.rejected)
    return {
        "requests": crowd.requests,
        "accepted": crowd.accepted,
        "repeated": crowd.repeated,
        **verdict_report(result.verdict),
        "rejected": dict(rejected.most_common()),
        "pending": len(crowd.pending),
        "unanswered": crowd.unanswered,
        "unexpected": crowd.unexpected_count,
        "unexpected_answers": crowd.unexpected,
        "at_rest": not result.unrest,
        "seconds": result.seconds,
        "requests_per_second": round(crowd.requests / crowd.seconds, 1),
        "confirmed_per_second": round(result.verdict.confirmed / result.seconds, 1),
        "latency_ms": {
            "accept": _latency(crowd.accept),
            "answer": _latency(crowd.answer),
            "confirm": _latency(result.confirm),
        },
        "stock": options.stock,
        "products": options.products,
        "buyers": options.buyers,
        "seed": options.seed,
        "fine": result.fine,
    }


def _latency(latency: Any) -> dict[str, float]:
    return {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}
