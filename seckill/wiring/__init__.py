"""The only place that constructs services: each `open_…` is an async context manager that builds one role from
settings and takes it down in the reverse order. Importing opens nothing.

    services   coordinator, product, order, front        process    a role as a process, ended by SIGTERM or Ctrl-C
    worker     carries orders                             together   every role in one process
    reconcile  looks after what is left behind      alerts     tells people
    dead_letters  keeps their index, opens its desk
"""

from seckill.clients import open_channel, open_dtm
from seckill.messaging.consumer import open_consumer
from seckill.settings import with_values
from seckill.wiring.checks import check_service
from seckill.wiring.process import ROLES, drain_delay_ms, run_role, until_stopped
from seckill.wiring.reconcile import open_orphans, open_reconcile, open_reconciler, open_sales_watch
from seckill.wiring.role import OpenRole, Role
from seckill.wiring.services import open_coordinator, open_front, open_order, open_product
from seckill.wiring.together import Embedded, open_embedded, open_on_servers
from seckill.wiring.worker import open_carrier, open_worker

__all__ = [
    "ROLES",
    "Embedded",
    "OpenRole",
    "Role",
    "check_service",
    "drain_delay_ms",
    "open_carrier",
    "open_channel",
    "open_consumer",
    "open_coordinator",
    "open_dtm",
    "open_embedded",
    "open_front",
    "open_on_servers",
    "open_order",
    "open_orphans",
    "open_product",
    "open_reconcile",
    "open_reconciler",
    "open_sales_watch",
    "open_worker",
    "run_role",
    "until_stopped",
    "with_values",
]
