"""Order ids: what they say, and that derived ones never change nor meet."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.domain.order import MAX_ID, derived_order_id, order_id_from_key, order_key, parse_order_id

positive = st.integers(1, MAX_ID)


@given(positive, st.binary(min_size=16, max_size=16))
def test_an_id_says_its_product_and_its_key(product_id: int, key: bytes) -> None:
    """`<product_id>-<32 hex>` and back."""
    order_id = order_id_from_key(product_id, key)
    assert parse_order_id(order_id) == (product_id, key)
    assert order_key(order_id) == key


@pytest.mark.parametrize(
    "text",
    ["", "7", "7-", "-00", "07-" + "0" * 32, "7-" + "0" * 31, "7-" + "0" * 33, "7-" + "A" * 32, f"{2**63}-" + "0" * 32,
     "\u0667-" + "0" * 32, "7-" + "0" * 32 + "\n"],
)  # fmt: skip
def test_anything_else_is_no_order_id(text: str) -> None:
    """Upper case, leading zeros, foreign digits and wrong lengths are refused, not repaired."""
    with pytest.raises(ValueError, match="not an order id"):
        parse_order_id(text)


@given(positive, positive, st.text(max_size=20), st.integers(0, 2**48 - 1))
def test_a_derived_id_is_a_uuid_of_version_8_that_its_parts_fix(
    product_id: int, user_id: int, word: str, at_ms: int
) -> None:
    """The same parts give the same id; the time part is the given one, so that ids of one sale lie together."""
    order_id = derived_order_id(product_id, user_id, word, at_ms=at_ms)
    assert order_id == derived_order_id(product_id, user_id, word, at_ms=at_ms)
    value = uuid.UUID(bytes=order_key(order_id))
    assert (value.version, value.variant, value.int >> 80) == (8, uuid.RFC_4122, at_ms)


def test_other_parts_give_another_key() -> None:
    """Neither another product, nor another cut of the same text, ever gives the same key in SQL."""
    ids = {
        order_key(derived_order_id(product_id, *parts, at_ms=1))
        for product_id in (1, 2)
        for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (b"abc",))
    }
    assert len(ids) == 2 * 5 - 2  # text and its bytes are the same part
