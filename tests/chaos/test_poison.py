"""One order in a hundred is poison, while a service is down and the broker restarts: the others do not notice, what was
poison is set aside and told once, and is confirmed as soon as it is mended.

Real Kafka, Redis, MariaDB and DTM; the roles are processes. Half of the poison are bytes that are no order, half are
valid orders that the order service has a defect for. A run without poison comes first, for comparison.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from seckill.dlq.model import Letter, LetterState
from seckill.domain.errors import InvalidOrder
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import decode
from seckill.messaging.reading import read_topic
from tests.servers import Servers
from tests.support.poison_site import Confirmed, PoisonSite, faulty, open_poison_site, p99_s
from tests.support.role_processes import our_program
from tests.support.verdicts import rest

ORDERS, PER_SECOND = 1_990, 67
"""Through the front; with the undecodable records they are 2,000."""

CONTROL, POISON = 91, 92  # products
EVERYBODY = frozenset(range(1, ORDERS + 1))
POISONED = frozenset(range(100, ORDERS, 199))
"""Buyers whose orders the order service has a defect for."""

UNDECODABLE = tuple(b"\xff\xfe no order %d" % number for number in range(10))
EDITED_BUYERS = range(5_001, 5_001 + len(UNDECODABLE))
"""Whose orders the undecodable records are edited to."""

REASONS = {
    DeadLetterReason.UNREADABLE: len(UNDECODABLE),
    DeadLetterReason.RETRIES_EXHAUSTED: len(POISONED),
}
"""What is set aside, by reason."""

DOWN_AFTER_S, DOWN_S, BROKER_AFTER_S = 3, 20, 10
HEAL_S = 120
P99_TIMES_MAX = 3
REPLAYS_PER_S = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Story:
    """What happened and when, for whoever reads a failure."""

    folder: Path
    began_s: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        self.lines.append(f"{time.monotonic() - self.began_s:6.1f} s  {line}")

    def tell_times(self, run: str, orders: Sequence[Confirmed]) -> None:
        took = sorted(order.took_s for order in orders)
        median_s = took[len(took) // 2] if took else 0
        self.tell(f"{run}: {len(orders)} confirmed, median {median_s:.1f} s, p99 {p99_s(orders):.1f} s")

    def __str__(self) -> str:
        return "\n".join([f"logs in {self.folder}", *self.lines])


async def outages(site: PoisonSite) -> None:
    """The order service is killed and away for a time; meanwhile the broker is killed and started again."""

    async def broker() -> None:
        await asyncio.sleep(BROKER_AFTER_S)
        await site.restart_broker()

    async with asyncio.TaskGroup() as group:
        group.create_task(broker())
        await asyncio.sleep(DOWN_AFTER_S)
        await site.roles["order"].kill(DOWN_S)


async def load(site: PoisonSite, product_id: int, undecodable: Sequence[bytes] = ()) -> None:
    """An order of every buyer, and the undecodable records among them, over the outages; returns when all are taken."""

    async def past_the_front() -> None:
        for value in undecodable:
            await site.send_bytes(value)
            await asyncio.sleep(ORDERS / PER_SECOND / len(undecodable))

    buyers = site.buyers(product_id)
    await asyncio.gather(buyers.place(ORDERS, per_second=PER_SECOND), past_the_front(), outages(site))
    assert not buyers.wrong, buyers.wrong[:20]


async def control_run(site: PoisonSite, story: Story) -> float:
    """The p99 of everybody's orders without poison."""
    await site.open_sale(CONTROL, ORDERS)
    await load(site, CONTROL)
    story.tell("control: all orders are taken")
    confirmed = await site.until_confirmed(CONTROL, EVERYBODY, within_s=HEAL_S)
    story.tell_times("control", confirmed)
    assert len(confirmed) == ORDERS, story
    return p99_s(confirmed)


async def poison_run(site: PoisonSite, story: Story) -> float:
    """The p99 of the good orders, all of which are confirmed; exactly the poison is set aside."""
    await site.open_sale(POISON, ORDERS + len(UNDECODABLE))
    await load(site, POISON, UNDECODABLE)
    story.tell("poison: all orders are taken")
    good = EVERYBODY - POISONED
    confirmed = await site.until_confirmed(POISON, good, within_s=HEAL_S)
    story.tell_times("poison", confirmed)
    left = await rest(site.stores, [CONTROL, POISON], timeout_s=HEAL_S)
    story.tell(f"at rest: {left or 'yes'}")
    buyers, others = await set_aside(site)
    assert not left, story
    assert Counter(each.user_id for each in confirmed) == Counter(good), story
    assert buyers == POISONED, f"{sorted(buyers ^ POISONED)}; {story}"
    assert others == set(UNDECODABLE), f"{others}; {story}"
    return p99_s(confirmed)


async def set_aside(site: PoisonSite) -> tuple[set[int], set[bytes]]:
    """Whose orders the dead-letter topic holds, and its records that are no orders."""
    buyers, others = set[int](), set[bytes]()
    for letter in await read_topic(site.settings.kafka, site.settings.kafka.dead_letter_topic):
        try:
            buyers |= {order.user_id for order in decode(letter)}
        except InvalidOrder:
            others.add(letter.value or b"")
    return buyers, others


# --- what people see -------------------------------------------------------------------------------------------------


async def until(site: PoisonSite, state: LetterState, count: int, *, within_s: float = 30) -> list[Letter]:
    """Waits until so many letters are in the state; the letters as they are then, or when the time is up."""
    ends = time.monotonic() + within_s
    while True:
        letters = await site.letters()
        if sum(each.state is state for each in letters) >= count or time.monotonic() > ends:
            return letters
        await asyncio.sleep(0.05)


def reasons(letters: Collection[Letter]) -> Counter[DeadLetterReason]:
    return Counter(each.reason for each in letters)


async def indexed(site: PoisonSite, story: Story) -> list[Letter]:
    """The letters, each in the index once, and what is told of them."""
    letters = await until(site, LetterState.NEW, len(POISONED) + len(UNDECODABLE))
    story.tell(f"indexed: {dict(reasons(letters))}")
    assert {each.user_id for each in letters if each.order_id} == POISONED, story
    assert all(each.state is LetterState.NEW for each in letters), story
    assert reasons(letters) == REASONS, story
    return letters


async def told_once(site: PoisonSite, story: Story) -> None:
    """Each reason is told once, however many letters it has and however long they wait."""
    titles = [f"seckill letters:{reason}" for reason in REASONS]
    await site.until_told(titles, within_s=20)
    told = Counter(each.title for each in site.told)
    story.tell(f"alerts: {dict(told)}")
    assert {title: told[title] for title in titles} == dict.fromkeys(titles, 1), story
    repeated = [title for title in told if title.startswith("seckill still: letters")]
    assert not repeated, story


async def told_resolved(site: PoisonSite, story: Story) -> None:
    """Each reason is told as resolved, once."""
    titles = [f"seckill resolved: letters:{reason}" for reason in REASONS]
    await site.until_told(titles, within_s=20)
    told = Counter(each.title for each in site.told)
    story.tell(f"alerts: {dict(told)}")
    assert {title: told[title] for title in titles} == dict.fromkeys(titles, 1), story


# --- after the fix ---------------------------------------------------------------------------------------------------


async def replayed_in_two_parts(site: PoisonSite, story: Story) -> None:
    """The replay of all raised letters is killed in the middle, resumed, and begun again for the rest."""
    replay = (
        "dlq", "replay", "--reason", DeadLetterReason.RETRIES_EXHAUSTED, "--yes", "--rate", str(REPLAYS_PER_S),
        "--note", "the order service is mended",
    )  # fmt: skip
    process = await site.begin_command(*replay)
    await until_in_the_middle(site)
    process.kill()
    await process.wait()
    begun = [each for each in await site.letters() if each.order_id and each.replays]
    story.tell(f"replay killed after {len(begun)} letters; open: {[each.open_intent for each in begun]}")
    assert 0 < len(begun) < len(POISONED), story
    for arguments in (("dlq", "resume"), replay):
        said = await site.command(*arguments)
        assert said.code == 0, f"{said}; {story}"
    story.tell("replay finished")


async def until_in_the_middle(site: PoisonSite) -> None:
    """Returns while a letter after the third is being replayed, or, if that was too fast to be seen, a little later."""
    async with asyncio.timeout(30):
        while True:
            raised = [each for each in await site.letters() if each.order_id]
            begun = sum(each.replays > 0 for each in raised)
            if begun > 5 or (begun > 3 and any(each.open_intent for each in raised)):
                return
            await asyncio.sleep(0.02)


async def replayed_with_edits(site: PoisonSite, story: Story, letters: Sequence[Letter]) -> None:
    """What was no order is made one, by whoever has found out what it should have been: by command, and over HTTP."""
    note = "known by its sender"
    payloads = [json.dumps({"user_id": user_id, "product_id": POISON, "quantity": 1}) for user_id in EDITED_BUYERS]
    file = story.folder / "edit.json"
    file.write_text(payloads[0])
    said = await site.command("dlq", "replay", str(letters[0].letter_id), "--payload", str(file), "--note", note)
    assert said.code == 0, f"{said}; {story}"
    for letter, payload in zip(letters[1:], payloads[1:], strict=True):
        assert await site.replay_over_http(letter, payload=payload, note=note) == 200, story
    story.tell("edits replayed")


async def mended(site: PoisonSite, story: Story, letters: Sequence[Letter]) -> None:
    """Every letter ends confirmed, by one replay of its own, and that is what the buyers are told."""
    assert await site.statuses(letters) == {"delayed"}, story
    await site.restart_role("order", our_program("order"))
    unreadable = [each for each in letters if each.reason is DeadLetterReason.UNREADABLE]
    async with asyncio.TaskGroup() as group:
        group.create_task(replayed_in_two_parts(site, story))
        group.create_task(replayed_with_edits(site, story, unreadable))
    after = await until(site, LetterState.RESOLVED, len(letters))
    story.tell(f"resolved: {sum(each.state is LetterState.RESOLVED for each in after)} of {len(after)}")
    assert {(each.state, each.outcome, each.replays) for each in after} == {(LetterState.RESOLVED, "confirmed", 1)}, (
        story
    )
    assert await site.statuses(after) == {"confirmed"}, story
    confirmed = await site.confirmed(POISON)
    assert Counter(each.user_id for each in confirmed) == Counter([*EVERYBODY, *EDITED_BUYERS]), story


async def at_rest(site: PoisonSite, story: Story) -> None:
    """Nothing is under way, and every invariant holds."""
    left = await rest(site.stores, [CONTROL, POISON], timeout_s=HEAL_S)
    audit = await site.command("audit")
    story.tell(f"at rest: {left or 'yes'}; audit: {audit.code}")
    assert not left, story
    assert audit.code == 0, f"{audit.out}{audit.err}; {story}"


async def test_poison_delays_nobody_and_ends_confirmed(servers: Servers, tmp_path: Path) -> None:
    """All good orders confirm, no later than three times what they need without poison; exactly the poison is set
    aside, each reason is told once; after the fix a replay, killed and resumed, confirms it; every invariant holds.
    """
    story = Story(tmp_path)
    async with open_poison_site(servers, tmp_path, faulty(POISON, POISONED)) as site:
        try:
            story.tell("up")
            control_s = await control_run(site, story)
            poison_s = await poison_run(site, story)
            assert poison_s <= P99_TIMES_MAX * control_s, story
            letters = await indexed(site, story)
            await told_once(site, story)
            await mended(site, story, letters)
            await at_rest(site, story)
            await told_resolved(site, story)
        finally:
            print(story)  # shown when the test fails, or with -s
