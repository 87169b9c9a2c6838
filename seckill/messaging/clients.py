"""aiokafka's clients, mended where a connection that ends ends more than itself.

On uvloop a transport that has ended raises RuntimeError when it is written to, where asyncio's drops what is written.
For some turns of the loop after it has ended, aiokafka takes its connection for a good one; what writes to it then dies
of an error that nothing in aiokafka expects (https://github.com/aio-libs/aiokafka/issues/1038). Worst is the task that
reads the metadata of the cluster: it ends without a word, and a producer waits for ever to learn of a topic.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason

from seckill.messaging.connection import connection
from seckill.settings import KafkaSettings

log = structlog.get_logger()


def make_producer(settings: KafkaSettings, **arguments: Any) -> AIOKafkaProducer:
    """Not started yet. Raises CertificateProblem."""
    producer = AIOKafkaProducer(**connection(settings), **arguments)
    _write_to_no_ended_connection(producer.client)
    return producer


def make_consumer(settings: KafkaSettings, **arguments: Any) -> AIOKafkaConsumer:
    """Not started yet. Raises CertificateProblem."""
    consumer = AIOKafkaConsumer(**connection(settings), **arguments)
    _write_to_no_ended_connection(consumer._client)  # there is no public way to it
    return consumer


def ended_task_of(started: AIOKafkaProducer | AIOKafkaConsumer) -> str:
    """Which of its tasks has ended, whose ends it does not tell itself; empty when none has."""
    if isinstance(started, AIOKafkaProducer):
        tasks = {"metadata": started.client._sync_task, "sender": started._sender.sender_task}
    else:
        tasks = {"metadata": started._client._sync_task, "fetcher": started._fetcher._fetch_task}
    return next((f"the task of its {name} has ended: {_why(task)}" for name, task in tasks.items() if task.done()), "")


def _why(task: asyncio.Task[None]) -> str:
    return "cancelled" if task.cancelled() else repr(task.exception())


def _write_to_no_ended_connection(client: Any) -> None:
    """Everything that the client writes goes to a connection that this has given."""
    get_connection = client._get_conn

    async def living(node_id: int, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        known = client._conns.get((node_id, group))
        if known is not None and known.connected() and known._writer.is_closing():
            known.close(reason=CloseReason.CONNECTION_BROKEN)  # as its reader is about to
        try:
            return await get_connection(node_id, group=group, no_hint=no_hint)
        except RuntimeError as error:  # a new connection that ended before its first request
            log.warning("kafka_connection_ended_at_once", node=node_id, error=str(error))
            client.force_metadata_update()
            return None

    client._get_conn = living
