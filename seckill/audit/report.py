"""The audit's result as plain values: what `--json` prints and what the tables show. Pure."""

from __future__ import annotations

from typing import Any

from seckill.audit.rules import Invariant, Verdict

MEANING = {
    Invariant.UNITS_ADD_UP: "stock + frozen + sold = initial; none negative, nothing frozen at rest",
    Invariant.SOLD_IS_CONFIRMED: "sold units = sold reservations = confirmed orders",
    Invariant.LIMIT_HOLDS: "no buyer holds more than the sale allows",
    Invariant.EVERY_ORDER_ENDS: "each accepted order has one end, the one that the buyer is told",
    Invariant.REDIS_AGREES: "Redis' stock + admitted units = initial, and the stores hold the admitted ones",
    Invariant.BRANCHES_AGREE: "both branches of every transaction ended the same way, once",
}


def verdict_report(verdict: Verdict, *, shown: int = 20) -> dict[str, Any]:
    """What the stores say. `broken` lists the first `shown` breaches of every invariant that does not hold."""
    return {
        "confirmed": verdict.confirmed,
        "dead_lettered": verdict.dead_lettered,
        "lost": len(verdict.lost),
        "lost_orders": list(verdict.lost[:shown]),
        "oversold": verdict.oversold,
        "duplicates": verdict.duplicates,
        "invariants": verdict.invariants,
        "broken": {
            invariant.value: [{"what": each.what, "problem": each.problem} for each in found[:shown]]
            for invariant, found in verdict.breaches.items()
            if found
        },
    }
