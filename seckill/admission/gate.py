"""The gate: orders that wait in the same turn of the event loop are admitted by one script call per product.

All products of a turn travel in one pipeline. While pipelines are under way the next orders gather, so that the groups
grow with the load by themselves. An order's id is fixed before its call is sent, or derived from what never changes,
which makes every call safe to repeat.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
import uuid_utils

from seckill.admission.keys import current_sale_key, sale_keys
from seckill.admission.link import Argument, Command, RedisLink, load_script
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import AdmissionUnavailable
from seckill.domain.order import Order, OrderId, derived_order_id
from seckill.domain.outcomes import Admission, Admitted, AlreadyDecided, OrderResult, OrderStatus, Refused
from seckill.domain.reasons import Refusal
from seckill.settings import LedgerSettings

log = structlog.get_logger(__name__)

FLIGHTS_MAX = 2
"""Pipelines under way at once: one that Redis works on, and one that is being read or built here."""

FLIGHT_ORDERS_MAX = 2_000
"""Orders in one pipeline, so that it stays well within the time-out of a command."""

ROUNDS_MAX = 4
"""Times that a batch is sent again because its product has another sale than the gate believed."""

REMEMBERED_SALES_MAX = 10_000
"""Products whose current sale the gate remembers."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A buyer's wish. With `request_id` a repeat gets the same order; without, every call is a new one."""

    product_id: int
    user_id: int
    quantity: int
    request_id: str | None = None


@dataclass(slots=True, eq=False)
class _Candidate:
    """An order on its way through the script; `answer` is set when Redis has judged it."""

    product_id: int
    user_id: int
    quantity: int
    order_id: OrderId | None  # None: derived from the request id once the sale is known
    request_id: str | None = None
    fixed_sale_id: int = 0  # 0: of the product's current sale
    past_front: bool = False  # it may have been admitted before, in a sale that has been replaced since
    answer: Admission | None = None


_Passenger = tuple["asyncio.Future[Admission]", _Candidate]


@dataclass(frozen=True, slots=True)
class _KnownSale:
    sale_id: int
    id_at_ms: int


_UNKNOWN = _KnownSale(0, 0)


class AdmissionGate:
    """Admits orders in micro-batches. Use as an async context manager, or call `close`.

    `on_batch` is told the size of every batch.
    """

    def __init__(
        self,
        link: RedisLink,
        ledger: LedgerSettings,
        *,
        batch_max: int,
        queue_max: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._link = link
        self._ledger = ledger
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._on_batch = on_batch
        self._known_sales: OrderedDict[int, _KnownSale] = OrderedDict()
        self._waiting: deque[_Passenger] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._take_off_planned = False
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Takes no more orders; those that wait are still admitted and answered."""
        self._closed = True
        while self._flights or self._waiting:
            self._take_off()
            await asyncio.wait(self._flights)

    async def admit(self, wanted: Wanted) -> Admission:
        """Admits or refuses one order.

        Refused(OVERLOADED) when too many wait already. Raises AdmissionUnavailable when Redis did not answer: then the
        order may be in the ledger, or not. A caller that is cancelled stops waiting; its order is judged all the same.
        """
        if self._closed or len(self._waiting) >= self._queue_max:
            return Refused(Refusal.OVERLOADED)
        order_id = _new_order_id(wanted.product_id) if wanted.request_id is None else None
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        candidate = _Candidate(wanted.product_id, wanted.user_id, wanted.quantity, order_id, wanted.request_id)
        self._waiting.append((future, candidate))
        self._plan_take_off()
        return await future

    async def admit_late(self, orders: Sequence[Order]) -> list[Admission]:
        """Admits orders that came past the front, under the ids that they have; answers in the same order.

        `sale_id` 0 means the sale that has admitted the order before, else the product's current one. Raises
        AdmissionUnavailable; repeating the call is safe.
        """
        candidates = [
            _Candidate(
                order.product_id, order.user_id, order.quantity, order.order_id,
                fixed_sale_id=order.sale_id, past_front=True,
            )
            for order in orders
        ]  # fmt: skip
        for part in _parts(candidates, FLIGHT_ORDERS_MAX):
            await self._judge(part)
        return [_answer_of(candidate) for candidate in candidates]

    # --- flights: one pipeline with all that waits ---------------------------------------------------------------

    def _plan_take_off(self) -> None:
        """The batch leaves at the end of this turn of the event loop: whoever is ready in it travels together."""
        if not self._take_off_planned and len(self._flights) < FLIGHTS_MAX:
            self._take_off_planned = True
            asyncio.get_running_loop().call_soon(self._take_off)

    def _take_off(self) -> None:
        self._take_off_planned = False
        if not self._waiting or len(self._flights) >= FLIGHTS_MAX:
            return
        passengers = [self._waiting.popleft() for _ in range(min(len(self._waiting), FLIGHT_ORDERS_MAX))]
        flight = asyncio.create_task(self._fly(passengers), name="admission-flight")
        self._flights.add(flight)
        flight.add_done_callback(self._landed)
        if self._waiting:
            self._plan_take_off()

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if self._waiting:
            self._plan_take_off()

    async def _fly(self, passengers: list[_Passenger]) -> None:
        failure: Exception | None = None
        try:
            await self._judge([candidate for _, candidate in passengers])
        except AdmissionUnavailable as error:
            failure = error
        except Exception as error:  # the boundary of the flight: every passenger must hear of it
            log.exception("admission_flight_failed", orders=len(passengers))
            failure = error
        for future, candidate in passengers:
            if future.done():
                continue  # its caller was cancelled
            if candidate.answer is not None:
                future.set_result(candidate.answer)
            else:
                future.set_exception(failure or RuntimeError("an order was not judged"))

    # --- judging: script calls until every candidate has an answer -----------------------------------------------

    async def _judge(self, candidates: list[_Candidate]) -> None:
        """Sets every candidate's answer. Raises AdmissionUnavailable; some may have been answered by then."""
        open_candidates = candidates
        for _ in range(ROUNDS_MAX):
            batches = list(self._batches(open_candidates))
            reach(CrashPoint.ADMITTING)
            replies = await self._link.run([self._command(batch) for batch in batches])
            reach(CrashPoint.ADMITTED)
            open_candidates = []
            for batch, reply in zip(batches, replies, strict=True):
                open_candidates += self._read(batch, reply)
            if not open_candidates:
                return
        raise AdmissionUnavailable(self._link.address, "the product's sale changes faster than it can be read")

    def _batches(self, candidates: Iterable[_Candidate]) -> Iterable[_Batch]:
        groups: dict[tuple[int, int], list[_Candidate]] = {}
        for candidate in candidates:
            groups.setdefault((candidate.product_id, candidate.fixed_sale_id), []).append(candidate)
        for (product_id, fixed_sale_id), group in groups.items():
            believed = self._known_sales.get(product_id, _UNKNOWN)
            sale = _KnownSale(fixed_sale_id, 0) if fixed_sale_id else believed
            for part in _parts(group, self._batch_max):
                yield _Batch(product_id, sale, bool(fixed_sale_id), part)

    def _command(self, batch: _Batch) -> Command:
        """A call without orders, when the sale is not known yet: it only asks which one is current."""
        keys = sale_keys(batch.product_id, batch.sale.sale_id)
        names = [
            current_sale_key(batch.product_id),
            keys.stock, keys.buyers, keys.ledger, keys.due, keys.ages, keys.parked,
        ]  # fmt: skip
        arguments: list[Argument] = [
            batch.sale.sale_id,
            1 if batch.fixed else 2 if batch.candidates[0].past_front else 0,
            self._ledger.entries_max,
            self._ledger.republish_after_ms,
            int(self._link.run_id_check),
        ]
        for candidate in batch.candidates if batch.sale.sale_id else ():
            order_id = _order_id_of(candidate, batch.sale)
            names.append(keys.result_prefix + order_id)
            arguments += (order_id, candidate.user_id, candidate.quantity)
        return load_script("admit").call(names, arguments)

    def _read(self, batch: _Batch, reply: list[str]) -> list[_Candidate]:
        """Sets the answers; returns the candidates that must be judged again, with the sale that is now known."""
        head, _, rest = reply[0].partition(" ")
        match head:
            case "none":
                self._known_sales.pop(batch.product_id, None)
                for candidate in batch.candidates:
                    candidate.answer = Refused(Refusal.UNKNOWN_PRODUCT)
                return []
            case "other":
                sale_id, _, id_at_ms = rest.partition(" ")
                self._remember(batch.product_id, _KnownSale(int(sale_id), int(id_at_ms)))
                return batch.candidates
            case _:
                if self._on_batch is not None:
                    self._on_batch(len(batch.candidates))
                again: list[_Candidate] = []
                for candidate, answer in zip(batch.candidates, reply[1:], strict=True):
                    if answer.startswith("S "):
                        candidate.fixed_sale_id = int(answer[2:])
                        again.append(candidate)
                    else:
                        candidate.answer = _parse(answer, _order_id_of(candidate, batch.sale), batch.sale.sale_id)
                return again

    def _remember(self, product_id: int, sale: _KnownSale) -> None:
        self._known_sales[product_id] = sale
        self._known_sales.move_to_end(product_id)
        if len(self._known_sales) > REMEMBERED_SALES_MAX:
            self._known_sales.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Batch:
    """The orders of one script call."""

    product_id: int
    sale: _KnownSale
    fixed: bool
    candidates: list[_Candidate]


def _new_order_id(product_id: int) -> OrderId:
    return OrderId(f"{product_id}-{uuid_utils.uuid7().hex}")


def _order_id_of(candidate: _Candidate, sale: _KnownSale) -> OrderId:
    if candidate.order_id is not None:
        return candidate.order_id
    assert candidate.request_id is not None
    return derived_order_id(
        candidate.product_id,
        "request", candidate.user_id, sale.sale_id, candidate.request_id,
        at_ms=sale.id_at_ms,
    )  # fmt: skip


def _answer_of(candidate: _Candidate) -> Admission:
    assert candidate.answer is not None
    return candidate.answer


def _parts(candidates: list[_Candidate], size: int) -> Iterable[list[_Candidate]]:
    return (candidates[at : at + size] for at in range(0, len(candidates), size))


def _parse(text: str, order_id: OrderId, sale_id: int) -> Admission:
    """One order's answer as `admit.lua` writes it."""
    kind, *facts = text.split(" ", 2)
    match kind:
        case "A" | "P":
            return Admitted(order_id, sale_id, int(facts[0]), int(facts[1]), repeated=kind == "P")
        case "L":
            return AlreadyDecided(order_id, OrderResult(order_id, OrderStatus.DELAYED))
        case "D":
            return AlreadyDecided(order_id, OrderResult(order_id, OrderStatus(facts[0]), facts[1]))
        case _:
            return _refused(Refusal(facts[0]), facts[1] if len(facts) > 1 else "")


def _refused(code: Refusal, fact: str) -> Refused:
    match code:
        case Refusal.SOLD_OUT | Refusal.LIMIT_EXCEEDED:
            return Refused(code, left=int(fact))
        case Refusal.ALREADY_ORDERED:
            return Refused(code, order_id=OrderId(fact) if fact else None)
        case Refusal.NOT_STARTED | Refusal.ENDED:
            return Refused(code, at_ms=int(fact))
        case Refusal.PAUSED:
            return Refused(code, rebuilding=fact == "rebuild")
        case _:
            return Refused(code)
