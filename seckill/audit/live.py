"""The audit of a running pipeline: what is wrong in two readings is wrong.

Nothing stands still between the stores, so that one reading may catch an order between two of them. What it suspects is
looked at again after a pause, by identity and facts: the same order, gid, buyer or sale, wrong in the same way. A
counter that only moved is not wrong; a breach stays.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from seckill.audit.reading import Scope, read
from seckill.audit.rules import Kind, Verdict, judge
from seckill.audit.stores import Stores


async def audit(stores: Stores, scope: Scope, *, pause_s: float, slow_after_ms: int) -> Verdict:
    """One reading, and a second one if the first finds anything; at rest one is enough.

    Raises AdmissionUnavailable, DatabaseUnavailable, PublishUnknown.
    """
    first = judge(await read(stores, scope), slow_after_ms=slow_after_ms)
    if scope.at_rest or first.holds:
        return first
    await asyncio.sleep(pause_s)
    suspected = (breach for found in first.breaches.values() for breach in found if breach.kind is Kind.ORDER)
    again = replace(scope, results=None, again=frozenset(breach.ident for breach in suspected))
    second = judge(await read(stores, again), slow_after_ms=slow_after_ms)
    return in_both(first, second)


def in_both(first: Verdict, second: Verdict) -> Verdict:
    """The second verdict, without what the first one has not found. Pure."""
    breaches = {}
    for invariant, found in second.breaches.items():
        before = {breach.same for breach in first.breaches[invariant]}
        breaches[invariant] = tuple(breach for breach in found if breach.same in before)
    return replace(
        second,
        breaches=breaches,
        lost=tuple(sorted({*first.lost} & {*second.lost})),
        oversold=min(first.oversold, second.oversold),
        duplicates=min(first.duplicates, second.duplicates),
        unseen=min(first.unseen, second.unseen),
    )
