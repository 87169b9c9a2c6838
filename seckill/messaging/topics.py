"""The topics: what they must be, making them so, and seeing at start that they are there.

Made only when somebody asks for it (`seckill topics create`); a role that misses one says so and ends. librdkafka's
mock cluster cannot be asked to make topics: it makes them when they are first used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.metadata import MetadataRequest

from seckill.domain.errors import PublishUnknown, Unfit
from seckill.messaging.connection import connection, start
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import KafkaSettings

FOR_EVER = -1
BATCH_OVERHEAD_BYTES = 12
"""What Kafka itself adds to 1 MiB for its default of max.message.bytes: the offset and size before a batch."""

LETTER_BYTES_MAX = 16_384
"""What the headers of a dead letter or a retry record add to the record, which may be as large as its topic allows."""

REPLICAS_MAX = 3
LOOKS_MAX = 15
LOOK_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.2
CLOSE_TIMEOUT_S = 2.0
CREATE_TOPICS = 19
AUTO_CREATE = "auto.create.topics.enable"

_SET_ON_TOPIC = 1  # Kafka's number for a setting's source: set on this topic, not inherited


class TopicMissing(Unfit):
    """A topic that is not there, on a broker that makes none by itself."""

    def __init__(self, bootstrap: str, topic: str, setting: str) -> None:
        super().__init__(
            "Kafka",
            bootstrap,
            "kafka.bootstrap",
            f"topic {topic} ({setting}) does not exist and is not made by itself",
            "run `seckill topics create`",
        )
        self.topic = topic


class TopicsRefused(Unfit):
    """The broker did not make or change a topic."""

    def __init__(self, bootstrap: str, problem: str, remedy: str) -> None:
        super().__init__("Kafka", bootstrap, "kafka.bootstrap", problem, remedy)


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as it should be; `settings` are Kafka's own names."""

    name: str
    partitions: int
    replicas: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicDone:
    """What was done about one topic; `changes` in words, empty when it was as planned."""

    name: str
    made: bool
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is. `settings` is None when the broker does not tell; `own` are those set on the topic itself."""

    partitions: int
    replicas: int
    in_sync: int
    leaderless: int
    settings: Mapping[str, str] | None = None
    own: Mapping[str, str] = field(default_factory=dict)


def planned(
    settings: KafkaSettings,
    tiers: Sequence[RetryTier] = (),
    *,
    partitions: int,
    replicas: int,
    retention_ms: int,
    retention_bytes: int = FOR_EVER,
) -> list[TopicPlan]:
    """The pipeline's topics: the main one, the dead letters, and the retry topics.

    What is put off or set aside is larger than its record, and kept for ever: nobody else has it any more.
    """
    record_bytes = settings.record_bytes_max + BATCH_OVERHEAD_BYTES
    always = {"cleanup.policy": "delete", "min.insync.replicas": str(2 if replicas >= REPLICAS_MAX else 1)}
    main = {
        **always,
        "max.message.bytes": str(record_bytes),
        "retention.ms": str(retention_ms),
        "retention.bytes": str(retention_bytes),
    }
    aside = {
        **always,
        "max.message.bytes": str(record_bytes + LETTER_BYTES_MAX),
        "retention.ms": str(FOR_EVER),
        "retention.bytes": str(FOR_EVER),
    }
    return [
        TopicPlan(settings.topic, partitions, replicas, main),
        TopicPlan(settings.dead_letter_topic, partitions, replicas, aside),
        *(TopicPlan(tier.topic, partitions, replicas, aside) for tier in tiers),
    ]


def by_setting(tiers: Sequence[RetryTier]) -> dict[str, str]:
    """The retry topics by the settings that they come from, as `require_topics` takes them."""
    return {f"retry.topic_delays_ms[{tier.number}]": tier.topic for tier in tiers}


# --- making ----------------------------------------------------------------------------------------------------------


async def make_topics(
    settings: KafkaSettings,
    tiers: Sequence[RetryTier] = (),
    *,
    partitions: int,
    retention_ms: int,
    replicas: int | None = None,
) -> list[TopicDone]:
    """Makes what is missing and sets what is set otherwise; a second call changes nothing.

    `replicas` None: one on every broker, three at most. Partitions are added, never taken away; the replicas of an
    existing topic stay as they are. Raises PublishUnknown when no broker answers, TopicsRefused when one says no.
    """
    async with open_admin(settings) as admin:
        if CREATE_TOPICS not in await api_versions(admin):
            problem = "it takes no requests for topics (the embedded stand-in makes them on first use)"
            raise TopicsRefused(settings.bootstrap, problem, "name an Apache Kafka with SECKILL__KAFKA__BOOTSTRAP")
        replicas = replicas or min(len((await admin.describe_cluster())["brokers"]), REPLICAS_MAX)
        plans = planned(settings, tiers, partitions=partitions, replicas=replicas, retention_ms=retention_ms)
        done = [await _make(admin, settings.bootstrap, plan) for plan in plans]
        await _seen(admin, settings.bootstrap, plans)
        return done


async def _make(admin: AIOKafkaAdminClient, bootstrap: str, plan: TopicPlan) -> TopicDone:
    state = (await topic_states(admin, [plan.name])).get(plan.name)
    if state is None:
        await _create(admin, bootstrap, plan)
        return TopicDone(plan.name, made=True)
    changes = []
    if state.partitions < plan.partitions:
        with _refusals(bootstrap, f"topic {plan.name} got no more partitions"):
            await admin.create_partitions({plan.name: NewPartitions(plan.partitions)})
        changes.append(f"partitions {state.partitions} -> {plan.partitions}")
    if state.settings is None:
        problem = f"the settings of topic {plan.name} are not told"
        raise TopicsRefused(bootstrap, problem, "allow DescribeConfigs and AlterConfigs on it to this user")
    before = {key: state.settings.get(key) for key in plan.settings}
    wrong = {key: value for key, value in plan.settings.items() if before[key] != value}
    if wrong:
        # The request replaces everything that is set on the topic, so what is set stays set.
        await _alter(admin, bootstrap, plan.name, {**state.own, **wrong})
        changes += [f"{key} {before[key]} -> {value}" for key, value in wrong.items()]
    return TopicDone(plan.name, made=False, changes=tuple(changes))


async def _seen(admin: AIOKafkaAdminClient, bootstrap: str, plans: Sequence[TopicPlan]) -> None:
    """Waits until brokers answer with what was made: the controller says yes before they have heard of it."""
    for _ in range(LOOKS_MAX):
        states = await topic_states(admin, [plan.name for plan in plans])
        if all(_is_as_planned(states.get(plan.name), plan) for plan in plans):
            return
        await asyncio.sleep(LOOK_EVERY_S)
    problem = "it took the topics' settings, and does not show them yet"
    raise TopicsRefused(bootstrap, problem, "run `seckill topics create` again")


def _is_as_planned(state: TopicState | None, plan: TopicPlan) -> bool:
    if state is None or state.partitions < plan.partitions or state.leaderless:
        return False
    settings = state.settings or plan.settings
    return all(settings.get(key) == value for key, value in plan.settings.items())


async def _create(admin: AIOKafkaAdminClient, bootstrap: str, plan: TopicPlan) -> None:
    topic = NewTopic(plan.name, plan.partitions, plan.replicas, topic_configs=dict(plan.settings))
    reply = await admin.create_topics([topic])
    for _, code, *message in reply.topic_errors:
        kind = for_code(code)
        if code and kind is not TopicAlreadyExistsError:
            reason = message[0] if message and message[0] else kind.description
            remedy = "see the broker's log, or choose other options of `seckill topics create`"
            raise TopicsRefused(bootstrap, f"topic {plan.name} was not made: {kind.__name__}: {reason}", remedy)


async def _alter(admin: AIOKafkaAdminClient, bootstrap: str, name: str, settings: Mapping[str, str]) -> None:
    [reply] = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, dict(settings))])
    for code, message, *_ in reply.resources:
        if code:
            problem = f"the settings of topic {name} were not changed: {for_code(code).__name__}: {message}"
            raise TopicsRefused(bootstrap, problem, "allow AlterConfigs on it to this user")


@contextmanager
def _refusals(bootstrap: str, problem: str) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        remedy = "see the broker's log, or choose other options of `seckill topics create`"
        raise TopicsRefused(bootstrap, f"{problem}: {type(error).__name__}: {error}", remedy) from error


# --- looking ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected client for questions about the cluster. Raises PublishUnknown when no broker answers."""
    admin = AIOKafkaAdminClient(**connection(settings), request_timeout_ms=settings.request_timeout_ms)
    try:
        await start(admin, settings)
        yield admin
    except (KafkaError, TimeoutError) as error:
        raise PublishUnknown(settings.bootstrap, str(error) or "no answer in time") from error
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await admin.close()


async def api_versions(admin: AIOKafkaAdminClient) -> dict[int, tuple[int, int]]:
    """The versions of each request, by Kafka's number for it, that a broker takes."""
    reply = await admin._send_request(ApiVersionRequest())  # the client has no public way to it
    return {key: (low, high) for key, low, high in reply.api_versions}


async def makes_topics(admin: AIOKafkaAdminClient) -> bool | None:
    """Whether the brokers make topics by themselves; None when they do not tell."""
    [broker, *_] = (await admin.describe_cluster())["brokers"]
    resource = ConfigResource(ConfigResourceType.BROKER, str(broker["node_id"]), {AUTO_CREATE: None})
    found = (await _described(admin, [resource])).get(str(broker["node_id"]))
    return None if found is None or AUTO_CREATE not in found else found[AUTO_CREATE][0] == "true"


async def topic_states(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, TopicState]:
    """What exists of `names`. Nothing is made by looking: all topics are asked for, none by its name."""
    known = {each["topic"]: each for each in await admin.describe_topics() if each["topic"] in names}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in known]
    settings = await _described(admin, resources) if resources else {}
    return {name: _state(found["partitions"], settings.get(name)) for name, found in known.items()}


def _state(partitions: Sequence[Mapping[str, Any]], settings: Mapping[str, tuple[str, int]] | None) -> TopicState:
    return TopicState(
        partitions=len(partitions),
        replicas=min((len(each["replicas"]) for each in partitions), default=0),
        in_sync=min((len(each["isr"]) for each in partitions), default=0),
        leaderless=sum(each["leader"] < 0 for each in partitions),
        settings=None if settings is None else {key: value for key, (value, _) in settings.items()},
        own={key: value for key, (value, source) in (settings or {}).items() if source == _SET_ON_TOPIC},
    )


async def _described(
    admin: AIOKafkaAdminClient, resources: Sequence[ConfigResource]
) -> dict[str, dict[str, tuple[str, int]]]:
    """By resource, its settings as (value, source). What the broker does not tell is absent."""
    try:
        replies = await admin.describe_configs(list(resources))
    except IncompatibleBrokerVersion:
        return {}
    return {
        name: {entry[0]: (entry[1], entry[3]) for entry in entries if entry[1] is not None}
        for reply in replies
        for code, _, _, name, entries in reply.resources
        if not code
    }


# --- at start --------------------------------------------------------------------------------------------------------


async def require_topics(client: AIOKafkaClient, bootstrap: str, names: Mapping[str, str]) -> None:
    """Raises TopicMissing unless all topics exist; `names` are topics by the setting that names them.

    Where brokers make topics by themselves, asking for one by its name makes it, as the first record would; it is there
    a moment later.
    """
    for setting, topic in names.items():
        try:
            for _ in range(LOOKS_MAX):
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    if await _is_there(client, topic):
                        break
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                raise TopicMissing(bootstrap, topic, setting)
        except (KafkaError, TimeoutError) as error:
            raise PublishUnknown(bootstrap, f"{type(error).__name__}: {error}") from error


async def _is_there(client: AIOKafkaClient, topic: str) -> bool:
    reply = await client.send(client.get_random_node(), MetadataRequest([topic]))
    [(code, *_)] = reply.topics
    return bool(code == 0)
