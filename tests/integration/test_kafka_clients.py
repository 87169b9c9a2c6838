"""What our Kafka clients outlive: connections that end at a bad moment, a refused record, a task that dies."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError

from seckill.domain.errors import ConsumerEnded, PublishUnknown, RecordTooLarge
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.clients import make_consumer
from seckill.messaging.consumer import open_consumer
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.envelope import Record
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.messaging.reading import read_topic
from seckill.messaging.topics import open_admin
from seckill.messaging.worker import Worker
from seckill.settings import KafkaSettings
from tests.servers import Servers
from tests.support.recorder import LIMITS, Recorder

uvloop = pytest.importorskip("uvloop")

TURNS = (0, 1)
"""Of the event loop, between a record for an unknown topic and the end of the connection: it meets what has ended."""
LATE_TURNS = (1, 2)
"""Between the end of the connection and a request that meets it."""

BYTES_MAX = 2_000


def settings(bootstrap: str) -> KafkaSettings:
    name = f"clients-{uuid4().hex}"
    return KafkaSettings(
        bootstrap=bootstrap, topic=name, dead_letter_topic=f"{name}-dlt", group=name, request_timeout_ms=2_000
    )


def cut(client: Any) -> None:
    """Ends its connections as a peer or a network does, without a word to the client."""
    for connection in client._conns.values():
        descriptor = connection._writer.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(descriptor)) as ours:
            ours.shutdown(socket.SHUT_RDWR)


async def cut_between(client: Any, turns: int, first: Awaitable[object], then: Coroutine[Any, Any, object]) -> None:
    """`then` begins that long before the connections end, and `first` writes as soon as they have. Either may fail, as
    requests do whose connection ends: with an error of Kafka.
    """
    beginning = asyncio.create_task(then)
    for _ in range(turns):
        await asyncio.sleep(0)
    cut(client)
    for each in (first, beginning):
        with suppress(KafkaError, PublishUnknown):
            await each


async def later(turns: int, ask: Callable[[], Awaitable[object]]) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    await ask()


@pytest.mark.parametrize("turns", TURNS)
def test_a_publisher_outlives_its_connections(kafka_server: str, turns: int) -> None:
    """Its connections end while it learns of a topic: it knows that one and others afterwards. On uvloop, which takes a
    write to what has ended amiss.
    """
    kafka = settings(kafka_server)

    async def play() -> None:
        async with open_publisher(kafka) as publisher:
            await publisher.check()
            client = publisher._producer.client
            await cut_between(client, turns, publisher.check(), publisher.send(kafka.topic, key=b"k", value=b"1"))
            await publisher.send(kafka.topic, key=b"k", value=b"2")
            await publisher.send(kafka.dead_letter_topic, key=b"k", value=b"3")
            assert publisher._producer.client is client

    uvloop.run(play())


@pytest.mark.parametrize("turns", LATE_TURNS)
def test_a_consumer_outlives_its_connections(kafka_server: str, turns: int) -> None:
    """Two of its requests meet a connection that has just ended: it asks again on another one."""

    async def play() -> None:
        consumer = make_consumer(settings(kafka_server))
        await consumer.start()
        try:
            await consumer.topics()
            await cut_between(consumer._client, 0, consumer.topics(), later(turns, consumer.topics))
            await consumer.topics()
        finally:
            await consumer.stop()

    uvloop.run(play())


async def test_a_refused_record_spoils_no_partition(servers: Servers) -> None:
    """After a record that the broker finds too large, smaller ones go to the same partition as before; so a letter that
    is too large is written without its record.
    """
    kafka = settings(servers.kafka)
    async with open_admin(kafka) as admin:
        small = NewTopic(kafka.dead_letter_topic, 1, 1, topic_configs={"max.message.bytes": str(BYTES_MAX)})
        await admin.create_topics([small])
    async with open_publisher(kafka) as publisher:
        await publisher.send(kafka.dead_letter_topic, key=b"k", value=b"1")
        with pytest.raises(RecordTooLarge):
            await publisher.send(kafka.dead_letter_topic, key=b"k", value=bytes(BYTES_MAX))
        await publisher.send(kafka.dead_letter_topic, key=b"k", value=b"2")
        letters = DeadLetters(publisher, topic=kafka.dead_letter_topic, group=kafka.group)
        for offset in range(2):
            record = Record(kafka.topic, 0, offset, 0, b"k", bytes(BYTES_MAX))
            await letters.bury(record, Letter(DeadLetterReason.UNREADABLE, ValueError("no order"), 1, 0))
    written = await read_topic(kafka, kafka.dead_letter_topic)
    assert [each.value for each in written] == [b"1", b"2", b"", b""]


TASKS: dict[str, Callable[[Publisher], asyncio.Task[None]]] = {
    "metadata": lambda publisher: publisher._producer.client._sync_task,
    "sender": lambda publisher: publisher._producer._sender.sender_task,
}


@pytest.mark.parametrize("name", TASKS)
async def test_a_publisher_gets_another_producer_for_one_that_died(kafka_server: str, name: str) -> None:
    """Whatever ends one of the client's tasks, records that come later are written."""
    kafka = settings(kafka_server)
    async with open_publisher(kafka) as publisher:
        task = TASKS[name](publisher)
        task.cancel()
        await asyncio.wait({task})
        sending = [publisher.send(kafka.topic, key=b"k", value=b"%d" % number) for number in range(3)]
        await asyncio.gather(*sending)
        assert not TASKS[name](publisher).done()


async def test_a_worker_ends_whose_consumer_fetches_no_more(kafka_server: str) -> None:
    """The client's task of fetching has died: the worker does not wait for ever for what nobody fetches."""
    kafka = settings(kafka_server)
    async with open_consumer(kafka) as consumer:
        worker = Worker(consumer, Recorder(), LIMITS)
        running = asyncio.create_task(worker.run([kafka.topic]))
        await worker.joined.wait()
        consumer._fetcher._fetch_task.cancel()
        with pytest.raises(ConsumerEnded, match="fetcher"):
            await asyncio.wait_for(running, 10)
