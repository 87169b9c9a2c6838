"""Random histories of admission, publishing, workers and reconcile, step by step, against a model of what Redis holds.

Two workers and two reconcilers act beside buyers and an operator; each may hang or die before any call to a store, and
any call to Redis may be sent twice. After every step all that Redis holds of the product is read past the code under
test and compared with the model. In the end all go on to rest: what was accepted has ended, or lies among the letters.

Hypothesis draws rules evenly and leaves some out of each history, so there are few, and each does much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.actors import STEPS_MAX, Publishing
from tests.support.histories import history_settings
from tests.support.ledger_world import LedgerWorld, Wish
from tests.support.memory_stores import PUBLISH_WITHIN_MS
from tests.support.redis_servers import Backend

USERS, QUANTITIES = st.integers(1, 6), st.sampled_from([1, 1, 1, 2, 3, 4])
WISHES = st.lists(st.tuples(USERS, QUANTITIES, st.sampled_from(["a", "b", None])), min_size=1, max_size=5)
LIMIT, STOCK = st.sampled_from([3, 3, 2, 1]), st.integers(4, 12)
CHANGES = st.tuples(st.sampled_from(["add", "take", "undo"]), st.sampled_from("xyz"), st.integers(0, 5))

RARELY = st.sampled_from([False, False, False, True])
STEPS = st.sampled_from([STEPS_MAX] * 8 + list(range(12)))
CALLS = st.sampled_from([1, 1, 2])
FATES = st.sampled_from(["frozen", "frozen", "failed", "SOLD_OUT", "LIMIT_EXCEEDED", "sold", "sold"])
PUBLISHING = st.sampled_from([Publishing.ACKNOWLEDGED, *Publishing])
LATENESS = st.sampled_from([0, PUBLISH_WITHIN_MS, PUBLISH_WITHIN_MS + 50])
WORKERS, RECONCILERS = st.sampled_from(["worker 1", "worker 2"]), st.sampled_from(["reconciler 1", "reconciler 2"])


class Histories(RuleBasedStateMachine):
    backend: ClassVar[Backend]

    def __init__(self) -> None:
        super().__init__()
        self.world = LedgerWorld(self.backend)

    @initialize(quantities=st.lists(QUANTITIES, min_size=2, max_size=6))
    def sale_begins(self, quantities: list[int]) -> None:
        """So that every history has orders on their way."""
        wishes: list[Wish] = [(user_id, quantity, None) for user_id, quantity in enumerate(quantities, 1)]
        self.world.publish("front", self.world.admit(wishes))

    @rule(wishes=WISHES, steps=st.sampled_from([STEPS_MAX, STEPS_MAX, 0]), publishing=PUBLISHING, lateness_ms=LATENESS)
    def orders_come(self, wishes: Sequence[Wish], **how: Any) -> None:
        """A batch is admitted and published; the front may hang or die in between."""
        self.world.publish("front", self.world.admit(wishes), **how)

    @rule(user_id=USERS, quantity=QUANTITIES)
    def order_comes_past_the_front(self, user_id: int, quantity: int) -> None:
        self.world.publish("somebody", [self.world.order_past_the_front(user_id, quantity)])

    @precondition(lambda self: self.world.topic.messages)
    @rule(name=WORKERS, data=st.data(), again=RARELY, fate=FATES, calls=CALLS, steps=STEPS)
    def deliver(self, name: str, data: st.DataObject, again: bool, **how: Any) -> None:
        """A record to a worker; what that had in hand before is lost to it, and not passed.

        `again`: one that may have been passed long ago, of an order that has ended, in a sale that is over.
        """
        topic = self.world.topic
        messages = topic.messages if again else topic.unpassed() or topic.messages
        self.world.deliver(name, data.draw(st.sampled_from(messages)), **how)

    @rule(
        name=RECONCILERS, every=st.sampled_from([1, 1, 2, 100]),
        publishing=PUBLISHING, lateness_ms=LATENESS, calls=CALLS, steps=STEPS,
    )  # fmt: skip
    def look(self, name: str, every: int, **how: Any) -> None:
        """As far as it comes. Before it, time passes for every, every other, or only the oldest entry."""
        self.world.time_passes(list(self.world.model.entries())[::every])
        self.world.look(name, **how)

    @precondition(lambda self: self.world.actors)
    @rule(data=st.data(), steps=STEPS | st.none())
    def goes_on(self, data: st.DataObject, steps: int | None) -> None:
        """Somebody who hangs goes on for some steps, or dies (None)."""
        name = data.draw(st.sampled_from(sorted(self.world.actors)))
        if steps is None:
            self.world.dies(name)
        else:
            self.world.goes_on(name, steps=steps)

    @precondition(lambda self: self.world.rows.frozen())
    @rule(data=st.data(), lost=st.booleans(), sold=st.booleans())
    def transaction_ends(self, data: st.DataObject, lost: bool, sold: bool) -> None:
        """By its coordinator, or, when that has lost it, by whichever reconciler finds it."""
        gid = data.draw(st.sampled_from(self.world.rows.frozen())).gid
        if lost:
            self.world.rows.lost.setdefault(gid, sold)
        else:
            self.world.rows.end(gid, sold=sold)

    @precondition(lambda self: self.world.topic.letters)
    @rule(data=st.data(), discarded=st.booleans())
    def letter(self, data: st.DataObject, discarded: bool) -> None:
        """Replayed or discarded, as often as an operator likes, whatever has become of its order."""
        letters = self.world.topic.letters
        order = letters[data.draw(st.sampled_from(sorted(letters)))]
        if discarded:
            self.world.discard(order)
        else:
            self.world.publish("operator", [order])

    @rule(data=st.data(), what=st.sampled_from(["terms", "units", "units", "next", "expire"]))
    def operate(self, data: st.DataObject, what: str) -> None:
        """All that happens to sales, and to their results in time."""
        world = self.world
        match what:
            case "terms":
                world.change_terms(data.draw(LIMIT), data.draw(st.sampled_from(["open", "open", "paused"])))
            case "units":
                world.change_units(*data.draw(CHANGES))
            case "next":
                world.next_sale(data.draw(STOCK), data.draw(LIMIT), only_closed=data.draw(RARELY))
            case _:
                over = [sale_id for sale_id in sorted(world.model.listed) if world.is_over(sale_id)]
                if over:
                    world.results_expire(data.draw(st.sampled_from(over)))

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            if not self.world.complaints:
                self.world.come_to_rest()
        finally:
            self.world.close()


def test_any_history(own_redis: Backend) -> None:
    """Stock, allowances, entries and results are exactly those of the model after every step, and nothing is left."""

    class OnThisServer(Histories):
        backend = own_redis

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OnThisServer, settings=history_settings(examples=40, steps=30)
    )
