"""Counters and gauges of the front."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter("seckill_front_orders_total", "Order requests by their answer", ["api", "code"])
TURNED_AWAY = Counter(
    "seckill_front_turned_away_total",
    "Orders that were refused before admission: user_rate, rate, under_way, publish_stalled, kafka_down, redis_down",
    ["why"],
)
LATENCY = Histogram(
    "seckill_front_order_seconds",
    "From the request's body to its answer",
    ["api"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BATCH_SIZE = Histogram(
    "seckill_front_admission_batch_orders",
    "Orders in one call of the admission script",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000),
)


class OrderMetrics:
    """The counters of one API, their children looked up once per code."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._by_code: dict[str, Counter] = {}
        self._latency = LATENCY.labels(api)

    def answered(self, code: str, seconds: float) -> None:
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = REQUESTS.labels(self._api, code)
        counter.inc()
        self._latency.observe(seconds)
