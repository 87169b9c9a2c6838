"""Random histories of admission and settling against a model of one sale in plain Python."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from seckill.admission import Wanted
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Admitted, AlreadyDecided, Confirmed, OrderResult, OrderStatus, Refused, Rejected
from seckill.domain.reasons import Refusal, Rejection
from tests.support.redis_servers import Backend, a_sale, admission_on, claim_due

T = TypeVar("T")
STOCK, LIMIT, LEDGER_MAX = 12, 3, 8
USERS, QUANTITIES, KEYS = st.integers(1, 4), st.integers(1, 4), st.sampled_from(["a", "b", None])


@dataclass
class Known:
    order: Order
    state: str = "pending"  # | "parked" | "confirmed" | "rejected"
    reason: str = ""
    holds_units: bool = True
    holds_allowance: bool = True


class Histories(RuleBasedStateMachine):
    """Admit, repeat, settle, park, postpone and claim in any order; the model says what each must answer."""

    backend: ClassVar[Backend]
    products: ClassVar[Iterator[int]] = itertools.count(secrets.randbelow(2**60))

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.product_id = next(self.products) + 1
        self.stack = AsyncExitStack()
        opened = admission_on(self.backend, entries_max=LEDGER_MAX, republish_after_ms=3_600_000)
        self.admission = self.run(self.stack.enter_async_context(opened))
        self.known: dict[OrderId, Known] = {}
        self.by_key: dict[tuple[int, str], OrderId] = {}
        self.run(self.admission.sales.warm(a_sale(self.product_id, stock=STOCK, per_user_limit=LIMIT)))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    # --- the model ---

    def of(self, *states: str) -> list[Known]:
        return [known for known in self.known.values() if known.state in states]

    def stock(self) -> int:
        return STOCK - sum(known.order.quantity for known in self.known.values() if known.holds_units)

    def used(self, user: int) -> list[Known]:
        return [known for known in self.known.values() if known.holds_allowance and known.order.user_id == user]

    def expected(self, wanted: Wanted) -> str:
        repeated = self.by_key.get((wanted.user_id, wanted.request_id or ""))
        if repeated is not None:
            known = self.known[repeated]
            if known.order.quantity != wanted.quantity:
                return "KEY_REUSED"
            return {"pending": "repeated", "parked": "delayed"}.get(known.state, known.state)
        left = LIMIT - sum(known.order.quantity for known in self.used(wanted.user_id))
        if wanted.quantity > LIMIT:
            return "LIMIT_EXCEEDED"
        if left == 0:
            return "ALREADY_ORDERED"
        if wanted.quantity > left:
            return "LIMIT_EXCEEDED"
        if wanted.quantity > self.stock():
            return "SOLD_OUT"
        return "OVERLOADED" if len(self.of("pending", "parked")) >= LEDGER_MAX else "admitted"

    # --- what may happen ---

    @rule(user=USERS, quantity=QUANTITIES, key=KEYS)
    def admit(self, user: int, quantity: int, key: str | None) -> None:
        wanted = Wanted(self.product_id, user, quantity, key)
        expected = self.expected(wanted)
        match self.run(self.admission.gate.admit(wanted)):
            case Admitted(order_id, sale_id, at_ms, number, repeated):
                assert expected == ("repeated" if repeated else "admitted")
                order = Order(order_id, sale_id, user, self.product_id, quantity, at_ms, number)
                if repeated:
                    assert self.known[order_id].order == order
                else:
                    assert order_id not in self.known
                    self.known[order_id] = Known(order)
                    if key is not None:
                        self.by_key[user, key] = order_id
            case AlreadyDecided(order_id, result):
                assert expected == result.status.value
                assert result.reason == self.known[order_id].reason
            case Refused(code, order_id, left):
                assert expected == code.value
                if code is Refusal.ALREADY_ORDERED:
                    assert order_id in {known.order.order_id for known in self.used(user)}
                if code is Refusal.SOLD_OUT:
                    assert left == self.stock()
                if code is Refusal.LIMIT_EXCEEDED:
                    assert left == LIMIT - sum(known.order.quantity for known in self.used(user))

    @precondition(lambda self: self.known)
    @rule(data=st.data(), end=st.sampled_from(["", "SOLD_OUT", "ENDED"]))
    def settle(self, data: st.DataObject, end: str) -> None:
        known = data.draw(st.sampled_from(list(self.known.values())))
        outcome = Rejected(Rejection(end)) if end else Confirmed()
        self.run(self.admission.ledger.settle([(known.order, outcome)]))
        if known.state in ("pending", "parked"):
            known.state, known.reason = ("rejected", end) if end else ("confirmed", "")
            known.holds_units = end in ("", "SOLD_OUT")
            known.holds_allowance = not end

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(list(self.known.values())))
        self.run(self.admission.ledger.park([known.order]))
        if known.state == "pending":
            known.state = "parked"

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(list(self.known.values())))
        self.run(self.admission.ledger.postpone([known.order], delay_ms=0))
        claim = claim_due(self.admission.ledger, self.product_id, limit=50, republish_after_ms=3_600_000)
        assert self.run(claim) == ([known.order] if known.state == "pending" else [])

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def admit_again_late(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(list(self.known.values())))
        (answer,) = self.run(self.admission.gate.admit_late([known.order]))
        if known.state == "pending":
            assert isinstance(answer, Admitted)
            assert answer.repeated
        else:
            assert isinstance(answer, AlreadyDecided)

    # --- what always holds ---

    @invariant()
    def units_are_where_they_should_be(self) -> None:
        view = self.run(self.admission.sales.read(self.product_id))
        assert view is not None
        assert view.stock + view.admitted == view.initial == STOCK
        assert view.stock == self.stock() >= 0
        assert view.number == len(self.known)
        buyers = self.run(self.admission.sales.units_of_buyers(self.product_id, view.sale_id))
        expected = {user: sum(known.order.quantity for known in self.used(user)) for user in range(1, 5)}
        assert buyers == {user: units for user, units in expected.items() if units}
        assert all(units <= LIMIT for units in buyers.values())

    @invariant()
    def results_and_entries_agree_with_the_model(self) -> None:
        statuses = {"pending": OrderStatus.PROCESSING, "parked": OrderStatus.DELAYED}
        expected = {
            order_id: OrderResult(order_id, statuses.get(known.state) or OrderStatus(known.state), known.reason)
            for order_id, known in self.known.items()
        }
        assert self.run(self.admission.ledger.results(list(self.known))) == expected
        entries = self.run(self.admission.ledger.entries(self.product_id))
        assert {entry.order.order_id: (entry.order, entry.state) for entry in entries} == {
            known.order.order_id: (known.order, known.state) for known in self.of("pending", "parked")
        }
        stats = self.run(self.admission.ledger.stats(self.product_id))
        assert (stats.entries, stats.parked) == (len(entries), len(self.of("parked")))


@pytest.mark.parametrize("examples", [30])
def test_any_history(redis_backend: Backend, examples: int) -> None:
    """Stock and admitted units always add up, no buyer exceeds the limit, and no result ever changes."""

    class OnThisServer(Histories):
        backend = redis_backend

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OnThisServer,
        settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )
