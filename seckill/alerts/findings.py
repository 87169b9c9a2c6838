"""What is told: findings, and the rules that they are of. Values only.

A finding says what is wrong, since when, how many, an example, and the command to run next. Findings of the same key
are the same thing: whether and when it is told again is the engine's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

KEY_MAX = 300

_UNFIT = re.compile(r"[^!-~]+")


class Rule(StrEnum):
    """Why somebody is told. A value stands in keys, in metrics and in the table of alerts: add, never rename."""

    LETTERS = "letters"  # orders of a reason are set aside
    LETTER_RATE = "letter_rate"
    RETRY_BACKLOG = "retry_backlog"
    LAG = "lag"
    BRANCH_REPEATED = "branch_repeated"  # a Confirm or Cancel that fails again and again
    STUCK = "stuck"  # a global transaction that does not end
    CIRCUIT_OPEN = "circuit_open"
    CONTRADICTION = "contradiction"  # branches, or stores, that say the opposite of each other
    UNDECIDED = "undecided"  # branches that hold units, and that reconcile could not end yet
    LOST_SALES = "lost_sales"  # sales that Redis does not hold as it was told to
    AUDIT = "audit"  # an invariant is false
    SLOW_ORDERS = "slow_orders"
    SILENT = "silent"  # whoever has to be asked does not answer
    TEST = "test"  # somebody wants to see whether messages arrive


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is told only above a number, or only after it has stood for a time (`…_patience_ms`)."""

    letters_per_minute_max: int
    retry_backlog_max: int
    lag_max: int
    branch_attempts_max: int
    stuck_after_ms: int
    circuit_patience_ms: int = 10_000  # a circuit opens at one failure, and most close with the next probe
    silence_patience_ms: int = 30_000  # a role that is started anew is no news
    lag_patience_ms: int = 30_000  # a sale's start is a lag, for seconds
    lost_sales_patience_ms: int = 60_000  # they are made again by themselves


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong. `since_ms` None: nobody knows, since it was first found.

    `lasts` False: it happened, and is over; it never resolves, and what happens again is counted. `patience_ms`: it is
    told only after it has stood for so long.
    """

    rule: Rule
    detail: str  # which one of its rule; empty where there is only one
    what: str
    count: int
    example: str
    command: str
    since_ms: int | None = None
    lasts: bool = True
    patience_ms: int = 0

    @property
    def key(self) -> str:
        return key_of(self.rule, self.detail)


def key_of(rule: Rule, detail: str) -> str:
    """Visible ASCII, at most KEY_MAX characters: a detail can be a stranger's word."""
    key = f"{rule}:{detail}" if detail else rule.value
    return _UNFIT.sub("_", key)[:KEY_MAX]


@dataclass(frozen=True, slots=True)
class Judged:
    """`unjudged`: rules whose source was not, or not wholly, read: what they do not find may stand all the same.

    `unjudged_keys`: single findings of which the same is to be said.
    """

    findings: tuple[Finding, ...]
    unjudged: frozenset[Rule]
    unjudged_keys: frozenset[str] = frozenset()

    def missed(self, finding: Finding) -> bool:
        """Whether it may stand although it was not found."""
        return finding.rule in self.unjudged or finding.key in self.unjudged_keys
