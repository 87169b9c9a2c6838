"""Which sales' reservations may go: every reason to keep them, alone, keeps them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seckill.prune.rules import RECORD_MARGIN_MS, EndedSale, Evidence, why_kept

CUTOFF_MS = 10 * RECORD_MARGIN_MS
DONE = EndedSale(
    sale_id=3, product_id=7, state="closed", ends_at_ms=CUTOFF_MS - 3, updated_at_ms=CUTOFF_MS - 2,
    frozen=0, sold=5, open_orders=0, sold_units=5, last_change_ms=CUTOFF_MS - 1,
)  # fmt: skip
NOTHING = Evidence()


def test_an_ended_sale_that_nothing_can_bring_back_may_go() -> None:
    """Closed, ended and settled before the cut-off, and no copy of an order anywhere."""
    assert why_kept(DONE, NOTHING, cutoff_ms=CUTOFF_MS) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"state": "open"}, "still open"),
        ({"state": "paused"}, "still paused"),
        ({"ends_at_ms": CUTOFF_MS}, "within the retention"),
        ({"updated_at_ms": CUTOFF_MS}, "within the retention"),
        ({"last_change_ms": CUTOFF_MS}, "within the retention"),
        ({"frozen": 1}, "1 of its orders have not ended"),
        ({"open_orders": 2}, "2 of its orders have not ended"),
        ({"sold_units": 4}, "counts 5 units sold, its reservations 4"),
    ],
)
def test_a_sale_that_is_not_over_stays(changes: dict[str, str | int], told: str) -> None:
    """Open, recent, undecided or not adding up: each is a reason of its own."""
    reason = why_kept(replace(DONE, **changes), NOTHING, cutoff_ms=CUTOFF_MS)  # type: ignore[arg-type]
    assert told in (reason or "")


@pytest.mark.parametrize(
    ("evidence", "told"),
    [
        (Evidence(ledger={3: 2}), "ledger in Redis holds 2"),
        (Evidence(unresolved=frozenset({3})), "dead letters"),
        (Evidence(oldest_record_ms=DONE.settled_ms + RECORD_MARGIN_MS), "topic still holds records"),
        (Evidence(oldest_record_ms=0), "topic still holds records"),
    ],
)
def test_a_sale_whose_orders_may_come_back_stays(evidence: Evidence, told: str) -> None:
    """A ledger entry, a waiting letter, and a record that a consumer could read again."""
    assert told in (why_kept(DONE, evidence, cutoff_ms=CUTOFF_MS) or "")


def test_other_sales_copies_do_not_matter() -> None:
    """Entries and letters of other sales, and records that are younger by more than clocks differ."""
    young = DONE.settled_ms + RECORD_MARGIN_MS + 1
    evidence = Evidence(ledger={4: 2}, unresolved=frozenset({4}), oldest_record_ms=young)
    assert why_kept(DONE, evidence, cutoff_ms=CUTOFF_MS) is None
