"""At every crash point a role is killed, hangs or loses its connections; the stores then show what was promised.

Real servers, our coordinator on MariaDB. A role is killed at every point; at one of six points it hangs as well, and
at another one of six its connections are cut. `--all-crash-points` does every deed at every point; `--crash-table
FILE` writes down how long each took to heal, which `-s` shows as it happens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from seckill.domain.errors import InvalidOrder
from seckill.messaging.envelope import decode
from seckill.messaging.reading import read_topic
from tests.support.crash_rows import ROWS, UNITS, Letters, Play, Row
from tests.support.crash_site import HANG_S, HANG_S_DEFAULT, Crash, Site, Sites
from tests.support.crashing_role import DISASTERS, Deed
from tests.support.failures import FAILED
from tests.support.sides import real_side
from tests.support.verdicts import judge, read_facts

REACH_S = 25
HEAL_S = 60
SEED = 5
LATER_ORDERS = 6
"""That come when it has happened."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@dataclass(frozen=True, slots=True)
class Healed:
    """One line of the table. `healed_s` is from the deed until everything is at rest, with the time of the hanging."""

    row: str
    deed: Deed
    reached_s: float  # from the first order to the deed
    healed_s: float
    orders: int
    confirmed: int

    def __str__(self) -> str:
        times = f"reached after {self.reached_s:5.2f} s, healed after {self.healed_s:5.2f} s"
        return f"{self.row:<38} {self.deed:<5} {times}  {self.orders:3} orders, {self.confirmed:3} confirmed"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every point with the deeds that it is tried with."""
    cases = [
        pytest.param(row, deed, id=f"{row.name}-{deed}")
        for number, row in enumerate(ROWS)
        for deed in (DISASTERS if metafunc.config.getoption("--all-crash-points") else _deeds(number))
    ]
    metafunc.parametrize(("row", "deed"), cases)


def _deeds(number: int) -> list[Deed]:
    """Of the row of this number; the time of a run of all tests is what bounds them."""
    return [Deed.KILL, *{1: [Deed.HANG], 4: [Deed.CUT]}.get(number % 6, [])]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Healed]]:
    """What the rows have shown; written at the end where `--crash-table` says."""
    lines: list[Healed] = []
    yield lines
    if target := request.config.getoption("--crash-table"):
        Path(target).write_text("".join(f"{line}\n" for line in lines))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sites(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sites]:
    opened = Sites(real_side(servers), lambda: tmp_path_factory.mktemp("site"))
    yield opened
    await opened.leave()


@pytest_asyncio.fixture(loop_scope="module")
async def site(sites: Sites, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """One pipeline for the whole table. What is left after a row that failed is no beginning for the next one."""
    yield await sites.enter()
    if request.node.stash.get(FAILED, False):
        await sites.leave()


async def test_crash_point(site: Site, table: list[Healed], row: Row, deed: Deed) -> None:
    """Whatever happens to the role at this point, every order ends once, the units add up, and what was told stays."""
    assert not (unrest := await site.unrest([], within_s=HEAL_S)), f"before it began: {unrest}"
    goods = await site.open_goods(UNITS)
    crowd = site.crowd(goods, SEED)
    play = Play(site, goods, crowd, asyncio.Event())
    news = site.news()
    began = time.time()
    done_at = await crash(play, row, deed)
    unrest = await site.unrest(goods.product_ids, within_s=HEAL_S)
    healed_s = time.time() - done_at
    assert not unrest, f"not at rest after {healed_s:.1f} s: {unrest}; logs in {site.folder}"
    orders, confirmed = await judged(play, row)
    assert not (strange := news.strange()), "\n".join([*strange, f"logs in {site.folder}"])
    line = Healed(row.name, deed, done_at - began, healed_s, orders, confirmed)
    print(line)
    table.append(line)
    await site.clear(goods)


async def crash(play: Play, row: Row, deed: Deed) -> float:
    """Lets the scene go on until the deed was done and everybody is up again; when that was. Raises TimeoutError."""
    site = play.site
    due = Crash(row.role, row.point, deed, hang_s=HANG_S.get(row.role, HANG_S_DEFAULT))
    crashes = [due, *row.scene.also]
    told_before = {each.role: len(site.deeds(each.role)) for each in crashes}

    async def suffer(each: Crash) -> float:
        process = site.roles[each.role].process
        assert process is not None
        done_at = await site.until_deed(each, told_before=told_before[each.role], within_s=REACH_S)
        if each is due:
            play.over.set()
        await site.mend(each, process)
        return done_at

    await site.arm(crashes)
    suffering = [asyncio.create_task(suffer(each)) for each in crashes]
    acting = [asyncio.create_task(row.scene.act(play)), asyncio.create_task(order_later(play))]
    try:
        done_at = await suffering[0]
    finally:
        play.over.set()
        ends = await asyncio.gather(*acting, *suffering, return_exceptions=True)
        await site.arm([])
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return done_at


async def order_later(play: Play) -> None:
    """Buyers do not wait until everything is mended."""
    await play.over.wait()
    await play.crowd.rush(LATER_ORDERS)


async def judged(play: Play, row: Row) -> tuple[int, int]:
    """The invariants, and that every buyer is told one end; how many orders there were, and how many confirmed."""
    crowd, folder = play.crowd, play.site.folder
    promised = {*crowd.accepted, *crowd.direct}
    letters = await set_aside(play)
    becomes = row.scene.letters
    assert bool(letters) == (becomes is not Letters.NONE), f"set aside: {sorted(letters)}; logs in {folder}"
    asked = (promised | crowd.unsure.keys()) - (letters if becomes is Letters.LEFT else set())
    for order_id in sorted(asked):
        await crowd.ask(order_id)
    verdict = judge(await read_facts(play.site.stores, accepted=promised, product_ids=play.goods.product_ids))
    breaches = [f"{name}: {each}" for name, found in verdict.breaches.items() for each in found]
    assert verdict.holds, "\n".join([*breaches, *verdict.lost, f"logs in {folder}"])
    assert not crowd.wrong, "\n".join([*crowd.wrong, f"logs in {folder}"])
    assert asked <= crowd.told.keys(), f"never told an end: {sorted(asked - crowd.told.keys())}; logs in {folder}"
    if becomes in (Letters.REPLAYED, Letters.DISCARDED):
        ends = {order_id: crowd.told[order_id][0] for order_id in letters & asked}
        assert set(ends.values()) == {becomes.value}, f"{ends}; logs in {folder}"
    return len(promised | crowd.unsure.keys()), verdict.confirmed


async def set_aside(play: Play) -> set[str]:
    """Ids of this row's orders among the dead letters."""
    found: set[str] = set()
    for letter in await read_topic(play.site.settings.kafka, play.site.settings.kafka.dead_letter_topic):
        with suppress(InvalidOrder):
            found |= {order.order_id for order in decode(letter) if order.product_id in play.goods.product_ids}
    return found
