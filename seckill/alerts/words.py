"""An alert in words: plain text, that every target can show. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from seckill.alerts.engine import Kind, Message
from seckill.alerts.findings import Finding, Rule

WHAT_MAX = 600
"""Characters of what is wrong; chats cut long messages, and the command to run comes after it."""

LATEST_MS = 253_402_300_799_000
"""The last second of the year 9999."""

_HEADLINES = {Kind.RAISED: "", Kind.REPEATED: "still: ", Kind.RESOLVED: "resolved: "}


def title(message: Message) -> str:
    """One line: whether it is news, and what it is about."""
    return f"seckill {_HEADLINES[message.kind]}{message.finding.key}"


def body(message: Message) -> str:
    """What, since when, how many, an example, and what to run next; of what is over, what was so and for how long."""
    finding, since = message.finding, _moment(message.since_ms)
    example = [f"example: {finding.example}"] if finding.example and finding.example != "-" else []
    if message.kind is Kind.RESOLVED:
        lines = [f"no longer so: {_cut(finding.what)}", f"it was from {since} to {_moment(message.at_ms)}"]
        count = [f"how many, at last: {finding.count}"] if finding.count else []
        return "\n".join([*lines, *count, *example])
    lines = [_cut(finding.what), f"since: {since} ({_length(message.at_ms - message.since_ms)})"]
    count = [f"how many: {finding.count}"] if finding.count else []
    return "\n".join([*lines, *count, *example, f"next: {finding.command}"])


def test_message(now_ms: int) -> Message:
    """What `seckill alerts test` sends."""
    finding = Finding(
        Rule.TEST, "", what="a test: nothing is wrong", count=0, example="-", command="seckill status", lasts=False
    )
    return Message(Kind.RAISED, finding, since_ms=now_ms, at_ms=now_ms, number=1)


def _moment(at_ms: int) -> str:
    """The nearest one that a calendar has: a letter's times can be a stranger's numbers."""
    return datetime.fromtimestamp(min(max(at_ms, 0), LATEST_MS) / 1000, UTC).isoformat(timespec="seconds")


def _length(milliseconds: int) -> str:
    seconds = max(0, milliseconds) // 1000
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"


def _cut(text: str) -> str:
    return text if len(text) <= WHAT_MAX else f"{text[: WHAT_MAX - 1]}…"
