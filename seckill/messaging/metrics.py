"""Counters and gauges of the consumer's loop."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

FETCHED = Counter("seckill_worker_records_total", "Records fetched from the topic")
COMMITS = Counter("seckill_worker_commits_total", "Offset commits", ["result"])
INFLIGHT = Gauge("seckill_worker_inflight_orders", "Orders fetched and not yet routed")
WAITING_PARTITIONS = Gauge(
    "seckill_retry_waiting_partitions", "Partitions of a retry topic whose next record is not due yet", ["tier"]
)
GROUP_SIZE = Histogram(
    "seckill_worker_group_orders",
    "Orders carried in one group",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 350, 500),
)
