"""What makes a pipeline run on real servers: topics, databases with their schema, and settings that name them."""

from __future__ import annotations

from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code
from redis import Redis

from seckill.messaging.retry_topics import retry_tiers
from seckill.messaging.topics import make_topics
from seckill.schema import DATABASES, upgrade
from seckill.settings import KafkaSettings, RetrySettings
from tests.servers.addresses import Servers
from tests.servers.databases import fresh_database

PARTITIONS = 4
RETENTION_MS = 604_800_000


async def create_topics(bootstrap: str, *names: str, partitions: int = PARTITIONS) -> None:
    """Makes plain topics that are not there yet. Raises the broker's error for one that it refuses."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        response: Any = await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()
    for name, code, message in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(f"topic {name}: {message}")


async def make_pipeline_topics(settings: KafkaSettings) -> None:
    """The topic, its dead letters and its retry topics, as `seckill topics create` makes them by default."""
    tiers = retry_tiers(settings, RetrySettings())
    await make_topics(settings, tiers, partitions=PARTITIONS, retention_ms=RETENTION_MS)


def empty_redis(url: str, number: int) -> str:
    """URL of a database of that Redis server, which is emptied."""
    url = f"{url.rpartition('/')[0]}/{number}"
    with Redis.from_url(url) as client:
        client.flushdb()
    return url


async def migrated_database(servers: Servers, name: str) -> str:
    """URL of a fresh database with the newest schema of that name (`product`, `order` …)."""
    url = fresh_database(servers, name)
    await upgrade(name, url)
    return url


async def pipeline_environment(servers: Servers, *, suffix: str, redis_url: str) -> dict[str, str]:
    """`SECKILL__…` variables for a pipeline of its own: fresh databases, and topics and a group of the default names
    with a suffix. The Redis has to be empty: sale ids of a fresh database would meet old sales there.
    """
    defaults = KafkaSettings()
    kafka = KafkaSettings(
        bootstrap=servers.kafka,
        topic=defaults.topic + suffix,
        dead_letter_topic=defaults.dead_letter_topic + suffix,
        group=defaults.group + suffix,
    )
    await make_pipeline_topics(kafka)
    values = {
        "PROFILE": "real",
        "KAFKA__BOOTSTRAP": kafka.bootstrap,
        "KAFKA__TOPIC": kafka.topic,
        "KAFKA__DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
        "KAFKA__GROUP": kafka.group,
        "REDIS__URL": redis_url,
        "REDIS__RUN_ID_CHECK": "true",
        "DTM__GRPC": servers.dtm.grpc,
        "DTM__HTTP": servers.dtm.http,
        **{f"{name.upper()}__DATABASE_URL": await migrated_database(servers, name) for name in DATABASES},
    }
    return {f"SECKILL__{key}": value for key, value in values.items()}
