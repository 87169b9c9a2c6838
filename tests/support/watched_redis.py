"""The real gate and the real ledger, every call of which is made to the model as well, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seckill.admission import AdmissionGate, Ledger, LedgerEntry, RedisLink
from seckill.admission.ledger import Seen
from seckill.domain.order import Order
from seckill.domain.outcomes import Admission, Admitted, AlreadyDecided, Confirmed, OrderResult, Refused, Rejected
from seckill.domain.reasons import Refusal
from seckill.settings import LedgerSettings
from tests.support.actors import Complaints, stop_before
from tests.support.ledger_model import LedgerModel


class WatchedGate(AdmissionGate):
    """The real gate; late admissions are compared with the model."""

    def __init__(self, link: RedisLink, settings: LedgerSettings, model: LedgerModel, complaints: Complaints) -> None:
        super().__init__(link, settings, batch_max=50, queue_max=1_000)
        self._model, self._complaints = model, complaints

    async def admit_late(self, orders: Sequence[Order]) -> list[Admission]:
        actor = await stop_before("admit_late")
        answers = await super().admit_late(orders)
        for order, answer in zip(orders, answers, strict=True):
            self.compare(order, answer, self._model.judge_late(order))
        if actor.calls > 1:
            answers = await super().admit_late(orders)
        return answers

    def compare(self, order: Order, answer: Admission, expected: str) -> None:
        """`order`: what was asked for; what is admitted now goes into the model."""
        match answer:
            case Admitted(order_id, sale_id, at_ms, number, repeated):
                self._complaints.require(expected == ("repeated" if repeated else "admitted"), f"{answer}: {expected}")
                admitted = replace(
                    order, order_id=order_id, sale_id=sale_id, admitted_at_ms=at_ms, admission_number=number
                )
                if repeated:
                    self._complaints.require(self._model.admitted[order_id] == admitted, f"{answer} is another order")
                else:
                    self._model.admit(admitted)
            case AlreadyDecided(_, OrderResult(status=status)):
                self._complaints.require(expected == status, f"{answer}: {expected}")
            case Refused(code=code):
                self._complaints.require(expected == code, f"{answer}: {expected}")
                self._compare_facts(order, answer)

    def _compare_facts(self, order: Order, refused: Refused) -> None:
        """What a refused buyer is told beside the code."""
        sale = self._model.now
        mine = {taken.order_id for taken in sale.taken.values() if taken.user_id == order.user_id}
        match refused.code:
            case Refusal.SOLD_OUT:
                told = refused.left == sale.stock
            case Refusal.LIMIT_EXCEEDED:
                told = refused.left == max(sale.sale.per_user_limit - sale.used(order.user_id), 0)
            case Refusal.ALREADY_ORDERED:
                told = refused.order_id in mine
            case _:
                told = True
        self._complaints.require(told, f"{refused} is not so")


class WatchedLedger(Ledger):
    """The real ledger; every call of it is made to the model as well."""

    def __init__(self, link: RedisLink, settings: LedgerSettings, model: LedgerModel, complaints: Complaints) -> None:
        super().__init__(link, settings)
        self._model, self._complaints = model, complaints

    async def settle(self, ended: Sequence[tuple[Order, Confirmed | Rejected]]) -> None:
        for _ in range((await stop_before("settle")).calls):
            await super().settle(ended)
        for order, end in ended:
            self._model.settle(order, end)

    async def postpone(self, orders: Sequence[Order], *, delay_ms: int) -> None:
        for _ in range((await stop_before("postpone")).calls):
            await super().postpone(orders, delay_ms=delay_ms)
        for order in orders:
            self._model.postpone(order, delay_ms=delay_ms)

    async def put_off(self, orders: Sequence[Order], *, delay_ms: int) -> None:
        for _ in range((await stop_before("put_off")).calls):
            await super().put_off(orders, delay_ms=delay_ms)
        for order in orders:
            for entry in await super().entries(order.product_id):
                if entry.order.order_id == order.order_id:
                    self._model.put_off(order, published_at_ms=entry.published_at_ms)

    async def park(self, orders: Sequence[Order]) -> None:
        for _ in range((await stop_before("park")).calls):
            await super().park(orders)
        for order in orders:
            self._model.park(order)

    async def seen(self, orders: Sequence[Order]) -> Seen:
        await stop_before("seen")
        return await super().seen(orders)

    async def due(self, product_id: int, *, limit: int) -> list[LedgerEntry]:
        await stop_before("due")
        found = await super().due(product_id, limit=limit)
        ids = {entry.order.order_id for entry in found}
        self._complaints.require(ids == self._model.due(), f"due are {ids}, and not {self._model.due()}")
        return found

    async def claim(self, entries: Sequence[LedgerEntry], *, republish_after_ms: int) -> list[Order]:
        actor = await stop_before("claim")
        expected = self._model.claimable(entries)
        reply = await super().claim(entries, republish_after_ms=republish_after_ms)
        taken = {order.order_id for order in reply}
        self._complaints.require(taken == expected, f"taken were {taken}, and not {expected}")
        if actor.calls > 1:
            reply = await super().claim(entries, republish_after_ms=republish_after_ms)
            self._complaints.require(not reply, f"taken twice were {reply}")
        for product_id in {entry.order.product_id for entry in entries}:
            for entry in await super().entries(product_id):
                if entry.order.order_id in taken:
                    self._model.claim(entry.order, published_at_ms=entry.published_at_ms)
        actor.claimed = {order.order_id for order in reply}
        return reply
