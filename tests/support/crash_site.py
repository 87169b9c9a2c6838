"""A pipeline whose roles are processes that crash where they are told to: real servers, our coordinator, short times.

Of the roles that can be taken over from (worker, coordinator, reconcile) a second one stands by, so that one that hung
and wakes up finds that others have gone on without it.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from seckill.admission.keys import PRODUCTS
from seckill.client import FrontClient, open_front
from seckill.domain.errors import PublishUnknown
from seckill.dtm.errors import DtmError
from seckill.messaging.lag import consumer_lag
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.messaging.retry_topics import retry_tiers
from seckill.settings import Settings, load_settings
from seckill.wiring import open_dtm
from tests.support.crash_settings import ARMED, OPERATOR_TOKEN, SESSION_MS, STANDBYS, crashing_programs, write_settings
from tests.support.crashing_role import FAULT, Arm, Deed
from tests.support.failures import last_words
from tests.support.letter_operator import LetterOperator, letter_operator
from tests.support.restless_buyers import Crowd
from tests.support.role_processes import RoleProcess, running_roles
from tests.support.sides import Side
from tests.support.verdicts import Stores, open_gids, open_stores, rest

ASK_S = 5
GROUPS = 2
"""Of a worker: one reads the topic, one the retry topics."""

HANG_S: Mapping[str, float] = {"worker": SESSION_MS / 1000 + 1.5, "coordinator": 4.5}
"""Longer than a session of the group, than the coordinator's lease (3 s), …"""
HANG_S_DEFAULT = 2.0
"""… than a Try may take, and than an order waits for its publication."""

LIBRARIES_WORDS = ("ExecuteBatchError raised in core by servicer method", "Exception during reset or similar")
"""Tracebacks that are not ours: gRPC's for an answer whose caller is gone, SQLAlchemy's for a connection that is."""


@dataclass(frozen=True, slots=True)
class Crash:
    """What a role is to do where. `hang_s`: when the test wakes it up."""

    role: str
    point: str
    deed: Deed
    after: int = 1
    times: int = 1
    hang_s: float = 0

    @property
    def arm(self) -> Arm:
        return Arm(self.point, self.deed, self.after, self.times)


@dataclass
class Goods:
    """The sales of one row of the table: one that too many want, and one that has enough for everybody."""

    scarce: int
    plenty: int
    sale_ids: dict[int, int]

    @property
    def product_ids(self) -> list[int]:
        return [self.scarce, self.plenty]


@dataclass
class News:
    """What has happened in the roles' processes since it was made."""

    roles: Collection[RoleProcess]
    log_from: Mapping[str, int]

    def __post_init__(self) -> None:
        for role in self.roles:
            role.deaths.clear()

    def strange(self) -> list[str]:
        """Ends that no deed was, and tracebacks: a fault that the code knows costs a line, never a traceback."""
        deaths = [str(death) for role in self.roles for death in role.deaths if death.code != -signal.SIGKILL]
        errors = [
            f"{role.role}: {line[:3_000]}"
            for role in self.roles
            for line in role.log.read_bytes()[self.log_from[role.role] :].decode(errors="replace").splitlines()
            if '"exception":' in line or "Traceback" in line
            if not any(words in line for words in (FAULT, *LIBRARIES_WORDS))
        ]
        return deaths + errors


@dataclass
class Site:
    settings: Settings
    folder: Path
    roles: Mapping[str, RoleProcess]
    front: FrontClient
    publisher: Publisher
    stores: Stores
    letters: LetterOperator
    product_ids: Any = field(default_factory=lambda: count(1))
    armed: set[str] = field(default_factory=set)  # the roles that were told last to crash

    # --- what is on sale ---------------------------------------------------------------------------------------------

    async def open_goods(self, units: Mapping[str, tuple[int, int]]) -> Goods:
        """`units`: stock and limit of `scarce` and `plenty`."""
        ids = {name: next(self.product_ids) for name in units}
        sale_ids = {}
        now_ms = time.time_ns() // 1_000_000
        for name, (stock, limit) in units.items():
            fields = {
                "product_id": ids[name], "stock": stock, "per_user_limit": limit,
                "starts_at_ms": now_ms - 1_000, "ends_at_ms": now_ms + 3_600_000,
            }  # fmt: skip
            sale = await self.front.create_sale(fields, change_id=uuid4().hex)
            sale_ids[ids[name]] = sale["sale_id"]
        return Goods(ids["scarce"], ids["plenty"], sale_ids)

    async def clear(self, goods: Goods) -> None:
        """Closes the sales, and keeps reconcile from looking at them for ever."""
        for sale_id in goods.sale_ids.values():
            await self.front.set_sale_state(sale_id, "close")
        with Redis.from_url(self.settings.redis.url.get_secret_value()) as client:
            client.srem(PRODUCTS, *goods.product_ids)

    def empty_redis(self) -> None:
        with Redis.from_url(self.settings.redis.url.get_secret_value()) as client:
            client.flushdb()

    def crowd(self, goods: Goods, seed: int) -> Crowd:
        chance = random.Random(seed)
        return Crowd(self.front, self.publisher, self.settings.kafka, goods.product_ids, chance, buyers=15)

    # --- crashing ----------------------------------------------------------------------------------------------------

    async def arm(self, crashes: Sequence[Crash]) -> None:
        """Returns when every role knows its crashes. An empty list takes back what is left of the last one."""
        self.armed = {crash.role for crash in crashes} or self.armed
        for role in self.roles.keys() & ({crash.role for crash in crashes} or set(ARMED)):
            await self._tell(role, [crash.arm for crash in crashes if crash.role == role])

    async def disarm(self, role: str) -> None:
        await self._tell(role, [])

    async def _tell(self, role: str, arms: Sequence[Arm]) -> None:
        process = self.roles[role].process
        assert process is not None
        arms_file = self.folder / f"{role}.arms"
        arms_file.write_text(json.dumps([asdict(arm) for arm in arms]))
        process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10):
            while arms_file.exists():
                await asyncio.sleep(0.01)

    def deeds(self, role: str) -> list[str]:
        file = self.folder / f"{role}.deeds"
        return file.read_text().splitlines() if file.exists() else []

    async def until_deed(self, crash: Crash, *, told_before: int, within_s: float) -> float:
        """When it was done (s since the epoch). Raises TimeoutError."""
        sign = f"{crash.point} {crash.deed} "
        ends = time.monotonic() + within_s
        while not (found := [line for line in self.deeds(crash.role)[told_before:] if line.startswith(sign)]):
            if time.monotonic() > ends:
                raise TimeoutError(f"{crash.role} has not reached {crash.point} within {within_s} s; see {self.folder}")
            await asyncio.sleep(0.02)
        return float(found[0].rpartition(" ")[2])

    async def mend(self, crash: Crash, process: asyncio.subprocess.Process) -> None:
        """After the deed: wakes up the process that hangs, or waits for the successor of the one that was killed."""
        match crash.deed:
            case Deed.HANG:
                await asyncio.sleep(crash.hang_s)
                process.send_signal(signal.SIGCONT)
            case Deed.KILL:
                role = self.roles[crash.role]
                while role.process is process:
                    await asyncio.sleep(0.02)
                await role.started()

    async def forget_transactions(self) -> None:
        """The coordinator's log loses what is not finished, as one does that is set back."""
        unfinished = "SELECT gid FROM coordinator_transaction WHERE finished_ms IS NULL"
        engine = create_async_engine(self.settings.coordinator.database_url.get_secret_value(), poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                gids = [row.gid for row in await connection.execute(text(unfinished))]
                for table in ("coordinator_branch", "coordinator_transaction"):
                    for gid in gids:
                        await connection.execute(text(f"DELETE FROM {table} WHERE gid = :gid"), {"gid": gid})
        finally:
            await engine.dispose()

    async def up(self) -> None:
        """Returns when every role runs, started."""
        await asyncio.gather(*(role.started() for role in self.roles.values()))

    def news(self) -> News:
        """What the roles write and how they end from here on."""
        return News(self.roles.values(), {role.role: role.log.stat().st_size for role in self.roles.values()})

    async def command(self, *words: str) -> None:
        """Runs `seckill …` in a process of its own; it has to succeed."""
        role = self.roles["dead_letters"]
        with role.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "seckill.cli", *words,
                env=dict(role.environment), cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        assert await process.wait() == 0, f"seckill {' '.join(words)}; see {role.log}"

    # --- rest --------------------------------------------------------------------------------------------------------

    async def unrest(self, product_ids: Collection[int], *, within_s: float) -> str:
        """Waits until everybody is up and nothing is under way; all that still is when the time is up, in words."""
        ends = time.monotonic() + within_s
        while True:
            left_s = max(0.0, ends - time.monotonic())
            try:
                async with asyncio.timeout(left_s + ASK_S):
                    await self.up()
                    left = await rest(self.stores, product_ids, timeout_s=left_s)
                    left = left or await self._undecided() or self._outside()
            except TimeoutError:
                left = "a role has not started, or a store does not answer"
            if not left:
                return ""
            if time.monotonic() > ends:
                return "; ".join(dict.fromkeys([left, *await self._besides()]))
            await asyncio.sleep(0.05)

    async def _besides(self) -> list[str]:
        """What else is not as it is at rest."""
        idle = [name for name, role in self.roles.items() if not role.has_started]
        found = [f"not started: {idle}" if idle else "", self._outside()]
        with suppress(TimeoutError, DtmError):
            async with asyncio.timeout(ASK_S):
                found.append(await self._undecided())
        with suppress(PublishUnknown):
            kafka = self.settings.kafka
            lags = await consumer_lag(kafka, retry_tiers(kafka, self.settings.retry))
            found += [f"{each.topic}/{each.partition} is {each.lag} behind" for each in lags if each.lag]
        return [each for each in found if each]

    def last_words(self) -> str:
        """Of the roles that were to crash, of those that stand by for them, and of those that everything comes to."""
        names = {*self.armed, "worker"}
        names |= {standby for standby, (role, _, _) in STANDBYS.items() if role in names}
        return last_words(self.roles[name] for name in sorted(names))

    async def _undecided(self) -> str:
        async with open_dtm(self.settings) as dtm:
            gids = await open_gids(dtm)
        return f"transactions {gids}" if gids else ""

    def _outside(self) -> str:
        """Workers that have no partitions in one of their groups: the next crash would wait for them in vain."""
        for name in ("worker", "worker_standby"):
            log = self.roles[name].log.read_bytes()[self.roles[name].log_from :].decode(errors="replace")
            moves = [json.loads(line) for line in log.splitlines() if '"partitions_' in line]
            last = {tuple(move["topics"]): move for move in moves}
            held = [move["event"] == "partitions_assigned" and move["partitions"] for move in last.values()]
            if len(held) < GROUPS or not all(held):
                return f"{name} has no partitions"
        return ""


@asynccontextmanager
async def open_site(side: Side, folder: Path) -> AsyncIterator[Site]:
    """Everything started and at rest. `side` is a real one; its Redis database is emptied."""
    config = await write_settings(side, folder)
    settings = load_settings(config)
    async with (
        running_roles(config, crashing_programs(folder)) as roles,
        open_front(settings.front.http, operator_token=OPERATOR_TOKEN, timeout_s=4) as front,
        open_publisher(settings.kafka) as publisher,
        open_stores(settings) as stores,
        letter_operator(settings.dead_letters.http, OPERATOR_TOKEN) as letters,
    ):
        yield Site(settings, folder, roles, front, publisher, stores, letters)


class Sites:
    """One site at a time, opened when it is wanted."""

    def __init__(self, side: Side, new_folder: Callable[[], Path]) -> None:
        self._side = side
        self._new_folder = new_folder
        self._stack = AsyncExitStack()
        self._site: Site | None = None

    async def enter(self) -> Site:
        if self._site is None:
            self._site = await self._stack.enter_async_context(open_site(self._side, self._new_folder()))
        return self._site

    async def leave(self) -> None:
        self._site = None
        await self._stack.aclose()
