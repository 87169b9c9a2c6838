"""The two sides of every suite that can run on both: the stand-ins of the embedded profile, and real servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seckill.schema import upgrade
from seckill.settings import KafkaSettings
from tests.servers import DtmAddress, Servers, fresh_database
from tests.servers.pipeline import create_topics, empty_redis, make_pipeline_topics

Kind = Literal["embedded", "real"]
SIDES: tuple[Kind, ...] = ("embedded", "real")


@dataclass(frozen=True, slots=True)
class Side:
    """Where a test's Kafka, Redis and databases are. `dtm` is None where our own coordinator does its work."""

    kind: Kind
    kafka: str
    redis: str
    run_id_check: bool
    dtm: DtmAddress | None
    servers: Servers | None

    async def database(self, name: str, folder: Path) -> str:
        """URL of a fresh database with the newest schema of that name (`product`, `order`, `coordinator` …)."""
        url = self.empty_database(name, folder)
        await upgrade(name, url)
        return url

    def empty_database(self, name: str, folder: Path) -> str:
        """URL of a database that has no tables yet."""
        if self.servers is not None:
            return fresh_database(self.servers, name)
        return f"sqlite+aiosqlite:///{folder / name}.db"

    async def create_topics(self, *names: str) -> None:
        """Topics of four partitions. Kafka's stand-in makes them by itself; a real broker is told."""
        if self.kind == "real":
            await create_topics(self.kafka, *names)

    async def make_pipeline_topics(self, settings: KafkaSettings) -> None:
        if self.kind == "real":
            await make_pipeline_topics(settings)

    def empty_redis(self, number: int) -> str:
        """URL of an empty database of the real server, for a suite of its own."""
        return empty_redis(self.redis, number)


def real_side(servers: Servers) -> Side:
    return Side("real", servers.kafka, servers.redis, run_id_check=True, dtm=servers.dtm, servers=servers)


def embedded_side(kafka: str, redis: str) -> Side:
    """The stand-in for Redis has no run id."""
    return Side("embedded", kafka, redis, run_id_check=False, dtm=None, servers=None)
