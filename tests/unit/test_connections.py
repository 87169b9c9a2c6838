"""What the metrics say of the connections that an engine gives out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.dtm.connections import database_name
from seckill.dtm.database import create_engine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    made = create_engine(f"sqlite+aiosqlite:///{tmp_path / tmp_path.name}.db", pool_size=1, lock_wait_s=1)
    yield made
    await made.dispose()


def counted(engine: AsyncEngine) -> dict[str, float]:
    """Connections made, in use, and held and given back since the engine is there."""
    labels = {"database": database_name(engine.url)}
    names = {
        "made": "seckill_database_connections_opened_total",
        "in use": "seckill_database_connections_in_use",
        "held": "seckill_database_connection_held_seconds_count",
    }
    return {short: REGISTRY.get_sample_value(name, labels) or 0.0 for short, name in names.items()}


async def test_a_connection_is_in_use_from_taking_it_to_giving_it_back(engine: AsyncEngine) -> None:
    """A connection is counted as in use while a transaction holds it, and as held once it is back in the pool."""
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        assert counted(engine) == {"made": 1, "in use": 1, "held": 0}
    assert counted(engine) == {"made": 1, "in use": 0, "held": 1}


async def test_a_connection_that_is_closed_for_good_is_not_in_use(engine: AsyncEngine) -> None:
    """A connection that is given up instead of given back counts as held as well, and its successor as made."""
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        await connection.invalidate()
    assert counted(engine) == {"made": 1, "in use": 0, "held": 1}
    async with engine.connect():
        pass
    assert counted(engine) == {"made": 2, "in use": 0, "held": 2}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("mysql+asyncmy://shop:secret@db:3306/seckill_product", "seckill_product"),
        ("sqlite+aiosqlite:////var/lib/seckill/product.db", "product"),
        ("sqlite+aiosqlite:///:memory:", ":memory:"),
    ],
)
def test_a_database_has_a_short_name(url: str, name: str) -> None:
    """The label holds neither password nor path."""
    assert database_name(make_url(url)) == name
