"""Calls that a coordinator makes at once come in any order: they are recorded in one order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from tests.conformance.records import Record

Group = frozenset[tuple[str, str]]


def _of(op: str, *branch_ids: str) -> Group:
    return frozenset((branch_id, op) for branch_id in branch_ids)


AT_ONCE: Mapping[str, tuple[Group, ...]] = {
    "saga: concurrent": (_of("action", "01", "02", "03"),),
    "saga: concurrent, second action refused": (
        _of("action", "01", "02", "03"),
        _of("compensate", "01", "02", "03"),
    ),
    "saga: concurrent, refused while another action runs": (
        _of("action", "01", "02"),
        _of("compensate", "01", "02"),
    ),
    "saga: concurrent, an action fails once": (_of("action", "01", "02", "03"),),
    "saga: concurrent with orders": (_of("action", "01", "02"),),
    "saga: concurrent with orders, last action refused": (
        _of("action", "01", "02"),
        _of("compensate", "02", "03"),
    ),
    "saga: concurrent with orders, refused in the middle": (
        _of("action", "01", "02"),
        _of("compensate", "01", "02"),
    ),
}
"""By scenario, the calls that are made at once. All others are made one after the other."""


def in_one_order(scenario: str, calls: list[Record]) -> list[Record]:
    """The calls, with each run of calls that were made at once in the order of their branches."""
    groups = AT_ONCE.get(scenario, ())

    def group_of(call: Record) -> int:
        what = (call["branch"], call["op"])
        return next((number for number, group in enumerate(groups) if what in group), -1)

    ordered: list[Record] = []
    for number, run in itertools.groupby(calls, group_of):
        together = list(run)
        ordered += together if number < 0 else sorted(together, key=lambda call: str(call["branch"]))
    return ordered
