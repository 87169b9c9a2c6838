"""Alerts against what they talk to: HTTP targets that are down, slow or refuse, the database, and running services."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from consumers.alert import AlertWatch
from seckill.alerts.book import AlertBook
from seckill.alerts.courier import Courier, Patience
from seckill.alerts.engine import Kind, Message, Pace
from seckill.alerts.findings import Finding, Rule, Thresholds
from seckill.alerts.readers import TransactionReader, clock_ms
from seckill.alerts.scrape import Place, RoleMetrics, addresses_of
from seckill.alerts.snapshot import Snapshot, Source, TopicLag
from seckill.alerts.targets import UnknownTarget, open_targets
from seckill.dtm.database import create_engine, session_factory
from seckill.dtm.protocol import TransOptions
from seckill.messaging.letters import letter
from seckill.ops import serve_http
from seckill.schema import upgrade
from seckill.settings import Settings
from seckill.wiring import open_dtm, with_values
from seckill.wiring.alerts import open_alerts, open_letter_sessions, open_sources
from tests.support.backbone import Backbone
from tests.support.sides import Side

THRESHOLDS = Thresholds(10, 100, 1_000, 5, 60_000, lag_patience_ms=0)
PACE = Pace(quiet_period_ms=60_000, resolved_after_ms=100)
TOKEN = "T0kenThatNobodySees"

BEHIND = (TopicLag("orders", 2_000),)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(holds: Callable[[], bool], *, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "not within time"
        await asyncio.sleep(0.01)


def count(target: str, result: str) -> float:
    return REGISTRY.get_sample_value("seckill_alerts_sent_total", {"target": target, "result": result}) or 0.0


# --- targets over HTTP -----------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """A webhook. `answers`: how it answers; while `held` is set it does not answer at all."""

    status: int = 200
    held: asyncio.Event = field(default_factory=asyncio.Event)
    titles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held.set()

    async def take(self, request: Request) -> Response:
        self.titles.append((await request.json())["title"])
        await self.held.wait()
        return PlainTextResponse(f"no {TOKEN}", self.status)


@asynccontextmanager
async def receiving(receiver: Receiver, port: int = 0) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/{token}", receiver.take, methods=["POST"])])
    async with serve_http(app, f"127.0.0.1:{port}") as address:
        yield address


@asynccontextmanager
async def delivering(url: str, *, patience: Patience) -> AsyncIterator[tuple[Courier, list[Message]]]:
    """A courier on its way to a URL, and the messages that were taken."""
    taken: list[Message] = []

    def note(_ident: str, message: Message) -> None:
        taken.append(message)

    (target,) = open_targets([url])
    courier = Courier(target, patience, note)
    task = asyncio.create_task(courier.run())
    try:
        yield courier, taken
    finally:
        courier.stop()
        await asyncio.wait_for(task, 10)


def message(detail: str = "orders", number: int = 1) -> Message:
    finding = Finding(Rule.LAG, detail, what="behind", count=1, example="x", command="seckill status")
    return Message(Kind.RAISED, finding, since_ms=1, at_ms=number, number=number)


QUICK = Patience(waiting_max=3, slow_after_ms=5_000, pause_ms=20, pause_max_ms=50)


async def test_a_target_that_is_down_is_tried_until_it_is_there() -> None:
    """Nothing is lost by a target that cannot be reached: each try is counted, and what waits arrives in the end; of
    one finding only the newest message.
    """
    port, failed = free_port(), count("json #1", "failed")
    async with delivering(f"json://127.0.0.1:{port}/{TOKEN}", patience=QUICK) as (courier, taken):
        courier.offer(message("a"))
        courier.offer(message("b", number=1))
        courier.offer(message("b", number=2))
        await until(lambda: count("json #1", "failed") >= failed + 2)
        assert (courier.waiting, taken) == (2, [])
        async with receiving(receiver := Receiver(), port):
            await until(lambda: courier.waiting == 0)
    assert sorted((each.key, each.number) for each in taken) == [("lag:a", 1), ("lag:b", 2)]
    assert sorted(receiver.titles) == ["seckill lag:a", "seckill lag:b"]


async def test_a_slow_target_gets_each_message_once() -> None:
    """A target that answers late is counted as slow and not asked a second time, and whoever offers does not wait."""
    slow = count("json #1", "slow")
    receiver = Receiver()
    receiver.held.clear()
    async with receiving(receiver) as address:
        impatient = replace(QUICK, slow_after_ms=50)
        async with delivering(f"json://{address}/{TOKEN}?rto=9", patience=impatient) as (courier, taken):
            courier.offer(message())
            await until(lambda: count("json #1", "slow") == slow + 1)
            assert taken == []
            receiver.held.set()
            await until(lambda: len(taken) == 1)
    assert receiver.titles == ["seckill lag:orders"]


async def test_what_waits_is_bounded() -> None:
    """Beyond the most that may wait for a target, the oldest message is dropped, and that is counted."""
    dropped = count("json #1", "dropped")
    async with delivering(f"json://127.0.0.1:{free_port()}/{TOKEN}", patience=QUICK) as (courier, _):
        for number in range(5):
            courier.offer(message(str(number)))
        assert courier.waiting == 3
    assert count("json #1", "dropped") == dropped + 2


@pytest.mark.parametrize("path", [f"{TOKEN}", f"hook?+X-Key={TOKEN}", f"%54{TOKEN[1:]}"])
async def test_no_part_of_a_url_is_told(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a target that refuses people read that it refuses: neither log, metrics nor answer hold a part of its URL."""
    async with receiving(Receiver(status=403)) as address:
        url = f"json://user:{TOKEN}@{address}/{path}"
        with capture_logs() as logs:
            async with delivering(url, patience=QUICK) as (courier, _):
                courier.offer(message())
                await until(lambda: any(line["event"] == "alert_not_taken" for line in logs))
            (target,) = open_targets([url])
            said = await asyncio.to_thread(target.send, message())
    assert "403" in said
    printed = capfd.readouterr()
    metrics = [(sample.name, sample.labels) for family in REGISTRY.collect() for sample in family.samples]
    for told in (said, repr(logs), repr(metrics), printed.out, printed.err, repr(target)):
        assert TOKEN not in told
        assert address not in told


async def test_the_host_of_a_url_is_not_told() -> None:
    """What stands for the host is a token, with many services: it is blotted out of what Apprise says of a failure."""
    (target,) = open_targets([f"json://127.0.0.1:{free_port()}/{TOKEN}"])
    said = await asyncio.to_thread(target.send, message())
    assert "error" in said
    assert "127.0.0.1" not in said


def test_a_url_that_nobody_knows_is_named_by_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong URL is told by its number, and shown nowhere, by Apprise neither."""
    with pytest.raises(UnknownTarget, match="number 2") as raised:
        open_targets([f"json://127.0.0.1/{TOKEN}", f"slack://{TOKEN}"])
    printed = capfd.readouterr()
    assert TOKEN not in f"{raised.value}{printed.out}{printed.err}"


# --- what is remembered ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taker:
    """A target in this process. It answers once `answers` is set."""

    ident: str
    refuses: bool = False
    answers: threading.Event = field(default_factory=threading.Event)
    taken: list[str] = field(default_factory=list)
    name: str = "taker #1"

    def __post_init__(self) -> None:
        self.answers.set()

    def send(self, message: Message) -> str:
        assert self.answers.wait(10)
        if self.refuses:
            return "no"
        self.taken.append(f"{message.kind} {message.key}")
        return ""


@dataclass(frozen=True)
class Broken(Taker):
    """A target that does what it promises not to."""

    def send(self, message: Message) -> str:
        raise RuntimeError(message.key)


@dataclass
class Clock:
    at_ms: int = 1_000_000

    def __call__(self) -> int:
        return self.at_ms


@dataclass
class World:
    """A pipeline that is behind or not, and the database in which alerts are remembered."""

    sessions: async_sessionmaker[AsyncSession]
    clock: Clock = field(default_factory=Clock)
    lag: tuple[TopicLag, ...] = BEHIND

    async def look(self, now_ms: int) -> Snapshot:
        return Snapshot(now_ms, lag=self.lag, unread=frozenset(Source) - {Source.LAG})

    @asynccontextmanager
    async def watching(self, *targets: Taker) -> AsyncIterator[AlertWatch]:
        """A process that watches, until it is stopped."""
        watch = AlertWatch(
            self.look, targets=targets, book=AlertBook(self.sessions), thresholds=THRESHOLDS, pace=PACE,
            patience=QUICK, every_ms=10, clock_ms=self.clock,
        )  # fmt: skip
        await watch.load()
        task = asyncio.create_task(watch.deliver())
        try:
            yield watch
        finally:
            watch.stop()
            await asyncio.wait_for(task, 10)

    async def looks(self, watch: AlertWatch, *times_ms: int) -> list[Kind]:
        told: list[Kind] = []
        for at_ms in times_ms:
            self.clock.at_ms = 1_000_000 + at_ms
            told += [each.kind for each in await watch.once()]
        return told


@asynccontextmanager
async def world_on(url: str) -> AsyncIterator[World]:
    engine = create_engine(url, pool_size=2, lock_wait_s=3)
    try:
        yield World(session_factory(engine))
    finally:
        await engine.dispose()


async def test_a_restart_tells_nothing_twice(side: Side, tmp_path: Path) -> None:
    """Who is started anew knows what was told, tells it neither again nor late, and says when it has resolved."""
    taker = Taker("one")
    async with world_on(await side.database("dead_letters", tmp_path)) as world:
        async with world.watching(taker) as watch:
            assert await world.looks(watch, 0, 10) == [Kind.RAISED]
            await until(lambda: len(taker.taken) == 1)
        async with world.watching(taker) as watch:
            assert await world.looks(watch, 20, 59_999) == []
            assert await world.looks(watch, 60_000) == [Kind.REPEATED]
            await until(lambda: len(taker.taken) == 2)
        world.lag = ()
        async with world.watching(taker) as watch:
            assert await world.looks(watch, 60_010, 60_099, 60_100) == [Kind.RESOLVED]
            await until(lambda: len(taker.taken) == 3)
        async with world.watching(taker) as watch:
            assert await world.looks(watch, 60_200, 120_100, 120_200) == []
            assert await AlertBook(world.sessions).load(0) == {}
    assert taker.taken == ["raised lag:orders", "repeated lag:orders", "resolved lag:orders"]


async def test_what_did_not_arrive_is_sent_again_after_a_restart(tmp_path: Path) -> None:
    """A message that one of two targets has not taken is sent to that one alone, also by a later process."""
    await upgrade("dead_letters", url := f"sqlite+aiosqlite:///{tmp_path}/letters.db")
    first, second = Taker("first"), Taker("second", refuses=True)
    async with world_on(url) as world:
        async with world.watching(first, second) as watch:
            first.answers.clear()
            await world.looks(watch, 0)
            world.lag = (TopicLag("orders", 3_000),)  # the same finding, in other words
            await world.looks(watch, 10)
            first.answers.set()
            await until(lambda: len(first.taken) == 1)
        healed = replace(second, refuses=False)
        async with world.watching(first, healed) as watch:
            await until(lambda: len(healed.taken) == 1)
        async with world.watching(first, healed):
            pass
    assert (len(first.taken), healed.taken) == (1, ["raised lag:orders"])


async def test_people_are_told_while_the_database_is_down(tmp_path: Path) -> None:
    """Without a database alerts go out all the same, and are written down once it is there."""
    await upgrade("dead_letters", url := f"sqlite+aiosqlite:///{tmp_path}/letters.db")
    taker = Taker("one")
    async with world_on(url) as world:
        async with world.sessions() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("ALTER TABLE alert RENAME TO gone")
            await session.commit()
        watch = AlertWatch(
            world.look, targets=[taker], book=AlertBook(world.sessions), thresholds=THRESHOLDS, pace=PACE,
            patience=QUICK, every_ms=10, clock_ms=world.clock,
        )  # fmt: skip
        task = asyncio.create_task(watch.deliver())
        assert await world.looks(watch, 0) == [Kind.RAISED]
        await until(lambda: len(taker.taken) == 1)
        async with world.sessions() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("ALTER TABLE gone RENAME TO alert")
            await session.commit()
        assert await world.looks(watch, 10) == []
        watch.stop()
        await task
        (remembered,) = (await AlertBook(world.sessions).load(0)).values()
    assert (remembered.standing.told, remembered.undelivered) == (1, frozenset())


async def test_a_database_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    """While a save waits, the log has what it would write down, and a target gets one message after the other."""
    await upgrade("dead_letters", url := f"sqlite+aiosqlite:///{tmp_path}/letters.db")
    taker = Taker("one")
    async with world_on(url) as world:
        world.lag = (TopicLag("orders", 2_000), TopicLag("others", 2_000))
        with closing(sqlite3.connect(tmp_path / "letters.db", isolation_level=None)) as other:
            async with world.watching(taker) as watch:
                other.execute("BEGIN EXCLUSIVE")
                with capture_logs() as logs:
                    looking = asyncio.create_task(watch.once())
                    await until(lambda: sum(line["event"] == "alert_raised" for line in logs) == 2, within_s=1)
                    assert taker.taken == []
                    await looking
                    await until(lambda: len(taker.taken) == 2, within_s=0.5)
                assert not any(line["event"] == "alerts_not_saved" for line in logs)  # it hangs all the while
                other.execute("ROLLBACK")
        remembered = await AlertBook(world.sessions).load(0)
    assert [each.undelivered for each in remembered.values()] == [frozenset(), frozenset()]


async def test_a_courier_that_breaks_ends_the_delivery(tmp_path: Path) -> None:
    """What nobody foresaw is not kept quiet: the delivery ends, and so does the role, to be started anew."""
    await upgrade("dead_letters", url := f"sqlite+aiosqlite:///{tmp_path}/letters.db")
    async with world_on(url) as world:
        watch = AlertWatch(
            world.look, targets=[Broken("one")], book=AlertBook(world.sessions), thresholds=THRESHOLDS, pace=PACE,
            patience=QUICK, every_ms=10, clock_ms=world.clock,
        )  # fmt: skip
        delivery = asyncio.create_task(watch.deliver())
        await world.looks(watch, 0)
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(delivery, 5)
    assert str(raised.value.exceptions[0]) == "lag:orders"


# --- looks at what runs ----------------------------------------------------------------------------------------------


def letter_row(number: int, *, state: str, reason: str, failed_ms: int) -> dict[str, Any]:
    return {
        "subject": f"s{number}", "order_id": f"7-{number}", "state": state, "reason": reason,
        "record_topic": "t", "record_partition": 0, "record_offset": number, "letter_partition": 0,
        "letter_offset": number, "first_failed_ms": failed_ms, "last_failed_ms": failed_ms, "attempts": 1,
        "created_ms": failed_ms, "updated_ms": failed_ms,
    }  # fmt: skip


async def begin_what_cannot_end(backbone: Backbone) -> str:
    """A transaction whose Confirm nobody serves; its gid."""
    gid = uuid4().hex
    async with open_dtm(backbone.settings) as client:
        await client.prepare(gid, options=(options := TransOptions(retry_interval_s=1, timeout_to_fail_s=60)))
        nowhere = f"127.0.0.1:{free_port()}/nobody.Nothing/Confirm"
        await client.register_branch(
            gid, trans_type="tcc", branch_id="01", data={"confirm": nowhere, "cancel": nowhere}, payload=b""
        )
        await client.submit(gid, options=options)
    return gid


async def test_a_look_sees_the_running_pipeline(backbone: Backbone, side: Side, tmp_path: Path) -> None:
    """One look reads letters, lag, failing Confirms, the roles' metrics and an audit; a role that is not there is
    silent, and keeps nothing else from being read.
    """
    gid = await begin_what_cannot_end(backbone)
    nobody = f"127.0.0.1:{free_port()}"
    settings = with_values(
        backbone.settings,
        {
            "dead_letters": {"database_url": SecretStr(await side.database("dead_letters", tmp_path))},
            "alerts": {"metrics_from": (backbone.settings.product.ops, nobody), "audit_every_ms": 1},
        },
    )
    now_ms = clock_ms()
    rows = [
        letter_row(1, state="new", reason="UNREADABLE", failed_ms=now_ms - 90_000),
        letter_row(2, state="replaying", reason="UNREADABLE", failed_ms=now_ms),
        letter_row(3, state="resolved", reason="UNEXPECTED", failed_ms=now_ms),
        letter_row(4, state="resolved", reason="FOREIGN", failed_ms=now_ms + 3_600_000),  # a stranger's clock
    ]
    async with open_letter_sessions(settings) as sessions, open_sources(settings, sessions) as sources:
        async with sessions() as session, session.begin():
            await session.execute(insert(letter), rows)
        deadline = time.monotonic() + 40
        while True:
            seen = await sources.look(clock_ms())
            failed = {each.gid: each.failed_calls for each in seen.transactions}
            if Source.AUDIT not in seen.unread and failed.get(gid, 0) >= 2:
                break
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.2)
    (open_letters,) = seen.letters.open
    assert (open_letters.reason, open_letters.count, open_letters.example) == ("UNREADABLE", 2, "7-2")
    assert (open_letters.since_ms, seen.letters.last_minute, seen.letters.newest) == (now_ms - 90_000, 2, "7-3")
    assert sum(each.records for each in seen.lag) == 0
    assert seen.silent.keys() == {nobody}
    missing = {Source.LAG} if side.kind == "embedded" else set()  # there the topics are made by who reads them: nobody
    assert seen.unread == {Source.ROLES, *missing}
    assert not seen.audited.broken
    async with open_dtm(settings) as client:
        cut = await TransactionReader(client, first_interval_s=1, listed_max=1).read(now_ms)
    assert cut.unread == {Source.TRANSACTIONS}


@dataclass
class Replica:
    """A process of a role that shows one counter."""

    counted: int

    async def show(self, _: Request) -> Response:
        name = "order_confirm_overtaken_total"
        return PlainTextResponse(f"# TYPE {name} counter\n{name} {self.counted}\n")

    @asynccontextmanager
    async def serving(self, address: str) -> AsyncIterator[None]:
        async with serve_http(Starlette(routes=[Route("/metrics", self.show)]), address):
            yield


async def test_every_process_of_a_role_is_looked_at() -> None:
    """A role that runs several times has several addresses behind its name: each is asked in each look, its counters
    are compared with its own, one that came later counts from the start, and the silence of one is told.
    """
    port, addresses = free_port(), ["127.0.0.1", "127.0.0.2"]

    async def resolve(_host: str, _port: int) -> list[str]:
        return addresses

    metrics = RoleMetrics([Place("order", f"order:{port}")], tls=None, within_s=5, resolve=resolve)

    async def look() -> tuple[list[float], dict[str, str]]:
        seen = await metrics.read(1)
        return list(seen.roles.grown.values()), dict(seen.silent)

    first, second, third = Replica(7), Replica(1), Replica(2)
    async with first.serving(f"127.0.0.1:{port}"), AsyncExitStack() as stack:
        await stack.enter_async_context(second.serving(f"127.0.0.2:{port}"))
        assert [await look(), await look()] == [([], {}), ([], {})]
        second.counted = 4
        assert await look() == ([3], {})
        addresses.append("127.0.0.3")
        async with third.serving(f"127.0.0.3:{port}"):
            assert await look() == ([2], {})
        grown, silent = await look()
    assert (grown, silent.keys()) == ([], {"order"})
    assert f"127.0.0.3:{port}" in silent["order"]


async def test_a_name_is_looked_up() -> None:
    """This host has one IPv4 address, a name that nobody has none."""
    assert await addresses_of("localhost", 80) == ["127.0.0.1"]
    assert await addresses_of("nobody.invalid", 80) == []


async def test_the_role_starts_and_tells_while_nothing_else_answers(tmp_path: Path) -> None:
    """With every dependency but its database down the role is there, ready, and sees each of them as silent."""
    await upgrade("dead_letters", url := f"sqlite+aiosqlite:///{tmp_path}/letters.db")
    down = f"127.0.0.1:{free_port()}"
    settings = with_values(
        Settings(),
        {
            "kafka": {"bootstrap": down, "request_timeout_ms": 500},
            "dtm": {"grpc": down, "http": down},
            "dead_letters": {"database_url": SecretStr(url)},
            "alerts": {"ops": "127.0.0.1:0", "metrics_from": (down,), "every_ms": 50},
        },
    )
    async with open_alerts(settings) as role:
        await until(lambda: REGISTRY.get_sample_value("seckill_alerts_silent_sources") == 3, within_s=20)
        assert role.task is not None
        assert not role.task.done()
