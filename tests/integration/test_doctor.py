"""The doctor and the command for topics on real servers: what the probes see there, and how the commands end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from pydantic import SecretStr

from seckill.doctor.examine import CHECK_TIMEOUT_S, examine
from seckill.doctor.findings import Examined, Finding, Level
from seckill.doctor.probes.http import ask_coordinator_http
from seckill.messaging.publisher import open_publisher
from seckill.messaging.retry_topics import RetryTier, retry_tiers
from seckill.messaging.topics import TopicDone, TopicMissing, make_topics, require_topics, topic_states
from seckill.schema import upgrade
from seckill.settings import KafkaSettings, Settings
from seckill.wiring import open_coordinator, with_values
from tests.servers import Servers, fresh_database, native
from tests.servers.databases import execute
from tests.servers.native import DtmStore
from tests.servers.ports import free_ports

DAY_MS = 86_400_000
START_TIMEOUT_S = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
async def settings(servers: Servers) -> Settings:
    """Real servers, as an operator would set them up: topics made, databases upgraded."""
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    kafka = {"bootstrap": servers.kafka, "topic": name, "dead_letter_topic": f"{name}-dlt"}
    wanted = with_values(
        Settings(profile="real"),
        {
            "kafka": kafka,
            "redis": {"url": SecretStr(servers.redis), "run_id_check": True},
            "dtm": {"grpc": servers.dtm.grpc, "http": servers.dtm.http},
            "front": {"operator_token": SecretStr("for-tests-only")},
        },
    )
    for database in ("product", "order"):
        url = fresh_database(servers, f"doctor_{database}")
        await upgrade(database, url)
        wanted = with_values(wanted, {database: {"database_url": SecretStr(url)}})
    await made(wanted)
    return wanted


def tiers_of(settings: Settings) -> tuple[RetryTier, ...]:
    return retry_tiers(settings.kafka, settings.retry)


async def made(settings: Settings, *, partitions: int = 3) -> dict[str, TopicDone]:
    """By topic, what had to be done."""
    kafka, tiers = settings.kafka, tiers_of(settings)
    done = await make_topics(kafka, tiers, partitions=partitions, retention_ms=7 * DAY_MS)
    return {each.name: each for each in done}


def findings(examined: list[Examined]) -> list[Finding]:
    return [finding for each in examined for finding in each.findings]


def told(examined: list[Examined], level: Level) -> dict[str, str]:
    """The checks of that level, and what was found."""
    return {finding.check: finding.found for finding in findings(examined) if finding.level is level}


async def on(settings: Settings, *only: str) -> list[Examined]:
    return await examine(settings, only=only)


# --- as it should be -------------------------------------------------------------------------------------------------


async def test_what_an_operator_set_up_has_no_problem(settings: Settings) -> None:
    """Servers with their topics made and databases upgraded are found without a problem, clocks included."""
    examined = await on(settings, "settings", "kafka", "redis", "product-db", "order-db", "coordinator")
    assert told(examined, Level.PROBLEM) == {}
    assert told(examined, Level.UNREACHABLE) == {}
    topics = (settings.kafka.topic, settings.kafka.dead_letter_topic, *(tier.topic for tier in tiers_of(settings)))
    assert set(told(examined, Level.WARNING)) == {"encryption", *(f"replication of {name}" for name in topics)}
    fine = told(examined, Level.OK)
    assert fine["id columns"].endswith("compared byte by byte")
    assert fine["schema"] == "the newest"
    assert fine["store"] == "SQL"
    clocks = [finding for finding in findings(examined) if finding.check == "clock"]
    assert len(clocks) == 4  # Redis, two databases, DTM's HTTP


async def test_what_is_not_configured_is_not_asked(settings: Settings) -> None:
    """A coordinator or dead-letter database that nobody named is nobody's."""
    assert await on(settings, "coordinator-db", "dead-letters-db") == []


# --- Kafka -----------------------------------------------------------------------------------------------------------


async def test_topics_are_made_once_and_set_right_again(settings: Settings) -> None:
    """Making topics twice changes nothing; a setting that somebody changed is found by the doctor and set right."""
    kafka = settings.kafka
    waiting = tiers_of(settings)[-1].topic
    again = await made(settings)
    assert again == {name: TopicDone(name, made=False) for name in again}
    assert again.keys() == {kafka.topic, kafka.dead_letter_topic, *(tier.topic for tier in tiers_of(settings))}

    kept = {"max.compaction.lag.ms": "1000000"}  # somebody's own, of no concern to us
    await alter(kafka, kafka.dead_letter_topic, {"retention.ms": "1000", "max.message.bytes": "1000000", **kept})
    await alter(kafka, waiting, {"retention.ms": "1000"})
    problems = told(await on(settings, "kafka"), Level.PROBLEM)
    lost = {f"retention of {kafka.dead_letter_topic}", f"retention of {waiting}"}
    assert set(problems) == lost | {"max.message.bytes"}

    changed = await made(settings, partitions=5)
    for name in (kafka.dead_letter_topic, waiting):
        assert {"partitions 3 -> 5", "retention.ms 1000 -> -1"} <= set(changed[name].changes)
    assert told(await on(settings, "kafka"), Level.PROBLEM) == {}
    assert (await settings_of(kafka, kafka.dead_letter_topic)).items() >= kept.items()

    fewer = await made(settings, partitions=1)
    assert {each.changes for each in fewer.values()} == {()}


async def test_what_waits_for_a_delay_that_was_taken_away(settings: Settings) -> None:
    """The last delay is taken out of the settings while a record waits for it: nobody reads it, and that is told."""
    last = tiers_of(settings)[-1]
    fewer = with_values(settings, {"retry": {"topic_delays_ms": settings.retry.topic_delays_ms[:-1]}})
    assert f"topic {last.topic}" not in told(await on(fewer, "kafka"), Level.WARNING)
    async with open_publisher(settings.kafka) as publisher:
        await publisher.send(last.topic, key=b"k", value=b"v")
    assert told(await on(fewer, "kafka"), Level.WARNING)[f"topic {last.topic}"].startswith("1 record(s) that nobody")
    assert f"topic {last.topic}" not in told(await on(settings, "kafka"), Level.WARNING)


async def test_looking_makes_no_topic(settings: Settings) -> None:
    """A missing topic is a problem, and is still missing after the doctor has looked."""
    missing = with_values(settings, {"kafka": {"topic": f"missing-{uuid.uuid4().hex[:8]}"}})
    for _ in range(2):
        problems = told(await on(missing, "kafka"), Level.PROBLEM)
        names = (missing.kafka.topic, *(tier.topic for tier in tiers_of(missing)))
        assert problems == {f"topic {name}": "missing, and the broker makes none by itself" for name in names}


async def test_a_broker_that_makes_topics(tmp_path: Path) -> None:
    """With auto-creation a missing topic is a warning, and the check at start makes it, as a first record would."""
    properties = {"auto.create.topics.enable": "true"}
    with native.kafka_process(tmp_path, properties=properties, heap_mb=256) as server:
        settings = with_values(Settings(profile="real"), {"kafka": {"bootstrap": server.bootstrap}})
        kafka = settings.kafka
        assert set(told(await on(settings, "kafka"), Level.WARNING)) >= {f"topic {kafka.topic}", "auto-creation"}
        async with connected_client(kafka) as client:
            await require_topics(client, kafka.bootstrap, {"kafka.topic": kafka.topic})
        assert f"topic {kafka.topic}" in told(await on(settings, "kafka"), Level.OK)


async def test_a_missing_topic_is_told_within_seconds(settings: Settings) -> None:
    """The check at start gives a broker that makes no topics a few seconds, not for ever."""
    began = time.monotonic()
    async with connected_client(settings.kafka) as client:
        with pytest.raises(TopicMissing, match="seckill topics create"):
            await require_topics(client, settings.kafka.bootstrap, {"kafka.topic": "never-made"})
    assert time.monotonic() - began < 10


class connected_client:
    """A bare Kafka client."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    async def __aenter__(self) -> AIOKafkaClient:
        self._client = AIOKafkaClient(bootstrap_servers=self._settings.bootstrap)
        await self._client.bootstrap()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


async def alter(kafka: KafkaSettings, topic: str, changed: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, changed)])
    finally:
        await admin.close()
    async with asyncio.timeout(10):  # brokers hear of it a moment after the controller has said yes
        while not (await settings_of(kafka, topic)).items() >= changed.items():
            await asyncio.sleep(0.1)


async def settings_of(kafka: KafkaSettings, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        return dict((await topic_states(admin, [topic]))[topic].settings or {})
    finally:
        await admin.close()


# --- Redis and SQL ---------------------------------------------------------------------------------------------------


async def test_a_redis_that_forgets(tmp_path: Path) -> None:
    """A Redis without its log, which evicts, and follows another, is told so in three problems."""
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru", "--replicaof", "127.0.0.1 1")
    with native.redis_process(tmp_path, options=options) as server:
        wrong = with_values(Settings(profile="real"), {"redis": {"url": SecretStr(server.url)}})
        problems = told(await on(wrong, "redis"), Level.PROBLEM)
    assert set(problems) == {"persistence", "eviction", "role"}


async def test_a_redis_user_who_may_not_ask(tmp_path: Path) -> None:
    """A user without CONFIG is warned that it cannot be told; one without INFO could not see a restart."""
    users = ("default off", "blind on >pw ~* +@all -config", "deaf on >pw ~* +@all -info")
    options = [word for user in users for word in ("--user", *user.split())]
    with native.redis_process(tmp_path, options=options) as server:
        for user, level, check in (("blind", Level.WARNING, "persistence"), ("deaf", Level.PROBLEM, "version")):
            url = SecretStr(server.url.replace("//", f"//{user}:pw@"))
            examined = await on(with_values(Settings(profile="real"), {"redis": {"url": url}}), "redis")
            assert check in told(examined, level)


@pytest.fixture(scope="module")
def lax_mariadb(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[str]:
    options = ("--max-allowed-packet=1M", "--innodb-flush-log-at-trx-commit=2", "--character-set-server=latin1",
               "--sql-mode=", "--transaction-isolation=REPEATABLE-READ", "--max-connections=10")  # fmt: skip
    with native.mariadb_process(tmp_path_factory.mktemp("lax"), options=options) as server:
        yield server.url


async def test_a_lax_mariadb(lax_mariadb: str) -> None:
    """What a server promises too little of is found; what our session sets for itself is no matter of its defaults."""
    url = fresh_database(lax_mariadb, "doctor_product")
    await upgrade("product", url)
    execute(url, ["ALTER TABLE barrier MODIFY gid VARCHAR(128) CHARACTER SET utf8mb4 NOT NULL"])
    lax = with_values(Settings(profile="real"), {"product": {"database_url": SecretStr(url)}})
    examined = await on(lax, "product-db")
    assert set(told(examined, Level.PROBLEM)) == {"max_allowed_packet", "connections", "id columns"}
    assert "barrier.gid" in told(examined, Level.PROBLEM)["id columns"]
    assert "durability" in told(examined, Level.WARNING)
    assert told(examined, Level.OK)["isolation"] == "READ-COMMITTED"


async def test_a_database_without_a_schema(settings: Settings, servers: Servers) -> None:
    """An empty database is a problem with the command that makes its tables; the clock and the rest are still told."""
    url = SecretStr(fresh_database(servers, "doctor_empty"))
    [examined] = await on(with_values(settings, {"order": {"database_url": url}}), "order-db")
    [finding] = [each for each in examined.findings if each.level is Level.PROBLEM]
    assert (finding.check, finding.remedy) == ("schema", "run `seckill db upgrade order`")


# --- the coordinator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["mysql", "redis", "boltdb"])
async def test_dtms_store_is_told(servers: Servers, tmp_path: Path, store: DtmStore) -> None:
    """DTM does not say what it stores in; two questions that only read tell its SQL, Redis and boltdb stores apart."""
    with native.dtm_process(tmp_path, store=store, mariadb_url=servers.mariadb, redis_url=servers.redis) as dtm:
        facts = await ask_coordinator_http(f"http://{dtm.address.http}")
    assert (facts.version, facts.own) == ("1.19.0", False)
    assert facts.store == {"mysql": "sql"}.get(store, store)


async def test_our_own_coordinator_says_its_store(servers: Servers) -> None:
    """Ours tells its version and its store, and speaks DTM's protocol."""
    url = fresh_database(servers, "doctor_coordinator")
    await upgrade("coordinator", url)
    own = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "database_url": SecretStr(url)}
    settings = with_values(Settings(profile="real"), {"coordinator": own})
    async with open_coordinator(settings) as role:
        dtm = {"grpc": role.addresses["coordinator.grpc"], "http": role.addresses["coordinator.http"]}
        examined = await on(with_values(settings, {"dtm": dtm}), "coordinator", "coordinator-db")
    assert told(examined, Level.PROBLEM) == {}
    assert told(examined, Level.UNREACHABLE) == {}
    own_word = told([each for each in examined if each.dependency == "coordinator"], Level.OK)
    assert own_word["store"] == "SQL"
    assert own_word["version"].startswith("our own coordinator seckill ")


async def test_strangers_are_unreachable(settings: Settings, servers: Servers) -> None:
    """An address where something else answers counts as unreachable, and says what does."""
    wrong = {"dtm": {"grpc": servers.dtm.http, "http": servers.dtm.grpc}, "product": {"ops": servers.dtm.http}}
    examined = await on(with_values(settings, wrong), "coordinator", "product")
    found = {each.setting: each.findings[0] for each in examined}
    assert "an HTTP server answers" in found["dtm.grpc"].found
    assert "a gRPC server answers" in found["dtm.http"].found
    assert "no role of ours" in found["product.ops"].found
    assert {finding.level for finding in found.values()} == {Level.UNREACHABLE}


# --- the command -----------------------------------------------------------------------------------------------------


def seckill(folder: Path, *arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seckill.cli", *arguments], env=environment(folder, **values), cwd=folder,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def environment(folder: Path, **values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SECKILL", "XDG_"))}
    own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder / "run"), "XDG_STATE_HOME": str(folder / "state")}
    return {**kept, **own, "NO_COLOR": "1", **{f"SECKILL__{name}": value for name, value in values.items()}}


async def test_exit_codes_of_the_doctor(settings: Settings, tmp_path: Path) -> None:
    """0: fine, warnings allowed; 1: a problem; 3: something does not answer; each line names where and a remedy."""
    kafka = settings.kafka
    right = {"PROFILE": "real", "KAFKA__BOOTSTRAP": kafka.bootstrap, "KAFKA__TOPIC": kafka.topic,
             "KAFKA__DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
             "REDIS__URL": settings.redis.url.get_secret_value(), "REDIS__RUN_ID_CHECK": "true"}  # fmt: skip
    only = ("doctor", "--only", "kafka,redis")
    ended = seckill(tmp_path, *only, **right)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "warning      kafka (kafka.bootstrap = " in ended.stdout

    ended = seckill(tmp_path, *only, "--problems", **right | {"KAFKA__TOPIC": "never-made"})
    assert ended.returncode == 1
    assert "never-made: missing, and the broker makes none by itself; run `seckill topics create`" in ended.stdout
    assert "ok  " not in ended.stdout

    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    ended = seckill(
        tmp_path, *only, "--json", **right | {"KAFKA__TOPIC": "never-made", "REDIS__URL": f"redis://{nobody}"}
    )
    assert ended.returncode == 3
    report = json.loads(ended.stdout)
    [silent] = [finding for finding in report["findings"] if finding["level"] == "unreachable"]
    assert (silent["setting"], silent["address"], report["exit_code"]) == ("redis.url", nobody, 3)
    assert "SECKILL__REDIS__URL" in silent["remedy"]


def test_an_unknown_dependency_is_wrong_usage(tmp_path: Path) -> None:
    """A name that `--only` does not know ends with 2 and the names that it knows."""
    ended = seckill(tmp_path, "doctor", "--only", "kafka,zookeeper")
    assert ended.returncode == 2
    assert "zookeeper: choose from settings, kafka," in ended.stderr
    assert "dead-letters-db" in ended.stderr
    ended = seckill(tmp_path, "doctor", "--only", "")
    assert ended.returncode == 2
    assert "nothing given: choose from" in ended.stderr


async def test_nothing_answers_and_the_doctor_ends_in_time(tmp_path: Path) -> None:
    """With every server frozen, the doctor ends within its bound, for all of them at once."""
    with native.redis_process(tmp_path) as server:
        server.freeze()
        address = f"127.0.0.1:{server.port}"
        product = {"database_url": SecretStr(f"mysql+asyncmy://u:p@{address}/x"), "grpc": address, "ops": address}
        both = {"grpc": address, "http": address}
        wrong = {
            "kafka": {"bootstrap": address},
            "redis": {"url": SecretStr(server.url)},
            "product": product,
            "dtm": both,
        }
        mute = with_values(Settings(profile="real"), wrong)
        began = time.monotonic()
        examined = await on(mute, "kafka", "redis", "product-db", "coordinator", "product")
        took_s = time.monotonic() - began
    assert {finding.level for finding in findings(examined)} == {Level.UNREACHABLE}
    assert len(examined) == 7
    assert took_s < CHECK_TIMEOUT_S + 3


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Path]:
    """The home of a user whose `seckill up` is running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seckill.cli", "up", "--base-port", "0", "--json"], env=environment(tmp_path),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield tmp_path
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_the_embedded_pipeline_is_fine(embedded: Path) -> None:
    """Beside a running `seckill up` the doctor finds every part, and nothing to say about any."""
    ended = seckill(embedded, "doctor", "--json")
    report: dict[str, Any] = json.loads(ended.stdout)
    assert [finding for finding in report["findings"] if finding["level"] != "ok"] == []
    assert ended.returncode == 0
    asked = {finding["dependency"] for finding in report["findings"]}
    assert asked >= {"kafka", "redis", "product-db", "order-db", "coordinator", "product", "order", "worker", "front"}
