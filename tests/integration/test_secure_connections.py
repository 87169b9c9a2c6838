"""Encrypted and authenticated connections to real servers, what is said when one does not come about, and one order
through all of them at once.

Every server here is one of its own, with certificates made for the run: `ours` vouches for both sides, `theirs` for
nobody that we trust.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tomli_w
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from seckill.admission import RedisLink, Wanted, open_admission
from seckill.cli.errors import UNREACHABLE, explained
from seckill.client import open_front
from seckill.doctor.access import grpc_door, grpc_refusal
from seckill.doctor.start import opening_database, refuse_strangers_of_front
from seckill.domain.errors import AdmissionUnavailable, PublishUnknown, Unfit
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Admitted, Confirmed
from seckill.dtm.channels import Channels
from seckill.dtm.database import create_engine
from seckill.messaging.lag import consumer_lag
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_topic
from seckill.messaging.topics import open_admin
from seckill.product.service import serve_product
from seckill.schema import upgrade
from seckill.security import PemFiles, channel_credentials, client_context, database_context
from seckill.settings import KafkaSettings, LedgerSettings, ProductSettings, RedisSettings, TlsSettings, load_settings
from seckill.wire import product_pb2, product_pb2_grpc, seckill_pb2, seckill_pb2_grpc
from seckill.wiring import check_service, open_channel, open_consumer, with_values
from tests.servers import native
from tests.servers.databases import execute, fresh_database
from tests.servers.pipeline import make_pipeline_topics
from tests.servers.ports import free_ports
from tests.support.certificates import Authority, Certificate
from tests.support.role_processes import role_addresses, running_roles

USER, PASSWORD, WRONG = "seckill", "s3cret-of-a-test", "wr0ng-in-a-test"

RIGHTS = "+@read +@write +@scripting +@connection +info +time"
"""Of a Redis user: all that the pipeline needs, as the documentation says."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Papers:
    """`foreign` is a client certificate of an authority that no server here trusts."""

    ours: Authority
    theirs: Authority
    server: Certificate
    client: Certificate
    foreign: Certificate

    @property
    def good(self) -> dict[str, str]:
        return {"ca": self.ours.ca, "certificate": self.client.certificate, "key": self.client.key}

    def prefixed(self, prefix: str, **over: str | None) -> dict[str, Any]:
        """The good files as settings; None leaves one out."""
        return {f"{prefix}{name}": value for name, value in {**self.good, **over}.items() if value is not None}

    @property
    def foreigner(self) -> dict[str, str | None]:
        return {"certificate": self.foreign.certificate, "key": self.foreign.key}


NOBODY: dict[str, str | None] = {"certificate": None, "key": None}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    ours, theirs = (Authority(tmp_path_factory.mktemp(name)) for name in ("ours", "theirs"))
    return Papers(ours, theirs, ours.issue("server"), ours.issue("client"), theirs.issue("client"))


def line_of(error: Exception) -> str:
    """What the command line says of it: one line, exit code 3, nothing secret."""
    told = explained(error)
    assert told is not None
    code, line = told
    assert code == UNREACHABLE
    assert "\n" not in line
    assert PASSWORD not in line
    assert WRONG not in line
    return line


# --- Redis -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[native.Redis]:
    """Speaks TLS to clients with a certificate, knows one user, who may not do more than the pipeline does."""
    folder = tmp_path_factory.mktemp("redis")
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser {USER} on >{PASSWORD} ~* {RIGHTS}\n")
    options = (
        "--tls-port", "{tls_port}", "--tls-cert-file", papers.server.certificate, "--tls-key-file", papers.server.key,
        "--tls-ca-cert-file", papers.ours.ca, "--tls-auth-clients", "yes", "--aclfile", str(users),
    )  # fmt: skip
    with native.redis_process(folder, options=options) as server:
        yield server


def redis_settings(server: native.Redis, papers: Papers, **over: Any) -> RedisSettings:
    values = {"url": f"rediss://127.0.0.1:{server.tls_port}/0", "username": USER, "password": PASSWORD}
    return RedisSettings.model_validate({**values, **papers.prefixed("tls_"), **over})


async def ask_redis(settings: RedisSettings) -> None:
    async with open_admission(settings, LedgerSettings()) as admission:
        await admission.sales.check()


async def use_redis(settings: RedisSettings, product_id: int) -> None:
    """A sale is warmed and changed, an order admitted, looked after and settled: every script but the recovery's."""
    sale = Sale(1, product_id, "lamp", 1, 4_000_000_000_000, 1, 0, "open", 3, 3, 0, 0, 1)
    async with open_admission(settings, LedgerSettings()) as admission:
        await admission.sales.warm(sale)
        await admission.sales.add_units(sale, "more", 2)
        await admission.sales.set_state(sale, "open")
        answer = await admission.gate.admit(Wanted(product_id, 7, 1))
        assert isinstance(answer, Admitted), answer
        order = Order(answer.order_id, 1, 7, product_id, 1, answer.admitted_at_ms, answer.admission_number)
        await admission.ledger.postpone([order], delay_ms=1_000)
        await admission.ledger.settle([(order, Confirmed())])
        assert (await admission.ledger.stats(product_id)).entries == 0
        assert product_id in await admission.ledger.products()


async def test_redis_with_tls_and_acl(redis: native.Redis, papers: Papers) -> None:
    """User and password come from the settings or from the URL; the scripts need no more rights than documented."""
    await use_redis(redis_settings(redis, papers), 101)
    in_url = f"rediss://{USER}:{PASSWORD}@127.0.0.1:{redis.tls_port}/0"
    await use_redis(redis_settings(redis, papers, url=in_url, username=None, password=None), 102)


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("wrong ca", ("its certificate is refused: self-signed", "SECKILL__REDIS__TLS_CA")),
        ("wrong password", ("refuses us: invalid username-password pair", "redis.password")),
        ("no password", ("refuses us: Authentication required", "redis.password")),
        ("no certificate", ("SECKILL__REDIS__TLS_CERTIFICATE",)),
        ("foreign certificate", ("it refuses our certificate", "SECKILL__REDIS__TLS_CERTIFICATE")),
        ("no TLS", ("redis.url with rediss://",)),
    ],
)
async def test_redis_does_not_let_us_in(
    redis: native.Redis, papers: Papers, case: str, wanted: tuple[str, ...]
) -> None:
    """Setting, address and remedy in one line."""
    over: dict[str, Any] = {
        "wrong ca": {"tls_ca": papers.theirs.ca},
        "wrong password": {"password": WRONG},
        "no password": {"username": None, "password": None},
        "no certificate": {"tls_certificate": None, "tls_key": None},
        "foreign certificate": {"tls_certificate": papers.foreign.certificate, "tls_key": papers.foreign.key},
        "no TLS": {"url": f"redis://127.0.0.1:{redis.tls_port}/0", "tls_ca": None, "tls_certificate": None,
                   "tls_key": None},
    }[case]  # fmt: skip
    with pytest.raises(AdmissionUnavailable) as caught:
        await ask_redis(redis_settings(redis, papers, **over))
    line = line_of(caught.value)
    assert all(part in line for part in (*wanted, f"127.0.0.1:{redis.tls_port}", "redis.url")), line


async def test_interrupted_callers_of_redis_get_no_wrong_answer(redis: native.Redis, papers: Papers) -> None:
    """Callers are cancelled at every moment of their command; the others get what they asked, and so do the next."""
    link = RedisLink(redis_settings(redis, papers, connections_max=4))
    try:
        for round_ms in range(15):
            asked = [asyncio.create_task(link.one(("ECHO", f"{round_ms}-{number}"))) for number in range(40)]
            await asyncio.sleep(round_ms / 1000)
            for task in asked[::2]:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert [answers[at] for at in range(1, 40, 2)] == [f"{round_ms}-{at}" for at in range(1, 40, 2)]
        assert await link.one(("ECHO", "last")) == "last"
    finally:
        await link.close()


async def test_a_frozen_redis_is_given_up(tmp_path: Path) -> None:
    """A server that keeps its connections and answers nothing costs the command's time-out, and is used again after."""
    with native.redis_process(tmp_path) as server:
        link = RedisLink(RedisSettings(url=SecretStr(server.url), command_timeout_ms=500))
        try:
            assert await link.one(("ECHO", "a")) == "a"
            server.freeze()
            async with asyncio.timeout(3):
                with pytest.raises(AdmissionUnavailable):
                    await link.one(("ECHO", "b"))
            server.thaw()
            assert await link.one(("ECHO", "c")) == "c"
        finally:
            await link.close()


# --- Kafka -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[native.Kafka]:
    """SASL_SSL: a login of every mechanism that we offer, from clients with a certificate."""
    properties = {
        **keystore(papers),
        "listener.name.clients.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.clients.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
    }
    with native.kafka_process(
        tmp_path_factory.mktemp("kafka"), listener="SASL_SSL", properties=properties, scram={USER: PASSWORD}
    ) as server:
        yield server


def keystore(papers: Papers) -> dict[str, str]:
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": papers.server.both,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": papers.ours.ca,
    }


def kafka_settings(bootstrap: str, papers: Papers, **over: Any) -> KafkaSettings:
    values = {"bootstrap": bootstrap, "security_protocol": "SASL_SSL", "request_timeout_ms": 5_000}
    login = {"sasl_username": USER, "sasl_password": PASSWORD}
    return KafkaSettings.model_validate({**values, **login, **papers.prefixed("tls_"), **over})


async def use_kafka(settings: KafkaSettings) -> None:
    """Everything that we do there: make topics, publish, consume, look from the side, ask as an administrator."""
    await make_pipeline_topics(settings)
    async with open_publisher(settings) as publisher:
        await publisher.send(settings.topic, key=b"k", value=b"v")
        await publisher.check()
    async with open_consumer(settings) as consumer:
        consumer.subscribe([settings.topic])
        async with asyncio.timeout(20):
            record = await consumer.getone()
        assert (record.key, record.value) == (b"k", b"v")
        await consumer.commit()
    assert sum(each.lag for each in await consumer_lag(settings)) == 0
    assert [record.value for record in await read_topic(settings, settings.topic)] == [b"v"]
    async with open_admin(settings) as admin:
        assert settings.topic in await admin.list_topics()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_kafka_with_sasl_and_tls(kafka: native.Kafka, papers: Papers, mechanism: str) -> None:
    """Publisher, consumer, onlooker and administration all log in with the same settings."""
    topic = f"orders-{mechanism.lower()}"
    over = {"sasl_mechanism": mechanism, "topic": topic, "dead_letter_topic": f"{topic}-dlt", "group": topic}
    await use_kafka(kafka_settings(kafka.bootstrap, papers, **over))


async def test_kafka_with_tls_alone(tmp_path: Path, papers: Papers) -> None:
    """SSL: the certificate is the identity, and there is no login."""
    properties = {**keystore(papers), "listener.name.clients.ssl.client.auth": "required"}
    with native.kafka_process(tmp_path, listener="SSL", properties=properties) as server:
        over = {"security_protocol": "SSL", "sasl_username": None, "sasl_password": None}
        await use_kafka(kafka_settings(server.bootstrap, papers, **over))
        with pytest.raises(PublishUnknown) as caught:
            await use_kafka(kafka_settings(server.bootstrap, papers, **over, tls_certificate=None, tls_key=None))
        assert "kafka.bootstrap" in line_of(caught.value)
        assert "SECKILL__KAFKA__TLS_CERTIFICATE" in line_of(caught.value)


async def test_kafka_with_a_login_in_plaintext(tmp_path: Path, papers: Papers) -> None:
    """SASL_PLAINTEXT: SCRAM does not show the password, and needs no certificates."""
    with native.kafka_process(
        tmp_path, listener="SASL_PLAINTEXT", scram={USER: PASSWORD},
        properties={"sasl.enabled.mechanisms": "SCRAM-SHA-512"},
    ) as server:  # fmt: skip
        values = {"bootstrap": server.bootstrap, "security_protocol": "SASL_PLAINTEXT", "request_timeout_ms": 5_000}
        login = {"sasl_username": USER, "sasl_password": PASSWORD}
        await use_kafka(KafkaSettings.model_validate(values | login))
        with pytest.raises(PublishUnknown) as caught:
            await use_kafka(KafkaSettings.model_validate(values | login | {"sasl_mechanism": "PLAIN"}))
        assert "kafka.sasl_mechanism" in line_of(caught.value)


async def once(used: Any) -> None:
    """Awaits it, or opens and closes it."""
    if asyncio.iscoroutine(used):
        await used
        return
    async with used:
        pass


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("wrong ca", ("its certificate is refused", "SECKILL__KAFKA__TLS_CA")),
        ("wrong password", ("it refuses the login", "kafka.sasl_password")),
        ("no certificate", ("closes it again", "if it asks for a certificate, set SECKILL__KAFKA__TLS_CERTIFICATE")),
        ("foreign certificate", ("closes it again", "SECKILL__KAFKA__TLS_CERTIFICATE")),
        ("no TLS", ("kafka.security_protocol to SSL or SASL_SSL",)),
    ],
)
@pytest.mark.parametrize("client", [open_publisher, open_consumer, consumer_lag, open_admin])
async def test_kafka_does_not_let_us_in(
    kafka: native.Kafka, papers: Papers, client: Any, case: str, wanted: tuple[str, ...]
) -> None:
    """Setting, address and remedy in one line, whichever client it is; never only "no broker answers"."""
    over: dict[str, Any] = {
        "wrong ca": {"tls_ca": papers.theirs.ca},
        "wrong password": {"sasl_password": WRONG},
        "no certificate": {"tls_certificate": None, "tls_key": None},
        "foreign certificate": {"tls_certificate": papers.foreign.certificate, "tls_key": papers.foreign.key},
        "no TLS": {"security_protocol": "SASL_PLAINTEXT", "tls_ca": None, "tls_certificate": None, "tls_key": None},
    }[case]
    with pytest.raises(PublishUnknown) as caught:
        await once(client(kafka_settings(kafka.bootstrap, papers, **over)))
    line = line_of(caught.value)
    assert all(part in line for part in (*wanted, kafka.bootstrap, "kafka.bootstrap")), line


# --- MariaDB ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[native.MariaDb]:
    """Speaks TLS; its user for the services must show a certificate."""
    options = (
        f"--ssl-ca={papers.ours.ca}", f"--ssl-cert={papers.server.certificate}", f"--ssl-key={papers.server.key}",
    )  # fmt: skip
    with native.mariadb_process(tmp_path_factory.mktemp("mariadb"), options=options) as server:
        execute(server.url, [f"CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}' REQUIRE X509"])
        yield server


def service_database(server: native.MariaDb, name: str, *, password: str = PASSWORD) -> str:
    """An empty database that is the services' user's to fill."""
    url = make_url(fresh_database(server.url, name))
    execute(server.url, [f"GRANT ALL ON `{url.database}`.* TO {USER}@'127.0.0.1'"])
    return url.set(username=USER, password=password).render_as_string(hide_password=False)


def database_settings(url: str, papers: Papers, **over: str | None) -> ProductSettings:
    values = {"database_url": url, "database_tls": "verify-identity", **papers.prefixed("database_tls_", **over)}
    return ProductSettings.model_validate(values)


async def ask_mariadb(settings: ProductSettings) -> str:
    """The cipher of the connection."""
    url = settings.database_url.get_secret_value()
    engine = create_engine(url, pool_size=1, lock_wait_s=3, tls=database_context("product", settings))
    try:
        async with opening_database("product.database_url", url), engine.connect() as connection:
            row = (await connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()
            return str(row[1])
    finally:
        await engine.dispose()


async def test_mariadb_with_tls(mariadb: native.MariaDb, papers: Papers) -> None:
    """Encrypted, the server's identity verified, our own shown."""
    assert await ask_mariadb(database_settings(service_database(mariadb, "tls"), papers))


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("wrong ca", ("its certificate is refused", "SECKILL__PRODUCT__DATABASE_TLS_CA")),
        ("wrong password", ("Access denied", "correct user and password in product.database_url")),
        ("no certificate", ("Access denied", "SECKILL__PRODUCT__DATABASE_TLS_CERTIFICATE")),
        ("foreign certificate", ("SECKILL__PRODUCT__DATABASE_TLS_CERTIFICATE",)),
    ],
)
async def test_mariadb_does_not_let_us_in(
    mariadb: native.MariaDb, papers: Papers, case: str, wanted: tuple[str, ...]
) -> None:
    """Setting, address and remedy in one line."""
    password = WRONG if case == "wrong password" else PASSWORD
    over: dict[str, str | None] = {
        "wrong ca": {"ca": papers.theirs.ca},
        "wrong password": {},
        "no certificate": NOBODY,
        "foreign certificate": papers.foreigner,
    }[case]
    with pytest.raises(Exception) as caught:
        await ask_mariadb(database_settings(service_database(mariadb, "no", password=password), papers, **over))
    line = line_of(caught.value)
    assert all(part in line for part in (*wanted, f"127.0.0.1:{mariadb.port}", "product.database_url")), line


async def test_mariadb_of_another_name(tmp_path: Path, papers: Papers) -> None:
    """verify-identity refuses a certificate for another host; verify-ca does not look at the name."""
    other = papers.ours.issue("elsewhere", "db.example.org")
    options = (f"--ssl-ca={papers.ours.ca}", f"--ssl-cert={other.certificate}", f"--ssl-key={other.key}")
    with native.mariadb_process(tmp_path, options=options) as server:
        settings = database_settings(f"{server.url}mysql", papers)
        with pytest.raises(Exception) as caught:
            await ask_mariadb(settings)
        assert "not valid for '127.0.0.1'" in line_of(caught.value)
        assert await ask_mariadb(settings.model_copy(update={"database_tls": "verify-ca"}))


@pytest.mark.parametrize("ending", ["cancelled", "timed out"])
async def test_an_interrupted_query_leaves_no_wrong_answer(
    mariadb: native.MariaDb, papers: Papers, ending: str
) -> None:
    """After a query that was cancelled or ran out of time, the pool's next connection answers what it is asked."""
    settings = database_settings(service_database(mariadb, "interrupted"), papers)
    url = settings.database_url.get_secret_value()
    engine = create_engine(url, pool_size=1, lock_wait_s=1, tls=database_context("product", settings))
    try:
        for number in range(20):
            async with engine.connect() as connection:
                slow = connection.execute(text("SELECT SLEEP(30), 'wrong'"))
                if ending == "cancelled":
                    task = asyncio.ensure_future(slow)
                    await asyncio.sleep(0.001 * number)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.001 * (number + 1)):
                            await slow
            async with engine.connect() as connection:
                assert (await connection.execute(text("SELECT :n"), {"n": number})).scalar_one() == number
    finally:
        await engine.dispose()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_frozen_database_is_given_up(tmp_path: Path, papers: Papers, encrypted: bool) -> None:
    """A server that keeps its connections and takes and answers nothing costs no more than the read time-out of 10 s
    and a little, however much is to be written; the pool works again once it is back."""
    options = (
        f"--ssl-ca={papers.ours.ca}", f"--ssl-cert={papers.server.certificate}", f"--ssl-key={papers.server.key}",
        "--max-allowed-packet=64M",
    )  # fmt: skip
    with native.mariadb_process(tmp_path, options=options) as server:
        tls = database_context("product", database_settings(f"{server.url}mysql", papers)) if encrypted else None
        engine = create_engine(server.url, pool_size=1, lock_wait_s=1, tls=tls)
        try:
            async with engine.connect() as connection:
                assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
            server.freeze()
            async with asyncio.timeout(15):
                with pytest.raises(DBAPIError):
                    async with engine.connect() as connection:
                        await connection.execute(text("SELECT LENGTH(:long)"), {"long": "x" * 20_000_000})
            server.thaw()
            async with engine.connect() as connection:
                assert (await connection.execute(text("SELECT 3"))).scalar_one() == 3
        finally:
            await engine.dispose()


# --- gRPC ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def product(tmp_path: Path, papers: Papers) -> AsyncIterator[tuple[str, str]]:
    """Its address under mutual TLS, and that of its branch port."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'product.db'}"
    await upgrade("product", url)
    settings = ProductSettings(grpc="127.0.0.1:0", branch_grpc="127.0.0.1:0", database_url=SecretStr(url))
    tls = TlsSettings(ca=papers.ours.ca, certificate=papers.server.certificate, key=papers.server.key)
    async with serve_product(settings, tls) as server:
        assert server.branch_address is not None
        yield server.address, server.branch_address


async def test_grpc_with_mutual_tls(product: tuple[str, str], papers: Papers) -> None:
    """A role with a certificate of our authority is served."""
    async with open_channel(product[0], TlsSettings.model_validate(papers.good)) as channel:
        await check_service(channel, product[0], "product.Product")
        assert list((await product_pb2_grpc.SalesStub(channel).ListSales(product_pb2.ListSalesRequest())).sales) == []


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("wrong ca", ("its certificate is refused", "SECKILL__TLS__CA")),
        ("no certificate", ("it refuses our certificate", "SECKILL__TLS__CERTIFICATE")),
        ("foreign certificate", ("it refuses our certificate", "SECKILL__TLS__CERTIFICATE")),
        ("no TLS", ("it speaks TLS only", "set tls.ca, tls.certificate and tls.key")),
    ],
)
async def test_grpc_does_not_let_us_in(
    product: tuple[str, str], papers: Papers, case: str, wanted: tuple[str, str]
) -> None:
    """Nobody without a certificate of our authority gets an answer, and is told which setting to change."""
    values: dict[str, Any] = {
        "wrong ca": {**papers.good, "ca": papers.theirs.ca},
        "no certificate": {"ca": papers.ours.ca},
        "foreign certificate": {**papers.foreigner, "ca": papers.ours.ca},
        "no TLS": {},
    }[case]
    tls = TlsSettings.model_validate(values)
    async with open_channel(product[0], tls) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await product_pb2_grpc.SalesStub(channel).ListSales(product_pb2.ListSalesRequest(), timeout=3)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    found = await grpc_refusal(product[0], tls, grpc_door("the product service", "product.grpc"))
    assert found is not None
    assert wanted[0] in found.problem
    assert wanted[1] in found.remedy


async def test_a_role_that_is_kept_out_does_not_start(product: tuple[str, str], papers: Papers) -> None:
    """A front without certificates before a product service that wants them ends at start, with one line."""
    plain = with_values(load_settings(), {"product": {"grpc": product[0]}})
    with pytest.raises(Unfit) as caught:
        await refuse_strangers_of_front(plain)
    line = line_of(caught.value)
    assert line.startswith(f"the product service at {product[0]} (product.grpc): it speaks TLS only; set tls.ca")
    await refuse_strangers_of_front(plain.model_copy(update={"tls": TlsSettings.model_validate(papers.good)}))


async def test_tls_to_a_plaintext_server_says_so(product: tuple[str, str], papers: Papers) -> None:
    """The other way round: we speak TLS, and the server does not."""
    tls = TlsSettings.model_validate(papers.good)
    found = await grpc_refusal(product[1], tls, grpc_door("the coordinator", "dtm.grpc"))
    assert found is not None
    assert found.problem == "it speaks no TLS there"
    assert found.remedy == "set dtm.tls = false if it is a DTM server, which speaks none"


async def test_the_branch_port_serves_branches_only(product: tuple[str, str]) -> None:
    """Without a certificate one reaches the three branch methods and nothing else: no sale can be changed there."""
    async with grpc.aio.insecure_channel(product[1]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as sales:
            await product_pb2_grpc.SalesStub(channel).ListSales(product_pb2.ListSalesRequest(), timeout=3)
        with pytest.raises(grpc.aio.AioRpcError) as rows:
            await product_pb2_grpc.ProductStub(channel).Reservations(product_pb2.ReservationsRequest(), timeout=3)
        request = product_pb2.UpdateProductStockRequest(product_id=1, num=1)
        with pytest.raises(grpc.aio.AioRpcError) as branch:
            await product_pb2_grpc.ProductStub(channel).UpdateProductStock(request, timeout=3)
    assert sales.value.code() is rows.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert branch.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # served, and without a gid refused


async def test_a_vanished_peer_ends_the_connection(product: tuple[str, str], papers: Papers) -> None:
    """A gRPC connection whose bytes nobody acknowledges is given up by the kernel after 10 s, not after 15 minutes."""
    credentials = channel_credentials(TlsSettings.model_validate(papers.good))
    async with Channels(credentials) as channels:
        target = f"{product[0]}/grpc.health.v1.Health/Check"
        await channels.call(target, b"", (), timeout_ms=3_000)
        limits = set()
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as found:
                if found.getpeername()[1:2] == (int(product[0].rpartition(":")[2]),):
                    limits.add(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    assert limits == {10_000}


# --- everything ------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure_servers(
    redis: native.Redis, kafka: native.Kafka, mariadb: native.MariaDb
) -> tuple[native.Redis, native.Kafka, native.MariaDb]:
    return redis, kafka, mariadb


@pytest.mark.parametrize("coordinator", ["ours", "dtm"])
async def test_an_order_through_secure_connections(
    coordinator: str,
    tmp_path: Path,
    papers: Papers,
    secure_servers: tuple[native.Redis, native.Kafka, native.MariaDb],
) -> None:
    """An order over HTTPS and one over gRPC with mutual TLS are confirmed, and the command line reads what became of
    them, with every connection encrypted and authenticated; a DTM server gets its plaintext branch ports, and no more.
    """
    with contextlib.ExitStack() as stack:
        dtm = None
        if coordinator == "dtm":
            dtm = stack.enter_context(native.dtm_process(tmp_path / "dtm", store="boltdb")).address
        sections = await secure_sections(coordinator, papers, *secure_servers)
        if dtm is not None:
            sections["dtm"] |= {"grpc": dtm.grpc, "http": dtm.http, "tls": False}
            ports = iter(free_ports(2))
            for name in ("product", "order"):
                sections[name]["branch_grpc"] = f"127.0.0.1:{next(ports)}"
        config = tmp_path / "secure.toml"
        config.write_text(tomli_w.dumps({"profile": "real", **sections}))
        async with running_roles(config) as roles:
            context = client_context(PemFiles("front.tls_", papers.ours.ca, None, None))
            token = sections["front"]["operator_token"]
            async with open_front(sections["front"]["http"], operator_token=token, tls=context) as front:
                terms = {"starts_at_ms": 1, "ends_at_ms": 4_000_000_000_000}
                sale = await front.create_sale({"product_id": 5, "stock": 3, **terms}, change_id=coordinator)
                order = await front.order(user_id=7, product_id=5)
                result = await front.order_result(order["order_id"], wait_s=60)
                assert result["status"] == "confirmed", result
                second = await order_over_grpc(sections["front"]["grpc"], papers)
                assert (await front.order_result(second, wait_s=60))["status"] == "confirmed"
                assert (await front.sale(sale["sale_id"]))["sold"] == 2
            warned = {
                role: {each["setting"] for each in process.events() if each["event"] == "plaintext_connection"}
                for role, process in roles.items()
            }
            told = await asyncio.to_thread(seckill, config, "tx", "list", "--json")
            [target] = {branch["url"].partition("/")[0] for branch in await branches_of(config, told, "product")}
            status = await asyncio.to_thread(seckill, config, "status", "--json", ends_with=(0, 1))
    if dtm is None:
        assert not any(warned.values()), warned
        assert target == sections["product"]["grpc"]
    else:
        assert warned == {
            "front": set(), "worker": {"dtm.grpc"}, "reconcile": {"dtm.grpc"}, "coordinator": set(),
            "product": {"product.branch_grpc"}, "order": {"order.branch_grpc"},
        }  # fmt: skip
        assert target == sections["product"]["branch_grpc"]
    assert [role["state"] for role in status["roles"] if role["role"] in roles] == ["ready"] * len(roles)


async def secure_sections(
    run: str, papers: Papers, redis: native.Redis, kafka: native.Kafka, mariadb: native.MariaDb
) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = dict(role_addresses())
    names = {"topic": f"orders-{run}", "dead_letter_topic": f"orders-{run}-dlt", "group": f"group-{run}"}
    sections["kafka"] = {
        "bootstrap": kafka.bootstrap, "security_protocol": "SASL_SSL", "sasl_username": USER, "sasl_password": PASSWORD,
        **papers.prefixed("tls_"), **names,
    }  # fmt: skip
    await make_pipeline_topics(KafkaSettings.model_validate(sections["kafka"]))
    # Each run has a number of its own: Redis is shared.
    url = f"rediss://127.0.0.1:{redis.tls_port}/{('ours', 'dtm').index(run) + 1}"
    sections["redis"] = {"url": url, "username": USER, "password": PASSWORD, **papers.prefixed("tls_")}
    sections["tls"] = {"ca": papers.ours.ca, "certificate": papers.server.certificate, "key": papers.server.key}
    sections["front"] |= {
        "tls_certificate": papers.server.certificate, "tls_key": papers.server.key, "tls_ca": papers.ours.ca,
        "operator_token": "operator-token-of-a-test",
    }  # fmt: skip
    for name in ("product", "order", "coordinator"):
        url = service_database(mariadb, name)
        files = papers.prefixed("database_tls_")
        section = ProductSettings.model_validate({"database_url": url, "database_tls": "verify-identity", **files})
        await upgrade(name, url, tls=database_context(name, section))
        sections[name] |= {"database_url": url, "database_tls": "verify-identity", **files}
    sections["log"] = {"json_lines": True}
    return sections


async def order_over_grpc(address: str, papers: Papers) -> str:
    async with open_channel(address, TlsSettings.model_validate(papers.good)) as channel:
        request = seckill_pb2.SeckillOrderRequest(user_id=8, product_id=5, quantity=1)
        return str((await seckill_pb2_grpc.SeckillStub(channel).SeckillOrder(request, timeout=10)).order_id)


async def branches_of(config: Path, listed: dict[str, Any], service: str) -> list[dict[str, Any]]:
    """The branches of that service in every transaction, as the coordinator has them registered."""
    shown = [
        await asyncio.to_thread(seckill, config, "tx", "show", each["gid"], "--json") for each in listed["transactions"]
    ]
    branches = [branch for each in shown for branch in each["transaction"]["branches"]]
    return [branch for branch in branches if f"/{service}." in branch["url"]]


def seckill(config: Path, *arguments: str, ends_with: tuple[int, ...] = (0,)) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "seckill.cli", "--config", str(config), *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=config.parent,
    )  # fmt: skip
    assert ended.returncode in ends_with, ended.stderr + ended.stdout
    told: dict[str, Any] = json.loads(ended.stdout)
    return told
