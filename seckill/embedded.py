"""The stand-ins that answer the sockets when no real servers are configured.

Each speaks its server's real protocol over TCP on loopback, so that the pipeline's code is the same in both cases.
Their state dies with them: for trying, developing and unit tests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer
from fakeredis import TcpFakeServer


@contextmanager
def embedded_redis(port: int = 0) -> Iterator[str]:
    """A Redis stand-in with Lua on loopback; yields its URL."""
    server = TcpFakeServer(("127.0.0.1", port), server_type="redis", server_version=(7, 4))
    server.daemon_threads = True
    # The replies to a pipeline are written one by one: with Nagle's algorithm the second waits 40 ms for an ACK.
    server.RequestHandlerClass.disable_nagle_algorithm = True  # type: ignore[attr-defined]  # of StreamRequestHandler
    thread = threading.Thread(target=server.serve_forever, name="embedded-redis", daemon=True)
    thread.start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


@contextmanager
def embedded_kafka() -> Iterator[str]:
    """librdkafka's mock cluster (one broker, topics made on first use, 4 partitions); yields its bootstrap address.

    It keeps the newest 5 MB of a partition and drops the rest silently: the embedded profile bounds what waits in it.
    """
    quiet: dict[str, Any] = {"log_level": 3, "test.mock.num.brokers": 1}
    owner = Producer(quiet)  # the cluster lives as long as this client
    try:
        brokers = owner.list_topics(timeout=10).brokers.values()
        yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    finally:
        owner.flush(1)
        del owner
