"""The coordinator's counters, in prometheus_client's default registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

TRANSACTIONS = Counter(
    "seckill_coordinator_transactions", "Transactions that reached a status", ["trans_type", "status"]
)
BRANCH_CALLS = Counter("seckill_coordinator_branch_calls", "Calls of branch operations", ["op", "result"])
STUCK = Gauge("seckill_coordinator_stuck_transactions", "Decided transactions that are not finished after a minute")
