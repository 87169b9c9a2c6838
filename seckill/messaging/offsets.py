"""Which offsets may be committed: pure bookkeeping, no I/O.

Records of a partition finish out of order; only the unbroken run of finished ones from the front may be committed, as
the offset after the last of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class PartitionProgress:
    """Records taken from one partition, in order, and which of them have been routed."""

    taken: deque[int] = field(default_factory=deque)
    finished: set[int] = field(default_factory=set)
    position: int | None = None  # the offset to commit: one past the last of the unbroken run
    committed: int | None = None

    def take(self, offset: int) -> None:
        """A record was fetched. Offsets come in ascending order; compaction and aborts may leave gaps."""
        if self.taken and offset <= self.taken[-1]:
            raise ValueError(f"offset {offset} after {self.taken[-1]}")
        self.taken.append(offset)

    def finish(self, offset: int) -> None:
        """The record was routed: settled, parked in the ledger, or dead-lettered."""
        self.finished.add(offset)
        while self.taken and self.taken[0] in self.finished:
            self.finished.discard(self.taken[0])
            self.position = self.taken.popleft() + 1

    @property
    def uncommitted(self) -> int | None:
        """The offset to commit, or None when nothing has moved since the last commit."""
        return self.position if self.position != self.committed else None

    @property
    def inflight(self) -> int:
        return len(self.taken)
