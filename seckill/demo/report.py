"""The demo's result as plain values: what `--json` prints and what the tables show. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from seckill.audit.report import verdict_report
from seckill.demo.run import DemoResult


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
