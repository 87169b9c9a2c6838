"""What a saga calls next, decided in memory: forwards by its orders, backwards against them, and to an end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seckill.coordinator.pattern import Calls, Contents, Finished, Pause, Progress, RollBack, Step
from seckill.coordinator.refusals import Refusal
from seckill.coordinator.saga import Saga
from seckill.coordinator.state import BranchOp, Status, Transaction
from seckill.dtm.protocol import ACTION, COMPENSATE, TransOptions

NOW_MS = 1_000_000
STEPS_MAX = 5
TROUBLES_MAX = 6  # answers that are no success, and attempts that end before their time


def contents_of(count: int, orders: dict[int, list[int]] | None = None, *, concurrent: bool = False) -> Contents:
    steps = json.dumps([{"action": f"h:1/s/A{n}", "compensate": f"h:1/s/C{n}"} for n in range(count)])
    custom = json.dumps({"orders": orders, "concurrent": concurrent}) if orders is not None or concurrent else ""
    return Contents(steps=steps, payloads=[b""] * count, custom_data=custom)


def submitted(contents: Contents, options: TransOptions | None = None) -> Progress:
    """A saga nothing of which has been called."""
    transaction = Transaction(
        gid="g",
        trans_type="saga",
        status=Status.SUBMITTED,
        options=options or TransOptions(),
        created_ms=NOW_MS,
        updated_ms=NOW_MS,
        next_cron_ms=0,
        next_cron_interval_s=1,
        custom_data=contents.custom_data,
    )
    return Progress(transaction, Saga().planned("g", contents), NOW_MS)


def with_status(progress: Progress, **statuses: Status) -> Progress:
    """`a01=Status.SUCCEED`: of an action; `c01`: of a compensation."""
    ops = {"a": ACTION, "c": COMPENSATE}
    keys = {(name[1:], ops[name[0]]): status for name, status in statuses.items()}
    branches = tuple(replace(each, status=keys.get(each.key, each.status)) for each in progress.branches)
    return replace(progress, branches=branches)


def aborting(progress: Progress) -> Progress:
    return replace(progress, transaction=replace(progress.transaction, status=Status.ABORTING))


def called(step: Step) -> list[str]:
    assert isinstance(step, Calls), step
    return [f"{branch.op[0]}{branch.branch_id}" for branch in step.branches]


def next_step(progress: Progress) -> Step:
    return Saga().next_step(progress)


# --- examples: what DTM does


def test_an_action_follows_the_one_before_it() -> None:
    """In a saga that is not concurrent one action runs at a time, the first one first."""
    saga = submitted(contents_of(3))
    assert called(next_step(saga)) == ["a01"]
    assert isinstance(next_step(replace(saga, calling=frozenset({("01", ACTION)}))), Pause)
    saga = with_status(saga, a01=Status.SUCCEED)
    assert called(next_step(saga)) == ["a02"]
    assert isinstance(next_step(replace(saga, unfinished=frozenset({("02", ACTION)}))), Pause)
    assert isinstance(next_step(with_status(saga, a02=Status.SUCCEED, a03=Status.SUCCEED)), Finished)


def test_a_refusal_is_undone_backwards() -> None:
    """The refused action's compensation comes first, then those before it; an action never called has none."""
    saga = with_status(submitted(contents_of(3)), a01=Status.SUCCEED, a02=Status.FAILED)
    assert next_step(replace(saga, refused="why")) == RollBack("why")
    saga = aborting(saga)
    assert called(next_step(saga)) == ["c02"]
    saga = with_status(saga, c02=Status.SUCCEED)
    assert called(next_step(saga)) == ["c01"]
    assert isinstance(next_step(with_status(saga, c01=Status.SUCCEED)), Finished)


def test_an_action_that_may_have_been_called_is_undone() -> None:
    """What no answer is known of, and another coordinator may have called, is compensated too."""
    saga = aborting(with_status(submitted(contents_of(3)), a01=Status.SUCCEED))
    assert called(next_step(saga)) == ["c02"]


def test_an_action_that_became_ready_after_the_refusal_is_not_undone() -> None:
    """Who has called the actions himself knows that it was never called."""
    saga = submitted(contents_of(3, {2: [0]}, concurrent=True))
    assert called(next_step(saga)) == ["a01", "a02"]
    saga = replace(saga, called=frozenset({("01", ACTION), ("02", ACTION)}))
    saga = aborting(with_status(saga, a01=Status.SUCCEED, a02=Status.FAILED))
    assert called(next_step(saga)) == ["c02", "c01"]
    assert called(next_step(replace(saga, called=frozenset()))) == ["c03", "c02"]


def test_what_is_being_called_is_waited_for_before_anything_is_undone() -> None:
    """A refusal does not overtake the actions beside it."""
    saga = with_status(submitted(contents_of(2, concurrent=True)), a02=Status.FAILED)
    assert isinstance(next_step(replace(saga, calling=frozenset({("01", ACTION)}))), Pause)
    assert isinstance(next_step(saga), RollBack)


@pytest.mark.parametrize(("age_ms", "back"), [(1_999, False), (2_000, True)])
def test_a_saga_whose_time_is_over_is_rolled_back(age_ms: int, back: bool) -> None:
    """TimeoutToFail counts from the beginning; without one a saga may take for ever."""
    saga = submitted(contents_of(2), TransOptions(timeout_to_fail_s=2))
    told = next_step(replace(saga, now_ms=NOW_MS + age_ms))
    assert told == RollBack("Timeout after 2 seconds") if back else called(told) == ["a01"]
    assert called(next_step(replace(submitted(contents_of(2)), now_ms=NOW_MS + 10**9))) == ["a01"]


def test_calls_are_repeated_at_once_up_to_the_retry_limit() -> None:
    """With a limit of two the third failure rolls the saga back."""
    saga = submitted(contents_of(1), TransOptions(retry_limit=2))
    saga = replace(saga, unfinished=frozenset({("01", ACTION)}))
    for repeats in (0, 1):
        assert called(next_step(replace(saga, repeats=repeats))) == ["a01"]
    told = next_step(replace(saga, repeats=2))
    assert told == RollBack("RetryCount is greater than RetryLimit, RetryLimit: 2")


@pytest.mark.parametrize(
    "contents",
    [
        Contents(steps="[", payloads=[]),
        Contents(steps='{"action": "h:1/s/A"}', payloads=[b""]),
        Contents(steps='[{"action": 1}]', payloads=[b""]),
        Contents(steps='[{"action": "h:1/s/A"}]', payloads=[]),
        Contents(steps=json.dumps([{}] * 201), payloads=[b""] * 201),
        replace(contents_of(2), custom_data="{"),
        replace(contents_of(2), custom_data='{"orders": {"one": [0]}}'),
        contents_of(2, {2: [0]}, concurrent=True),
        contents_of(2, {1: [-1]}, concurrent=True),
        contents_of(2, {0: [1], 1: [0]}, concurrent=True),
        contents_of(2, {0: [1]}),
    ],
    ids=[
        "not JSON",
        "no list",
        "no address",
        "no payload",
        "too many",
        "custom data",
        "key",
        "absent",
        "negative",
        "circle",
        "circle in a row",
    ],
)
def test_contents_that_no_saga_can_have_are_refused(contents: Contents) -> None:
    """A saga that could never be carried out is not taken."""
    with pytest.raises(Refusal):
        Saga().planned("g", contents)


# --- every saga comes to an end


@dataclass
class World:
    """A saga's branches, whose operations answer as they like, for the first few calls."""

    progress: Progress
    log: list[tuple[str, str]] = field(default_factory=list)  # calls and final answers, in order
    troubles: int = TROUBLES_MAX

    def play(self, answers: st.DataObject) -> None:
        """Until the saga is finished: calls, answers in any order, attempts that end, coordinators that forget."""
        for _ in range(100):
            step = next_step(self.progress)
            match step:
                case Finished():
                    return
                case Calls(branches=branches):
                    for branch in branches:
                        self.log.append(("call", f"{branch.op[0]}{branch.branch_id}"))
                    keys = frozenset(branch.key for branch in branches)
                    before = self.progress
                    assert not keys & before.calling
                    self.progress = replace(
                        before,
                        calling=before.calling | keys,
                        called=before.called | keys,
                        unfinished=before.unfinished - keys,
                        repeats=before.repeats + len(before.unfinished & keys),
                    )
                case RollBack():
                    assert not self.progress.calling
                    self.progress = aborting(self.progress)
                case Pause() if not self.progress.calling or self.in_trouble(answers):
                    self.forget()
                case _:
                    self.answer(answers)
        raise AssertionError("it does not end")

    def in_trouble(self, answers: st.DataObject) -> bool:
        if self.troubles and answers.draw(st.booleans()):
            self.troubles -= 1
            return True
        return False

    def forget(self) -> None:
        """Another attempt, by whoever: it knows the log alone."""
        nothing = frozenset[tuple[str, str]]()
        self.progress = replace(self.progress, calling=nothing, called=nothing, unfinished=nothing, repeats=0)

    def answer(self, answers: st.DataObject) -> None:
        branch_id, op = answers.draw(st.sampled_from(sorted(self.progress.calling)))
        key = (branch_id, op)
        self.progress = replace(self.progress, calling=self.progress.calling - {key})
        if not self.in_trouble(answers):
            self.end(op, branch_id, Status.SUCCEED)
        elif op == ACTION and answers.draw(st.booleans()):
            self.end(op, branch_id, Status.FAILED)
        else:
            self.progress = replace(self.progress, unfinished=self.progress.unfinished | {key})

    def end(self, op: str, branch_id: str, status: Status) -> None:
        what = f"{op[0]}{branch_id}"
        self.progress = with_status(self.progress, **{what: status})
        self.log.append((status, what))


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, STEPS_MAX),
    pairs=st.sets(st.tuples(st.integers(0, STEPS_MAX - 1), st.integers(0, STEPS_MAX - 1))),
    concurrent=st.booleans(),
    retry_limit=st.integers(0, 2),
    answers=st.data(),
)
def test_every_saga_comes_to_an_end(
    count: int, pairs: set[tuple[int, int]], concurrent: bool, retry_limit: int, answers: st.DataObject
) -> None:
    """Whatever its branches answer, and however often another takes over: all actions, or what was called undone.

    No action begins before those that it comes after have succeeded, and no compensation before those of the actions
    that come after it.
    """
    orders = {step: [before for later, before in pairs if later == step and before < step] for step in range(count)}
    saga = submitted(contents_of(count, orders, concurrent=concurrent), TransOptions(retry_limit=retry_limit))
    world = World(saga)
    world.play(answers)
    after = {step: set(orders[step]) | (set() if concurrent or not step else {step - 1}) for step in range(count)}
    begun = {what for event, what in world.log if event == "call"}
    succeeded = [what for event, what in world.log if event == Status.SUCCEED]
    if world.progress.transaction.status is Status.SUBMITTED:
        assert {what for what in succeeded if what[0] == "a"} == {f"a{step + 1:02d}" for step in range(count)}
        assert all(what[0] == "a" for what in begun)
    else:
        undone = {what[1:] for what in succeeded if what[0] == "c"}
        assert {what[1:] for what in begun if what[0] == "a"} <= undone
    for number, (event, what) in enumerate(world.log):
        if event != "call":
            continue
        step = int(what[1:]) - 1
        done = {name for outcome, name in world.log[:number] if outcome == Status.SUCCEED}
        if what[0] == "a":
            assert {f"a{before + 1:02d}" for before in after[step]} <= done
        else:
            actions_begun = {name for outcome, name in world.log if outcome == "call" and name[0] == "a"}
            later = {f"{other + 1:02d}" for other in range(count) if step in after[other]}
            assert {f"c{name}" for name in later if f"a{name}" in actions_begun} <= done


def test_operations_are_compensation_and_action_of_each_step() -> None:
    """Ids 01, 02, …; both operations have the step's payload; as DTM stores them."""
    contents = replace(contents_of(2), payloads=[b"one", b"two"])
    told = [(each.branch_id, each.op, each.url, each.payload) for each in Saga().planned("g", contents)]
    assert told == [
        ("01", COMPENSATE, "h:1/s/C0", b"one"),
        ("01", ACTION, "h:1/s/A0", b"one"),
        ("02", COMPENSATE, "h:1/s/C1", b"two"),
        ("02", ACTION, "h:1/s/A1", b"two"),
    ]
    assert all(isinstance(each, BranchOp) for each in Saga().planned("g", contents))
