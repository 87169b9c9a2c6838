"""The loop of alerts: looks, judges, remembers, and hands what is to be told to the couriers, which nobody waits for.

What is to be told is written down before it is sent, with the targets that have not taken it yet: who is started anew
tells nothing twice, and what did not arrive once more. While the database does not answer, people are told all the
same, and it is written down later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from seckill.alerts.book import AlertBook, Remembered
from seckill.alerts.courier import Courier, Patience
from seckill.alerts.engine import Message, Pace, Standing, active, last_message, step
from seckill.alerts.findings import Rule, Thresholds
from seckill.alerts.metrics import ACTIVE, LOOKS, TOLD
from seckill.alerts.rules import judge
from seckill.alerts.snapshot import Snapshot
from seckill.alerts.targets import Target

log = structlog.get_logger()

SAVED_WITHIN_S = 2.0
"""How long people are not told because the database does not answer."""

Look = Callable[[int], Awaitable[Snapshot]]
"""What is known of the pipeline at this time (ms). Never raises."""


class AlertWatch:
    """Opens nothing: everything it uses is its caller's. `load` comes first; `run` and `couriers` end after `stop`."""

    def __init__(
        self,
        look: Look,
        *,
        targets: Sequence[Target],
        book: AlertBook,
        thresholds: Thresholds,
        pace: Pace,
        patience: Patience,
        every_ms: int,
        clock_ms: Callable[[], int],
    ) -> None:
        self._look = look
        self._book = book
        self._thresholds = thresholds
        self._pace = pace
        self._every_ms = every_ms
        self._clock_ms = clock_ms
        self._couriers = {each.ident: Courier(each, patience, self._taken) for each in targets}
        self._known: dict[str, Standing] = {}
        self._undelivered: dict[str, frozenset[str]] = {}
        self._unsaved: set[str] = set()
        self._saving: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def load(self) -> None:
        """What was told before, and what of it did not arrive. Raises what the database's driver raises."""
        for key, each in (await self._book.load(self._clock_ms())).items():
            self._known[key] = each.standing
            self._undelivered[key] = each.undelivered & self._couriers.keys()
            for ident in self._undelivered[key]:
                self._couriers[ident].offer(last_message(each.standing))

    def stop(self) -> None:
        self._stopping.set()
        for courier in self._couriers.values():
            courier.stop()

    async def run(self) -> None:
        """Until `stop`; nothing that a look meets ends it."""
        while not self._stopping.is_set():
            try:
                await self.once()
                LOOKS.labels("done").inc()
            except Exception:
                LOOKS.labels("failed").inc()
                log.exception("alert_look_failed")  # the loop must outlive what nobody foresaw
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_ms / 1_000):
                    await self._stopping.wait()

    async def deliver(self) -> None:
        """Brings messages to all targets, until `stop`, then what still waits once more, and writes down what arrived.

        Raises an ExceptionGroup of what nobody foresaw: then no target is told any more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for courier in self._couriers.values():
                    tasks.create_task(courier.run())
                await self._stopping.wait()
            await self._save_soon()
        finally:
            if self._saving is not None:
                self._saving.cancel()

    async def once(self) -> tuple[Message, ...]:
        """One look, and the messages that came of it."""
        snapshot = await self._look(self._clock_ms())
        stepped = step(self._known, judge(snapshot, self._thresholds), self._pace, snapshot.at_ms)
        self._remember(stepped.known, stepped.messages)
        for message in stepped.messages:  # before it is written down as told: who is cut off in between says it again
            _log(message)
        if self._unsaved:  # waits for the database, but not for long: then people are told before it is written down
            await asyncio.wait({self._save_soon()}, timeout=SAVED_WITHIN_S)
        for message in stepped.messages:
            for courier in self._couriers.values():
                courier.offer(message)
        _show(self._known)
        return stepped.messages

    def _remember(self, known: Mapping[str, Standing], messages: Sequence[Message]) -> None:
        changed = {key for key in {*known, *self._known} if _worth(self._known.get(key)) != _worth(known.get(key))}
        self._unsaved |= changed
        self._known = dict(known)
        self._undelivered = {key: self._undelivered.get(key, frozenset()) for key in known}
        for message in messages:
            self._undelivered[message.key] = frozenset(self._couriers)

    def _taken(self, ident: str, message: Message) -> None:
        standing = self._known.get(message.key)
        if standing is None or last_message(standing).serial != message.serial:
            return  # forgotten, or there is a newer one by now
        self._undelivered[message.key] -= {ident}
        self._unsaved.add(message.key)
        self._save_soon()

    def _save_soon(self) -> asyncio.Task[None]:
        """The one task that saves, and what changes meanwhile as well. Whoever does not wait for it is not held up."""
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save(), name="alerts-save")
        return self._saving

    async def _save(self) -> None:
        """Until nothing is unsaved; what cannot be saved now stays for the next time."""
        while keys := self._unsaved:
            self._unsaved = set()
            changed = {
                key: Remembered(standing, self._undelivered[key])
                for key in keys
                if (standing := self._known.get(key)) is not None and standing.told
            }
            try:
                await self._book.save(changed, keys - changed.keys())
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: people are told without it as well
                self._unsaved |= keys
                log.warning("alerts_not_saved", error=f"{type(error).__name__}: {error}".partition("\n")[0])
                return


def _log(message: Message) -> None:
    """A line for each message, whoever else is told."""
    finding = message.finding
    log.warning(  # also that it is over: who has been told of the one must be told of the other
        f"alert_{message.kind}",
        key=message.key,
        what=finding.what,
        count=finding.count,
        since_ms=message.since_ms,
        example=finding.example,
        next=finding.command,
    )
    TOLD.labels(finding.rule, message.kind).inc()


def _worth(standing: Standing | None) -> Standing | None:
    """What of it has to be written down: nothing before it is told, and not that it was seen once more."""
    if standing is None or not standing.told:
        return None
    finding = replace(standing.finding, what="", count=0, example="", command="", since_ms=None, patience_ms=0)
    return replace(standing, finding=finding, seen_ms=0, found_ms=0)


def _show(known: Mapping[str, Standing]) -> None:
    standing = [each.finding.rule for each in active(known)]
    for rule in set(Rule) - {Rule.TEST}:
        ACTIVE.labels(rule.value).set(standing.count(rule))
