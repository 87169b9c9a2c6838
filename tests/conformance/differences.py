"""Everything in which coordinators, and clients, may differ. What is not in these tables must be equal.

The reference is DTM 1.19.0 on its SQL store, driven by DTM's own client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OURS = ("sqlite", "mariadb")
"""Our coordinator, by the database of its log."""

DTM = ("dtm-sql", "dtm-redis")
"""DTM 1.19.0, by its store."""

KINDS = (*OURS, *DTM)
REFERENCE = "dtm-sql"

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
    listed: str = ""


COORDINATORS: Mapping[str, Difference] = {
    "submit of an unknown gid": Difference(
        why="DTM makes an empty transaction of a gid that nobody prepared, and calls that a success",
        kinds=OURS,
        answers=[("Submit", "Aborted", "no trans with gid: {gid} found, cannot submit. FAILURE")],
        listed="`Submit` of an unknown TCC gid is refused (`ABORTED`)",
    ),
    "second submit while the first is confirming": Difference(
        why="DTM marks the transaction as succeeded, and never repeats the Confirm that has failed",
        kinds=OURS,
        calls=[("01", "confirm"), ("01", "confirm")],
        listed="a second `Submit` changes nothing",
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

UNSERVED_TYPE = {"sqlite": "INVALID_ARGUMENT", "mariadb": "INVALID_ARGUMENT", "dtm-sql": "INTERNAL"}
"""What Prepare of a type that nobody knows answers: DTM breaks on it. (DTM's own client cannot ask for one.)"""

REGISTERED_TWICE = {
    "sqlite": "storage: UniqueKeyConflict",
    "mariadb": "storage: UniqueKeyConflict",
    "dtm-sql": "Error 1062 (23000): Duplicate entry '{gid}-01-cancel' for key 'one_row_an_operation'",
}
"""The message of "register twice" above, by kind; the key's name is that of config/mariadb/dtm.sql."""


def without_client_differences(message: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields, without those in which DTM's client and ours may differ.

    Steps: DTM's client sends its saga's steps, `null`, with every kind of transaction; a coordinator reads them for
    sagas only. RollbackReason: the words of the error that made the application abort.
    """
    return {name: value for name, value in message.items() if name not in {"Steps", "RollbackReason"}}
