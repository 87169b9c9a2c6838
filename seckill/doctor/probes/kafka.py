"""Kafka: what the brokers take, and what the topics are. Nothing is made by looking."""

from __future__ import annotations

from collections.abc import Sequence

from seckill.doctor.facts import KafkaFacts
from seckill.doctor.probes import Silent
from seckill.doctor.probes.wire import raise_stranger
from seckill.domain.errors import PublishUnknown
from seckill.messaging.topics import api_versions, makes_topics, open_admin, topic_states
from seckill.settings import KafkaSettings

KAFKA = "Kafka"  # which hangs up on anybody who does not speak its protocol: not to be recognised


async def ask_kafka(settings: KafkaSettings, topics: Sequence[str]) -> KafkaFacts:
    """Raises Silent when no broker answers, Stranger when something else does."""
    try:
        async with open_admin(settings) as admin:
            return KafkaFacts(
                brokers=len((await admin.describe_cluster())["brokers"]),
                apis=await api_versions(admin),
                topics=await topic_states(admin, topics),
                auto_create=await makes_topics(admin),
            )
    except PublishUnknown as error:
        await raise_stranger(settings.bootstrap.partition(",")[0].strip(), expected=KAFKA)
        raise Silent(error.detail) from error
