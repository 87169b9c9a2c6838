"""How many connections of a database are in use and for how long, in prometheus_client's default registry.

A connection is held from when a session takes it until it is given back or closed: that is, for one transaction.
Waiting for a free one is not part of it. May import SQLAlchemy only.
"""

from __future__ import annotations

import time
from pathlib import PurePath
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

OPENED = Counter("seckill_database_connections_opened_total", "Connections made to a database", ["database"])
IN_USE = Gauge("seckill_database_connections_in_use", "Connections that a transaction holds now", ["database"])
HELD = Histogram(
    "seckill_database_connection_held_seconds",
    "How long a transaction held its connection",
    ["database"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)

_SINCE = "seckill_held_since"


def watch_connections(engine: AsyncEngine) -> None:
    """Counts what this engine's pool gives out, whatever kind of pool it is. Call it once for an engine."""
    name = database_name(engine.url)
    opened, in_use, held = OPENED.labels(name), IN_USE.labels(name), HELD.labels(name)

    def made(_connection: Any, _record: Any) -> None:
        opened.inc()

    def taken(_connection: Any, record: Any, _proxy: Any) -> None:
        record.record_info[_SINCE] = time.perf_counter()
        in_use.inc()

    def given_back(_connection: Any, record: Any) -> None:
        since = record.record_info.pop(_SINCE, None)
        if since is not None:
            in_use.dec()
            held.observe(time.perf_counter() - since)

    pool = engine.sync_engine.pool
    event.listen(pool, "connect", made)
    event.listen(pool, "checkout", taken)
    event.listen(pool, "checkin", given_back)
    event.listen(pool, "detach", given_back)  # taken out of the pool for good, and closed by who holds it


def database_name(url: URL) -> str:
    """A database as the metrics call it: its name, or that of its file."""
    database = url.database or ""
    return PurePath(database).stem if url.get_backend_name() == "sqlite" else database
