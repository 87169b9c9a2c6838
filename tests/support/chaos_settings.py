"""Settings for pipelines whose roles are processes and are killed: everything of their own, and times so short that
everything heals within a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import tomli_w

from seckill.schema import DATABASES
from seckill.settings import Settings, load_settings
from tests.servers import install, native
from tests.servers.ports import free_ports
from tests.support.role_processes import Program, role_addresses
from tests.support.sides import Side

OPERATOR_TOKEN = "for-tests-only"


async def settings_in(
    folder: Path, side: Side, over: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Path, Settings]:
    """A file for the roles, with times so short that everything heals within a minute, and with what is given `over`
    them.
    """
    run = uuid4().hex[:8]
    kafka = {"topic": f"chaos-{run}", "dead_letter_topic": f"chaos-{run}-dlt", "group": f"chaos-{run}"}
    databases = {name: side.empty_database(name, folder) for name in DATABASES}
    times: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap": side.kafka, "session_timeout_ms": 6_000, "request_timeout_ms": 5_000, **kafka},
        "redis": {"url": side.redis, "run_id_check": side.run_id_check},
        "ledger": {"republish_after_ms": 3_000, "undecided_wait_ms": 2_000},
        "front": {"operator_token": OPERATOR_TOKEN, "drain_timeout_ms": 4_000},
        "worker": {"drain_timeout_ms": 6_000},
        "product": {"database_url": databases["product"], "drain_timeout_ms": 4_000},
        "order": {"database_url": databases["order"], "drain_timeout_ms": 4_000},
        "dtm": {"timeout_to_fail_s": 4, "retry_interval_s": 1, "branch_timeout_s": 2},
        "coordinator": {
            "database_url": databases["coordinator"],
            "cron_interval_ms": 300,
            "retry_interval_s": 1,
            "drain_timeout_ms": 4_000,
        },
        "dead_letters": {"database_url": databases["dead_letters"]},
        "log": {"json_lines": True},
    }
    sections: dict[str, dict[str, Any]] = {}
    for layer in (times, role_addresses(), over or {}):
        for name, values in layer.items():
            sections[name] = {**sections.get(name, {}), **values}
    file = folder / "seckill.toml"
    file.write_text(tomli_w.dumps(sections))
    settings = load_settings(file)
    await side.make_pipeline_topics(settings.kafka)
    return file, settings


def coordinator_of(side: Side, folder: Path, settings: Settings) -> dict[str, Program]:
    """On real servers a DTM takes the coordinator's part, and its addresses."""
    if side.servers is None:
        return {}
    install.require("DTM")
    native.write_dtm_settings(
        folder / "dtm.yml", native.mysql_store(native.dtm_database(side.servers.mariadb)),
        grpc=settings.dtm.grpc, http=settings.dtm.http, json_rpc_port=free_ports(1)[0], log_level="info",
    )  # fmt: skip
    return {"coordinator": Program((str(install.dtm_program()), "-c", str(folder / "dtm.yml")), b"grpc listening at")}
