"""The table of crash points: which role is to reach which point, and what has to go on for it to get there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from seckill.admission import Wanted
from seckill.crashpoints import CrashPoint
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Admitted
from tests.support.crash_site import Crash, Goods, Site
from tests.support.crashing_role import Deed
from tests.support.restless_buyers import Crowd
from tests.support.verdicts import rest

RUSH = 24
"""Orders at once; they come again until the point has been reached."""
SOME, FEW = 12, 6
"""Orders that come once."""
AGAIN_EVERY_S = 0.3
LOSE_AGAIN_S = 8
SET_ASIDE_S = 15
HANDLED_S = 60

FAULTS = 10_000
"""As good as for ever: the scene takes the fault back."""

UNITS = {"scarce": (8, 2), "plenty": (2_000, 100)}
"""Stock and limit."""


@dataclass(slots=True)
class Play:
    """What a scene has to play with; `over` is set when the point was reached."""

    site: Site
    goods: Goods
    crowd: Crowd
    over: asyncio.Event


class Letters(StrEnum):
    """What becomes of orders that a scene has set aside; the value is how they end."""

    NONE = "none are"
    LEFT = "not at all"
    REPLAYED = "confirmed"
    DISCARDED = "rejected"


@dataclass(frozen=True, slots=True)
class Scene:
    """What goes on: what buyers and others do, and what else crashes meanwhile so that the point is reached at all."""

    name: str
    act: Callable[[Play], Coroutine[Any, Any, None]]
    also: tuple[Crash, ...] = ()
    letters: Letters = Letters.NONE


@dataclass(frozen=True, slots=True)
class Row:
    role: str
    point: CrashPoint
    scene: Scene

    @property
    def name(self) -> str:
        return f"{self.role}-{self.point.value}-{self.scene.name}"


# --- acts ------------------------------------------------------------------------------------------------------------


async def _until_over(play: Play, act: Callable[[], Awaitable[None]]) -> None:
    await act()
    while not play.over.is_set():
        await asyncio.sleep(AGAIN_EVERY_S)
        await act()


async def rush(play: Play) -> None:
    """Buyers of all kinds, more than the scarce product has units."""
    await _until_over(play, lambda: play.crowd.rush(RUSH))


async def rush_to_the_front(play: Play) -> None:
    """Orders of which the ledger has an entry, each of them."""
    await _until_over(play, lambda: play.crowd.rush_to_the_front(RUSH))


async def rush_past_the_front(play: Play) -> None:
    """Records that no admission has seen: those that come too late for a unit are rejected in the database."""
    await _until_over(play, lambda: play.crowd.rush_past_the_front(RUSH))


async def never_published(play: Play) -> None:
    """Orders that a front has admitted and not published."""

    async def once() -> None:
        for user_id in range(1, 9):
            answer = await play.site.stores.admission.gate.admit(Wanted(play.goods.plenty, user_id, 1))
            assert isinstance(answer, Admitted), answer
            play.crowd.unsure[answer.order_id] = None

    await _until_over(play, once)


async def impostors(play: Play) -> None:
    """Records with the id of an accepted order, and other contents."""

    async def once() -> None:
        await play.crowd.rush(RUSH)
        for order_id in [each for each in play.crowd.accepted if each.startswith(f"{play.goods.plenty}-")][-4:]:
            sale_id = play.goods.sale_ids[play.goods.plenty]
            order = Order(OrderId(order_id), sale_id, 77, play.goods.plenty, 3, 1, None)
            await play.site.publisher.publish(order)

    await _until_over(play, once)


async def hopeless(play: Play) -> None:
    """Records that no admission has seen, while the sale is paused: at last they are set aside."""
    sale_id = play.goods.sale_ids[play.goods.plenty]
    await play.site.front.set_sale_state(sale_id, "pause")
    crowd = replace(play.crowd, products=[play.goods.plenty])
    await crowd.rush_past_the_front(RUSH)
    await play.over.wait()
    await play.site.front.set_sale_state(sale_id, "resume")


async def busy_order_database(play: Play) -> None:
    """The order service answers its probe and can try nothing: orders that a front has accepted are put off."""
    await play.site.arm([Crash("order", CrashPoint.ORDER_TRY_WRITTEN, Deed.BUSY, times=FAULTS)])
    await replace(play.crowd, products=[play.goods.plenty]).rush(SOME)
    await play.over.wait()
    await play.site.disarm("order")


def _handled(deed: Literal["replay", "discard"]) -> Callable[[Play], Coroutine[Any, Any, None]]:
    """A defect of the order service has orders set aside. When it is mended, an operator handles them all."""

    async def act(play: Play) -> None:
        site, product_id = play.site, play.goods.plenty
        await site.arm([Crash("order", CrashPoint.ORDER_TRY_WRITTEN, Deed.REFUSE, times=FAULTS)])
        await replace(play.crowd, products=[product_id]).rush(FEW)
        assert not await rest(site.stores, [product_id], timeout_s=SET_ASIDE_S)
        await site.disarm("order")
        parked = (await site.stores.admission.ledger.stats(product_id)).parked
        assert parked
        async with asyncio.timeout(HANDLED_S):
            await site.letters.until_indexed(product_id, parked)
            async with asyncio.TaskGroup() as group:
                group.create_task(site.letters.until_all(deed, product_id))
                await play.over.wait()
                await site.command("dlq", "resume")  # while the role is down, or hangs: it would do so itself later

    return act


async def lose_redis(play: Play) -> None:
    """Redis loses everything, again when it was not the armed reconcile that made it anew."""
    await play.crowd.rush(RUSH)
    while not play.over.is_set():
        play.site.empty_redis()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOSE_AGAIN_S):
                await play.over.wait()


def _forgotten(name: str, when: Crash) -> Scene:
    """As soon as that has happened, the coordinator's log loses what is not finished."""

    async def act(play: Play) -> None:
        before = len(play.site.deeds(when.role))
        rushing = asyncio.create_task(rush(play))
        await play.site.until_deed(when, told_before=before, within_s=20)
        await play.site.forget_transactions()
        await rushing

    return Scene(name, act, also=(when,))


# --- scenes ----------------------------------------------------------------------------------------------------------

SALE = Scene("sale", rush)
PAST_THE_FRONT = Scene("past_the_front", rush_past_the_front)
NEVER_PUBLISHED = Scene("never_published", never_published)
IMPOSTORS = Scene("impostors", impostors, letters=Letters.LEFT)
HOPELESS = Scene("hopeless", hopeless, letters=Letters.LEFT)
BUSY = Scene("busy_order_database", busy_order_database)
REPLAYED = Scene("replayed", _handled("replay"), letters=Letters.REPLAYED)
DISCARDED = Scene("discarded", _handled("discard"), letters=Letters.DISCARDED)
REDIS_LOST = Scene("redis_lost", lose_redis)

SLOW_TRY = Scene("slow_try", rush, also=(Crash("order", CrashPoint.ORDER_TRY_COMMITTED, Deed.HANG, hang_s=1.5),))
"""The order service answers a Try too late: what was tried is cancelled."""

SLOW_CONFIRM = Scene(
    "slow_confirm", rush, also=(Crash("order", CrashPoint.ORDER_CONFIRM_WRITTEN, Deed.HANG, hang_s=2.5),)
)
"""It confirms too late: units stay frozen for a while, and the coordinator has to call again."""

SLOWER_CONFIRM = Scene(
    "slower_confirm", rush, also=(Crash("order", CrashPoint.ORDER_CONFIRM_WRITTEN, Deed.HANG, hang_s=4.0),)
)
"""For so long that reconcile asks the coordinator about it."""

SLOW_WORKER = Scene(
    "slow_worker", rush_to_the_front, also=(Crash("worker", CrashPoint.SETTLING, Deed.HANG, hang_s=3.5),)
)
"""A worker does not come to tell how orders ended: reconcile does, of those that the ledger has."""

LOST_BEFORE_SUBMIT = _forgotten("lost_before_submit", Crash("worker", CrashPoint.ORDER_TRIED, Deed.KILL))
"""Orders are held by a transaction that nobody submits and that its coordinator has lost: to be cancelled."""

LOST_IN_CONFIRM = _forgotten("lost_in_confirm", Crash("coordinator", CrashPoint.LOG_BRANCH_DONE_COMMITTED, Deed.KILL))
"""The order is confirmed and its units are not sold when the coordinator loses the transaction: to be confirmed."""


# --- the table -------------------------------------------------------------------------------------------------------


def _rows(role: str, scene: Scene, *points: CrashPoint) -> list[Row]:
    return [Row(role, point, scene) for point in points]


P = CrashPoint
ROWS: tuple[Row, ...] = (
    *_rows("front", SALE, P.ADMITTING, P.ADMITTED, P.PUBLISHED),
    *_rows("worker", PAST_THE_FRONT, P.ADMITTING, P.ADMITTED),
    *_rows("worker", SALE, P.PREPARING, P.PREPARED, P.PRODUCT_REGISTERED, P.PRODUCT_TRIED),
    *_rows("worker", SALE, P.ORDER_REGISTERED, P.ORDER_TRIED, P.SUBMITTED),
    *_rows("worker", SLOW_TRY, P.ABORTING, P.ABORTED),
    *_rows("worker", SALE, P.SETTLING, P.SETTLED),
    *_rows("worker", SLOW_CONFIRM, P.POSTPONING, P.POSTPONED),
    *_rows("worker", IMPOSTORS, P.BURYING, P.BURIED),
    *_rows("worker", HOPELESS, P.PARKING, P.PARKED),
    *_rows("worker", SALE, P.OFFSETS_COMMITTING, P.OFFSETS_COMMITTED),
    *_rows("product", SALE, P.PRODUCT_TRY_WRITTEN, P.PRODUCT_TRY_COMMITTED),
    *_rows("product", SALE, P.PRODUCT_CONFIRM_WRITTEN, P.PRODUCT_CONFIRM_COMMITTED),
    *_rows("product", SLOW_TRY, P.PRODUCT_CANCEL_WRITTEN, P.PRODUCT_CANCEL_COMMITTED),
    *_rows("product", PAST_THE_FRONT, P.PRODUCT_REJECT_WRITTEN, P.PRODUCT_REJECT_COMMITTED),
    *_rows("order", SALE, P.ORDER_TRY_WRITTEN, P.ORDER_TRY_COMMITTED),
    *_rows("order", SALE, P.ORDER_CONFIRM_WRITTEN, P.ORDER_CONFIRM_COMMITTED),
    *_rows("order", SLOW_TRY, P.ORDER_CANCEL_WRITTEN, P.ORDER_CANCEL_COMMITTED),
    *_rows("coordinator", SALE, P.LOG_INSERT_WRITTEN, P.LOG_INSERT_COMMITTED),
    *_rows("coordinator", SALE, P.LOG_REGISTER_WRITTEN, P.LOG_REGISTER_COMMITTED),
    *_rows("coordinator", SALE, P.LOG_DECIDE_WRITTEN, P.LOG_DECIDE_COMMITTED),
    *_rows("coordinator", SALE, P.CONFIRM_CALLING, P.CONFIRM_CALLED),
    *_rows("coordinator", SALE, P.LOG_BRANCH_DONE_WRITTEN, P.LOG_BRANCH_DONE_COMMITTED),
    *_rows("coordinator", SALE, P.LOG_FINISH_WRITTEN, P.LOG_FINISH_COMMITTED),
    *_rows("coordinator", SLOW_TRY, P.CANCEL_CALLING, P.CANCEL_CALLED),
    *_rows("coordinator", SLOW_CONFIRM, P.LOG_POSTPONE_WRITTEN, P.LOG_POSTPONE_COMMITTED),
    *_rows("coordinator", SLOW_CONFIRM, P.LOG_CLAIM_WRITTEN, P.LOG_CLAIM_COMMITTED),
    *_rows("coordinator", SLOWER_CONFIRM, P.LOG_RESET_WRITTEN, P.LOG_RESET_COMMITTED),
    *_rows("reconcile", SLOW_WORKER, P.SETTLING, P.SETTLED),
    *_rows("reconcile", SLOW_CONFIRM, P.POSTPONING, P.POSTPONED),
    *_rows("reconcile", NEVER_PUBLISHED, P.CLAIMING, P.CLAIMED, P.PUBLISHED),
    *_rows("reconcile", LOST_BEFORE_SUBMIT, P.ORPHAN_FOUND, P.ORPHAN_ORDER_CANCELLED, P.ORPHAN_ENDED),
    *_rows("reconcile", LOST_IN_CONFIRM, P.ORPHAN_FOUND, P.ORPHAN_ENDED),
    *_rows("reconcile", REDIS_LOST, P.REBUILD_CLOSED, P.REBUILD_STAGED, P.REBUILD_INSTALLED),
    *_rows("worker", BUSY, P.PUTTING_OFF, P.PUT_OFF, P.RETRY_SENT),
    *_rows("dead_letters", REPLAYED, P.REPLAY_INTENDED, P.REPLAY_UNPARKED, P.REPLAY_PUBLISHED),
    *_rows("dead_letters", DISCARDED, P.DISCARD_INTENDED, P.DISCARD_REJECTED, P.DISCARD_SETTLED),
)
