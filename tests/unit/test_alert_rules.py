"""What is worth telling a person, from snapshots that are written down here."""

from __future__ import annotations

import asyncio
import shlex

import pytest

from seckill.alerts.audits import Auditor, audited
from seckill.alerts.engine import Kind, Message
from seckill.alerts.findings import Finding, Rule, Thresholds
from seckill.alerts.rules import judge
from seckill.alerts.scrape import growth, samples_of
from seckill.alerts.snapshot import (
    Audited,
    Broken,
    Letters,
    OpenLetters,
    Roles,
    Sample,
    Snapshot,
    Source,
    TopicLag,
    Transaction,
)
from seckill.alerts.words import body, title
from seckill.audit.rules import Breach, Invariant, Verdict
from seckill.audit.rules import Kind as Of
from seckill.settings import RetrySettings
from seckill.wiring.alerts import slow_after_ms

NOW = 1_700_000_000_000
THRESHOLDS = Thresholds(
    letters_per_minute_max=10, retry_backlog_max=100, lag_max=1_000, branch_attempts_max=5, stuck_after_ms=60_000
)


def found(snapshot: Snapshot) -> dict[str, Finding]:
    return {finding.key: finding for finding in judge(snapshot, THRESHOLDS).findings}


def circuit(role: str, dependency: str) -> Sample:
    return "seckill_circuit_open", (("dependency", dependency), ("role", role))


def test_a_pipeline_at_rest_finds_nothing() -> None:
    """Zeros, values at their thresholds and closed circuits are no findings."""
    gauges = {circuit("worker", "kafka"): 0.0, ("seckill_lost_sales", ()): 0.0}
    at_rest = Snapshot(
        NOW,
        letters=Letters((), last_minute=10),
        lag=(
            TopicLag("orders", 1_000),
            TopicLag("orders-retry-0", 100, is_retry=True),
            TopicLag("letters", 0, holds_letters=True),
        ),
        transactions=(Transaction("g", "submitted", NOW - 59_999, failed_calls=5),),
        roles=Roles(gauges, {("seckill_reconciled_total", (("what", "settled"),)): 7.0}),
    )
    assert found(at_rest) == {}


@pytest.mark.parametrize(
    ("snapshot", "key", "count", "example", "command"),
    [
        (
            Snapshot(NOW, letters=Letters((OpenLetters("UNREADABLE", 1, NOW - 9, "17"),), 1, "17")),
            "letters:UNREADABLE", 1, "17", "seckill dlq list --state new --reason UNREADABLE",
        ),
        (
            Snapshot(NOW, letters=Letters((), last_minute=11, newest="7-ab")),
            "letter_rate", 11, "7-ab", "seckill dlq stats --since 10m",
        ),
        (
            Snapshot(NOW, lag=(TopicLag("r-0", 60, is_retry=True), TopicLag("r-1", 41, is_retry=True))),
            "retry_backlog", 101, "r-0", "seckill status",
        ),
        (Snapshot(NOW, lag=(TopicLag("orders", 1_001),)), "lag:orders", 1_001, "orders", "seckill status"),
        (
            Snapshot(NOW, lag=(TopicLag("letters", 1, holds_letters=True),)),
            "lag:letters", 1, "letters", "seckill doctor --problems",
        ),
        (
            Snapshot(NOW, transactions=(Transaction("g1", "submitted", NOW, 6), Transaction("g2", "aborting", NOW, 7))),
            "branch_repeated", 2, "g2 (aborting)", "seckill tx show g2",
        ),
        (
            Snapshot(
                NOW,
                transactions=(Transaction("g1", "prepared", NOW - 60_000), Transaction("g2", "submitted", 0)),
            ),
            "stuck", 2, "g2 (submitted)", "seckill tx show g2",
        ),
        (
            Snapshot(NOW, roles=Roles({circuit("worker", "product"): 1.0, circuit("front", "product"): 0.5})),
            "circuit_open:product", 2, "front", "seckill doctor --problems",
        ),
        (
            Snapshot(NOW, roles=Roles({}, {("dtm_branch_undecidable_total", (("method", "/p/C"),)): 2.0})),
            "contradiction:dtm_branch_undecidable_total//p/C", 2, "/p/C", "seckill audit",
        ),
        (
            Snapshot(NOW, roles=Roles({}, {("seckill_reconciled_total", (("what", "conflicting"),)): 1.0})),
            "contradiction:seckill_reconciled_total/conflicting", 1, "conflicting", "seckill reconcile --once",
        ),
        (
            Snapshot(NOW, roles=Roles({("seckill_undecided_branches", ()): 3.0})),
            "undecided", 3, "-", "seckill tx list --stuck",
        ),
        (
            Snapshot(NOW, roles=Roles({("seckill_lost_sales", ()): 2.0})),
            "lost_sales", 2, "-", "seckill reconcile --rebuild",
        ),
        (
            Snapshot(NOW, audited=Audited((Broken("limit_holds", 4, "buyer 7 of sale 3", "holds 2"),))),
            "audit:limit_holds", 4, "buyer 7 of sale 3", "seckill audit",
        ),
        (
            Snapshot(NOW, audited=Audited(slow=2, slowest="7-ab")),
            "slow_orders", 2, "7-ab", "seckill order show 7-ab",
        ),
        (Snapshot(NOW, silent={"Kafka": "no answer"}), "silent:Kafka", 1, "Kafka", "seckill status"),
        (Snapshot(NOW, silent={"the audit": "no answer"}), "silent:the_audit", 1, "the audit", "seckill audit"),
    ],
)  # fmt: skip
def test_a_finding_says_how_many_which_and_what_to_run(
    snapshot: Snapshot, key: str, count: int, example: str, command: str
) -> None:
    """Each rule finds what is above its threshold, and says how many, an example and the command to run next."""
    finding = found(snapshot)[key]
    assert (finding.count, finding.example, finding.command) == (count, example, command)
    assert len(found(snapshot)) == 1


def test_what_was_not_read_is_not_judged() -> None:
    """A source that was not read makes its rules unjudged, and no other; silence is always judged."""
    judged = judge(Snapshot(NOW, unread=frozenset({Source.ROLES, Source.AUDIT})), THRESHOLDS)
    assert judged.unjudged == {
        Rule.CIRCUIT_OPEN, Rule.CONTRADICTION, Rule.UNDECIDED, Rule.LOST_SALES, Rule.AUDIT, Rule.SLOW_ORDERS
    }  # fmt: skip
    assert judge(Snapshot(NOW, unread=frozenset(Source)), THRESHOLDS).unjudged == set(Rule) - {Rule.SILENT, Rule.TEST}


async def test_an_audit_that_was_never_made_has_not_recovered() -> None:
    """Until the first audit has ended nobody knows whether one can be made: that it cannot stands, if it was told."""

    async def fails() -> Verdict:
        raise RuntimeError("no stores")

    auditor = Auditor(fails, every_ms=10, within_s=1, clock_ms=lambda: NOW)
    for at_ms in (NOW, NOW + 10):
        before = await auditor.read(at_ms)
        assert judge(before, THRESHOLDS).unjudged_keys == {"silent:the_audit"}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    after = await auditor.read(NOW + 11)
    assert (after.silent, after.unasked) == ({"the audit": "no stores"}, frozenset())
    await auditor.aclose()


def test_an_order_that_waits_for_its_next_attempt_is_not_slow() -> None:
    """Slow begins where the last attempt ends at the latest, and not before five minutes."""
    waits = RetrySettings(attempts_max=3, cap_ms=2_000, topic_delays_ms=(10_000, 600_000))
    assert slow_after_ms(waits) == 3 * 3 * 2_000 + 732_000
    assert slow_after_ms(RetrySettings(topic_delays_ms=())) == 300_000


def test_a_strangers_word_is_no_command() -> None:
    """A gid or a reason that somebody else has chosen is quoted where it stands in a command, and kept out of keys."""
    gid = "g'; rm -rf ~ #"
    stuck = found(Snapshot(NOW, transactions=(Transaction(gid, "submitted", 0),)))["stuck"]
    assert shlex.split(stuck.command) == ["seckill", "tx", "show", gid]
    letters = Letters((OpenLetters("É\n$(x)" * 100, 1, NOW, "1"),))
    (key,) = found(Snapshot(NOW, letters=letters))
    assert key.isascii()
    assert key.isprintable()
    assert " " not in key
    assert len(key) == 300


def test_a_breach_names_where_to_look() -> None:
    """Of an audit's verdict the first breach of each invariant is the example, and the command looks there alone."""
    none = dict.fromkeys(Invariant, ())
    breaches = {
        **none,
        Invariant.UNITS_ADD_UP: (Breach(Of.SALE, "12", "sum"), Breach(Of.SALE, "13", "sum")),
        Invariant.EVERY_ORDER_ENDS: (Breach(Of.ORDER, "7-ab", "is nowhere"),),
        Invariant.BRANCHES_AGREE: (Breach(Of.GID, "g", "two ends"),),
    }
    verdict = Verdict(breaches, 0, {}, 0, (), 0, 0, slow=(("9-cd", 400_000), ("9-ce", 300_001)))
    assert audited(verdict) == Audited(
        (
            Broken("units_add_up", 2, "sale 12", "sum", "--sale 12"),
            Broken("every_order_ends", 1, "order 7-ab", "is nowhere", "--product 7"),
            Broken("branches_agree", 1, "gid g", "two ends", ""),
        ),
        slow=2,
        slowest="9-cd",
    )


# --- the roles' metrics ----------------------------------------------------------------------------------------------

METRICS = """# HELP seckill_reconciled_total What reconcile did, by kind
# TYPE seckill_reconciled_total counter
seckill_reconciled_total{what="conflicting"} 3.0
seckill_reconciled_created{what="conflicting"} 1.7e+09
# TYPE seckill_circuit_open gauge
seckill_circuit_open{dependency="a \\"b\\" {c}",role="worker"} 1.0
python_info{version="3.11"} 1.0
"""


def test_only_what_a_rule_looks_at_is_read() -> None:
    """Samples of watched metrics with their labels, whatever stands in those; everything else is left out."""
    assert samples_of(METRICS) == {
        ("seckill_reconciled_total", (("what", "conflicting"),)): 3.0,
        ("seckill_circuit_open", (("dependency", 'a "b" {c}'), ("role", "worker"))): 1.0,
    }


def test_growth_is_since_the_look_before() -> None:
    """A role's first answer has grown by nothing, one that counts from 0 again by all it has, and gauges never grow."""
    sample: Sample = ("seckill_reconciled_total", (("what", "conflicting"),))
    gauge: Sample = ("seckill_lost_sales", ())
    assert growth(None, {sample: 3.0}) == {}
    assert growth({}, {sample: 3.0}) == {sample: 3.0}
    assert growth({sample: 3.0, gauge: 0.0}, {sample: 5.0, gauge: 9.0}) == {sample: 2.0}
    assert growth({sample: 3.0}, {sample: 1.0}) == {sample: 1.0}
    assert growth({sample: 3.0}, {sample: 3.0}) == {}


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_message_says_it_all() -> None:
    """What, since when, how many, an example and the command stand in every message, and whether it is news."""
    finding = Finding(Rule.STUCK, "", what="2 transactions", count=2, example="g", command="seckill tx show g")
    raised = Message(Kind.RAISED, finding, since_ms=NOW - 90_000, at_ms=NOW, number=1)
    assert title(raised) == "seckill stuck"
    assert body(raised).splitlines() == [
        "2 transactions",
        "since: 2023-11-14T22:11:50+00:00 (90 s)",
        "how many: 2",
        "example: g",
        "next: seckill tx show g",
    ]
    resolved = Message(Kind.RESOLVED, finding, since_ms=NOW - 90_000, at_ms=NOW, number=1)
    assert title(resolved) == "seckill resolved: stuck"
    assert body(resolved).splitlines() == [
        "no longer so: 2 transactions",
        "it was from 2023-11-14T22:11:50+00:00 to 2023-11-14T22:13:20+00:00",
        "how many, at last: 2",
        "example: g",
    ]


@pytest.mark.parametrize(("since_ms", "shown"), [(10**18, "9999-12-31T23:59:59"), (-(10**18), "1970-01-01T00:00:00")])
def test_a_time_that_no_calendar_has_is_told_as_the_nearest(since_ms: int, shown: str) -> None:
    """A stranger's record can name any number as its time; what it says is told all the same."""
    finding = Finding(Rule.LETTERS, "FOREIGN", what="1 record", count=1, example="1", command="seckill dlq list")
    assert f"since: {shown}+00:00" in body(Message(Kind.RAISED, finding, since_ms=since_ms, at_ms=NOW, number=1))
