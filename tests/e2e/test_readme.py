"""What the README shows to Python programmers runs, in both languages, against the embedded pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from seckill.client import open_front
from seckill.settings import load_settings
from seckill.wiring import Embedded, open_embedded, with_values
from tests.support.examples import examples, printed_by

EXPECTED = {
    "through the front": "'status': 'confirmed'",
    "straight to kafka": "published 1-",
    "a consumer of your own": "orders",
    "a transaction of your own": "(70, 0)",
}


@pytest.fixture
async def embedded() -> AsyncIterator[Embedded]:
    free = "127.0.0.1:0"
    settings = with_values(
        load_settings(),
        {
            "front": {"http": free, "grpc": free},
            "product": {"grpc": free, "ops": free},
            "order": {"grpc": free, "ops": free},
            "coordinator": {"grpc": free, "http": free},
            "worker": {"ops": free},
            "reconcile": {"ops": free},
            "dead_letters": {"http": free},
            "alerts": {"ops": free},
        },
    )
    async with open_embedded(settings) as opened:
        yield opened


def test_both_languages_show_the_same_code() -> None:
    """A reader of either page sees every example, and the same one."""
    english = examples("README.md")
    assert set(english) == set(EXPECTED)
    assert examples("README.zh-CN.md") == english


async def test_the_examples_run(embedded: Embedded) -> None:
    """Each block, as it stands, in a process of its own, does what the text around it says."""
    settings = embedded.settings
    token = settings.front.operator_token
    assert token is not None
    async with open_front(settings.front.http, operator_token=token.get_secret_value()) as front:
        await front.create_sale({"product_id": 1, "stock": 10}, change_id="readme")
    environment = {
        "SECKILL__FRONT__HTTP": settings.front.http,
        "SECKILL__KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "SECKILL__DTM__GRPC": settings.dtm.grpc,
    }
    printed = {name: await printed_by(code, environment) for name, code in examples("README.md").items()}
    for name, words in EXPECTED.items():
        assert words in printed[name], (name, printed[name])
    assert "saw 2 orders" in printed["a consumer of your own"]
