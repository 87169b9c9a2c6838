"""One look at everything: all sources at once, each within its time; who does not answer is part of what is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from seckill.alerts.metrics import SILENT
from seckill.alerts.snapshot import Snapshot, Source
from seckill.domain.errors import SeckillError
from seckill.dtm.errors import DtmError

log = structlog.get_logger()

PROBLEM_MAX = 300


class Reader(Protocol):
    """Fills its own part of a snapshot, with what it found silent and could not read. Raises anything."""

    async def read(self, now_ms: int) -> Snapshot: ...


class Sources:
    """Opens nothing: the readers are its caller's."""

    def __init__(self, readers: Mapping[Source, Reader], *, within_s: float) -> None:
        self._readers = readers
        self._within_s = within_s
        self._silent: Mapping[str, str] = {}  # in the look before

    async def look(self, now_ms: int) -> Snapshot:
        """Never raises: a reader that does is told as silent, and nothing of its source as read."""
        parts = await asyncio.gather(*(self._part(source, now_ms) for source in self._readers))
        by_source = dict(zip(self._readers, parts, strict=True))
        missing = frozenset(Source) - by_source.keys()
        empty = Snapshot(now_ms)
        seen = Snapshot(
            now_ms,
            letters=by_source.get(Source.LETTERS, empty).letters,
            lag=by_source.get(Source.LAG, empty).lag,
            transactions=by_source.get(Source.TRANSACTIONS, empty).transactions,
            roles=by_source.get(Source.ROLES, empty).roles,
            audited=by_source.get(Source.AUDIT, empty).audited,
            silent={name: problem for part in parts for name, problem in part.silent.items()},
            unread=missing.union(*(part.unread for part in parts)),
            unasked=frozenset[Source]().union(*(part.unasked for part in parts)),
        )
        self._note(seen.silent)
        return seen

    def _note(self, silent: Mapping[str, str]) -> None:
        """Who has fallen silent, in the log, at once: people are told only of whom that lasts."""
        for name in silent.keys() - self._silent.keys():
            log.info("alert_source_silent", name=name, problem=silent[name])
        self._silent = silent
        SILENT.set(len(silent))

    async def _part(self, source: Source, now_ms: int) -> Snapshot:
        try:
            async with asyncio.timeout(self._within_s):
                return await self._readers[source].read(now_ms)
        except TimeoutError:
            problem = f"no answer within {self._within_s:g} s"
        except (SeckillError, DtmError) as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a client raises: the look goes on without this source
            problem = f"{type(error).__name__}: {error}"
        problem = problem.partition("\n")[0][:PROBLEM_MAX]
        return Snapshot(now_ms, silent={source.value: problem}, unread=frozenset({source}))
