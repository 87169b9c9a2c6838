"""What has been told, kept in the database of dead letters, so that who is started anew tells nothing twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping, String, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.alerts.engine import Standing
from seckill.alerts.findings import Finding, Rule
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import in_chunks
from seckill.messaging.letters import alert


@dataclass(frozen=True, slots=True)
class Remembered:
    """A finding that was told, and the targets (their `ident`) that have not taken the newest message about it."""

    standing: Standing
    undelivered: frozenset[str] = frozenset()


class AlertBook:
    """Methods raise what the database's driver raises."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def load(self, now_ms: int) -> dict[str, Remembered]:
        """By key. What stood when it was written counts as seen now: nothing was judged meanwhile.

        A rule that this program does not know is left out.
        """

        async def work(session: AsyncSession) -> Sequence[RowMapping]:
            return (await session.execute(select(alert))).mappings().all()

        rows = await in_transaction(self._sessions, work)
        return {row["alert_key"]: _remembered(row, now_ms) for row in rows if row["rule"] in set(Rule)}

    async def save(self, changed: Mapping[str, Remembered], gone: Collection[str] = ()) -> None:
        """In one transaction."""
        rows = [_row(key, each) for key, each in changed.items()]
        keys = sorted({*changed, *gone})

        async def work(session: AsyncSession) -> None:
            for chunk in in_chunks(keys):
                await session.execute(delete(alert).where(alert.c.alert_key.in_(chunk)))
            if rows:
                await session.execute(insert(alert), rows)

        await in_transaction(self._sessions, work)


def _row(key: str, remembered: Remembered) -> dict[str, Any]:
    standing, finding = remembered.standing, remembered.standing.finding
    return {
        "alert_key": key,
        "rule": finding.rule.value,
        "detail": _fitting("detail", finding.detail),
        "what": _fitting("what", finding.what),
        "quantity": finding.count,
        "example": _fitting("example", finding.example),
        "command": _fitting("command", finding.command),
        "lasts": int(finding.lasts),
        "since_ms": standing.since_ms,
        "told": standing.told,
        "told_ms": standing.told_ms,
        "resolved_ms": standing.resolved_ms,
        "returns": standing.returns,
        "pending": standing.pending,
        "undelivered": " ".join(sorted(remembered.undelivered)),
    }


def _fitting(column: str, text: str) -> str:
    kind = alert.c[column].type
    assert isinstance(kind, String)
    return text[: kind.length]


def _remembered(row: RowMapping, now_ms: int) -> Remembered:
    finding = Finding(
        Rule(row["rule"]),
        row["detail"],
        what=row["what"],
        count=row["quantity"],
        example=row["example"],
        command=row["command"],
        lasts=bool(row["lasts"]),
    )
    standing = Standing(
        finding,
        since_ms=row["since_ms"],
        found_ms=row["since_ms"],
        seen_ms=now_ms,
        told=row["told"],
        told_ms=row["told_ms"],
        resolved_ms=row["resolved_ms"],
        returns=row["returns"],
        pending=row["pending"],
    )
    return Remembered(standing, frozenset(row["undelivered"].split()))
