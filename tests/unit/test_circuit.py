"""A circuit as a value: when it opens, and what closes it."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from seckill.domain.circuit import Circuit, CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def after(events: str, *, failures_max: int = 3) -> CircuitState:
    """The state after these events: `f` a failure, `s` a success, `a` an answered probe."""
    steps = {"f": Circuit.failed, "s": Circuit.succeeded, "a": Circuit.answered}
    return reduce(lambda circuit, event: steps[event](circuit), events, Circuit(failures_max)).state


def test_it_opens_after_failures_in_a_row() -> None:
    """Only failures without a success between them open it."""
    assert after("ff") is CLOSED
    assert after("fff") is OPEN
    assert after("ffsff") is CLOSED


def test_an_answered_probe_lets_one_try() -> None:
    """Half-open, the next failure opens it again, however many were needed at first; a success closes it."""
    assert after("fffa") is HALF_OPEN
    assert after("fffaf") is OPEN
    assert after("fffas") is CLOSED
    assert after("fffasff") is CLOSED


def test_a_probe_says_nothing_to_a_closed_circuit() -> None:
    """A probe that is answered late changes nothing."""
    assert after("ffa") is CLOSED
    assert after("ffaf") is OPEN


@given(st.text("fsa", max_size=30), st.integers(1, 5))
def test_a_success_always_closes(events: str, failures_max: int) -> None:
    """Whatever came before: a call that succeeded proves that calls can."""
    assert after(events + "s", failures_max=failures_max) is CLOSED
