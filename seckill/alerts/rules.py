"""What is worth telling a person, from a snapshot. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping

from seckill.alerts.findings import Finding, Judged, Rule, Thresholds, key_of
from seckill.alerts.metric_rules import circuits, contradictions, lost_sales, undecided
from seckill.alerts.snapshot import Snapshot, Source, TopicLag, Transaction


def judge(snapshot: Snapshot, thresholds: Thresholds) -> Judged:
    """Everything that is wrong."""
    findings = [finding for look in _LOOKS for finding in look(snapshot, thresholds)]
    unjudged = frozenset(rule for rule, source in _SOURCES.items() if source in snapshot.unread)
    return Judged(tuple(findings), unjudged, frozenset(key_of(Rule.SILENT, each) for each in snapshot.unasked))


# --- letters ---------------------------------------------------------------------------------------------------------


def _letters(snapshot: Snapshot, _: Thresholds) -> Iterator[Finding]:
    """Of each reason on its own; from the first letter on, until none of the reason is open."""
    for each in snapshot.letters.open:
        yield Finding(
            Rule.LETTERS,
            each.reason,
            what=f"{_letters_of(each.count)} for {each.reason}: to be replayed or discarded",
            count=each.count,
            example=each.example,
            command=f"seckill dlq list --state new --reason {shlex.quote(each.reason)}",
            since_ms=each.since_ms,
        )


def _letters_of(count: int) -> str:
    return "1 record is set aside" if count == 1 else f"{count} records are set aside"


def _letter_rate(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    letters = snapshot.letters
    if letters.last_minute > thresholds.letters_per_minute_max:
        yield Finding(
            Rule.LETTER_RATE,
            "",
            what=f"{letters.last_minute} letters within a minute (more than {thresholds.letters_per_minute_max})",
            count=letters.last_minute,
            example=letters.newest,
            command="seckill dlq stats --since 10m",
        )


# --- Kafka -----------------------------------------------------------------------------------------------------------


def _lags(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    retry = [each for each in snapshot.lag if each.is_retry]
    waiting = sum(each.records for each in retry)
    if waiting > thresholds.retry_backlog_max:
        what = f"{_orders(waiting)} waiting in the retry topics (more than {thresholds.retry_backlog_max})"
        yield _behind(Rule.RETRY_BACKLOG, "", what, retry, thresholds)
    for each in snapshot.lag:
        if each.holds_letters and each.records:  # a single one: of what the index does not hold nobody is told
            what = f"{_letters_of(each.records)} in {each.topic} and not yet in the index"
            yield _behind(Rule.LAG, each.topic, what, [each], thresholds, command="seckill doctor --problems")
        elif not (each.is_retry or each.holds_letters) and each.records > thresholds.lag_max:
            what = f"{each.records} records of {each.topic} not yet consumed (more than {thresholds.lag_max})"
            yield _behind(Rule.LAG, each.topic, what, [each], thresholds)


def _behind(
    rule: Rule,
    detail: str,
    what: str,
    lags: Iterable[TopicLag],
    thresholds: Thresholds,
    *,
    command: str = "seckill status",
) -> Finding:
    lags = list(lags)
    return Finding(
        rule,
        detail,
        what=what,
        count=sum(each.records for each in lags),
        example=max(lags, key=lambda each: each.records).topic,
        command=command,
        patience_ms=thresholds.lag_patience_ms,
    )


# --- transactions ----------------------------------------------------------------------------------------------------


def _repeated(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    highest = thresholds.branch_attempts_max
    found = [each for each in snapshot.transactions if each.failed_calls > highest]
    if found:
        what = f"{_transactions(len(found))} whose Confirm or Cancel has failed more than {highest} times"
        yield _of_transactions(Rule.BRANCH_REPEATED, what, found, max(found, key=lambda each: each.failed_calls))


def _stuck(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    found = [each for each in snapshot.transactions if snapshot.at_ms - each.created_ms >= thresholds.stuck_after_ms]
    if found:
        what = f"{_transactions(len(found))} not ended after {thresholds.stuck_after_ms / 1000:g} s"
        yield _of_transactions(Rule.STUCK, what, found, min(found, key=lambda each: each.created_ms))


def _of_transactions(rule: Rule, what: str, found: list[Transaction], example: Transaction) -> Finding:
    return Finding(
        rule,
        "",
        what=what,
        count=len(found),
        example=f"{example.gid} ({example.status})",
        command=f"seckill tx show {shlex.quote(example.gid)}",
        since_ms=min(each.created_ms for each in found),
    )


# --- the audit, and silence ------------------------------------------------------------------------------------------


def _audit(snapshot: Snapshot, _: Thresholds) -> Iterator[Finding]:
    for each in snapshot.audited.broken:
        yield Finding(
            Rule.AUDIT,
            each.invariant,
            what=f"the invariant {each.invariant} is false in {each.count} places: {each.problem}",
            count=each.count,
            example=each.example,
            command=f"seckill audit {each.scope}".rstrip(),
        )


def _slow_orders(snapshot: Snapshot, _: Thresholds) -> Iterator[Finding]:
    audited = snapshot.audited
    if audited.slow:
        yield Finding(
            Rule.SLOW_ORDERS,
            "",
            what=f"{_orders(audited.slow)} pending for long, though nothing says that they are lost",
            count=audited.slow,
            example=audited.slowest,
            command=f"seckill order show {shlex.quote(audited.slowest)}",
        )


def _silences(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    for name, problem in sorted(snapshot.silent.items()):
        yield Finding(
            Rule.SILENT,
            name,
            what=f"{name} does not answer, so that nobody is told what only it knows: {problem}",
            count=1,
            example=name,
            command="seckill audit" if name == Source.AUDIT.value else "seckill status",
            patience_ms=thresholds.silence_patience_ms,
        )


def _orders(count: int) -> str:
    return "1 order is" if count == 1 else f"{count} orders are"


def _transactions(count: int) -> str:
    return "1 transaction" if count == 1 else f"{count} transactions"


_LOOKS: tuple[Callable[[Snapshot, Thresholds], Iterable[Finding]], ...] = (
    _letters,
    _letter_rate,
    _lags,
    _repeated,
    _stuck,
    circuits,
    contradictions,
    undecided,
    lost_sales,
    _audit,
    _slow_orders,
    _silences,
)

_SOURCES: Mapping[Rule, Source] = {
    Rule.LETTERS: Source.LETTERS,
    Rule.LETTER_RATE: Source.LETTERS,
    Rule.RETRY_BACKLOG: Source.LAG,
    Rule.LAG: Source.LAG,
    Rule.BRANCH_REPEATED: Source.TRANSACTIONS,
    Rule.STUCK: Source.TRANSACTIONS,
    Rule.CIRCUIT_OPEN: Source.ROLES,
    Rule.CONTRADICTION: Source.ROLES,
    Rule.UNDECIDED: Source.ROLES,
    Rule.LOST_SALES: Source.ROLES,
    Rule.AUDIT: Source.AUDIT,
    Rule.SLOW_ORDERS: Source.AUDIT,
}
"""What each rule has to have read; silence is judged in any case."""
