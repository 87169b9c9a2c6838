"""A role as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from seckill.draining import STOP_SIGNALS, second_signal_ends_process
from seckill.plaintext import warn_of_plaintext
from seckill.settings import Settings
from seckill.wiring.alerts import open_alerts
from seckill.wiring.dead_letters import open_dead_letters
from seckill.wiring.reconcile import open_reconcile
from seckill.wiring.role import OpenRole, Role
from seckill.wiring.services import open_coordinator, open_front, open_order, open_product
from seckill.wiring.worker import open_worker

log = structlog.get_logger()

ROLES: Mapping[str, OpenRole] = {
    "coordinator": open_coordinator,
    "product": open_product,
    "order": open_order,
    "worker": open_worker,
    "reconcile": open_reconcile,
    "dead_letters": open_dead_letters,
    "front": open_front,
    "alerts": open_alerts,
}
"""In the order in which they start; they stop in the reverse one, so that intake ends first of all that carries orders.
Alerts look at all the others, and start when those are there."""


async def run_role(name: str, settings: Settings, *, started: Callable[[Role], None] | None = None) -> None:
    """One role as a process: serves until SIGTERM or SIGINT, then drains. Raises what ended it otherwise, and
    DrainIncomplete; what hangs beyond the deadline ends with the process.
    """
    warn_of_plaintext(name, settings)
    async with ROLES[name](settings) as role:
        log.info("role_started", role=name, **role.addresses)
        if started is not None:
            started(role)
        await until_stopped(role)
        delay_ms = drain_delay_ms(settings, name)
        log.info("role_draining", role=name, timeout_ms=role.drain.timeout_ms, delay_ms=delay_ms)
        await role.drain.begin_process(delay_ms=delay_ms)
    role.drain.end_process()
    log.info("role_stopped", role=name)


def drain_delay_ms(settings: Settings, role: str) -> int:
    """How long a role serves on after it is unready: 0 for those that nobody sends work to."""
    delay_ms: int = getattr(getattr(settings, role), "drain_delay_ms", 0)
    return delay_ms


async def until_stopped(*roles: Role) -> None:
    """Returns on SIGTERM or SIGINT; raises when a role's own task ends before that. From then on a second signal ends
    the process at once.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, signalled.set)
    waiting = asyncio.create_task(signalled.wait())
    tasks = {role.task for role in roles if role.task is not None}
    try:
        await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
    finally:
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
        second_signal_ends_process()
