"""What is told when: a finding once, again only after a quiet period, and that it has resolved. Pure.

    found ─▶ (patience) ─▶ raised ─▶ … quiet period … ─▶ repeated ─▶ …
                             └─ not found for `resolved_after_ms` ─▶ resolved ─▶ … quiet period … ─▶ forgotten

What comes back before it is forgotten has to stay away twice as long as before to be told as resolved: something that
comes and goes is told a few times, and then stands. A gap shorter than `resolved_after_ms` does not end the patience:
what crashes as often as it is started anew is told as well.

What only happened (`Finding.lasts` False) never resolves: it is counted, told once, and again after the quiet period if
it has happened again, whether or not its source is read by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from seckill.alerts.findings import Finding, Judged

RETURNS_MAX = 30
"""Of a finding, that are counted: by then it has to stay away for a quiet period anyway."""


class Kind(StrEnum):
    RAISED = "raised"
    REPEATED = "repeated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Pace:
    quiet_period_ms: int
    resolved_after_ms: int

    def away_ms(self, returns: int) -> int:
        """How long a finding has to be gone to be told as resolved."""
        longest_ms = max(self.quiet_period_ms, self.resolved_after_ms)
        return min(self.resolved_after_ms << min(returns, RETURNS_MAX), longest_ms)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered of a finding. `since_ms`: it stands; `found_ms`: it was first found; `seen_ms`: last found.

    `told`: messages about it since it came (0: none yet), the last one at `told_ms`. `resolved_ms`: it was told as
    resolved; 0: it stands. `pending`: of what only happens, how often since the last message.
    """

    finding: Finding
    since_ms: int
    found_ms: int
    seen_ms: int
    told: int = 0
    told_ms: int = 0
    resolved_ms: int = 0
    returns: int = 0
    pending: int = 0

    @property
    def active(self) -> bool:
        return self.told > 0 and not self.resolved_ms


@dataclass(frozen=True, slots=True)
class Message:
    """What a person is told. `number`: of the messages since the finding came."""

    kind: Kind
    finding: Finding
    since_ms: int
    at_ms: int
    number: int

    @property
    def key(self) -> str:
        return self.finding.key

    @property
    def serial(self) -> tuple[Kind, int, int]:
        """Which one it is of its key, whatever it says."""
        return self.kind, self.number, self.at_ms


def last_message(standing: Standing) -> Message:
    """The newest message about it, made again."""
    kind = Kind.RAISED if standing.told == 1 else Kind.REPEATED
    at_ms = standing.told_ms
    if standing.resolved_ms:
        kind, at_ms = Kind.RESOLVED, standing.resolved_ms
    return Message(kind, standing.finding, standing.since_ms, at_ms, standing.told)


@dataclass(frozen=True, slots=True)
class Step:
    """What is remembered after a look, and what is to be told."""

    known: Mapping[str, Standing]
    messages: tuple[Message, ...]


def step(known: Mapping[str, Standing], judged: Judged, pace: Pace, now_ms: int) -> Step:
    """One look. Of the same key the last finding counts."""
    found = {finding.key: finding for finding in judged.findings}
    after: dict[str, Standing] = {}
    messages: list[Message] = []
    for key in [*found, *(key for key in known if key not in found)]:
        before = known.get(key)
        standing = _looked_at(before, found.get(key), judged, pace, now_ms)
        if standing is None:
            continue
        after[key] = standing
        if _told_now(before, standing):
            messages.append(last_message(standing))
    return Step(after, tuple(messages))


def _looked_at(
    before: Standing | None, finding: Finding | None, judged: Judged, pace: Pace, now_ms: int
) -> Standing | None:
    """One key; None: forgotten."""
    if finding is not None:
        if before is None or before.resolved_ms:
            before = _come(before, finding, now_ms)
        return _found(before, finding, pace, now_ms)
    assert before is not None
    if before.resolved_ms:
        return before if now_ms - before.resolved_ms < pace.quiet_period_ms else None
    if before.finding.lasts and judged.missed(before.finding):
        return replace(before, seen_ms=now_ms)
    if not before.told:
        return before if now_ms - before.seen_ms < pace.resolved_after_ms else None
    return _gone(before, pace, now_ms)


def _come(before: Standing | None, finding: Finding, now_ms: int) -> Standing:
    since_ms = now_ms if finding.since_ms is None else finding.since_ms
    returns = min(before.returns + 1, RETURNS_MAX) if before is not None else 0
    return Standing(finding, since_ms, found_ms=now_ms, seen_ms=now_ms, returns=returns)


def _found(standing: Standing, finding: Finding, pace: Pace, now_ms: int) -> Standing:
    pending = standing.pending + (0 if finding.lasts else finding.count)
    seen = replace(standing, finding=finding, seen_ms=now_ms, pending=pending)
    if standing.told:
        return _tell(seen, now_ms) if now_ms - standing.told_ms >= pace.quiet_period_ms else seen
    return _tell(seen, now_ms) if now_ms - standing.found_ms >= finding.patience_ms else seen


def _tell(standing: Standing, now_ms: int) -> Standing:
    finding = standing.finding
    if not finding.lasts:
        finding = replace(finding, count=standing.pending)
    return replace(standing, finding=finding, told=standing.told + 1, told_ms=now_ms, pending=0)


def _gone(standing: Standing, pace: Pace, now_ms: int) -> Standing | None:
    if not standing.finding.lasts:
        if now_ms - standing.told_ms < pace.quiet_period_ms:
            return standing
        return _tell(standing, now_ms) if standing.pending else None
    if now_ms - standing.seen_ms < pace.away_ms(standing.returns):
        return standing
    return replace(standing, resolved_ms=now_ms)


def _told_now(before: Standing | None, after: Standing) -> bool:
    newest = (after.told, after.told_ms, after.resolved_ms)
    return after.told > 0 and (before is None or newest != (before.told, before.told_ms, before.resolved_ms))


def active(known: Mapping[str, Standing]) -> Sequence[Standing]:
    """Those that stand and have been told."""
    return [each for each in known.values() if each.active]
