"""Everything in which coordinators, and clients, may differ. What is not in these tables must be equal.

The reference is DTM 1.19.0 on its SQL store, driven by DTM's own client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.conformance.records import Record

OURS = ("sqlite", "mariadb")
"""Our coordinator, by the database of its log."""

DTM = ("dtm-sql", "dtm-redis")
"""DTM 1.19.0, by its store."""

KINDS = (*OURS, *DTM)
REFERENCE = "dtm-sql"

UNKNOWN: Final = "unknown"
"""What a coordinator ends with that has no such transaction."""

Answers = list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Difference:
    """What some coordinators do in a scenario otherwise than the reference. None: the same as the reference.

    `listed` are the words of ARCHITECTURE.md for a difference that is wanted; empty: it is no decision of ours.
    """

    why: str
    kinds: tuple[str, ...]
    answers: Answers | None = None  # request, code, message
    calls: list[tuple[str, str]] | None = None  # branch, op
    end: Record | Literal["unknown"] | None = None
    listed: str = ""


def _ended(*branches: Mapping[str, str], status: str = "succeed", reason: str = "", method: str = "") -> Record:
    """An end with the state of each branch's operations, in order."""
    states = [
        [f"{number:02d}", op, state, f"{{branches}}/{method or op.title()}"]
        for number, operations in enumerate(branches, start=1)
        for op, state in operations.items()
    ]
    return {"status": status, "rollback_reason": reason, "branches": states}


RETRIED = (
    "your http/grpc result should be specified as in:\nhttp://d.dtm.pub/practice/arch.html#proto\n"
    "unkown result will be retried: rpc error: code = Internal desc = broken"
)

_UNKNOWN_REFUSED = Difference(
    why="DTM makes an empty transaction of a gid that nobody prepared, and calls that a success",
    kinds=OURS,
    answers=[("Submit", "Aborted", "no trans with gid: {gid} found, cannot submit. FAILURE")],
    end=UNKNOWN,
    listed="`Submit` of an unknown TCC or XA gid is refused (`ABORTED`)",
)
_FORGETS = "DTM marks the transaction as succeeded, and never repeats the call that has failed"
_ANEW = "DTM calls all actions again, also those that have succeeded"
_SECOND_SUBMIT = "a second `Submit` changes nothing"

COORDINATORS: Mapping[str, Difference] = {
    "submit of an unknown gid": _UNKNOWN_REFUSED,
    "second submit while the first is confirming": Difference(
        why=_FORGETS,
        kinds=OURS,
        calls=[("01", "confirm"), ("01", "confirm")],
        end=_ended({"cancel": "prepared", "confirm": "succeed"}),
        listed=_SECOND_SUBMIT,
    ),
    "saga: time is up while an action runs": Difference(
        why="DTM compensates the action after it as well: it might have called that, but for the time",
        kinds=OURS,
        calls=[("01", "action"), ("01", "compensate")],
        end=_ended(
            {"compensate": "succeed", "action": "succeed"},
            *[{"compensate": "prepared", "action": "prepared"}] * 2,
            status="failed",
            reason="Timeout after 1 seconds",
        ),
        listed="an action that was surely never called is not compensated",
    ),
    "saga: second submit while an action is repeated": Difference(
        why=_ANEW,
        kinds=OURS,
        answers=[
            ("Submit", "Aborted", "wait result not return success: FAILURE"),
            ("Submit", "FailedPrecondition", "ONGOING"),
        ],
        calls=[("01", "action"), ("02", "action"), ("02", "action")],
        listed=_SECOND_SUBMIT,
    ),
    "msg: second submit while an action is repeated": Difference(
        why=_ANEW,
        kinds=OURS,
        answers=[("Submit", "Internal", RETRIED), ("Submit", "FailedPrecondition", "ONGOING")],
        calls=[("01", "action"), ("02", "action"), ("02", "action")],
        listed=_SECOND_SUBMIT,
    ),
    "xa: submit of an unknown gid": _UNKNOWN_REFUSED,
    "xa: second submit while the first is committing": Difference(
        why=_FORGETS,
        kinds=OURS,
        calls=[("01", "commit"), ("01", "commit")],
        end=_ended({"rollback": "prepared", "commit": "succeed"}, method="Xa"),
        listed=_SECOND_SUBMIT,
    ),
    "register twice": Difference(
        why="DTM's SQL store lets the database's own words through; its other stores, and ours, say this",
        kinds=(*OURS, "dtm-redis"),
        answers=[
            ("Prepare", "OK", ""),
            ("RegisterBranch", "OK", ""),
            ("RegisterBranch", "Unknown", "storage: UniqueKeyConflict"),
            ("Submit", "OK", ""),
        ],
    ),
}


def difference_of(scenario: str, kind: str) -> Difference | None:
    """What that kind of coordinator does otherwise than the reference, if anything."""
    difference = COORDINATORS.get(scenario)
    return difference if difference is not None and kind in difference.kinds else None


UNSERVED_TYPE = {"sqlite": "INVALID_ARGUMENT", "mariadb": "INVALID_ARGUMENT", "dtm-sql": "INTERNAL"}
"""What Prepare of a type that nobody knows answers: DTM breaks on it. (DTM's own client cannot ask for one.)"""

REGISTERED_TWICE = {
    "sqlite": "storage: UniqueKeyConflict",
    "mariadb": "storage: UniqueKeyConflict",
    "dtm-sql": "Error 1062 (23000): Duplicate entry '{gid}-01-cancel' for key 'one_row_an_operation'",
}
"""The message of "register twice" above, by kind; the key's name is that of config/mariadb/dtm.sql."""


UNREAD = {
    "Prepare": {"CustomedData"},  # DTM's client sends a message's delay with its Submit only, ours with both
    "Abort": {"RollbackReason", "Steps", "BinPayloads", "QueryPrepared"},  # DTM's client sends all that it has
}
"""By request, fields that only one client sends, and that no coordinator needs. RollbackReason: each has its words."""


def without_client_differences(method: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields, without those in which DTM's client and ours may differ, and with JSON read.

    DTM's client sends the steps `null` with transactions that have none.
    """
    left_out = UNREAD.get(method.rpartition("/")[2], set())
    fields = {name: value for name, value in message.items() if name not in left_out}
    read = {name: json.loads(fields.pop(name)) for name in ("Steps", "CustomedData") if name in fields}
    return fields | {name: value for name, value in read.items() if value is not None}


def without_client_reason(end: Record | None) -> Record | None:
    """How a transaction ended, whether or not the client said why it aborted: DTM's own says it for TCC only."""
    if end is None or end["rollback_reason"] != "{reason}":
        return end
    return end | {"rollback_reason": ""}
