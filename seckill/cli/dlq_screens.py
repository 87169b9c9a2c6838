"""How letters look to a person: lists, one letter's whole story, sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seckill.cli.console import (
    age,
    brief_moment,
    event_lines,
    exact_moment,
    moment,
    note,
    out,
    print_table,
    say,
    stdout_is_terminal,
)

if TYPE_CHECKING:
    from seckill.dlq.model import Action, Considered, Done, Letter, Stats, Story

COLUMNS = ("letter", "last failed", "state", "reason", "attempts", "replays", "product", "buyer", "order", "error")
SPARE = ("replays", "attempts", "product", "buyer", "order")
ERROR_SHOWN = 60
"""Most characters of an error in a row of a terminal; `show` has all of them."""

ROW_WITHOUT_ERROR = 48
"""Characters of a row that has no spare column left."""

PAYLOAD_SHOWN = 4_000
"""Most characters of a payload on a screen."""


# --- many ------------------------------------------------------------------------------------------------------------


def print_letters(letters: Iterable[Letter]) -> None:
    print_table(COLUMNS, [row_of(each) for each in letters], spare=SPARE)


def row_of(letter: Letter) -> list[object]:
    return [
        letter.letter_id, brief_moment(letter.last_failed_ms), _state_cell(letter), letter.reason.value,
        letter.attempts, letter.replays, letter.product_id, letter.user_id, letter.order_id, _error_cell(letter),
    ]  # fmt: skip


def _state_cell(letter: Letter) -> str:
    """On a terminal an end is told by itself: it says that the letter is resolved."""
    resolved = letter.state.value == "resolved"
    return letter.outcome if resolved and letter.outcome and stdout_is_terminal() else state_of(letter)


def _error_cell(letter: Letter) -> str:
    """On a terminal as much of it as leaves a letter one line, without the order id that a row has anyway."""
    error = " ".join((letter.error or letter.exception).split())
    if not stdout_is_terminal():
        return error
    error = error.replace(letter.order_id, "it") if letter.order_id else error
    room = min(ERROR_SHOWN, max(ERROR_SHOWN // 3, out().width - ROW_WITHOUT_ERROR))
    return error if len(error) <= room else f"{error[: room - 1]}…"


def state_of(letter: Letter) -> str:
    """The state, and what it alone does not tell."""
    if letter.looping:
        return "new again"
    ended = letter.outcome and letter.state.value != "discarded"
    return f"{letter.state.value} ({letter.outcome})" if ended else letter.state.value


def print_stats(stats: Stats, *, now_ms: int) -> None:
    from seckill.dlq.model import LetterState

    states = [(state.value, stats.by_state.get(state, 0), _MEANING[state.value]) for state in LetterState]
    print_table(("state", "letters", "which are"), [*states, ("total", stats.total, "all that match")])
    for name, counts in (("reason", stats.by_reason), ("product", stats.by_product)):
        if counts:
            say("")
            print_table((name, "letters"), most_first(counts))
    say("")
    for line in stats_lines(stats, now_ms=now_ms):
        say(line)


_MEANING = {
    "new": "waiting for somebody: replay or discard them",
    "replaying": "published again, and on their way",
    "resolved": "ended: their orders are confirmed or rejected",
    "discarded": "given up by an operator",
}


def stats_lines(stats: Stats, *, now_ms: int) -> list[str]:
    oldest = "none is open"
    if stats.oldest_ms is not None:
        oldest = f"the oldest open one failed first {age(now_ms - stats.oldest_ms)} ago ({moment(stats.oldest_ms)})"
    lines = [f"{counted(stats.last_minute, 'letter')} failed in the last minute; {oldest}"]
    if stats.looping:
        lines.append(f"{counted(stats.looping, 'letter')} came back after a replay: what ails them is not mended")
    return lines


def most_first(counts: Mapping[Any, int]) -> list[tuple[str, int]]:
    return sorted(((str(name), count) for name, count in counts.items()), key=lambda each: (-each[1], each[0]))


def counted(count: int, what: str) -> str:
    """`1 letter`, `2 letters`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


# --- one -------------------------------------------------------------------------------------------------------------


def print_story(story: Story) -> None:
    """What a person needs to decide: what is wrong, what it holds, what was done, and what every store says."""
    for name, text in facts_of(story.letter).items():
        say(f"{name:<10}{text}")
    _print_record(story)
    if story.actions:
        say("")
        print_table(("when", "operator", "action", "note"), [_action_row(each) for each in story.actions])
    say("")
    for line in event_lines(story.events):
        say(line)


def facts_of(letter: Letter) -> dict[str, str]:
    failed = f"{exact_moment(letter.last_failed_ms)}, after {counted(letter.attempts, 'attempt')}"
    if letter.first_failed_ms != letter.last_failed_ms:
        failed += f" since {exact_moment(letter.first_failed_ms)}"
    facts = {
        "letter": f"{letter.letter_id}  {state_of(letter)}",
        "reason": letter.reason.value,
        "error": f"{letter.exception}: {letter.error}" if letter.exception else letter.error or "-",
        "order": _order(letter),
        "failed": failed,
        "replays": str(letter.replays) + (" (and came back)" if letter.looping else ""),
        "record": str(letter.record),
        "lies at": str(letter.letter),
    }
    if letter.record == letter.letter:
        del facts["record"]  # somebody wrote it there; it came from nowhere else
    if letter.open_intent:
        facts["unfinished"] = f"a {letter.open_intent} was begun and has not ended: `seckill dlq resume` finishes it"
    return facts


def _order(letter: Letter) -> str:
    if letter.order_id is None:
        return f"none in it; known as {letter.subject}"
    of = [f"product {letter.product_id}"]
    of += [f"sale {letter.sale_id}" if letter.sale_id else "no sale named"]
    of += [f"buyer {letter.user_id}"] if letter.user_id else []
    return f"{letter.order_id}  ({', '.join(of)})"


def _print_record(story: Story) -> None:
    from seckill.dlq.documents import header_text

    record = story.record
    say("")
    if record is None:
        say("the dead-letter topic does not hold the record any more")
        return
    width = max((len(name) for name, _ in record.headers), default=0)
    for name, value in record.headers:
        say(f"{name:<{width}}  {header_text(value)}")
    if record.headers:
        say("")
    key = "no key" if record.key is None else f"key {header_text(record.key)}"
    say(f"payload ({counted(len(record.value or b''), 'byte')}, {key})")
    for line in payload_lines(record.value):
        say(f"  {line}")


def payload_lines(value: bytes | None) -> list[str]:
    """A payload for eyes: JSON indented, other text as it is, and of bytes that are no text what they are."""
    from seckill.cli.dlq_edit import readable

    shown = readable(value or b"")
    if len(shown) > PAYLOAD_SHOWN:
        shown = f"{shown[:PAYLOAD_SHOWN]}\n… ({len(shown) - PAYLOAD_SHOWN:,} more characters: --json has all)"
    return shown.splitlines() or ["(empty)"]


def _action_row(action: Action) -> list[object]:
    edited = " (edited payload)" if action.payload is not None else ""
    return [exact_moment(action.at_ms), action.operator, f"{action.action}{edited}", action.note]


def hint_of(letter: Letter) -> str:
    """What to type next."""
    if letter.open_intent:
        return "seckill dlq resume"
    if letter.state.value == "replaying":
        return f"seckill dlq watch, or again: seckill dlq show {letter.letter_id}"
    if letter.state.value != "new":
        return ""
    edit = " --edit" if letter.order_id is None else ""
    return (
        f'seckill dlq replay {letter.letter_id}{edit} --note "…", or seckill dlq discard {letter.letter_id} --note "…"'
    )


# --- what is or would be done ----------------------------------------------------------------------------------------


def print_considered(considered: Sequence[Considered], *, verb: str) -> None:
    """A dry run's answer: a row a letter, and the sum."""
    rows = [
        [each.letter.letter_id, state_of(each.letter), each.letter.reason.value, each.letter.order_id,
         f"refused: {each.refused}" if each.refused else verb]
        for each in considered
    ]  # fmt: skip
    print_table(("letter", "state", "reason", "order", "would be"), rows, spare=("state", "reason"))


def print_done(done: Sequence[Done]) -> None:
    rows = [[each.letter.letter_id, each.letter.order_id or each.letter.subject, end_of(each)] for each in done]
    print_table(("letter", "order or record", "became"), rows)


def end_of(done: Done) -> str:
    """What became of a letter, as far as it is known."""
    letter = done.letter
    if done.refused:
        return done.what
    if letter.state.value == "discarded":
        return letter.state.value
    if letter.looping:
        return f"a dead letter again: {letter.reason.value}, {letter.error}"
    if letter.outcome:
        return letter.outcome
    return _PENDING.get(done.what, done.what)


_PENDING = {
    "published": "published again, not ended yet",
    "held": "held by a transaction: published again if that releases it",
}


def tell_next(line: str) -> None:
    """A hint, where a person looks."""
    if line and stdout_is_terminal():
        note(f"next: {line}")
