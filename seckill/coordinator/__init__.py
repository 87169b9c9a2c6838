"""A coordinator that speaks DTM's protocol: durable log, crash recovery, repeats until every branch has answered.

Differences from a DTM server: a Submit for a gid that nobody prepared is refused, a second Submit changes nothing,
and only TCC over gRPC is served so far.
"""

from __future__ import annotations

from seckill.coordinator.engine import Coordinator, Timing
from seckill.coordinator.http_api import coordinator_app
from seckill.coordinator.server import ServedCoordinator, serve_coordinator
from seckill.coordinator.store import Store, StoreUnavailable

__all__ = [
    "Coordinator",
    "ServedCoordinator",
    "Store",
    "StoreUnavailable",
    "Timing",
    "coordinator_app",
    "serve_coordinator",
]
