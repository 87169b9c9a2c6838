"""A coordinator that speaks DTM's protocol: durable log, crash recovery, repeats until every branch has answered.

It serves all four patterns over gRPC: TCC, XA, saga and two-phase message. Differences from a DTM server: a Submit of
a TCC or an XA that nobody prepared is refused, a second Submit changes nothing, a saga's actions that are being called
are waited for before anything is compensated, and topics and workflows are not served.
"""

from __future__ import annotations

from seckill.coordinator.engine import Coordinator
from seckill.coordinator.http_api import coordinator_app
from seckill.coordinator.server import ServedCoordinator, serve_coordinator
from seckill.coordinator.store import Store, StoreUnavailable
from seckill.coordinator.timing import Timing

__all__ = [
    "Coordinator",
    "ServedCoordinator",
    "Store",
    "StoreUnavailable",
    "Timing",
    "coordinator_app",
    "serve_coordinator",
]
