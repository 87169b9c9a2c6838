"""How `seckill bench patterns` loads a checkout, and counts what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from seckill.bench.pattern_figures import Cell
from seckill.bench.pattern_load import Buyers, NothingConfirmed, run_load
from seckill.checkout.plan import Outcomes
from seckill.domain.errors import OrderUnavailable
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Confirmed, Failed, Outcome, Undecided

SALES = [Sale(number, 10 + number, "", 0, 1, 1, 1, "open", 9, 9, 0, 0, 0) for number in (1, 2)]


class OneEnd:
    """A checkout that ends every order alike, once it may."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.ended: list[Order] = []

    async def run(self, orders: Sequence[Order]) -> Outcomes:
        self.begun.set()
        await self.may_end.wait()
        await asyncio.sleep(0)
        self.ended += orders
        return {order.order_id: self._outcome for order in orders}


def test_every_order_is_another_buyers_and_the_sales_take_turns() -> None:
    """A buyer's limit is never in the way; a transaction has orders of one sale."""
    buyers = Buyers(SALES)
    transactions = [buyers.next(2) for _ in range(4)]
    assert [{order.sale_id for order in orders} for orders in transactions] == [{1}, {2}, {1}, {2}]
    orders = [order for orders in transactions for order in orders]
    assert len({order.user_id for order in orders}) == len({order.order_id for order in orders}) == 8


async def test_confirmed_orders_are_counted_and_others_by_their_end() -> None:
    """Each confirmed order has its latency; what was not confirmed is kept, to be looked up later, with its reason."""
    done = OneEnd(Confirmed())
    done.may_end.set()
    load = await run_load(done, Buyers(SALES), Cell("tcc", 3, 1, 2), seconds=0.01)
    assert load.confirmed == len(done.ended) > 0
    assert (load.confirmed % 3, load.unfinished) == (0, [])

    undecided = OneEnd(Undecided("gid", "", cause=OrderUnavailable("order:1", "gone")))
    undecided.may_end.set()
    load = await run_load(undecided, Buyers(SALES), Cell("tcc", 1, 1, 1), seconds=0.01)
    assert load.unfinished == undecided.ended
    assert load.why == {"Undecided (OrderUnavailable)": len(undecided.ended)}
    with pytest.raises(NothingConfirmed):
        load.require_confirmed(Cell("tcc", 1, 1, 1))


async def test_an_error_is_told_when_it_is_all_there_is() -> None:
    """Where no order is confirmed, the reason of a failed one says what is wrong."""
    failing = OneEnd(Failed(OrderUnavailable("order:1", "gone")))
    failing.may_end.set()
    load = await run_load(failing, Buyers(SALES), Cell("tcc", 1, 1, 1), seconds=0.01)
    with pytest.raises(OrderUnavailable):
        load.require_confirmed(Cell("tcc", 1, 1, 1))


async def test_an_interrupted_load_leaves_no_transaction_behind() -> None:
    """When it is cancelled it begins no further transaction, and ends only after those that run have ended."""
    checkout = OneEnd(Confirmed())
    loading = asyncio.create_task(run_load(checkout, Buyers(SALES), Cell("tcc", 1, 1, 2), seconds=60))
    await checkout.begun.wait()
    loading.cancel()
    await asyncio.sleep(0.01)
    assert not loading.done()
    checkout.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert len(checkout.ended) == 2
