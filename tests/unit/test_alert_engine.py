"""When people are told: once, again after a quiet period, and that it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from seckill.alerts.engine import Kind, Message, Pace, Standing, step
from seckill.alerts.findings import Finding, Judged, Rule

PACE = Pace(quiet_period_ms=1_000, resolved_after_ms=100)
RAISED, REPEATED, RESOLVED = Kind.RAISED, Kind.REPEATED, Kind.RESOLVED

FINDING = Finding(Rule.LAG, "orders", what="behind", count=1, example="x", command="seckill status")


@dataclass(frozen=True, slots=True)
class Look:
    """`finding` None: nothing was found. `judged` False: nothing could be read either."""

    at_ms: int
    finding: Finding | None = FINDING
    judged: bool = True


def gone(at_ms: int) -> Look:
    return Look(at_ms, None)


def unread(at_ms: int) -> Look:
    return Look(at_ms, None, judged=False)


def played(looks: Sequence[Look], known: Mapping[str, Standing] | None = None) -> list[Message]:
    told: list[Message] = []
    known = known or {}
    for look in looks:
        judged = Judged((look.finding,) if look.finding else (), frozenset() if look.judged else frozenset(Rule))
        stepped = step(known, judged, PACE, look.at_ms)
        known = stepped.known
        told += stepped.messages
    return told


def times(messages: Sequence[Message]) -> list[tuple[Kind, int]]:
    return [(message.kind, message.at_ms) for message in messages]


def test_what_goes_on_is_told_once_in_a_quiet_period() -> None:
    """A finding of every look is told at once, and then once in each quiet period."""
    told = played([Look(at_ms) for at_ms in range(0, 3_000, 50)])
    assert times(told) == [(RAISED, 0), (REPEATED, 1_000), (REPEATED, 2_000)]


def test_it_is_told_as_resolved_when_it_has_been_gone_for_long_enough() -> None:
    """Gone for a moment is not resolved; the message says since when it stood."""
    looks = [Look(10), gone(50), Look(100), gone(150), gone(199), gone(200), gone(300)]
    told = played(looks)
    assert times(told) == [(RAISED, 10), (RESOLVED, 200)]
    assert told[1].since_ms == 10


def test_what_could_not_be_read_is_not_resolved() -> None:
    """However long its source is silent, a finding stands; the time of being gone begins with the next reading."""
    looks = [Look(0), *(unread(at_ms) for at_ms in range(10, 900, 10)), gone(950), gone(989), gone(990)]
    assert times(played(looks)) == [(RAISED, 0), (RESOLVED, 990)]


def test_patience_comes_before_the_first_message() -> None:
    """What has to stand for a time is not told before, and never if it went away until then."""
    slow = replace(FINDING, patience_ms=100)
    assert times(played([Look(0, slow), Look(99, slow), Look(100, slow)])) == [(RAISED, 100)]
    assert times(played([Look(0, slow), gone(50), gone(100), Look(110, slow), Look(209, slow)])) == []


def test_what_comes_and_goes_from_the_start_is_told() -> None:
    """A gap too short to be resolved does not begin the patience anew: what crashes at each start is told."""
    slow = replace(FINDING, patience_ms=100)
    looks = [look for at_ms in range(0, 200, 50) for look in (Look(at_ms, slow), gone(at_ms + 40))]
    assert times(played(looks)) == [(RAISED, 100)]


def test_what_comes_back_is_news_and_has_to_stay_away_longer() -> None:
    """After it was told as resolved it is told again, and it takes twice as long to be told as resolved once more."""
    looks = [Look(0), gone(100), Look(150), gone(250), gone(349), gone(350), Look(400), gone(799), gone(800)]
    assert times(played(looks)) == [
        (RAISED, 0),
        (RESOLVED, 100),
        (RAISED, 150),
        (RESOLVED, 350),
        (RAISED, 400),
        (RESOLVED, 800),
    ]


def test_what_was_forgotten_is_as_new() -> None:
    """A quiet period after it was resolved nothing is left of it."""
    looks = [Look(0), gone(100), gone(1_100), Look(1_200), gone(1_299), gone(1_300)]
    assert times(played(looks)) == [(RAISED, 0), (RESOLVED, 100), (RAISED, 1_200), (RESOLVED, 1_300)]


def test_what_only_happens_is_counted_and_never_resolved() -> None:
    """Events within the quiet period are told together at its end, and nobody is told that one is over."""
    event = replace(FINDING, lasts=False, count=2)
    looks = [Look(0, event), gone(10), Look(20, event), gone(30), Look(40, event), gone(999), gone(1_000), gone(2_000)]
    told = played(looks)
    assert times(told) == [(RAISED, 0), (REPEATED, 1_000)]
    assert [message.finding.count for message in told] == [2, 4]


def test_what_has_happened_is_told_though_its_source_is_silent() -> None:
    """Whoever is silent keeps no event back that others have counted: it is told at the end of the quiet period."""
    event = replace(FINDING, lasts=False, count=2)
    looks = [Look(0, event), Look(20, event), *(unread(at_ms) for at_ms in range(30, 1_100, 50))]
    assert times(played(looks)) == [(RAISED, 0), (REPEATED, 1_030)]


def test_a_single_finding_can_be_unjudged() -> None:
    """A finding of which nobody can say whether it stands does, and others of its rule are judged."""
    other = replace(FINDING, detail="letters")
    first = step({}, Judged((FINDING, other), frozenset()), PACE, 0)
    nothing = Judged((), frozenset(), unjudged_keys=frozenset({other.key}))
    second = step(first.known, nothing, PACE, 100)
    assert [(message.kind, message.key) for message in second.messages] == [(RESOLVED, "lag:orders")]


def test_findings_of_one_look_do_not_touch_each_other() -> None:
    """Each key has its own life."""
    other = replace(FINDING, detail="letters")
    first = step({}, Judged((FINDING, other), frozenset()), PACE, 0)
    second = step(first.known, Judged((other,), frozenset()), PACE, 100)
    assert [message.key for message in first.messages] == ["lag:orders", "lag:letters"]
    assert [(message.kind, message.key) for message in second.messages] == [(RESOLVED, "lag:orders")]


LOOKS = st.lists(st.tuples(st.integers(1, 400), st.sampled_from(["found", "gone", "unread"])), min_size=1, max_size=60)


def as_looks(drawn: Sequence[tuple[int, str]], finding: Finding) -> list[Look]:
    at_ms, looks = 0, []
    for pause_ms, what in drawn:
        at_ms += pause_ms
        looks.append(Look(at_ms, finding if what == "found" else None, judged=what != "unread"))
    return looks


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(LOOKS, st.integers(0, 500), st.booleans())
def test_nobody_is_told_too_often_or_wrongly(drawn: Sequence[tuple[int, str]], patience_ms: int, lasts: bool) -> None:
    """Whatever comes and goes: raised and resolved take turns; the same is told again only after a quiet period; it is
    resolved only in a look that judged, and was not found for as long as it has to be; events never resolve; and a
    finding that stood for its patience was told.
    """
    finding = replace(FINDING, patience_ms=patience_ms, lasts=lasts)
    looks = as_looks(drawn, finding)
    told = played(looks)
    for before, after in pairwise(told):
        assert (after.kind is RAISED) == (before.kind is RESOLVED or (not lasts and after.number == 1))
        if after.kind is REPEATED:
            assert after.at_ms - before.at_ms >= PACE.quiet_period_ms
    assert not told or told[0].kind is RAISED
    by_time = {look.at_ms: look for look in looks}
    for message in told:
        if message.kind is RESOLVED:
            assert lasts
            assert by_time[message.at_ms].judged
            since = message.at_ms - PACE.resolved_after_ms
            assert not any(look.finding for look in looks if since < look.at_ms <= message.at_ms)
    if looks[-1].finding and not told:
        run = 0
        for look in reversed(looks):
            if look.finding is None:
                break
            run = look.at_ms
        assert looks[-1].at_ms - run < patience_ms


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 120), st.integers(1, 400))
def test_what_comes_and_goes_is_told_a_few_times(up_ms: int, down_ms: int) -> None:
    """Whatever its rhythm, within one quiet period a finding makes a number of messages that grows as a logarithm."""
    at_ms, looks = 0, []
    while at_ms < PACE.quiet_period_ms:
        looks += [Look(at_ms), *(gone(at_ms + up_ms + passed) for passed in range(0, down_ms, 10))]
        at_ms += up_ms + down_ms
    raised = [message for message in played(looks) if message.kind is RAISED]
    assert len(raised) <= 2 + (PACE.quiet_period_ms // PACE.resolved_after_ms).bit_length()
