"""What is worth telling of the roles' own metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from seckill.alerts.findings import Finding, Rule, Thresholds
from seckill.alerts.snapshot import Sample, Snapshot


def circuits(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    """One for each dependency that is down, whoever waits for it."""
    waiting: dict[str, set[str]] = {}
    for labels, value in _of("seckill_circuit_open", snapshot.roles.gauges):
        if value > 0:
            waiting.setdefault(labels.get("dependency", "?"), set()).add(labels.get("role", "?"))
    for dependency, roles in sorted(waiting.items()):
        yield Finding(
            Rule.CIRCUIT_OPEN,
            dependency,
            what=f"{dependency} is down: {', '.join(sorted(roles))} waits for it",
            count=len(roles),
            example=sorted(roles)[0],
            command="seckill doctor --problems",
            patience_ms=thresholds.circuit_patience_ms,
        )


@dataclass(frozen=True, slots=True)
class _Event:
    """A counter of things that should never happen, and the label that tells them apart."""

    metric: str
    label: str
    values: frozenset[str] | None  # that are meant; None: all of them
    what: str
    command: str


_EVENTS = (
    _Event(
        "dtm_branch_undecidable_total",
        "method",
        None,
        "a Confirm or Cancel contradicts what was decided before",
        "seckill audit",
    ),
    _Event(
        "order_confirm_overtaken_total",
        "",
        None,
        "an order could not be confirmed: that of another transaction stands",
        "seckill audit",
    ),
    _Event(
        "seckill_reconciled_total",
        "what",
        frozenset({"conflicting", "contradicting"}),
        "reconcile found stores that contradict each other",
        "seckill reconcile --once",
    ),
)


def contradictions(snapshot: Snapshot, _: Thresholds) -> Iterator[Finding]:
    for event in _EVENTS:
        for labels, number in _of(event.metric, snapshot.roles.grown):
            which = labels.get(event.label, "")
            if number > 0 and (event.values is None or which in event.values):
                yield Finding(
                    Rule.CONTRADICTION,
                    f"{event.metric}/{which}" if which else event.metric,
                    what=event.what,
                    count=int(number),
                    example=which or "-",
                    command=event.command,
                    lasts=False,
                )


def undecided(snapshot: Snapshot, _: Thresholds) -> Iterator[Finding]:
    count = _highest("seckill_undecided_branches", snapshot.roles.gauges)
    if count:
        what = f"{count} branches hold units and are undecided for long: their coordinator does not end them"
        command = "seckill tx list --stuck"
        yield Finding(Rule.UNDECIDED, "", what=what, count=count, example="-", command=command)


def lost_sales(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    count = _highest("seckill_lost_sales", snapshot.roles.gauges)
    if count:
        yield Finding(
            Rule.LOST_SALES,
            "",
            what=f"{count} sales are paused, because Redis does not hold them as it was told to",
            count=count,
            example="-",
            command="seckill reconcile --rebuild",
            patience_ms=thresholds.lost_sales_patience_ms,
        )


def _of(metric: str, samples: Mapping[Sample, float]) -> Iterator[tuple[dict[str, str], float]]:
    for (name, labels), value in samples.items():
        if name == metric:
            yield dict(labels), value


def _highest(metric: str, samples: Mapping[Sample, float]) -> int:
    return int(max((value for _, value in _of(metric, samples)), default=0))


WATCHED_GAUGES = frozenset({"seckill_circuit_open", "seckill_undecided_branches", "seckill_lost_sales"})
WATCHED_COUNTERS = frozenset(event.metric for event in _EVENTS)
"""The metrics of other roles that these rules look at."""
