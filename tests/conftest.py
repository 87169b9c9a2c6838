"""Fixtures that every suite shares: the stand-ins, each one for the whole run, on loopback and a free port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from seckill.embedded import embedded_kafka, embedded_redis


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a Redis stand-in that lives as long as the test run."""
    with embedded_redis() as url:
        yield url


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[str]:
    """Bootstrap address of a Kafka stand-in that lives as long as the test run."""
    with embedded_kafka() as bootstrap:
        yield bootstrap
