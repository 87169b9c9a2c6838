"""Real servers in the order in which one would want them: those given, Docker Compose's, our own processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from tests.servers import compose, install, native
from tests.servers.addresses import DtmAddress, Servers
from tests.servers.databases import drop_fresh_databases
from tests.servers.keeper import keeper

KAFKA = "SECKILL_TEST_KAFKA"  # host:port
REDIS = "SECKILL_TEST_REDIS"  # redis://…
MARIADB = "SECKILL_TEST_MARIADB"  # mysql+asyncmy://USER:PASSWORD@HOST:PORT/ of an administrator
DTM = "SECKILL_TEST_DTM"  # gRPC host:port,HTTP host:port

T = TypeVar("T")


def can_start_twice() -> bool:
    """Whether each of several test processes gets servers of its own."""
    return not _given() and not compose.engine_answers()


def _given() -> list[str]:
    return [name for name in (KAFKA, REDIS, MARIADB, DTM) if os.environ.get(name)]


@contextmanager
def real_servers() -> Iterator[Servers]:
    """All four, as long as the block runs. Raises ServersMissing, or StartFailed when one is there and does not start.

    Compose is asked only when nothing is given; what is not given then runs natively.
    """
    if not _given() and compose.engine_answers():
        with compose.servers() as found:
            yield found
        return
    with _native_for_the_rest() as found:
        yield found


@contextmanager
def _native_for_the_rest() -> Iterator[Servers]:
    variables = {"Kafka": KAFKA, "Redis": REDIS, "MariaDB": MARIADB, "DTM": DTM}
    wanted = [server for server, variable in variables.items() if not os.environ.get(variable)]
    install.require(*wanted)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="seckill-servers-"))
        keeper().remove_at_end(folder)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ours = {0: "environment", len(variables): "native"}
        yield _started(stack, folder, ours.get(len(wanted), "environment + native"))


def _started(stack: ExitStack, folder: Path, source: str) -> Servers:
    """Starts what is not given, all at the same time; DTM follows MariaDB, where it keeps its tables."""

    def kafka() -> str:
        return os.environ.get(KAFKA) or entered(native.kafka_process(folder / "kafka")).bootstrap

    def redis() -> str:
        return os.environ.get(REDIS) or entered(native.redis_process(folder / "redis")).url

    def sql() -> tuple[str, DtmAddress]:
        if mariadb := os.environ.get(MARIADB):
            stack.callback(drop_fresh_databases, mariadb)
        else:
            mariadb = entered(native.mariadb_process(folder / "mariadb")).url
        if given := os.environ.get(DTM):
            return mariadb, DtmAddress(*given.split(","))
        return mariadb, entered(native.dtm_process(folder / "dtm", store="mysql", mariadb_url=mariadb)).address

    def entered(server: AbstractContextManager[T]) -> T:
        return stack.enter_context(server)

    with ThreadPoolExecutor(3) as threads:
        bootstrap, url, databases = threads.submit(kafka), threads.submit(redis), threads.submit(sql)
    mariadb, dtm = databases.result()
    return Servers(source=source, kafka=bootstrap.result(), redis=url.result(), mariadb=mariadb, dtm=dtm)
