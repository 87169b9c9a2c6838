"""What the stores say of a run, for tests with processes: the one place from which they take the audit's parts."""

from __future__ import annotations

from seckill.audit.reading import read_facts
from seckill.audit.rules import Verdict, judge
from seckill.audit.stores import Stores, open_stores, rest
from seckill.dtm.client import DtmClient

__all__ = ["Stores", "Verdict", "judge", "open_gids", "open_stores", "read_facts", "rest"]


async def open_gids(dtm: DtmClient) -> list[str]:
    """The transactions that their coordinator has not finished."""
    return [each.gid for each in await dtm.list(limit=100_000) if each.status not in ("succeed", "failed")]
