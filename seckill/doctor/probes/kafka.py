"""Kafka: what the brokers take, and what the topics are. Nothing is made by looking."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from seckill.doctor.facts import KafkaFacts
from seckill.doctor.probes import Silent
from seckill.doctor.probes.wire import raise_stranger
from seckill.domain.errors import PublishUnknown
from seckill.messaging.lag import group_lag
from seckill.messaging.retry_topics import RetryTier
from seckill.messaging.topics import api_versions, makes_topics, open_admin, topic_states
from seckill.settings import KafkaSettings

KAFKA = "Kafka"  # which hangs up on anybody who does not speak its protocol: not to be recognised


async def ask_kafka(settings: KafkaSettings, tiers: Sequence[RetryTier]) -> KafkaFacts:
    """Raises Silent when no broker answers, Stranger when something else does."""
    wanted = [settings.topic, settings.dead_letter_topic, *(tier.topic for tier in tiers)]
    try:
        async with open_admin(settings) as admin:
            return KafkaFacts(
                brokers=len((await admin.describe_cluster())["brokers"]),
                apis=await api_versions(admin),
                topics=await topic_states(admin, wanted),
                auto_create=await makes_topics(admin),
                left_behind=await _left_behind(settings, await admin.list_topics(), wanted),
            )
    except PublishUnknown as error:
        await raise_stranger(settings.bootstrap.partition(",")[0].strip(), expected=KAFKA)
        raise Silent(error.detail) from error


async def _left_behind(settings: KafkaSettings, topics: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """Of delays that the settings had once: nobody reads those topics any more."""
    ours = re.compile(rf"{re.escape(settings.topic)}-retry-\d+")
    others = sorted(name for name in topics if ours.fullmatch(name) and name not in wanted)
    if not others:
        return {}
    lags: Counter[str] = Counter()
    for each in await group_lag(settings, settings.retry_group, others):
        lags[each.topic] += each.lag
    return dict(lags)
