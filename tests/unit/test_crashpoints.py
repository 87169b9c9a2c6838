"""Crash points are for tests alone: nothing that ships can arm them, and none is forgotten."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from seckill.crashpoints import CrashPoint, arm, reach
from tests.support.crash_rows import ROWS

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "seckill" / "crashpoints.py"
SHIPPED = sorted({*ROOT.glob("seckill/**/*.py"), *ROOT.glob("consumers/**/*.py")} - {ROOM})


TO_COME = {
    CrashPoint(name)
    for name in (
        "action_calling",
        "action_called",
        "compensate_calling",
        "compensate_called",
        "commit_calling",
        "commit_called",
        "rollback_calling",
        "rollback_called",
        "query_calling",
        "query_called",
        "log_turn_back_written",
        "log_turn_back_committed",
        "saga_taken_written",
        "saga_taken_committed",
        "message_taken_written",
        "message_taken_committed",
        "product_compensation_written",
        "product_compensation_committed",
        "holds_confirm_written",
        "holds_confirm_committed",
        "order_action_written",
        "order_action_committed",
        "order_compensation_written",
        "order_compensation_committed",
        "product_xa_prepared",
        "product_xa_committed",
        "product_xa_rolled_back",
        "order_xa_prepared",
        "order_xa_committed",
        "order_xa_rolled_back",
    )
}
"""Points that no row of the table crashes yet: those of sagas, messages and XA, which its scenes do not play."""


@pytest.fixture
def reached() -> Iterator[list[CrashPoint]]:
    points: list[CrashPoint] = []
    arm(points.append)
    yield points
    arm(None)


def test_nothing_happens_at_a_point_that_nobody_armed() -> None:
    """An unarmed point returns and does nothing."""
    for point in CrashPoint:
        reach(point)


def test_an_armed_point_is_told(reached: list[CrashPoint]) -> None:
    """What a test armed hears of every point that is reached, in order."""
    reach(CrashPoint.ADMITTED)
    reach(CrashPoint.PUBLISHED)
    assert reached == [CrashPoint.ADMITTED, CrashPoint.PUBLISHED]


def test_what_ships_takes_only_what_marks_a_point() -> None:
    """No module but a test's can arm a point: the shipped ones import `reach` and the names, and nothing else of it."""
    taken: Counter[str] = Counter()
    for file in SHIPPED:
        text = file.read_text()
        if "crashpoints" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "seckill.crashpoints":
                taken.update(alias.name for alias in node.names)
                text = text.replace(ast.get_source_segment(text, node) or "", "")
        assert "crashpoints" not in text, f"{file} names the module otherwise than in an import of its names"
    assert taken.keys() == {"CrashPoint", "reach"}


def test_the_room_looks_at_nothing_outside() -> None:
    """Neither environment nor files nor settings: the module imports nothing with which it could read them."""
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(ROOM.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"__future__", "collections.abc", "enum"}


def test_every_point_is_in_the_code_and_in_the_table() -> None:
    """A point that nothing reaches, or that no row of the table crashes, is a promise that nobody keeps."""
    code = "".join(file.read_text() for file in SHIPPED)
    marked = {point for point in CrashPoint if f"CrashPoint.{point.name}" in code}
    crashed = {row.point for row in ROWS}
    assert marked == set(CrashPoint), sorted(set(CrashPoint) - marked)
    assert crashed | TO_COME == set(CrashPoint), sorted(set(CrashPoint) - crashed - TO_COME)
    assert not crashed & TO_COME, sorted(crashed & TO_COME)


def test_rows_are_told_apart() -> None:
    """Each row of the table has a name of its own."""
    assert len({row.name for row in ROWS}) == len(ROWS)
