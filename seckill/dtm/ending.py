"""How a server ends: who tells it, and how long its running calls have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)


class Ending(Protocol):
    """How the process of a server ends: one deadline, shared with everything else that it has to finish."""

    def when_begun(self, tell: Callable[[], None]) -> None:
        """`tell` is called when the process has begun to end, and the server still serves."""

    def work_left_s(self) -> float:
        """Time that running calls have."""

    def leave(self, what: str, count: int) -> None:
        """Notes what is cut off."""


@dataclass(frozen=True, slots=True)
class Grace:
    """The end of a server that stands alone: its running calls have these seconds, and what is cut off is logged."""

    seconds: float = 10.0

    def when_begun(self, tell: Callable[[], None]) -> None:
        """Nobody tells such a server beforehand."""

    def work_left_s(self) -> float:
        return self.seconds

    def leave(self, what: str, count: int) -> None:
        log.warning("cut_off", what=what, count=count)


ALONE = Grace()
