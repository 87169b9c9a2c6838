"""What one client saw of one coordinator, and what it sent: a record for each scenario, as a line of JSON.

`{gid}`, `{dtm}` and `{branches}` stand for what differs from run to run. Times are kept beside, and compared apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seckill.dtm import GlobalTransaction

Record = dict[str, Any]
Records = Mapping[str, Record]

RECORDING = Path(__file__).parent / "dtm-1.19.0.jsonl"
"""What DTM's own client and a DTM 1.19.0 server on its SQL store did.

`python -m tests.conformance GRPC HTTP` makes it anew, with the addresses of such a server.
"""

TIMES = ("after_ms", "gaps_ms")


def read_records(path: Path) -> dict[str, Record]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["scenario"]: line for line in lines}


def write_records(path: Path, records: Iterable[Record]) -> None:
    lines = (json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def named(value: Any, gid: str, branches: str) -> Any:
    """The same with the transaction's own gid and the branches' service replaced by their names.

    gRPC has two ways to say that a call's time is over: the callee's, and the caller's own. Either may come first.
    """
    match value:
        case str():
            value = re.sub(rf"{re.escape(branches)}(/[\w.]+)?", "{branches}", value).replace(gid, "{gid}")
            return value.replace("desc = Deadline Exceeded", "desc = context deadline exceeded")
        case Mapping():
            return {key: named(each, gid, branches) for key, each in value.items()}
        case list():
            return [named(each, gid, branches) for each in value]
        case _:
            return value


def end_of(transaction: GlobalTransaction | None, requests: Iterable[Mapping[str, Any]]) -> Record | None:
    """What a coordinator says of a transaction in the end; `{reason}` stands for the client's words in its Abort."""
    if transaction is None:
        return None
    told = {each["message"].get("RollbackReason") for each in requests}
    return {
        "status": transaction.status,
        "rollback_reason": "{reason}" if transaction.rollback_reason in told else transaction.rollback_reason,
        "branches": [[each.branch_id, each.op, each.status, each.url] for each in transaction.branches],
    }


def answers_of(record: Record) -> list[tuple[str, str, str]]:
    return [(each["request"], each["code"], each["message"]) for each in record["answers"]]


def calls_of(record: Record) -> list[tuple[str, str]]:
    return [(each["branch"], each["op"]) for each in record["calls"]]
