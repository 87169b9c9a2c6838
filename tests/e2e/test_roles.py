"""Every role as a process of its own, configured by one file, on servers that are none of them.

The coordinator is ours, on real servers too (on MariaDB): the test ends it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from seckill.cli.roles import EVERY_ADDRESS
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.retry_topics import retry_tiers
from seckill.schema import DATABASES
from seckill.settings import KafkaSettings, load_settings
from tests.support.sides import Side

if TYPE_CHECKING:
    from tests.e2e.conftest import Running, Seckill

pytestmark = pytest.mark.slow

ROLES = ("coordinator", "product", "order", "worker", "reconcile", "dead-letters", "front", "alerts")


def free_addresses(count: int) -> list[str]:
    """Addresses that nobody listens on. All are held until the last one is known, so that none comes twice."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@pytest.fixture(scope="module")
def roles(new_seckill: Callable[[], Seckill], side: Side) -> tuple[Seckill, dict[str, Running]]:
    """A home whose SECKILL_CONFIG names a file, and the roles that run by it."""
    seckill = new_seckill()
    file = seckill.folder / "seckill.toml"
    file.write_text(asyncio.run(settings_file(side, seckill.folder)))
    seckill.environment["SECKILL_CONFIG"] = str(file)
    assert seckill.run("db", "upgrade").returncode == 0
    return seckill, {role: seckill.start(role) for role in ROLES}


async def settings_file(side: Side, folder: Path) -> str:
    run = uuid.uuid4().hex[:8]
    kafka = KafkaSettings(bootstrap=side.kafka, topic=f"roles-{run}", dead_letter_topic=f"roles-{run}-dlt")
    await side.make_pipeline_topics(kafka)
    address = dict(zip(EVERY_ADDRESS, free_addresses(len(EVERY_ADDRESS)), strict=True))
    sections: dict[str, list[str]] = {
        "kafka": [
            f'bootstrap = "{kafka.bootstrap}"',
            f'topic = "{kafka.topic}"',
            f'dead_letter_topic = "{kafka.dead_letter_topic}"',
            f'group = "roles-{run}"',
        ],
        "redis": [f'url = "{side.redis}"', f"run_id_check = {str(side.run_id_check).lower()}"],
        "dtm": [f'grpc = "{address["coordinator.grpc"]}"', f'http = "{address["coordinator.http"]}"'],
        "front": ['operator_token = "for-tests-only"'],
        **{name: [f'database_url = "{await side.database(name, folder)}"'] for name in DATABASES},
    }
    for name, listening in address.items():
        section, key = name.split(".")
        sections.setdefault(section, []).append(f'{key} = "{listening}"')
    return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items())


def until_ready(seckill: Seckill) -> None:
    deadline = time.monotonic() + 60
    while (ended := seckill.run("status")).returncode != 0:
        assert time.monotonic() < deadline, ended.stdout + ended.stderr


def until_shown(address: str, name: str) -> list[dict[str, str]]:
    """The labels of a metric's series at a role's /metrics, once there are any."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"http://{address}/metrics") as reply:
            families = text_string_to_metric_families(reply.read().decode())
        if found := [sample.labels for family in families for sample in family.samples if sample.name == name]:
            return found
        assert time.monotonic() < deadline, f"{address} does not show {name}"
        time.sleep(0.2)


def test_roles_show_what_waits(roles: tuple[Seckill, dict[str, Running]]) -> None:
    """Reconcile shows how far the workers are behind, topic by topic; who keeps the letters, how many wait, and why."""
    seckill, _ = roles
    until_ready(seckill)
    settings = load_settings(Path(seckill.environment["SECKILL_CONFIG"]))
    lags = until_shown(settings.reconcile.ops, "seckill_consumer_lag_records")
    assert lags == [{"topic": settings.kafka.topic}]
    waiting = until_shown(settings.reconcile.ops, "seckill_retry_lag_records")
    assert [each["topic"] for each in waiting] == [tier.topic for tier in retry_tiers(settings.kafka, settings.retry)]
    letters = until_shown(settings.dead_letters.http, "seckill_letters_new")
    assert {each["reason"] for each in letters} == set(DeadLetterReason)


def test_roles_as_processes_carry_an_order_and_drain(roles: tuple[Seckill, dict[str, Running]]) -> None:
    """Processes that share only sockets carry an order to its end; SIGTERM drains each, which says so."""
    seckill, running = roles
    until_ready(seckill)
    product = str(time.time_ns() % 1_000_000_007 + 1)  # the stand-in for Redis is shared with other tests
    seckill.json("sale", "create", "--product", product, "--stock", "3")
    order = seckill.json("publish", "--user", "7", "--product", product)
    assert seckill.json("order", "show", order["order_id"], "--wait", "30")["status"] == "confirmed"

    # Everything is younger than the retention, so nothing goes, whoever is asked.
    pruned = seckill.json("db", "prune", "--older-than", "1h")
    assert (pruned["rows"], pruned["sales"], pruned["kept"], pruned["coordinator"]) == ({}, [], [], True)
    told = seckill.run("db", "prune", "--older-than", "1h", "--dry-run")
    assert (told.returncode, told.stdout, told.stderr) == (0, "nothing to delete\n", "")

    unready = seckill_without_coordinator(seckill, running)
    assert unready["coordinator"] == "unreachable"
    assert unready["worker"] == "unready"
    for role in reversed(ROLES[1:]):
        assert running[role].stop(signal.SIGTERM) == 0, running[role].stderr
        assert f"seckill {role}: drained and ended" in running[role].stderr


def seckill_without_coordinator(seckill: Seckill, running: dict[str, Running]) -> dict[str, str]:
    """The roles' states after the coordinator was ended; `status` must not call that fine."""
    assert running["coordinator"].stop(signal.SIGTERM) == 0
    ended = seckill.run("status", "--json")
    assert ended.returncode == 1
    return {role["role"]: role["state"] for role in json.loads(ended.stdout)["roles"]}
