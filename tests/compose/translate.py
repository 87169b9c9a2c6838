"""What a service of docker-compose.yml is without Docker: the same command as a process of this machine.

Taken as it stands: commands, environment, health checks, settings files. Put in other words, and only these:

    in the file                              here
    NAME:PORT, 127.0.0.1:PORT, //:PORT,      a free port of 127.0.0.1 for each port of each service,
    127.0.0.1/PORT, --port=PORT              the same wherever it is named; a name that is no service fails
    a named volume, a tmpfs                  a folder, in place of the path at which it is mounted
    a mounted file                           a copy of it, with addresses put in other words as above
    image apache/kafka                       the image's own translator (kafka.docker.KafkaDockerWrapper, in Kafka's
                                             jars) makes server.properties of KAFKA_…; then kafka.Kafka, with
                                             $KAFKA_HEAP_OPTS
    image redis                              redis-server of this machine, told port, address and folder
    image mariadb                            mariadb-install-db, root's password, then the files of
                                             /docker-entrypoint-initdb.d in order, on a server without TCP; then
                                             mariadbd with the options of `command`, told port, address and folder
    image yedf/dtm                           DTM 1.19.0, told its three ports
    image seckill (ENTRYPOINT ["seckill"])   `python -m seckill.cli`; `python` is the one that runs the tests
    cap_drop, no-new-privileges              setpriv, which is what it means to the kernel; dropped as root only
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tests.servers import install
from tests.servers.ports import free_ports

Spec = Mapping[str, Any]

PREPARE_TIMEOUT_S = 120
_ADDRESS = re.compile(r"(?P<host>[A-Za-z][A-Za-z0-9_.-]*|127\.0\.0\.1|0\.0\.0\.0|(?<=//)):(?P<port>\d{4,5})(?!\d)")
_PATH_ADDRESS = re.compile(r"127\.0\.0\.1/(?P<port>\d{4,5})(?!\d)")
_OPTION = re.compile(r"--port=(?P<port>\d+)")
OWN_NAMES = {"", "localhost", "127.0.0.1", "0.0.0.0"}

# What the containers' programs see of whoever runs the tests.
INHERITED = ("PATH", "LANG", "TZ", "CI")


class NotTranslated(AssertionError):
    """The file says something that this module has no words for."""


@dataclass
class Site:
    """Where the services of one file live here: their ports and folders."""

    services: Mapping[str, Spec]
    folder: Path
    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=lambda: free_ports(80))

    def port(self, service: str, port: int) -> int:
        if (service, port) not in self.ports:
            self.ports[service, port] = self._free.pop()
        return self.ports[service, port]

    def words(self, service: str, text: str) -> str:
        """Addresses and mounted paths in `text`, as a container of `service` means them, in this machine's words."""

        def address(match: re.Match[str]) -> str:
            host = match["host"]
            owner = service if host in OWN_NAMES else host
            if owner not in self.services:
                raise NotTranslated(f"{service}: {match[0]} in {text!r}: no service has that name")
            return f"127.0.0.1:{self.port(owner, int(match['port']))}"

        text = _ADDRESS.sub(address, text)
        text = _PATH_ADDRESS.sub(lambda match: f"127.0.0.1/{self.port(service, int(match['port']))}", text)
        text = _OPTION.sub(lambda match: f"--port={self.port(service, int(match['port']))}", text)
        for target, here in self.mounts(service).items():
            text = text.replace(target, str(here))
        return text

    def mounts(self, service: str) -> dict[str, Path]:
        """Mounted path → path here. Files are copied when they are asked for first."""
        spec = self.services[service]
        found = {
            target: self._made(self.folder / service / "tmpfs" / target.strip("/")) for target in spec.get("tmpfs", ())
        }
        for volume in spec.get("volumes", ()):
            if volume["type"] == "volume":
                found[volume["target"]] = self._made(self.folder / "volumes" / volume["source"])
            elif volume["type"] == "bind":
                found[volume["target"]] = self.folder / service / "mounted" / Path(volume["target"]).name
            else:
                raise NotTranslated(f"{service}: a {volume['type']} volume")
        return found

    def copy_mounted_files(self, service: str) -> None:
        mounts = self.mounts(service)
        for volume in self.services[service].get("volumes", ()):
            if volume["type"] == "bind":
                source, here = Path(volume["source"]), mounts[volume["target"]]
                here.parent.mkdir(parents=True, exist_ok=True)
                here.write_text(self.words(service, source.read_text(encoding="utf-8")), encoding="utf-8")
                here.chmod(source.stat().st_mode)

    @staticmethod
    def _made(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass
class Container:
    """A service as its image would run it."""

    name: str
    spec: Spec
    site: Site

    # Variables that the image's programs read, beside those of a prefix that is theirs.
    VARIABLES: ClassVar[tuple[str, ...]] = ()

    @property
    def folder(self) -> Path:
        return self.site.folder / self.name

    @property
    def written(self) -> dict[str, str]:
        """The file's own variables, in this machine's words."""
        return {key: self.site.words(self.name, value) for key, value in (self.spec.get("environment") or {}).items()}

    def environment(self) -> dict[str, str]:
        inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
        temporary = self.folder / "tmpfs" / "tmp"
        return inherited | {"HOME": str(self.folder), "TMPDIR": str(temporary)} | self.written

    def unknown_variables(self) -> set[str]:
        return set(self.spec.get("environment") or {}) - set(self.VARIABLES)

    def prepare(self) -> None:
        """What the image's entry point does before the server runs."""
        (self.folder / "tmpfs" / "tmp").mkdir(parents=True, exist_ok=True)
        self.site.copy_mounted_files(self.name)

    def command(self) -> list[str]:
        raise NotImplementedError

    def arguments(self) -> list[str]:
        if self.spec["entrypoint"] is not None:
            raise NotTranslated(f"{self.name}: an entrypoint of its own")
        return [self.site.words(self.name, argument) for argument in self.spec["command"] or ()]

    def hardened(self, command: Sequence[str]) -> list[str]:
        """The command without the rights that the file takes from it."""
        options = []
        if self.spec.get("security_opt") == ["no-new-privileges:true"]:
            options.append("--no-new-privs")
        if self.spec.get("cap_drop") == ["ALL"] and os.geteuid() == 0:
            options += ["--bounding-set=-all", "--inh-caps=-all"]
        return [_program("setpriv"), *options, "--", *command] if options else list(command)

    def health_command(self) -> list[str]:
        kind, *words = self.spec["healthcheck"]["test"]
        words = [self.site.words(self.name, word) for word in words]
        if kind == "CMD-SHELL":
            return ["/bin/sh", "-c", *words]
        if kind != "CMD":
            raise NotTranslated(f"{self.name}: a health check of kind {kind}")
        return [sys.executable if words[0] == "python" else _program(words[0]), *words[1:]]

    def run(self, *command: str, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
        """One step of preparing; its output. Fails with it."""
        ended = subprocess.run(
            self.hardened(command), cwd=self.folder, env=dict(environment or self.environment()), input=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PREPARE_TIMEOUT_S, check=False,
        )  # fmt: skip
        if ended.returncode != 0:
            raise StepFailed(
                f"{self.name}: {shlex.join(command)} ended with {ended.returncode}:\n{ended.stdout[-3_000:]}"
            )
        return ended.stdout


class StepFailed(AssertionError):
    """A step before the server failed; the message has its output."""


def _program(name: str) -> str:
    found = install.program(name)
    if found is None:
        raise NotTranslated(f"{name} is not installed here")
    return found


class Kafka(Container):
    CLUSTER_ID = "5L6g3nShT-eMCtK--X86sw"  # the image's own default

    def unknown_variables(self) -> set[str]:
        """The rest becomes settings of the broker, which a test asks for their names."""
        return {key for key in self.spec["environment"] if not key.startswith("KAFKA_")}

    def prepare(self) -> None:
        super().prepare()
        for name in ("default", "mounted", "final"):
            (self.folder / name).mkdir(exist_ok=True)
        for name in ("log4j2.yaml", "tools-log4j2.yaml"):
            (self.folder / "default" / name).write_text(_LOG4J)
        (self.folder / "default" / "server.properties").write_text("# the file says everything\n")
        try:
            self.run(
                *self._java(), "kafka.docker.KafkaDockerWrapper", "setup",
                "--default-configs-dir", str(self.folder / "default"),
                "--mounted-configs-dir", str(self.folder / "mounted"),
                "--final-configs-dir", str(self.folder / "final"),
                environment=self.environment() | {"CLUSTER_ID": self.CLUSTER_ID},
            )  # fmt: skip
        except StepFailed as error:
            if "already formatted" not in str(error):  # what the image's own script looks for at a second start
                raise

    def settings(self) -> dict[str, str]:
        """What the image's translator has made of the variables."""
        lines = (self.folder / "final" / "server.properties").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def known_settings(self) -> set[str]:
        """Every name that this Kafka's broker knows, from its own page about them."""
        page = self.run(*self._java(), "kafka.server.KafkaConfig")
        return set(re.findall(r'id="brokerconfigs_([^"]+)"', page))

    def command(self) -> list[str]:
        assert not self.arguments()
        heap = self.written["KAFKA_HEAP_OPTS"].split()
        return [*self._java(*heap), "kafka.Kafka", str(self.folder / "final" / "server.properties")]

    def _java(self, *options: str) -> list[str]:
        log = f"-Dlog4j2.configurationFile={self.folder / 'default' / 'log4j2.yaml'}"
        return [_program("java"), *options, log, "-cp", f"{install.kafka_jars()}/*"]


_LOG4J = """
Configuration:
  Appenders:
    Console: {name: STDOUT, PatternLayout: {Pattern: "%p %m (%c)%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: [{ref: STDOUT}]}
    Logger: [{name: org.apache.kafka.server.config, level: WARN}]
"""


class Redis(Container):
    VARIABLES = ("REDISCLI_AUTH",)

    def command(self) -> list[str]:
        name, *arguments = self.arguments()
        assert name == "redis-server"
        folder = self.site.mounts(self.name)["/data"]  # where the image's server runs
        port = str(self.site.port(self.name, 6379))
        return [_program(name), *arguments, "--port", port, "--bind", "127.0.0.1", "--dir", str(folder)]


class MariaDb(Container):
    VARIABLES = ("MARIADB_ROOT_PASSWORD", "MARIADB_INITDB_SKIP_TZINFO")
    INIT = "/docker-entrypoint-initdb.d/"

    def unknown_variables(self) -> set[str]:
        """Those that neither the image nor a script of its first start reads."""
        sources = [Path(volume["source"]) for volume in self.spec["volumes"] if volume["type"] == "bind"]
        scripts = "".join(path.read_text() for path in sources if path.suffix == ".sh")
        return {key for key in super().unknown_variables() if f"${key}" not in scripts}

    @property
    def _data(self) -> Path:
        return self.site.mounts(self.name)["/var/lib/mysql"]

    @property
    def _socket(self) -> Path:
        return self.folder / "mariadb.sock"

    def _scripts(self) -> list[Path]:
        mounts = self.site.mounts(self.name)
        return [mounts[target] for target in sorted(mounts) if target.startswith(self.INIT)]

    def prepare(self) -> None:
        super().prepare()
        # In the image the client finds the socket at its usual place.
        (self.folder / ".my.cnf").write_text(f"[client]\nsocket={self._socket}\n")
        if any(self._data.iterdir()):
            return
        own = ("--user=root",) if os.geteuid() == 0 else ()
        self.run(
            _program("mariadb-install-db"), "--no-defaults", f"--datadir={self._data}", "--skip-test-db",
            "--auth-root-authentication-method=normal", *own,
        )  # fmt: skip
        password = self.written["MARIADB_ROOT_PASSWORD"].replace("\\", "\\\\").replace("'", "''")
        root = (
            f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n"
            f"CREATE USER root@'%' IDENTIFIED BY '{password}';\nGRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\n"
        )
        with (self.folder / "first.log").open("wb") as log:
            first = subprocess.Popen([*self._server(), "--skip-networking"], stdout=log, stderr=log)
        try:
            self._first_words(first, root)
            for script in self._scripts():
                self._run_script(script)
        finally:
            first.terminate()
            first.wait(60)

    def _first_words(self, server: subprocess.Popen[bytes], statements: str) -> None:
        ends = time.monotonic() + 60
        while True:
            try:
                self._sql("SELECT 1", password="")
            except StepFailed:
                assert server.poll() is None, (self.folder / "first.log").read_text()[-3_000:]
                if time.monotonic() > ends:
                    raise
                time.sleep(0.1)
            else:
                break
        self._sql(statements, password="")

    def _sql(self, statements: str, password: str) -> None:
        environment = self.environment() | {"MYSQL_PWD": password}
        self.run(_program("mariadb"), "--protocol=socket", "--user=root", stdin=statements, environment=environment)

    def _run_script(self, script: Path) -> None:
        if script.suffix == ".sql":
            self._sql(script.read_text(), password=self.written["MARIADB_ROOT_PASSWORD"])
        elif script.suffix == ".sh" and os.access(script, os.X_OK):
            self.run(str(script))
        else:
            raise NotTranslated(f"{self.name}: {script.name} among the scripts of the first start")

    def command(self) -> list[str]:
        arguments = self.arguments()
        assert all(argument.startswith("--") for argument in arguments), "the image runs anything else as a program"
        port = self.site.port(self.name, 3306)
        return [*self._server(), *arguments, f"--port={port}", "--bind-address=127.0.0.1"]

    def _server(self) -> list[str]:
        own = ("--user=root",) if os.geteuid() == 0 else ()
        return [
            _program("mariadbd"), "--no-defaults", f"--datadir={self._data}", f"--socket={self._socket}",
            f"--pid-file={self.folder / 'mariadb.pid'}", *own,
        ]  # fmt: skip


class Dtm(Container):
    PORTS: ClassVar = {"HTTP_PORT": 36789, "GRPC_PORT": 36790, "JSON_RPC_PORT": 36791}
    VARIABLES = (
        "STORE_DRIVER", "STORE_HOST", "STORE_PORT", "STORE_USER", "STORE_PASSWORD", "STORE_MAX_OPEN_CONNS",
        "STORE_MAX_IDLE_CONNS", "TRANS_CRON_INTERVAL", "LOG_LEVEL",
    )  # fmt: skip

    def environment(self) -> dict[str, str]:
        told = super().environment()
        host, port = told["STORE_HOST"], int(told["STORE_PORT"])
        if host not in self.site.services:
            raise NotTranslated(f"{self.name}: STORE_HOST {host}: no service has that name")
        told |= {"STORE_HOST": "127.0.0.1", "STORE_PORT": str(self.site.port(host, port))}
        return told | {name: str(self.site.port(self.name, port)) for name, port in self.PORTS.items()}

    def command(self) -> list[str]:
        assert not self.arguments()
        return [str(install.dtm_program())]


class Seckill(Container):
    def unknown_variables(self) -> set[str]:
        """Wrong ones are refused by the program itself."""
        return {key for key in self.spec["environment"] if not key.startswith("SECKILL_")}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "seckill.cli", *self.arguments()]


IMAGES: dict[str, type[Container]] = {
    "apache/kafka:4.1.0": Kafka,
    "redis:7.4": Redis,
    "mariadb:10.11": MariaDb,
    "yedf/dtm:1.19.0": Dtm,
    "seckill:dev": Seckill,
}


def container(site: Site, name: str) -> Container:
    spec = site.services[name]
    if spec["image"] not in IMAGES:
        raise NotTranslated(f"{name}: image {spec['image']}")
    return IMAGES[spec["image"]](name, spec, site)
