"""Everything that docker-compose.yml says, done without Docker: the same commands, in its order, on real servers.

`translate.py` has the table of what is put in other words, `stack.py` plays Compose. What is not exercised is the image
itself: see test_dockerfile.py for how far that goes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.compose.loader import compose_file
from tests.compose.stack import JAVA_TERMINATED, Stack, listens, seconds
from tests.compose.translate import Kafka, Site, Spec, StepFailed, container
from tests.servers import ServersMissing, install

START_S = 240
COMMAND_S = 100
LOOKS = 5
PASSWORDS = {
    "MARIADB_ROOT_PASSWORD": r"it's\root",  # what a shell script and SQL could stumble over
    "PRODUCT_DB_PASSWORD": "pw-product",
    "ORDER_DB_PASSWORD": "pw-order",
    "COORDINATOR_DB_PASSWORD": "pw-coordinator",
    "DEAD_LETTERS_DB_PASSWORD": "pw-dead-letters",
    "DTM_DB_PASSWORD": "pw-dtm",
    "SCHEMA_DB_PASSWORD": "pw-schema",
    "AUDITOR_DB_PASSWORD": "pw-auditor",
    "REDIS_PASSWORD": "pw-redis",
    "SECKILL_OPERATOR_TOKEN": "pw-operator",
}
OUR_COORDINATOR = {"COORDINATOR_GRPC": "coordinator:36790", "COORDINATOR_HTTP": "coordinator:36789"}

# Every key that a service may have, and what is done with it.
KEYS: dict[str, str] = {
    "image": "names the translation; a test of the file wants a pinned tag",
    "build": "test_dockerfile.py",
    "pull_policy": "of the image, which is not built here",
    "command": "run as it stands",
    "entrypoint": "none has one of its own",
    "environment": "set as it stands; a name that nobody reads fails",
    "healthcheck": "its own command, within its own time-outs, until it succeeds in its own time",
    "ports": "the container's side listens; the host's side is loopback",
    "volumes": "folders that outlive the containers; files are there, and mounted files are read",
    "tmpfs": "a folder, which is TMPDIR",
    "depends_on": "the order of starting, and the reverse of it",
    "networks": "the default one: every name is dialled",
    "profiles": "started when asked for",
    "restart": "a test of the file: servers and roles come back, work that ends does not",
    "stop_grace_period": "it has ended by itself before that",
    "mem_limit": "its memory has stayed below it",
    "read_only": "it writes to no file outside its volumes and tmpfs",
    "cap_drop": "it has none",
    "security_opt": "it cannot gain any",
    "user": "of the image; here it is whoever runs the tests, without any capability",
}
SUBKEYS = {
    "healthcheck": {"test", "interval", "timeout", "retries", "start_period"},
    "ports": {"mode", "host_ip", "target", "published", "protocol"},
    "volumes": {"type", "source", "target", "read_only", "bind", "volume"},
    "depends_on": {"condition", "required"},
    "build": {"context", "dockerfile"},
}
TOP_LEVEL = {"name", "services", "volumes", "networks"}

pytestmark = pytest.mark.timeout(START_S * 3)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything that `docker compose up` starts, up and healthy."""
    try:
        install.require("Kafka", "Redis", "MariaDB", "DTM")
    except ServersMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    stack = Stack(Site(compose_file(variables=PASSWORDS)["services"], tmp_path_factory.mktemp("compose")))
    try:
        stack.up(started_by_up(stack.services))
        yield stack
    finally:
        stack.close()


def started_by_up(services: dict[str, Spec] | Spec, *profiles: str) -> list[str]:
    return [name for name, spec in services.items() if set(spec.get("profiles", ())) <= set(profiles)]


def test_nothing_in_the_file_is_left_out() -> None:
    """Every key and every variable of every service has an exercise; a new one needs one first."""
    loaded = compose_file()
    assert {key for key in loaded if not key.startswith("x-")} == TOP_LEVEL
    assert set(loaded["networks"]) == {"default"}
    assert all(set(volume) == {"name"} for volume in loaded["volumes"].values())
    for name, spec in loaded["services"].items():
        assert set(spec) <= set(KEYS), name
        assert set(spec["networks"]) == {"default"}, name
        for key, known in SUBKEYS.items():
            for entry in _entries(spec.get(key)):
                assert set(entry) <= known, (name, key)
        assert not container(Site(loaded["services"], Path("/nowhere")), name).unknown_variables(), name


def _entries(value: object) -> list[dict[str, object]]:
    """Of a list, of a mapping of mappings, or the mapping itself."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        nested = [each for each in value.values() if isinstance(each, dict)]
        return nested if len(nested) == len(value) else [value]
    return []


def test_everything_becomes_healthy_in_order(stack: Stack) -> None:
    """What `docker compose up` starts is healthy in the time that the file gives it, or has ended with 0."""
    assert set(stack.running) | stack.completed == set(started_by_up(stack.services))
    assert stack.completed == {"schema", "topics"}
    assert stack.order.index("worker") < stack.order.index("front")
    for service in stack.running.values():
        assert service.healthy_after_s is not None
        assert service.healthy_after_s < service.patience_s()


def test_every_published_port_is_listened_on(stack: Stack) -> None:
    """Behind each port on the host's side somebody answers."""
    published = [(name, port["target"]) for name, spec in stack.services.items() for port in spec.get("ports", ())]
    assert published
    assert [each for each in published if not listens(stack.site.port(*each))] == []


def test_every_variable_is_read(stack: Stack) -> None:
    """Kafka's image makes a setting of each KAFKA_ variable but the one for its heap, and the broker knows them all."""
    kafka = stack.running["kafka"].container
    assert isinstance(kafka, Kafka)
    made = kafka.settings()
    assert len(made) == len(kafka.spec["environment"]) - 1
    assert made.keys() <= kafka.known_settings()


async def test_an_order_goes_through(stack: Stack) -> None:
    """A sale opened and an order placed at the published port of the front end as confirmed."""
    await place_order(stack, product_id=7)


async def place_order(stack: Stack, *, product_id: int) -> str:
    url = f"http://127.0.0.1:{stack.site.port('front', 8080)}"
    operator = {"Authorization": "Bearer pw-operator", "Idempotency-Key": f"sale-{product_id}"}
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=40)) as front:
        async with front.post("/v1/sales", json={"product_id": product_id, "stock": 3}, headers=operator) as opened:
            assert opened.status == 201, await opened.text()
        async with front.post("/v1/orders", json={"user_id": 1, "product_id": product_id}) as accepted:
            assert accepted.status == 202, await accepted.text()
            order_id: str = (await accepted.json())["order_id"]
        assert await outcome(front, order_id, wait_s=20) == "confirmed"
    return order_id


async def outcome(front: aiohttp.ClientSession, order_id: str, *, wait_s: int) -> str:
    async with front.get(f"/v1/orders/{order_id}", params={"wait": str(wait_s)}) as answer:
        status: str = (await answer.json())["status"]
        return status


def test_the_services_by_hand_do_their_work(stack: Stack) -> None:
    """`docker compose run cli` shows a ready pipeline on fit servers; `… run demo` sells on it, all invariants hold."""
    finds_nothing_wrong(stack, None)
    finds_nothing_wrong(stack, ["doctor"])
    demo = stack.run("demo", "--stock", "20", "--buyers", "300", "--products", "2", timeout_s=COMMAND_S)
    assert demo.returncode == 0, demo.stderr + demo.stdout
    assert "6 of 6 invariants hold; 0 units oversold, no order lost." in demo.stdout


def finds_nothing_wrong(stack: Stack, command: Sequence[str] | None) -> None:
    """Asked again where a part gave no answer in time: the tests may keep the processors busier than any operator."""
    for _ in range(LOOKS):
        ended = stack.run("cli", instead=command, timeout_s=COMMAND_S)
        if ended.returncode == 0 or "in time" not in ended.stdout + ended.stderr:
            break
    assert ended.returncode == 0, ended.stderr + ended.stdout


def test_services_have_the_rights_that_the_file_leaves_them(stack: Stack) -> None:
    """No capability, no way to one, memory below the limit, and nothing written but to volumes and tmpfs."""
    own = stack.site.folder
    for service in stack.running.values():
        assert service.capabilities() == ("0000000000000000", "1"), service.name
        assert service.peak_memory_bytes() < int(service.spec["mem_limit"]), service.name
        if service.spec.get("read_only"):
            allowed = (own / "volumes", service.container.folder / "tmpfs")
            outside = [path for path in service.files_written() if not any(map(path.is_relative_to, allowed))]
            assert outside == [], service.name


@pytest.mark.parametrize(
    ("user", "database", "statement", "allowed"),
    [
        ("product", "product", "DELETE FROM sale WHERE sale_id = 0", True),
        ("product", "product", "CREATE TABLE mine (id INT)", False),
        ("product", "order", "SELECT 1 FROM orders LIMIT 1", False),
        ("order", "order", "DELETE FROM orders WHERE user_id = 0", True),
        ("order", "product", "SELECT 1 FROM sale LIMIT 1", False),
        ("dead_letters", "dead_letters", "DELETE FROM letter WHERE letter_id = 0", True),
        ("dead_letters", "product", "SELECT 1 FROM sale LIMIT 1", False),
        ("dtm", "dtm", "DELETE FROM kv WHERE id = 0", True),
        ("dtm", "dtm", "DROP TABLE kv", False),
        ("auditor", "product", "SELECT 1 FROM sale LIMIT 1", True),
        ("auditor", "product", "DELETE FROM sale WHERE sale_id = 0", False),
        ("schema", "product", "CREATE TABLE IF NOT EXISTS mine (id INT)", True),
        ("schema", "dtm", "SELECT 1 FROM kv LIMIT 1", False),
    ],
)
def test_users_have_the_rights_that_they_need(
    stack: Stack, user: str, database: str, statement: str, allowed: bool
) -> None:
    """Each service has its own rows, and nobody else's; only `schema` changes tables."""
    mariadb = stack.running["mariadb"].container
    password = PASSWORDS[f"{user.upper()}_DB_PASSWORD"]
    port = stack.site.port("mariadb", 3306)

    def ask() -> str:
        return mariadb.run(
            "mariadb", "--no-defaults", "--protocol=tcp", "--host=127.0.0.1", f"--port={port}", f"--user={user}",
            f"--database={database}", "--execute", statement,
            environment=mariadb.environment() | {"MYSQL_PWD": password},
        )  # fmt: skip

    if allowed:
        ask()
        return
    with pytest.raises(StepFailed, match="denied"):
        ask()


async def test_it_stops_in_time_and_comes_back_with_our_own_coordinator(stack: Stack) -> None:
    """Everything drains within its grace period, the front before the workers; a second start finds its data,
    and serves with the other coordinator when the variables say so.
    """
    before = await place_order(stack, product_id=8)
    await asyncio.to_thread(stack.stop)
    stopped = list(stack.stops)
    assert stopped.index("front") < stopped.index("worker")
    for name, (code, took_s) in stack.stops.items():
        grace_s = seconds(stack.services[name].get("stop_grace_period", "10s"))
        assert code in {0, JAVA_TERMINATED}, (name, code)
        assert took_s < grace_s, name

    stack.site.services = compose_file(variables=PASSWORDS | OUR_COORDINATOR)["services"]
    await asyncio.to_thread(stack.up, started_by_up(stack.services, "coordinator"))
    assert "coordinator" in stack.running
    url = f"http://127.0.0.1:{stack.site.port('front', 8080)}"
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=40)) as front:
        assert await outcome(front, before, wait_s=0) == "confirmed"
    await place_order(stack, product_id=9)
    finds_nothing_wrong(stack, None)
    await asyncio.to_thread(stack.stop)
    assert stack.stops["coordinator"][0] == 0
