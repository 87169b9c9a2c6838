"""One real server as a process of this machine: its own folder, its own ports, on loopback, ended by its id.

`with redis_process(folder) as redis:` yields a server that answers. `stop`, `kill`, `restart` and `freeze` are for
tests that need to know what happens then: ports and data stay. Nothing outlives the process that started it.

DTM is the exception to loopback: it has no setting for the address that it listens on.
"""

from __future__ import annotations

import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit

from tests.servers import install
from tests.servers.addresses import DtmAddress
from tests.servers.databases import execute, fresh_database, statements_of
from tests.servers.keeper import keeper
from tests.servers.ports import free_ports

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30
PORT_ATTEMPTS = 4
LOOK_EVERY_S = 0.05
IN_USE = "address already in use"
DTM_TABLES = Path(__file__).parents[2] / "config" / "mariadb" / "dtm.sql"


class StartFailed(Exception):
    """A server ended, or did not answer in time; the message has the last of its log."""


class Process:
    """What all servers share. A server says how it is started, and how one sees that it answers."""

    def __init__(self, folder: Path, *, ports: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "server.log"
        self.ports = free_ports(ports)
        self.process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} does not run"
        return self.process.pid

    def prepare(self) -> None:
        """What has to be there before the first start."""

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def first_start(self) -> None:
        """Prepares and starts it, on other ports when somebody was faster to take one. Raises StartFailed."""
        for attempt in range(PORT_ATTEMPTS):
            if attempt:
                self.ports = free_ports(len(self.ports))
            try:
                self.prepare()
                self.start()
            except StartFailed as error:
                if IN_USE not in str(error).lower() or attempt == PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def start(self) -> None:
        """Returns when it answers. Raises StartFailed."""
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        keeper().watch(self.pid)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """As its operator would: SIGTERM, and time to write what it has. A frozen one is woken up for it."""
        self._end(signal.SIGTERM, signal.SIGCONT)

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def said(self) -> str:
        """What it has written since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            return log.read().decode(errors="replace")

    def _wait_until_it_answers(self) -> None:
        assert self.process is not None
        ends = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends:
            if (code := self.process.poll()) is not None:
                raise StartFailed(f"{self.name} ended with {code}:\n{self.said()[-3_000:]}")
            if self.answers():
                return
            time.sleep(LOOK_EVERY_S)
        raise StartFailed(f"{self.name} does not answer after {START_TIMEOUT_S} s:\n{self.said()[-3_000:]}")

    def _end(self, *numbers: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        for number in numbers:
            process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        keeper().forget(process.pid)


Server = TypeVar("Server", bound=Process)


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    server.first_start()
    try:
        yield server
    finally:
        server.stop()


# --- Redis -----------------------------------------------------------------------------------------------------------


class Redis(Process):
    """AOF every second, no eviction; `options` come last. `{tls_port}` in them is a free port of its own."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        super().__init__(folder, ports=2)
        self.options = options

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def tls_port(self) -> int:
        return self.ports[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        return (
            str(install.program("redis-server")), "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(self.folder), "--daemonize", "no", "--save", "",
            "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction",
            *(option.replace("{tls_port}", str(self.tls_port)) for option in self.options),
        )  # fmt: skip

    def answers(self) -> bool:
        return "Ready to accept connections" in self.said()


@contextmanager
def redis_process(folder: Path, *, options: Sequence[str] = ()) -> Iterator[Redis]:
    """A Redis server. Raises ServersMissing or StartFailed."""
    install.require("Redis")
    with _running(Redis(folder, options)) as server:
        yield server


# --- MariaDB ---------------------------------------------------------------------------------------------------------


class MariaDb(Process):
    """InnoDB as it is by default (every commit on disk), strict mode; root has a password of its own."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        super().__init__(folder, ports=1)
        self.options = options
        self.password = secrets.token_hex(8)

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def url(self) -> str:
        """For root, and of no database."""
        return f"mysql+asyncmy://root:{self.password}@127.0.0.1:{self.port}/"

    @property
    def socket(self) -> Path:
        return self.folder / "mariadb.sock"

    def prepare(self) -> None:
        self._temporary.mkdir(parents=True, exist_ok=True)
        if (self.folder / "data").exists():
            return
        (self.folder / "users.sql").write_text(
            f"CREATE OR REPLACE USER 'root'@'localhost' IDENTIFIED BY '{self.password}';\n"
            f"CREATE OR REPLACE USER 'root'@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON *.* TO 'root'@'localhost' WITH GRANT OPTION;\n"
            "GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        ended = subprocess.run(
            [str(install.program("mariadb-install-db")), "--no-defaults", f"--datadir={self.folder / 'data'}",
             "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", *self._as_root()],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=START_TIMEOUT_S, check=False,
        )  # fmt: skip
        if ended.returncode != 0:
            raise StartFailed(f"mariadb-install-db ended with {ended.returncode}:\n{ended.stdout[-3_000:]}")

    def command(self) -> Sequence[str]:
        return (
            str(install.program("mariadbd")), "--no-defaults", f"--datadir={self.folder / 'data'}",
            f"--socket={self.socket}", f"--pid-file={self.folder / 'mariadb.pid'}", f"--tmpdir={self._temporary}",
            f"--init-file={self.folder / 'users.sql'}", "--bind-address=127.0.0.1", f"--port={self.port}",
            "--skip-name-resolve", "--innodb-buffer-pool-size=256M", "--innodb-flush-log-at-trx-commit=1",
            "--innodb-log-file-size=128M", "--max-connections=600", "--performance-schema=OFF", *self._as_root(),
            *self.options,
        )  # fmt: skip

    def answers(self) -> bool:
        return "ready for connections" in self.said()

    @property
    def _temporary(self) -> Path:
        """A server that starts removes the temporary tables that it finds, those of a neighbour among them."""
        return self.folder / "temporary"

    def _as_root(self) -> Sequence[str]:
        return ("--user=root",) if os.geteuid() == 0 else ()


@contextmanager
def mariadb_process(folder: Path, *, options: Sequence[str] = ()) -> Iterator[MariaDb]:
    """A MariaDB server. Raises ServersMissing or StartFailed."""
    install.require("MariaDB")
    with _running(MariaDb(folder, options)) as server:
        yield server


# --- Kafka -----------------------------------------------------------------------------------------------------------


_KAFKA_LOG = """
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss,SSS} %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.raft.name = kafka.server.KafkaRaftServer
logger.raft.level = info
"""


class Kafka(Process):
    """One broker that is its own controller (KRaft). Topics are not made by asking for them.

    `bootstrap` is the listener for clients, with the security protocol that was asked for; `inner` is without any, for
    the broker itself and for tests that look from the side.
    """

    def __init__(
        self, folder: Path, properties: Mapping[str, str], listener: str, scram: Mapping[str, str], heap_mb: int
    ) -> None:
        super().__init__(folder, ports=3)
        self.properties = properties
        self.listener = listener
        self.scram = scram
        self.heap_mb = heap_mb

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def inner(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    def prepare(self) -> None:
        (self.folder / "log4j2.properties").write_text(_KAFKA_LOG)
        settings = {**self._settings(), **self.properties}
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        (self.folder / "server.properties").write_text(text)
        if (self.folder / "data").exists():
            return
        users = [
            f"{mechanism}=[name={name},password={password}]"
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for name, password in self.scram.items()
        ]
        ended = subprocess.run(
            [*self._java(), "kafka.tools.StorageTool", "format", "--cluster-id", uuid.uuid4().hex[:22],
             "--config", str(self.folder / "server.properties"), *(each for user in users for each in ("-S", user))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=START_TIMEOUT_S, check=False,
        )  # fmt: skip
        if ended.returncode != 0:
            raise StartFailed(f"StorageTool ended with {ended.returncode}:\n{ended.stdout[-3_000:]}")

    def command(self) -> Sequence[str]:
        return (*self._java(), "kafka.Kafka", str(self.folder / "server.properties"))

    def answers(self) -> bool:
        return "Kafka Server started" in self.said()

    def _java(self) -> Sequence[str]:
        return (
            str(install.program("java")), f"-Xms{self.heap_mb // 2}m", f"-Xmx{self.heap_mb}m", "-XX:+UseG1GC",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}", "-cp", f"{install.kafka_jars()}/*",
        )  # fmt: skip

    def _settings(self) -> dict[str, str]:
        controller = f"127.0.0.1:{self.ports[2]}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"CLIENTS://{self.bootstrap},INNER://{self.inner},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENTS://{self.bootstrap},INNER://{self.inner}",
            "listener.security.protocol.map": f"CLIENTS:{self.listener},INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INNER",
            "listener.name.clients.scram-sha-256.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "listener.name.clients.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.folder / "data"),
            "num.partitions": "4",
            "auto.create.topics.enable": "false",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),  # of 128 MiB by default, which is half of a small heap
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
        }


@contextmanager
def kafka_process(
    folder: Path,
    *,
    properties: Mapping[str, str] | None = None,
    listener: str = "PLAINTEXT",
    scram: Mapping[str, str] | None = None,
    heap_mb: int = 512,
) -> Iterator[Kafka]:
    """A Kafka broker. `listener` is the clients' security protocol; its settings (`ssl.keystore.location` …) are
    properties. `scram` are names and passwords for SCRAM-SHA-256 and 512. Raises ServersMissing or StartFailed."""
    install.require("Kafka")
    with _running(Kafka(folder, properties or {}, listener, scram or {}, heap_mb)) as server:
        yield server


# --- DTM -------------------------------------------------------------------------------------------------------------

DtmStore = Literal["mysql", "redis", "boltdb"]


class Dtm(Process):
    """DTM 1.19.0 on a store. What it has stored is still there after a restart."""

    def __init__(self, folder: Path, store: Mapping[str, str | int], cron_interval_s: int) -> None:
        super().__init__(folder, ports=3)
        self.store = store
        self.cron_interval_s = cron_interval_s

    @property
    def address(self) -> DtmAddress:
        return DtmAddress(f"127.0.0.1:{self.ports[0]}", f"127.0.0.1:{self.ports[1]}")

    def prepare(self) -> None:
        write_dtm_settings(
            self.folder / "conf.yml", self.store, grpc=self.address.grpc, http=self.address.http,
            json_rpc_port=self.ports[2], cron_interval_s=self.cron_interval_s,
        )  # fmt: skip

    def command(self) -> Sequence[str]:
        return (str(install.dtm_program()), "-c", "conf.yml")

    def environment(self) -> Mapping[str, str]:
        """DTM also takes settings from variables such as `STORE_HOST` and `HTTP_PORT`: it gets none."""
        kept = ("PATH", "HOME", "TZ", "LANG")
        return {name: os.environ[name] for name in kept if name in os.environ}

    def answers(self) -> bool:
        if IN_USE in self.said():
            raise StartFailed(f"{self.name}: {IN_USE}")  # it runs on without its HTTP service
        try:
            _http_status(self.address.http, "/api/ping")
            socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1).close()
        except (OSError, http.client.HTTPException):
            return False
        return True


def write_dtm_settings(
    file: Path,
    store: Mapping[str, str | int],
    *,
    grpc: str,
    http: str,
    json_rpc_port: int,
    cron_interval_s: int = 1,
    log_level: str = "warn",
) -> None:
    ports = {"GrpcPort": grpc.rpartition(":")[2], "HttpPort": http.rpartition(":")[2], "JsonRpcPort": json_rpc_port}
    settings = {"TransCronInterval": cron_interval_s, "LogLevel": log_level, **ports}
    lines = ["Store:", *(f"  {key}: {value!r}" for key, value in store.items())]
    file.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in settings.items())]) + "\n")


def _http_status(address: str, path: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def dtm_process(
    folder: Path,
    *,
    store: DtmStore,
    mariadb_url: str | None = None,
    redis_url: str | None = None,
    cron_interval_s: int = 1,
) -> Iterator[Dtm]:
    """A DTM server. `mariadb_url` without a database is an administrator's: a fresh one with DTM's tables is made.

    Raises ServersMissing or StartFailed.
    """
    install.require("DTM")
    match store:
        case "mysql":
            assert mariadb_url is not None, "the mysql store needs mariadb_url"
            settings = mysql_store(mariadb_url if urlsplit(mariadb_url).path.strip("/") else dtm_database(mariadb_url))
        case "redis":
            assert redis_url is not None, "the redis store needs redis_url"
            settings = {**_address("redis", redis_url), "RedisPrefix": f"{{{uuid.uuid4().hex}}}"}
        case "boltdb":
            settings = {"Driver": "boltdb"}
    with _running(Dtm(folder, settings, cron_interval_s)) as server:
        yield server


def dtm_database(admin_url: str) -> str:
    """The URL of a fresh database with the tables of DTM's SQL store."""
    url = fresh_database(admin_url, "dtm")
    statements = statements_of(DTM_TABLES.read_text(encoding="utf-8"))
    tables = [each for each in statements if each.startswith("CREATE TABLE")]
    # The file names the database `dtm`, as an operator has it; here every DTM has one of its own.
    execute(url, [re.sub(r"\bdtm\.", "", each, count=1) for each in tables])
    return url


def mysql_store(url: str) -> dict[str, str | int]:
    bounds = {"MaxOpenConns": 50, "MaxIdleConns": 50}
    return {**_address("mysql", url), "Db": urlsplit(url).path.strip("/"), **bounds}


def _address(driver: str, url: str) -> dict[str, str | int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    address: dict[str, str | int] = {"Driver": driver, "Host": parts.hostname, "Port": parts.port}
    return address | {"User": unquote(parts.username or ""), "Password": unquote(parts.password or "")}
