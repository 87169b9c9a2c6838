"""Schedules of the ledger in which several act at once, each by name. All of them end at rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from seckill.domain.order import Order
from tests.support.actors import Publishing
from tests.support.ledger_world import LedgerWorld
from tests.support.memory_stores import Message
from tests.support.redis_servers import Backend


@pytest.fixture
def world(own_redis: Backend) -> Iterator[LedgerWorld]:
    opened = LedgerWorld(own_redis)
    try:
        yield opened
        opened.check()
        opened.come_to_rest()
    finally:
        opened.close()


def admitted(world: LedgerWorld, count: int) -> list[Order]:
    """Orders that nobody has published."""
    return world.admit([(user_id, 1, None) for user_id in range(1, count + 1)])


def published(world: LedgerWorld, count: int) -> list[Message]:
    """Their records, which nobody has carried."""
    world.publish("front", admitted(world, count))
    return world.topic.unpassed()


def all_due(world: LedgerWorld) -> None:
    world.time_passes(list(world.model.entries()))


def test_of_two_who_saw_an_entry_one_publishes_it(world: LedgerWorld) -> None:
    """What a reconciler claims is not published by another who saw it before."""
    admitted(world, 2)
    all_due(world)
    world.look("reconciler 1", until="claim")
    world.look("reconciler 2")
    assert len(world.topic.messages) == 2
    world.goes_on("reconciler 1")
    assert len(world.topic.messages) == 2


def test_an_order_that_is_parked_before_the_claim_is_not_published(world: LedgerWorld) -> None:
    """A letter written while a reconciler hangs between its look and its claim keeps the entry to itself."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="failed", until="park")
    message.passed = True  # as if it were known, so that reconcile takes it for lost
    all_due(world)
    world.look("reconciler 1", until="claim")
    world.goes_on("worker 1")
    world.goes_on("reconciler 1")
    assert len(world.topic.messages) == 1


def test_a_parked_entry_does_not_become_due(world: LedgerWorld) -> None:
    """A reconciler that has seen an entry as pending, and frozen, leaves it alone when it was parked meanwhile."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="failed", until="park")
    all_due(world)
    world.look("reconciler 1", until="postpone")
    world.goes_on("worker 1")
    world.goes_on("reconciler 1")
    world.check()


def test_an_entry_that_was_settled_does_not_come_back(world: LedgerWorld) -> None:
    """Of what a slow reconciler or worker still wants to postpone or park, only what is there is touched."""
    undecided, dead = published(world, 2)
    world.deliver("worker 1", undecided, fate="frozen", until="postpone")
    world.deliver("worker 2", dead, fate="failed", until="park")
    for row in world.rows.frozen():
        world.rows.end(row.gid, sold=True)
    world.rows.checkout(dead.order, "SOLD_OUT")
    all_due(world)
    world.look("reconciler 1")
    assert not list(world.model.entries())
    world.goes_on("worker 1")
    world.goes_on("worker 2")
    world.check()


def test_a_replayed_order_leaves_nothing_parked(world: LedgerWorld) -> None:
    """A parked entry ends like any other, and its place among the parked ones with it."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="failed")
    assert [entry.parked for entry in world.model.entries()] == [True]
    world.publish("operator", list(world.topic.letters.values()))
    world.deliver("worker 1", world.topic.unpassed()[0])
    assert not list(world.model.entries())


def test_an_old_sale_is_kept_while_an_order_of_it_is_open(world: LedgerWorld) -> None:
    """Though its results have expired: the order ends in its own sale, whose units it gives back."""
    (message,) = published(world, 1)
    old = world.model.now
    world.next_sale(stock=5, limit=1)
    world.results_expire(old.sale.sale_id)
    world.next_sale(stock=5, limit=1)
    world.check()
    world.deliver("worker 1", message, fate="LIMIT_EXCEEDED")
    assert old.stock == old.initial


def test_a_reconciler_that_hangs_before_publishing_is_not_waited_for(world: LedgerWorld) -> None:
    """What it has claimed is due again later, and published by another; its own record then does nothing."""
    (order,) = admitted(world, 1)
    all_due(world)
    world.look("reconciler 1", until="publish")
    all_due(world)
    world.look("reconciler 2")
    world.deliver("worker 1", world.topic.unpassed()[0], fate="SOLD_OUT")
    world.goes_on("reconciler 1", steps=1)
    assert [message.order for message in world.topic.messages] == [order, order]
    world.deliver("worker 1", world.topic.unpassed()[0])


def test_a_lost_publish_is_made_good(world: LedgerWorld) -> None:
    """An entry whose record never came into being is published by the next look past its time."""
    (order,) = admitted(world, 1)
    world.publish("front", [order], publishing=Publishing.LOST)
    for publishing in (Publishing.LOST, Publishing.UNANSWERED):
        all_due(world)
        world.look("reconciler 1", publishing=publishing)
    assert [message.order for message in world.topic.messages] == [order]


def test_a_discarded_order_past_the_front_ends_in_its_sale(world: LedgerWorld) -> None:
    """Its letter names no sale, its parked entry has one: that is where it ends, and gives back what it took."""
    world.publish("somebody", [world.order_past_the_front(user_id=1, quantity=2)])
    world.deliver("worker 1", world.topic.unpassed()[0], fate="failed")
    assert world.model.now.stock == world.model.now.initial - 2
    (letter,) = world.topic.letters.values()
    world.discard(letter)
    assert world.model.now.stock == world.model.now.initial
    world.publish("operator", [letter])
    world.deliver("worker 1", world.topic.unpassed()[0])


def test_an_order_that_one_copy_refused_and_another_parked_ends(world: LedgerWorld) -> None:
    """Two copies past the front: one is refused and hangs, the other admitted and parked; the refusal stands."""
    world.change_units("take", "all", 12)
    world.publish("somebody", [world.order_past_the_front(user_id=1, quantity=2)])
    (message,) = world.topic.unpassed()
    world.deliver("worker 1", message, until="reject")
    world.change_units("undo", "all", 0)
    world.deliver("worker 2", message, fate="failed")
    world.goes_on("worker 1")
    assert not list(world.model.entries())
    assert world.model.now.stock == world.model.now.initial


def test_a_refusal_that_was_told_does_not_end_an_entry_made_after_it(world: LedgerWorld) -> None:
    """A copy that was read before the refusal is admitted after it; when its worker dies, the record itself ends it."""
    world.change_units("take", "all", 12)
    world.publish("somebody", [world.order_past_the_front(user_id=1, quantity=2)])
    (message,) = world.topic.unpassed()
    world.deliver("worker 2", message, until="admit_late")
    world.deliver("worker 1", message, until="commit")
    world.change_units("undo", "all", 0)
    world.goes_on("worker 2", until="run")
    assert len(list(world.model.entries())) == 1
    world.dies("worker 2")
    world.deliver("worker 2", message)
    assert not list(world.model.entries())
    assert world.model.now.stock == world.model.now.initial


def put_off(world: LedgerWorld) -> Message:
    """The retry record of an order whose service failed it until it was put off."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="unreachable")
    (retried,) = world.topic.unpassed()
    assert retried.topic == "orders-retry-0"
    return retried


def test_an_order_that_waits_in_a_retry_topic_is_not_published_again(world: LedgerWorld) -> None:
    """Its entry comes due before its retry record does: the record is slow, not lost."""
    put_off(world)
    all_due(world)
    world.look("reconciler 1")
    assert len(world.topic.messages) == 2
    world.deliver("worker 1", world.topic.unpassed()[0])
    assert not list(world.model.entries())


def test_an_order_whose_worker_died_before_the_retry_record_is_carried_again(world: LedgerWorld) -> None:
    """Its entry is put off and nothing waits anywhere: the record that is not committed comes again."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="unreachable", until="send")
    world.dies("worker 1")
    assert world.topic.unpassed() == [message]
    world.deliver("worker 2", message)
    assert not list(world.model.entries())


def test_an_order_that_ended_while_it_was_put_off_stays_ended(world: LedgerWorld) -> None:
    """A second copy confirms between the look at the reservation and the put-off, which then touches nothing."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="unreachable", until="put_off")
    world.deliver("worker 2", message)
    world.goes_on("worker 1")
    assert not list(world.model.entries())


def test_a_parked_order_is_not_put_off(world: LedgerWorld) -> None:
    """Of two copies one becomes a letter and one a retry record: the entry stays with the letter."""
    (message,) = published(world, 1)
    world.deliver("worker 1", message, fate="unreachable", until="put_off")
    world.deliver("worker 2", message, fate="failed")
    world.goes_on("worker 1")
    (entry,) = world.model.entries()
    assert entry.parked
