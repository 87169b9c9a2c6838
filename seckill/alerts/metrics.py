"""The counters of alerts, in prometheus_client's default registry. No label ever holds a target's address."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

ACTIVE = Gauge("seckill_alerts_active", "Findings that stand and have been told", ["rule"])
TOLD = Counter("seckill_alerts_total", "Messages, before any target has taken them", ["rule", "kind"])
SENT = Counter(
    "seckill_alerts_sent_total",
    "Attempts to hand a message to a target: delivered, failed (it is tried again), slow (it is still being tried), "
    "dropped (too many waited)",
    ["target", "result"],
)
WAITING = Gauge("seckill_alerts_waiting", "Messages that a target has not taken yet", ["target"])
LOOKS = Counter("seckill_alerts_looks_total", "Looks at the pipeline", ["result"])
SILENT = Gauge("seckill_alerts_silent_sources", "Sources that did not answer in the newest look")
BREACHES = Gauge("seckill_audit_breaches", "Places in which the newest audit found an invariant false", ["invariant"])
