"""A finding: one line about one dependency, with one remedy when something is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # the pipeline works, and something about it is not as production needs it
    PROBLEM = "problem"  # a rule that the pipeline rests on does not hold
    UNREACHABLE = "unreachable"  # nothing answers, or something else does


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is what was looked at, `found` what it is, `remedy` what to do about it (empty when all is well)."""

    check: str
    level: Level
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found about one dependency. `setting` says where it is configured, `address` holds no secret."""

    dependency: str
    setting: str
    address: str
    findings: tuple[Finding, ...]


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARNING, found, remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.PROBLEM, found, remedy)


def unreachable(found: str, remedy: str) -> Finding:
    return Finding("reachable", Level.UNREACHABLE, found, remedy)


def levels(examined: Iterable[Examined]) -> set[Level]:
    return {finding.level for each in examined for finding in each.findings}
