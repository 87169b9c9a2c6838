"""The settings and programs of the roles that crash: real servers, our coordinator, short times."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import tomli_w

from seckill.schema import DATABASES
from seckill.settings import load_settings
from tests.servers.ports import free_ports
from tests.support import crashing_role
from tests.support.role_processes import ROLES, Program, role_addresses
from tests.support.sides import Side

OPERATOR_TOKEN = "for-tests-only"
REDIS_DATABASE = 6
SESSION_MS = 2_000
"""Of the workers. The tests' brokers allow it (`group.min.session.timeout.ms`)."""

STANDBYS = {
    "worker_standby": ("worker", ("worker.ops",), {}),
    "coordinator_standby": (
        "coordinator", ("coordinator.grpc", "coordinator.http"), {"coordinator.cron_interval_ms": "700"},
    ),
    "reconcile_standby": ("reconcile", ("reconcile.ops",), {"reconcile.every_ms": "60000"}),  # else it may be first
}  # fmt: skip
"""Name → role, the addresses of its own, and settings that make it slower to take up what comes first."""

ARMED = (*ROLES, "dead_letters")
"""Those that can be told to crash."""

TIMES: Mapping[str, Mapping[str, Any]] = {
    "kafka": {"session_timeout_ms": SESSION_MS, "request_timeout_ms": 2_000},
    "ledger": {"republish_after_ms": 1_000, "undecided_wait_ms": 500},
    "front": {"operator_token": OPERATOR_TOKEN, "publish_timeout_ms": 1_500, "drain_timeout_ms": 2_000},
    "worker": {"drain_timeout_ms": 2_000},
    "product": {"drain_timeout_ms": 2_000},
    "order": {"drain_timeout_ms": 2_000},
    "reconcile": {"every_ms": 200, "orphan_after_ms": 1_500, "drain_timeout_ms": 2_000, "rebuild_wait_ms": 2_500},
    "dtm": {
        "timeout_to_fail_s": 2, "retry_interval_s": 1, "branch_timeout_s": 1,
        "try_timeout_ms": 1_000, "submit_timeout_ms": 3_000, "request_timeout_ms": 2_000,
    },
    "coordinator": {"cron_interval_ms": 200, "drain_timeout_ms": 2_000},
    "retry": {"attempts_max": 4, "base_ms": 100, "cap_ms": 500, "topic_delays_ms": [400, 1_500, 4_000]},
    "dead_letters": {"operator_token": OPERATOR_TOKEN, "look_every_ms": 200, "drain_timeout_ms": 2_000},
    "log": {"json_lines": True},
}  # fmt: skip


async def write_settings(side: Side, folder: Path) -> Path:
    """The settings file; the Redis database is emptied, and everything else is the site's own."""
    run = uuid4().hex[:8]
    places: dict[str, dict[str, Any]] = {
        "kafka": {
            "bootstrap": side.kafka, "topic": f"crash-{run}", "dead_letter_topic": f"crash-{run}-dlt",
            "group": f"crash-{run}",
        },
        "redis": {"url": side.empty_redis(REDIS_DATABASE), "run_id_check": side.run_id_check},
        **{name: {"database_url": side.empty_database(name, folder)} for name in DATABASES},
    }  # fmt: skip
    addresses = role_addresses()
    names = TIMES.keys() | places.keys() | addresses.keys()
    values = {name: {**TIMES.get(name, {}), **places.get(name, {}), **addresses.get(name, {})} for name in names}
    config = folder / "seckill.toml"
    config.write_text(tomli_w.dumps(values))
    await side.make_pipeline_topics(load_settings(config).kafka)
    return config


def crashing_programs(folder: Path) -> dict[str, Program]:
    """Of the roles that can be told to crash, and of those that stand by."""
    return {role: _program(role, role.replace("_", "-"), folder) for role in ARMED} | _standbys(folder)


def _program(name: str, role: str, folder: Path, environment: Mapping[str, str] | None = None) -> Program:
    command = (sys.executable, crashing_role.__file__, role, str(folder / name))
    return Program(command, environment=environment or {})


def _standbys(folder: Path) -> dict[str, Program]:
    programs = {}
    for name, (role, addresses, slower) in STANDBYS.items():
        values = {each: f"127.0.0.1:{port}" for each, port in zip(addresses, free_ports(len(addresses)), strict=True)}
        values |= slower
        environment = {f"SECKILL__{each.replace('.', '__').upper()}": value for each, value in values.items()}
        programs[name] = _program(name, role, folder, environment)
    return programs
