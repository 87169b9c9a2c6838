"""Replaying and discarding letters from a command: which ones, at what rate, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from seckill.cli.console import err, note, print_json, say, stderr_is_terminal
from seckill.cli.dlq_choice import State
from seckill.cli.dlq_screens import counted, end_of, hint_of, print_considered, print_done, tell_next
from seckill.cli.errors import FAILED, OK, CliError

if TYPE_CHECKING:
    from seckill.dlq.desk import LetterDesk
    from seckill.dlq.model import By, Considered, Done, Filter, Letter
    from seckill.settings import Settings

LOOK_EVERY_S = 1.0
"""Between two looks after the ends of replayed orders."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which letters: these, or else those that a filter means, at most `limit` of them."""

    idents: tuple[str, ...]
    wanted: Filter | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for. `by` None: a dry run, which needs no reason."""

    target: Target
    by: By | None
    per_s: float
    as_json: bool


@dataclass(slots=True)
class _Work:
    """How far it has come; what is refused before anything is done stands in `done` from the beginning."""

    todo: list[Letter]
    done: list[Done] = field(default_factory=list)
    begun: int = 0


@asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[LetterDesk]:
    from seckill.wiring.dead_letters import open_letter_desk

    async with open_letter_desk(settings) as desk:
        yield desk


async def letters_of(desk: LetterDesk, target: Target) -> list[Letter]:
    """Raises UnknownLetter, and CliError when a filter means no letter."""
    from seckill.dlq.batch import all_of

    if target.wanted is None:
        found = [await desk.get(ident) for ident in target.idents]
        return list({each.letter_id: each for each in found}.values())
    letters = await all_of(desk, target.wanted, most=target.limit)
    if not letters:
        states = " or ".join(sorted(target.wanted.states))
        raise CliError(f"no {states} letter matches: see `seckill dlq stats`")
    return letters


async def replayed(settings: Settings, asked: Asked, edit: bytes | None, *, force: bool, wait_s: float) -> int:
    """Replays what is asked for, or says what that would do; the exit code."""
    async with open_desk(settings) as desk:
        considered = await desk.consider(await letters_of(desk, asked.target), edit=edit, force=force)
        if asked.by is None:
            return _dry(considered, asked, verb="replayed")
        work, by = _work_of(considered), asked.by

        def one(letter: Letter) -> Awaitable[Done]:
            return desk.replay(letter, by, edit=edit, force=force)

        with _told_when_cut_short(work, "replayed"):
            await _do(work, one, asked, "replayed")
            await _wait_for_ends(desk, work, wait_s)
    return _report(work, asked, waited=wait_s > 0)


async def discarded(settings: Settings, asked: Asked, *, force: bool) -> int:
    """Discards what is asked for, or says what that would do; the exit code."""
    from seckill.dlq.batch import discardable

    async with open_desk(settings) as desk:
        considered = [discardable(each, force=force) for each in await letters_of(desk, asked.target)]
        if asked.by is None:
            return _dry(considered, asked, verb="discarded")
        work, by = _work_of(considered), asked.by
        with _told_when_cut_short(work, "discarded"):
            await _do(work, lambda letter: desk.discard(letter, by, force=force), asked, "discarded")
    return _report(work, asked, waited=False)


async def resumed(settings: Settings, *, as_json: bool) -> int:
    """Finishes what was begun; the exit code. When a store fails in between, what was finished is told all the same."""
    done: list[Done] = []
    try:
        async with open_desk(settings) as desk:
            await desk.resume(told=done.append)
    except BaseException:
        if done:
            _tell_resumed(done, as_json=as_json)
        raise
    _tell_resumed(done, as_json=as_json)
    return FAILED if any(each.refused for each in done) else OK


def _tell_resumed(done: Sequence[Done], *, as_json: bool) -> None:
    if as_json:
        print_json(_document(done))
    elif done:
        print_done(done)
    else:
        say("nothing was left unfinished")


def _work_of(considered: Sequence[Considered]) -> _Work:
    from seckill.dlq.model import Done

    refused = [Done(each.letter, f"refused: {each.refused}") for each in considered if each.refused]
    return _Work([each.letter for each in considered if not each.refused], refused)


async def _do(work: _Work, one: Callable[[Letter], Awaitable[Done]], asked: Asked, verb: str) -> None:
    from seckill.dlq.batch import paced

    with _bar(verb, len(work.todo)) as advance:
        async for letter in paced(work.todo, per_s=asked.per_s):
            work.begun += 1
            work.done.append(await one(letter))
            advance()


async def _wait_for_ends(desk: LetterDesk, work: _Work, wait_s: float) -> None:
    """Until every replayed order has ended or come back, or the time is up; `work.done` has the letters as they are."""
    waiting = {each.letter.letter_id: index for index, each in enumerate(work.done) if _under_way(each)}
    until = time.monotonic() + wait_s
    with _bar("ended", len(waiting)) as advance:
        while waiting and time.monotonic() < until:
            await desk.resolve()
            for letter in await desk.look_at(waiting.keys()):
                if letter.state.value != State.REPLAYING:
                    index = waiting.pop(letter.letter_id)
                    work.done[index] = replace(work.done[index], letter=letter)
                    advance()
            if waiting:
                await asyncio.sleep(LOOK_EVERY_S)


def _under_way(done: Done) -> bool:
    return not done.refused and done.letter.state.value == State.REPLAYING


# --- telling ---------------------------------------------------------------------------------------------------------


@contextmanager
def _told_when_cut_short(work: _Work, verb: str) -> Iterator[None]:
    """Whatever ends it early, Ctrl-C or a store that does not answer: how far it has come."""
    try:
        yield
    except (asyncio.CancelledError, Exception):
        if work.begun:
            left = len(work.todo) - work.begun
            note(
                f"seckill: cut short: {counted(work.begun, 'letter')} {verb}, {left:,} left as they were;"
                " what was begun is finished by the dead-letters role, or by `seckill dlq resume`"
            )
        raise


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, only where a terminal shows it; gives the function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"{what:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = not stderr_is_terminal() or not total
    with Progress(*columns, console=err(), transient=True, disable=quiet) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _dry(considered: Sequence[Considered], asked: Asked, *, verb: str) -> int:
    from seckill.dlq.documents import considered_document

    refused = sum(bool(each.refused) for each in considered)
    if asked.as_json:
        print_json({
            "dry_run": True, "letters": [considered_document(each) for each in considered],
            "counts": {verb: len(considered) - refused, "refused": refused},
        })  # fmt: skip
    else:
        print_considered(considered, verb=verb)
        note(f"seckill: a dry run: {_sum(len(considered) - refused, verb, refused)}")
        if refused < len(considered):
            how = "--no-dry-run" if asked.target.idents else "--yes"
            note(f'seckill: to do it, give {how} and --note "…"')
    return FAILED if refused else OK


def _sum(count: int, verb: str, refused: int) -> str:
    return f"{counted(count, 'letter')} would be {verb}" + (f", {refused:,} refused" if refused else "")


def _report(work: _Work, asked: Asked, *, waited: bool) -> int:
    """`waited`: whoever waited for the ends is told of a replay that has none yet."""
    if asked.as_json:
        print_json(_document(work.done))
    elif len(work.done) == 1:
        say(f"letter {work.done[0].letter.letter_id}: {end_of(work.done[0])}")
        tell_next(hint_of(work.done[0].letter) if work.done[0].refused else "")
    else:
        _print_sums(work.done)
    pending = [each for each in work.done if _under_way(each)]
    if pending:
        first = pending[0].letter.letter_id
        note(f"seckill: {len(pending)} of them have not ended yet: `seckill dlq show {first}` tells how it goes")
    wrong = any(each.refused or each.letter.looping for each in work.done)
    return FAILED if wrong or (pending and waited) else OK


def _print_sums(done: Sequence[Done]) -> None:
    """Sums first; then what needs a person, a row each."""
    from seckill.cli.console import print_table

    print_table(("became", "letters"), sorted(_counts(done).items()))
    odd = [each for each in done if each.refused or each.letter.looping]
    if odd:
        say("")
        print_done(odd)


def _counts(done: Sequence[Done]) -> dict[str, int]:
    """By what became of them, in one word each."""
    return dict(Counter(_word(each) for each in done))


def _word(done: Done) -> str:
    letter = done.letter
    if done.refused:
        return "refused"
    if letter.looping:
        return "came back"
    if letter.state.value == State.DISCARDED:
        return letter.state.value
    return letter.outcome or (letter.state.value if letter.state.value != State.REPLAYING else done.what)


def _document(done: Sequence[Done]) -> dict[str, Any]:
    from seckill.dlq.documents import done_document

    return {"dry_run": False, "letters": [done_document(each) for each in done], "counts": _counts(done)}
