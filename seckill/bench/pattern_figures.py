"""What a measurement of the patterns says, as plain values: cells, their figures, their table and JSON. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

LATENCY_MEANS = "from the start of an order's global transaction until its end is read back; no Kafka, no admission"

COLUMNS = (
    "pattern", "orders each", "products", "at once", "orders/s", "p50 ms", "p99 ms", "connections", "ms an order",
    "opened", "open trx", "prepared", "waiting", "trx ms an order", "not confirmed",
)  # fmt: skip
SPARE = ("opened", "products", "waiting", "connections", "open trx")
"""Columns that a narrow terminal does without, the first of them first."""

GROUPED = ("tcc", "xa")
"""The patterns that carry several orders in one global transaction."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: `concurrency` global transactions at a time, of so many orders each, over so many products."""

    pattern: str
    orders_each: int
    products: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Held:
    """Connections that were given back in a time: how many, and held how long all together; and how many were made."""

    count: float
    seconds: float
    opened: float

    def __add__(self, other: Held) -> Held:
        return Held(self.count + other.count, self.seconds + other.seconds, self.opened + other.opened)

    def __sub__(self, before: Held) -> Held:
        return Held(self.count - before.count, self.seconds - before.seconds, self.opened - before.opened)


@dataclass(frozen=True, slots=True)
class Look:
    """The open database transactions at a moment: all, those of them that are prepared and have no connection any more,
    and those that wait for a row lock.
    """

    at_s: float
    open: int
    prepared: int
    waiting: int


@dataclass(frozen=True, slots=True)
class OpenTransactions:
    """Of a time: means are weighted by time."""

    mean: float
    max: int
    prepared_mean: float
    waiting_mean: float


@dataclass(frozen=True, slots=True)
class CellResult:
    """`latencies_ms` is of confirmed orders, `not_confirmed` counts the others by how they ended. `transactions` None:
    the database does not tell.
    """

    cell: Cell
    seconds: float
    confirmed: int
    not_confirmed: Mapping[str, int]
    latencies_ms: Sequence[float]
    held: Held
    transactions: OpenTransactions | None

    def report(self) -> dict[str, Any]:
        """One JSON object. What has no value, as a percentile of nothing, is null."""
        p50, p99 = percentiles(self.latencies_ms)
        open_trx = self.transactions
        return {
            **asdict(self.cell),
            "seconds": round(self.seconds, 2),
            "confirmed": self.confirmed,
            "not_confirmed": dict(self.not_confirmed),
            "confirmed_per_second": round(self.confirmed / self.seconds, 1),
            "latency_ms": {"p50": p50, "p99": p99},
            "connections": {
                "in_use_mean": round(self.held.seconds / self.seconds, 2),
                "held_ms_mean": _per(self.held.seconds * 1_000, self.held.count),
                "held_ms_per_order": _per(self.held.seconds * 1_000, self.confirmed),
                "opened_per_order": _per(self.held.opened, self.confirmed),
            },
            "transactions": open_trx
            and {
                "open_mean": round(open_trx.mean, 2),
                "open_max": open_trx.max,
                "prepared_mean": round(open_trx.prepared_mean, 2),
                "waiting_mean": round(open_trx.waiting_mean, 2),
                # Little's law: what is open on average is the rate of orders times how long each keeps it open.
                "open_ms_per_order": _per(open_trx.mean * self.seconds * 1_000, self.confirmed),
            },
        }


@dataclass(frozen=True, slots=True)
class Sums:
    """What the orders came to: confirmed, sold units, confirmed order rows; and what has not ended: units that are
    frozen, XA transactions that are prepared.
    """

    confirmed: int
    sold: int
    order_rows: int
    frozen: int
    prepared: int = 0

    def wrong(self) -> str:
        """In words; empty when everything has ended and fits together."""
        if self.frozen or self.prepared:
            undecided = f"{self.frozen} units frozen, {self.prepared} XA transactions prepared"
            return f"not all has ended: {undecided}; `seckill reconcile` ends them"
        if self.confirmed == self.sold == self.order_rows:
            return ""
        return (
            f"{self.confirmed} orders were confirmed, {self.sold} sold, and {self.order_rows} are in the order database"
        )


@dataclass(slots=True)
class PatternsResult:
    """Grows while it runs, so that an interrupted measurement can be told. `left_out`: patterns, and why; `blind`: why
    there are no figures of open transactions.
    """

    cells: list[CellResult] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)
    blind: str = ""
    sums: Sums | None = None  # None: not checked yet

    def report(self) -> dict[str, Any]:
        return {
            "latency": LATENCY_MEANS,
            "cells": [result.report() for result in self.cells],
            "left_out": dict(self.left_out),
            "sums": None if self.sums is None else asdict(self.sums),
        }


def percentiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    """p50 and p99, interpolated between the nearest values; None of nothing."""
    if not values:
        return None, None
    cuts = statistics.quantiles([*values, values[0]] if len(values) == 1 else values, n=100, method="inclusive")
    return round(cuts[49], 1), round(cuts[98], 1)


def weighed(looks: Sequence[Look]) -> OpenTransactions | None:
    """Each look holds until the next one; None when there are fewer than two."""
    spans = [(look, after.at_s - look.at_s) for look, after in pairwise(looks)]
    seconds = sum(span for _, span in spans)
    if not seconds:
        return None
    return OpenTransactions(
        mean=sum(look.open * span for look, span in spans) / seconds,
        max=max(look.open for look in looks),
        prepared_mean=sum(look.prepared * span for look, span in spans) / seconds,
        waiting_mean=sum(look.waiting * span for look, span in spans) / seconds,
    )


def planned(
    patterns: Sequence[str], concurrencies: Sequence[int], products: Sequence[int], *, group: int, inflight_max: int
) -> Iterator[Cell]:
    """The cells in the order in which they are measured: the patterns side by side, for noise of the machine comes and
    goes; groups after single orders.

    Only TCC and XA carry several orders in one transaction. A group's concurrency ends where the orders would be more
    than a worker holds at a time.
    """
    loads = [(number, at_once) for number in products for at_once in concurrencies]
    for number, at_once in loads:
        yield from (Cell(pattern, 1, number, at_once) for pattern in patterns)
    for number, at_once in loads:
        if 1 < group <= inflight_max // at_once:
            yield from (Cell(pattern, group, number, at_once) for pattern in patterns if pattern in GROUPED)


def rows(results: Iterable[CellResult]) -> Iterator[tuple[object, ...]]:
    """A row of `COLUMNS` for each."""
    for result in results:
        told = result.report()
        latency, held, trx = told["latency_ms"], told["connections"], told["transactions"] or {}
        yield (
            result.cell.pattern, result.cell.orders_each, result.cell.products, result.cell.concurrency,
            f"{told['confirmed_per_second']:,.0f}", latency["p50"], latency["p99"], held["in_use_mean"],
            held["held_ms_per_order"], held["opened_per_order"], trx.get("open_mean"), trx.get("prepared_mean"),
            trx.get("waiting_mean"), trx.get("open_ms_per_order"), sum(result.not_confirmed.values()),
        )  # fmt: skip


def _per(total: float, count: float) -> float | None:
    return round(total / count, 2) if count else None
