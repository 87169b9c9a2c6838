"""Random histories of dead letters: two operators and the role replay, discard, resume and resolve, and die on the way.

After every step each order holds its units and its buyer's allowance, or has given them back once; in the end every
letter is as its order is.
"""

from __future__ import annotations

from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.actors import STEPS_MAX
from tests.support.histories import history_settings
from tests.support.letter_world import DEAD, MAIN, LetterWorld
from tests.support.redis_servers import Backend

NAMES = st.sampled_from(["anna", "bert", "keeper"])
WHAT = st.sampled_from(["replay", "replay", "discard", "discard", "resume", "resolve"])
STEPS = st.sampled_from([STEPS_MAX] * 4 + list(range(9)))
FATES = st.sampled_from(["sold", "failed", "failed", "frozen", "SOLD_OUT"])


class Histories(RuleBasedStateMachine):
    backend: ClassVar[Backend]
    world: LetterWorld

    @initialize(buyers=st.integers(1, 3))
    def orders_are_set_aside(self, buyers: int) -> None:
        self.world = LetterWorld(self.backend, buyers=buyers)

    @rule(name=NAMES, what=WHAT, data=st.data(), steps=STEPS)
    def act(self, name: str, what: str, data: st.DataObject, steps: int) -> None:
        self.world.act(name, what, data.draw(st.sampled_from(self.world.orders)), steps=steps)

    @precondition(lambda self: self.world.actors)
    @rule(data=st.data(), steps=STEPS | st.none())
    def goes_on(self, data: st.DataObject, steps: int | None) -> None:
        """Somebody who hangs goes on for some steps, or dies (None)."""
        name = data.draw(st.sampled_from(sorted(self.world.actors)))
        if steps is None:
            self.world.dies(name)
        else:
            self.world.goes_on(name, steps=steps)

    @rule(fate=FATES, again=st.none() | st.integers(0, 9))
    def carry(self, fate: str, again: int | None) -> None:
        """The worker carries the next record, or one that it has carried before."""
        self.world.carry(fate=fate, again=again)

    @rule(what=st.sampled_from(["index", "index", "sold", "released", "reconcile"]))
    def others_go_on(self, what: str) -> None:
        match what:
            case "index":
                self.world.index()
            case "reconcile":
                self.world.reconcile()
            case _:
                self.world.transactions_end(sold=what == "sold")

    @invariant()
    def units_are_where_they_should_be(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.come_to_rest()
        finally:
            self.world.close()


def test_any_history_of_letters(redis_server: str) -> None:
    """Stock and allowance come back exactly once, however replays, discards, deaths and resumptions interleave."""

    class OnThisServer(Histories):
        backend = Backend(redis_server, run_id_check=False)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OnThisServer, settings=history_settings(examples=20, steps=20)
    )


def test_a_letter_of_nothing_is_replayed(redis_server: str) -> None:
    """Somebody else's record without key and value is published as one with an empty value, and blocks nobody."""
    world = LetterWorld(Backend(redis_server, run_id_check=False), buyers=1)
    try:
        world.topics.write(DEAD, None, None)
        world.index()
        nothing, _ = world.letters()
        assert world.insist(nothing).what == "published"
        published = world.topics.records[MAIN][-1]
        assert (published.key, published.value) == (None, b"")
    finally:
        world.close()
