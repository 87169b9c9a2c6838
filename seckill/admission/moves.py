"""What becomes of ledger entries while their orders wait: looked at later, put off, parked. No entry is made or ended.

Also how orders are cut into script calls, which all of the ledger shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from seckill.admission.keys import sale_keys
from seckill.admission.link import RedisLink, load_script
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.order import Order

T = TypeVar("T")

CALL_ORDERS_MAX = 500
"""Orders in one script call: what a script can unpack, and what Redis may be busy with in one piece."""

PUT_OFF_MARGIN_MS = 5_000
"""How long after a record has become due in its retry topic its entry is looked at: it should be carried by then."""


class EntryMoves:
    """All methods raise AdmissionUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def postpone(self, orders: Sequence[Order], *, delay_ms: int) -> None:
        """Moves `due` to `delay_ms` from now; pending entries only."""
        script = load_script("postpone")
        commands = [
            script.call([sale_keys(product_id, sale_id).due], [delay_ms, *(order.order_id for order in part)])
            for product_id, sale_id, part in by_sale(orders, lambda order: order)
        ]
        if commands:
            reach(CrashPoint.POSTPONING)
            await self._link.run(commands)
            reach(CrashPoint.POSTPONED)

    async def put_off(self, orders: Sequence[Order], *, delay_ms: int) -> None:
        """The records of these orders are written anew after this, to wait for `delay_ms`; pending entries only.

        `published_at` moves with `due`: an entry counts as lost once it was published before everything that is not
        committed yet, and what is written after this is not older.
        """
        script, commands = load_script("put_off"), []
        for product_id, sale_id, part in by_sale(orders, lambda order: order):
            keys = sale_keys(product_id, sale_id)
            ids = [order.order_id for order in part]
            commands.append(script.call([keys.ledger, keys.due], [delay_ms + PUT_OFF_MARGIN_MS, *ids]))
        if commands:
            reach(CrashPoint.PUTTING_OFF)
            await self._link.run(commands)
            reach(CrashPoint.PUT_OFF)

    async def park(self, orders: Sequence[Order]) -> None:
        """Sets the entries aside (their records are dead letters); existing entries only."""
        script, commands = load_script("park"), []
        for product_id, sale_id, part in by_sale(orders, lambda order: order):
            keys = sale_keys(product_id, sale_id)
            names = [keys.ledger, keys.due, keys.ages, keys.parked]
            commands.append(script.call(names, [order.order_id for order in part]))
        if commands:
            reach(CrashPoint.PARKING)
            await self._link.run(commands)
            reach(CrashPoint.PARKED)


def parts(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """As many as one script call takes."""
    return (items[at : at + CALL_ORDERS_MAX] for at in range(0, len(items), CALL_ORDERS_MAX))


def by_sale(items: Iterable[T], order_of: Callable[[T], Order]) -> list[tuple[int, int, Sequence[T]]]:
    """Product id, sale id and items, one group per script call; every group of one sale, in the order given."""
    groups: dict[tuple[int, int], list[T]] = {}
    for item in items:
        order = order_of(item)
        groups.setdefault((order.product_id, order.sale_id), []).append(item)
    return [(product_id, sale_id, part) for (product_id, sale_id), group in groups.items() for part in parts(group)]
