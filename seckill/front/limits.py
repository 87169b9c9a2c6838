"""Rate limits of the front: a buyer's, and everybody's together. In memory, for this process alone, without I/O.

Requests are counted before anything else is done for them, repeats with an idempotency key as well. A front that is
one of four lets through four times as much.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from seckill.domain.reasons import Refusal

USERS_MAX = 100_000
"""Buyers that are remembered; beyond them, whoever was longest silent starts anew."""

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` requests a second in the long run, `burst` of them at once.

    The generic cell rate algorithm in its form of virtual scheduling (ITU-T I.371, annex A): of all that was let
    through, nothing is kept but the theoretical arrival time (TAT) of the next request. One that comes at t conforms
    unless TAT > t + tolerance, where tolerance = (burst - 1) / per_s; then TAT = max(TAT, t) + 1 / per_s.
    """

    per_s: int
    burst: int

    @property
    def interval_ns(self) -> int:
        return NS_PER_S // self.per_s

    def conforms(self, tat_ns: int, now_ns: int) -> bool:
        return tat_ns <= now_ns + (self.burst - 1) * self.interval_ns

    def after(self, tat_ns: int, now_ns: int) -> int:
        """The TAT after a request that conforms."""
        return max(tat_ns, now_ns) + self.interval_ns


class RateLimits:
    """`per_user` and `together`: None is no limit. Times are of a monotonic clock.

    One that was refused is let through a second later at the latest, if no other comes before it.
    """

    def __init__(self, per_user: Rate | None, together: Rate | None) -> None:
        self._per_user = per_user
        self._together = together
        self._together_tat_ns = 0
        self._tats_ns: OrderedDict[int, int] = OrderedDict()  # by buyer, the longest silent first

    def take(self, user_id: int, now_ns: int) -> Refusal | None:
        """Counts one request, unless it is one too many: what is refused takes nothing from either limit."""
        tat_ns = self._tats_ns.get(user_id, 0)
        if self._per_user is not None and not self._per_user.conforms(tat_ns, now_ns):
            return Refusal.RATE_LIMITED
        if self._together is not None:
            if not self._together.conforms(self._together_tat_ns, now_ns):
                return Refusal.OVERLOADED
            self._together_tat_ns = self._together.after(self._together_tat_ns, now_ns)
        if self._per_user is not None:
            self._remember(user_id, self._per_user.after(tat_ns, now_ns), now_ns)
        return None

    def __len__(self) -> int:
        """Buyers that are remembered."""
        return len(self._tats_ns)

    def _remember(self, user_id: int, tat_ns: int, now_ns: int) -> None:
        """One in, and up to two out whose time is over: they are as good as unknown."""
        self._tats_ns[user_id] = tat_ns
        self._tats_ns.move_to_end(user_id)
        for _ in range(2):
            oldest = next(iter(self._tats_ns))
            if self._tats_ns[oldest] > now_ns and len(self._tats_ns) <= USERS_MAX:
                return
            del self._tats_ns[oldest]
