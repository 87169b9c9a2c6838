"""Wrong settings and wrong servers, met by the real command lines on real servers.

Each ends with exit code 3 (2 for settings) and one line that names the setting, the address and a remedy.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy.engine import make_url

from seckill.messaging.retry_topics import retry_tiers
from seckill.messaging.topics import make_topics
from seckill.schema import DATABASES, upgrade
from seckill.settings import KafkaSettings, RetrySettings
from tests.servers import Servers, fresh_database, native
from tests.servers.databases import execute
from tests.servers.ports import free_ports
from tests.support.overruling import overruling_proxy

COMMAND_TIMEOUT_S = 60
TOPICS = {"KAFKA__TOPIC": "bad-input", "KAFKA__DEAD_LETTER_TOPIC": "bad-input-dlt", "KAFKA__REQUEST_TIMEOUT_MS": "2000"}
UNKNOWN_HOST = "no-such-host.invalid"
SOON_S = 30
"""The handshake's 8 s, a look at who answers, and the start of Python on a busy machine."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its code, its own lines on stderr, and all of stderr."""

    code: int
    lines: list[str]
    stderr: str


@dataclass(frozen=True, slots=True)
class Bad:
    """Commands on real servers, with settings that are right but for what a test makes wrong."""

    servers: Servers
    folder: Path
    right: Mapping[str, str]

    def run(self, *command: str, **wrong: str) -> Ended:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SECKILL", "XDG_"))}
        settings = {f"SECKILL__{name}": value for name, value in (self.right | wrong).items()}
        ended = subprocess.run(
            [sys.executable, "-m", "seckill.cli", *command],
            env={**kept, **settings, "HOME": str(self.folder), "NO_COLOR": "1"},
            cwd=self.folder, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        return Ended(ended.returncode, [line for line in ended.stderr.splitlines() if not _is_log(line)], ended.stderr)

    @property
    def mariadb(self) -> str:
        return _host_port(self.servers.mariadb)

    @property
    def redis(self) -> str:
        return _host_port(self.servers.redis)

    def database(self, name: str) -> str:
        """An upgraded database of its own."""
        url = fresh_database(self.servers, f"bad_{name}")
        asyncio.run(upgrade(name, url))
        return url


@pytest.fixture(scope="module")
def bad(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Bad:
    kafka = KafkaSettings(
        bootstrap=servers.kafka, topic=TOPICS["KAFKA__TOPIC"], dead_letter_topic=TOPICS["KAFKA__DEAD_LETTER_TOPIC"]
    )
    tiers = retry_tiers(kafka, RetrySettings())
    asyncio.run(make_topics(kafka, tiers, partitions=1, retention_ms=86_400_000))
    ports = iter(free_ports(8))
    own = ("FRONT__HTTP", "FRONT__GRPC", "PRODUCT__GRPC", "PRODUCT__OPS", "ORDER__GRPC", "ORDER__OPS", "WORKER__OPS")
    right = {
        "PROFILE": "real", "LOG__JSON_LINES": "true", "KAFKA__BOOTSTRAP": servers.kafka, **TOPICS,
        "REDIS__URL": servers.redis, "DTM__GRPC": servers.dtm.grpc, "DTM__HTTP": servers.dtm.http,
        "DTM__REQUEST_TIMEOUT_MS": "2000", **{name: f"127.0.0.1:{next(ports)}" for name in own},
    }  # fmt: skip
    return Bad(servers, tmp_path_factory.mktemp("bad"), right)


@pytest.fixture(scope="module")
def product_url(bad: Bad) -> str:
    return bad.database("product")


@pytest.fixture(scope="module")
def letters_url(bad: Bad) -> str:
    return bad.database("dead_letters")


def _is_log(line: str) -> bool:
    """What the program's log writes, as JSON; the user's own lines are plain."""
    try:
        return "event" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _host_port(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def closed_port() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def assert_told(ended: Ended, *words: str, code: int = 3) -> None:
    """One line on stderr that holds all of `words`, no traceback, no password."""
    assert ended.code == code, ended.stderr
    assert len(ended.lines) == 1, ended.stderr
    for word in ("seckill: ", "; ", *words):
        assert word in ended.lines[0], ended.lines[0]
    assert "Traceback" not in ended.stderr
    assert "s3cret" not in ended.stderr


# --- databases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["product", "order", "coordinator"])
def test_a_database_that_refuses_connections(bad: Bad, role: str) -> None:
    """Every role with a database ends with one line when nobody listens at its address."""
    address = closed_port()
    own = {f"{role.upper()}__DATABASE_URL": f"mysql+asyncmy://root:s3cret@{address}/x"}
    ports = free_ports(2)
    own |= {"COORDINATOR__GRPC": f"127.0.0.1:{ports[0]}", "COORDINATOR__HTTP": f"127.0.0.1:{ports[1]}"}
    ended = bad.run(role, **own)
    assert_told(ended, f"{role}.database_url", address, "Connection refused", f"SECKILL__{role.upper()}__DATABASE_URL")


def test_a_database_on_an_unknown_host(bad: Bad) -> None:
    """A host that no name server knows is told as such."""
    ended = bad.run("product", PRODUCT__DATABASE_URL=f"mysql+asyncmy://root:s3cret@{UNKNOWN_HOST}:3306/x")
    assert_told(ended, "product.database_url", UNKNOWN_HOST, "SECKILL__PRODUCT__DATABASE_URL")


def test_a_database_that_does_not_exist(bad: Bad) -> None:
    """The remedy for an unknown database is to create it."""
    url = make_url(bad.servers.mariadb).set(database="never_made").render_as_string(hide_password=False)
    assert_told(bad.run("order", ORDER__DATABASE_URL=url), "order.database_url", bad.mariadb, "CREATE DATABASE")


def test_a_wrong_database_password(bad: Bad) -> None:
    """A refused login names user and password as what to correct, and shows no password."""
    url = make_url(bad.servers.mariadb).set(password="s3cret", database="x").render_as_string(hide_password=False)
    ended = bad.run("product", PRODUCT__DATABASE_URL=url)
    assert_told(ended, "product.database_url", bad.mariadb, "Access denied", "correct user and password")


OF_DATABASES = [
    ("db", "upgrade", "product"), ("db", "upgrade", "product", "--sql"), ("db", "status", "product"),
    ("db", "prune", "--older-than", "30d"),
]  # fmt: skip


def everywhere(url: str) -> dict[str, str]:
    """Every database at the same place: commands ask the product service's first."""
    return {f"{name.upper()}__DATABASE_URL": url for name in DATABASES}


@pytest.mark.parametrize("command", [("product",), *OF_DATABASES, ("audit",)])
def test_commands_that_read_a_database(bad: Bad, command: tuple[str, ...]) -> None:
    """Commands that connect to a database tell its refusal, and the remedy, in the roles' words."""
    admin = make_url(bad.servers.mariadb)
    wrong = admin.set(password="s3cret", database="x").render_as_string(hide_password=False)
    told = bad.run(*command, **everywhere(wrong))
    remedy = "correct user and password in product.database_url, or GRANT ALL on the database to the user"
    assert_told(told, "product.database_url", bad.mariadb, "cannot be used: Access denied", remedy)
    absent = admin.set(database="never_made").render_as_string(hide_password=False)
    told = bad.run(*command, **everywhere(absent))
    assert_told(told, "product.database_url", bad.mariadb, "CREATE DATABASE … CHARACTER SET utf8mb4")


def test_an_upgrade_without_the_right_to(bad: Bad) -> None:
    """A user who may look and not change is told which right is missing."""
    url = make_url(fresh_database(bad.servers, "bad_rights"))
    user = f"reader_{uuid.uuid4().hex[:8]}"
    execute(
        bad.servers.mariadb,
        [f"CREATE USER {user} IDENTIFIED BY 's3cret'", f"GRANT SELECT ON `{url.database}`.* TO {user}"],
    )
    reader = url.set(username=user, password="s3cret").render_as_string(hide_password=False)
    try:
        ended = bad.run("db", "upgrade", "product", PRODUCT__DATABASE_URL=reader)
    finally:
        execute(bad.servers.mariadb, [f"DROP USER {user}"])
    assert_told(ended, "product.database_url", bad.mariadb, "command denied", "GRANT ALL on the database")


@pytest.mark.parametrize("command", OF_DATABASES)
def test_commands_that_meet_another_server_in_the_databases_place(bad: Bad, command: tuple[str, ...]) -> None:
    """Within seconds, Redis is recognised, whatever long statements the command is ready for."""
    began = time.monotonic()
    ended = bad.run(*command, **everywhere(f"mysql+asyncmy://root:s3cret@{bad.redis}/x"))
    assert time.monotonic() - began < SOON_S
    assert_told(ended, "product.database_url", bad.redis, "Redis answers", "correct SECKILL__PRODUCT__DATABASE_URL")


@pytest.mark.parametrize("command", [("db", "upgrade", "product"), ("product",)])
def test_a_listener_that_says_nothing(bad: Bad, command: tuple[str, ...]) -> None:
    """A port that takes connections and never speaks is given up within seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        ended = bad.run(*command, PRODUCT__DATABASE_URL=f"mysql+asyncmy://root:s3cret@{address}/x")
        assert time.monotonic() - began < SOON_S
    assert_told(ended, "product.database_url", address, "no answer within", "SECKILL__PRODUCT__DATABASE_URL")


@pytest.mark.parametrize("command", [("product",), ("db", "upgrade", "product"), ("audit",)])
def test_a_sqlite_file_in_a_missing_folder(bad: Bad, command: tuple[str, ...]) -> None:
    """The remedy for a folder that is not there is to make it."""
    folder = bad.folder / "never_made"
    ended = bad.run(*command, PRODUCT__DATABASE_URL=f"sqlite+aiosqlite:///{folder}/product.db")
    assert_told(ended, "product.database_url", f"there is no folder {folder}; make it, or name another")


def test_a_wrong_driver(bad: Bad) -> None:
    """A URL of a driver that we do not have is a wrong setting: exit code 2, and which URLs would do."""
    ended = bad.run("product", PRODUCT__DATABASE_URL="postgresql://u:s3cret@127.0.0.1/x")
    assert ended.code == 2
    assert [line for line in ended.lines if "product.database_url" in line and "mysql+asyncmy://" in line]
    assert "s3cret" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_another_server_in_the_databases_place(bad: Bad) -> None:
    """What answers instead of MariaDB is recognised: here Redis."""
    ended = bad.run("product", PRODUCT__DATABASE_URL=f"mysql+asyncmy://root:s3cret@{bad.redis}/x")
    assert_told(ended, "product.database_url", bad.redis, "Redis answers", "SECKILL__PRODUCT__DATABASE_URL")


@pytest.mark.parametrize("left", ["nothing", "older"])
def test_an_old_schema(bad: Bad, left: str) -> None:
    """A role does not start on a schema that is not its own, and names the command that brings it there."""
    url = fresh_database(bad.servers, "bad_old")
    if left == "older":
        asyncio.run(upgrade("product", url))
        execute(url, ["UPDATE alembic_version SET version_num = 'product_0001'"])
    ended = bad.run("product", PRODUCT__DATABASE_URL=url)
    assert_told(ended, "product.database_url", bad.mariadb, "seckill db upgrade product")


OVERRULED = {
    "sql_mode": (
        b"TRADITIONAL,ONLY_FULL_GROUP_BY,NO_ENGINE_SUBSTITUTION",
        b"ANSI_QUOTES,ONLY_FULL_GROUP_BY,NO_ENGINE_SUBSTITUTION",
    ),
    "isolation": (
        b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        b"SET LOCAL TRANSACTION ISOLATION LEVEL REPEATABLE READ ",
    ),
}


@pytest.mark.parametrize("what", OVERRULED)
@pytest.mark.parametrize("role", ["product", "coordinator"])
def test_a_session_that_is_overruled(bad: Bad, product_url: str, role: str, what: str) -> None:
    """A session that is not strict, or not READ COMMITTED, although it was asked for, is refused at start."""
    host, port = make_url(product_url).host, make_url(product_url).port
    assert host is not None
    assert port is not None
    asked, done = OVERRULED[what]
    with overruling_proxy((host, port), {asked: done}) as proxy:
        url = make_url(product_url).set(host="127.0.0.1", port=proxy).render_as_string(hide_password=False)
        ports = free_ports(2)
        own = {"COORDINATOR__GRPC": f"127.0.0.1:{ports[0]}", "COORDINATOR__HTTP": f"127.0.0.1:{ports[1]}"}
        ended = bad.run(role, **{f"{role.upper()}__DATABASE_URL": url}, **own)
    assert_told(ended, f"{role}.database_url", f"127.0.0.1:{proxy}", f"{what}:", "let nothing between us")


@pytest.fixture(scope="module")
def small_mariadb(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[str]:
    """One whose defaults are all wrong, though only the packet size cannot be set by a session."""
    options = ("--max-allowed-packet=1M", "--sql-mode=", "--transaction-isolation=REPEATABLE-READ")
    with native.mariadb_process(tmp_path_factory.mktemp("small"), options=options) as server:
        yield server.url


def test_too_small_packets(bad: Bad, small_mariadb: str) -> None:
    """A packet size below a large group's is refused at start. Lax defaults are no reason: the session sets its own."""
    url = fresh_database(small_mariadb, "small")
    asyncio.run(upgrade("order", url))
    ended = bad.run("order", ORDER__DATABASE_URL=url)
    assert_told(ended, "order.database_url", _host_port(url), "max_allowed_packet", "1048576", "max_allowed_packet=4M")
    assert "sql_mode" not in ended.stderr


# --- Redis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["worker", "front"])
def test_a_redis_that_refuses_connections(bad: Bad, role: str) -> None:
    """Worker and front end with one line when Redis is not there at start."""
    address = closed_port()
    assert_told(bad.run(role, REDIS__URL=f"redis://{address}/0"), "redis.url", address, "SECKILL__REDIS__URL")


@pytest.mark.parametrize("role", ["worker", "front"])
def test_a_wrong_redis_password(bad: Bad, role: str) -> None:
    """A refused login names user and password as what to correct."""
    ended = bad.run(role, REDIS__URL=f"redis://:s3cret@{bad.redis}/0")
    assert_told(ended, "redis.url", bad.redis, "refuses us", "correct user and password")


def test_another_server_in_redis_place(bad: Bad) -> None:
    """What answers with something that is not Redis' protocol is told as such: here an HTTP server."""
    ended = bad.run("front", REDIS__URL=f"redis://{bad.servers.dtm.http}/0")
    assert_told(ended, "redis.url", bad.servers.dtm.http, "no Redis answers", "SECKILL__REDIS__URL")


# --- Kafka -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("worker",), ("front",), ("topics", "create")])
def test_a_kafka_that_refuses_connections(bad: Bad, command: tuple[str, ...]) -> None:
    """Worker, front and the command for topics end with one line when no broker is there."""
    address = closed_port()
    ended = bad.run(*command, KAFKA__BOOTSTRAP=address)
    assert_told(ended, "kafka.bootstrap", address, "SECKILL__KAFKA__BOOTSTRAP")


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (("worker",), "topic"),
        (("worker",), "dead_letter_topic"),
        (("front",), "topic"),
        (("publish", "--user", "7", "--product", "1", "--direct", "--sale", "1"), "topic"),
    ],
)
def test_a_missing_topic(bad: Bad, command: tuple[str, ...], setting: str) -> None:
    """Where the broker makes no topics by itself, a missing one is told at once, with the command that makes it."""
    name = f"missing-{uuid.uuid4().hex[:8]}"
    ended = bad.run(*command, **{f"KAFKA__{setting.upper()}": name})
    assert_told(ended, f"kafka.{setting}", name, bad.servers.kafka, "seckill topics create")


@pytest.mark.parametrize("command", [("dlq", "list"), ("dlq", "replay", "1", "--note", "n"), ("dead-letters",)])
def test_a_missing_dead_letter_topic(bad: Bad, letters_url: str, command: tuple[str, ...]) -> None:
    """Without the topic there is nothing to look at or to keep an index of: the command that makes it is named."""
    name = f"missing-{uuid.uuid4().hex[:8]}"
    ended = bad.run(
        *command,
        KAFKA__DEAD_LETTER_TOPIC=name,
        DEAD_LETTERS__DATABASE_URL=letters_url,
        DEAD_LETTERS__HTTP="127.0.0.1:0",
    )
    assert_told(ended, "kafka.dead_letter_topic", name, bad.servers.kafka, "seckill topics create")


def test_topics_cannot_be_made_on_the_stand_in(bad: Bad, kafka_server: str) -> None:
    """librdkafka's mock cluster takes no requests for topics, and the command says so."""
    ended = bad.run("topics", "create", KAFKA__BOOTSTRAP=kafka_server)
    assert_told(ended, "kafka.bootstrap", kafka_server, "on first use", "SECKILL__KAFKA__BOOTSTRAP")


# --- coordinator and roles -------------------------------------------------------------------------------------------


def test_the_coordinators_http_address_in_the_grpc_setting(bad: Bad) -> None:
    """A worker that would speak gRPC to DTM's HTTP port does not start."""
    ended = bad.run("worker", DTM__GRPC=bad.servers.dtm.http)
    assert_told(ended, "dtm.grpc", bad.servers.dtm.http, "an HTTP server answers", "SECKILL__DTM__GRPC")


@pytest.mark.parametrize("command", [("worker",), ("tx", "list")])
def test_the_coordinators_grpc_address_in_the_http_setting(bad: Bad, command: tuple[str, ...]) -> None:
    """A worker that would ask DTM's gRPC port for a page does not start, and a command says what is wrong."""
    ended = bad.run(*command, DTM__HTTP=bad.servers.dtm.grpc)
    assert_told(ended, "dtm.http", bad.servers.dtm.grpc, "SECKILL__DTM__HTTP")


@pytest.mark.parametrize("server", ["redis", "mariadb"])
def test_another_server_in_the_coordinators_place(bad: Bad, server: str) -> None:
    """Whatever answers at the coordinator's address is named: Redis, MariaDB."""
    address = {"redis": bad.redis, "mariadb": bad.mariadb}[server]
    named = {"redis": "Redis answers", "mariadb": "MariaDB or MySQL answers"}[server]
    assert_told(bad.run("worker", DTM__GRPC=address), "dtm.grpc", address, named, "SECKILL__DTM__GRPC")
    assert_told(bad.run("worker", DTM__HTTP=address), "dtm.http", address, named, "SECKILL__DTM__HTTP")


@pytest.fixture(scope="module")
def product_role(bad: Bad, product_url: str) -> Iterator[dict[str, str]]:
    """A product service that runs: the addresses of its gRPC and of its HTTP."""
    grpc, ops = (f"127.0.0.1:{port}" for port in free_ports(2))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL")}
    own = {"PROFILE": "real", "PRODUCT__DATABASE_URL": product_url, "PRODUCT__GRPC": grpc, "PRODUCT__OPS": ops}
    log = bad.folder / "product.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "seckill.cli", "product"],
            env={**kept, **{f"SECKILL__{name}": value for name, value in own.items()}}, cwd=bad.folder, stderr=stderr,
        )  # fmt: skip
    try:
        for _ in range(300):
            if "role_started" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            asyncio.run(asyncio.sleep(0.1))
        yield {"grpc": grpc, "ops": ops}
    finally:
        process.terminate()
        process.wait(30)


def test_the_product_service_in_the_coordinators_place(bad: Bad, product_role: dict[str, str]) -> None:
    """A gRPC server that is not dtmgimp.Dtm, and an HTTP server that is not DTM, are no coordinator."""
    ended = bad.run("worker", DTM__GRPC=product_role["grpc"])
    assert_told(ended, "dtm.grpc", product_role["grpc"], "without dtmgimp.Dtm", "SECKILL__DTM__GRPC")
    for command in (("worker",), ("tx", "list")):
        ended = bad.run(*command, DTM__HTTP=product_role["ops"])
        assert_told(ended, "dtm.http", product_role["ops"], "SECKILL__DTM__HTTP")


@pytest.mark.parametrize("role", ["worker", "front"])
def test_the_coordinator_in_the_product_services_place(bad: Bad, role: str) -> None:
    """A gRPC server that is not the product service is told at start."""
    ended = bad.run(role, PRODUCT__GRPC=bad.servers.dtm.grpc)
    assert_told(ended, "product.grpc", bad.servers.dtm.grpc, "without product.Product", "SECKILL__PRODUCT__GRPC")


def test_the_product_service_in_the_order_services_place(bad: Bad, product_role: dict[str, str]) -> None:
    """Our own services are told apart as well."""
    ended = bad.run("worker", ORDER__GRPC=product_role["grpc"])
    assert_told(ended, "order.grpc", product_role["grpc"], "without order.Order", "SECKILL__ORDER__GRPC")


def test_another_server_in_the_fronts_place(bad: Bad) -> None:
    """A command that asks DTM for sales says that no front answers there."""
    ended = bad.run("sale", "list", FRONT__HTTP=bad.servers.dtm.http)
    assert_told(ended, "front.http", bad.servers.dtm.http, "SECKILL__FRONT__HTTP")


# --- the traceback ---------------------------------------------------------------------------------------------------


def test_the_traceback_is_for_debug(bad: Bad) -> None:
    """With --debug the same error comes with its traceback, and the line is still the last word."""
    address = closed_port()
    ended = bad.run("--debug", "front", REDIS__URL=f"redis://{address}/0")
    assert ended.code == 3
    assert "Traceback" in ended.stderr
    assert "redis.url" in ended.lines[-1]
