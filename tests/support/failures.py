"""What a reader needs of a failure, told as soon as it happens: a long run may be cut off before its end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import pytest

from tests.support.role_processes import RoleProcess, event_of

FAILED = pytest.StashKey[bool]()
"""Of an item: one of its phases has failed."""

LINES_MAX = 40
CHARS_MAX = 500


def tell(item: pytest.Item, report: pytest.TestReport) -> None:
    """Writes the reason and the report's sections that were added for it, whatever else is captured."""
    terminal = item.config.pluginmanager.getplugin("terminalreporter")
    if terminal is None:
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    terminal.section(f"FAILED in {report.when}: {item.nodeid}", sep="-", red=True)
    terminal.write_line(crash.message if crash is not None else report.longreprtext)
    for name, text in report.sections:
        if not name.startswith("Captured"):
            terminal.write_line(f"{name}\n{text}")


def last_words(roles: Iterable[RoleProcess]) -> str:
    """The last lines of their logs."""
    return "\n".join(f"--- {role.role}: {role.log}\n{_tail(role.log)}" for role in roles if role.log.exists())


def _tail(log: Path) -> str:
    """What is said again and again counts as one line: it would hide what was said before it."""
    runs = [list(same) for _, same in groupby(log.read_text(errors="replace").splitlines(), key=_what)]
    lines = [run[0][:CHARS_MAX] + (f"  … and {len(run) - 1} more like it" if run[1:] else "") for run in runs]
    return "\n".join(lines[-LINES_MAX:])


def _what(line: str) -> str:
    event = event_of(line)
    return json.dumps([event["event"], event.get("error")])
