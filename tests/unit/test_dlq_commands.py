"""What `seckill dlq` decides without a store: which letters are meant, what an edit is, and how letters read."""

from __future__ import annotations

import io
import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from seckill.cli.app import app
from seckill.cli.dlq_choice import Choice, State
from seckill.cli.dlq_doing import Target
from seckill.cli.dlq_edit import compact, diff_lines, edited, readable
from seckill.cli.dlq_ending import is_dry
from seckill.cli.dlq_screens import end_of, facts_of, hint_of, state_of
from seckill.cli.dlq_watch import Seen, screen_of
from seckill.cli.errors import UNREACHABLE, USAGE, CliError, WrongUsage
from seckill.cli.times import parse_past
from seckill.dlq.batch import discardable, paced
from seckill.dlq.documents import bytes_document, header_text, letter_document
from seckill.dlq.model import Done, Letter, LetterState, Place, Stats
from seckill.domain.reasons import DeadLetterReason

NOW = datetime(2026, 11, 11, 20, 0, tzinfo=UTC)
ORDER_ID = "1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b"


def letter(letter_id: int = 7, **over: object) -> Letter:
    """A new letter of an order; `over` are fields that differ."""
    values: dict[str, object] = {
        "letter_id": letter_id,
        "subject": ORDER_ID,
        "order_id": ORDER_ID,
        "product_id": 1,
        "sale_id": 3,
        "user_id": 9,
        "state": LetterState.NEW,
        "reason": DeadLetterReason.RETRIES_EXHAUSTED,
        "error": "product service at h:1: UNAVAILABLE",
        "exception": "ProductUnavailable",
        "record": Place("seckill-topic", 2, 15),
        "letter": Place("seckill-topic-dlt", 0, 3),
        "first_failed_ms": 1_000,
        "last_failed_ms": 2_000,
        "attempts": 3,
        "replays": 0,
        "outcome": "",
        "open_intent": "",
        "created_ms": 2_000,
        "updated_ms": 2_000,
    }
    return Letter(**(values | over))  # type: ignore[arg-type]  # the fields that the test names


# --- which letters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ago_ms"), [("15m", 900_000), ("2h", 7_200_000), ("-30s", 30_000), ("now", 0), ("1d", 86_400_000)]
)
def test_a_length_of_time_is_so_long_ago(text: str, ago_ms: int) -> None:
    """--since 15m means 15 minutes ago; what other commands take as a time is taken as well."""
    assert parse_past(text, now=NOW) == int(NOW.timestamp() * 1000) - ago_ms


def test_a_time_that_is_none_says_what_is_one() -> None:
    """The error of a wrong time shows how to write one."""
    with pytest.raises(ValueError, match="write 15m, 2h or 1d"):
        parse_past("yesterday", now=NOW)


def test_a_choice_becomes_a_filter() -> None:
    """Options that were given narrow the filter; states that a command assumes give way to those that were named."""
    choice = Choice(product=4, reasons=[DeadLetterReason.UNREADABLE], order=ORDER_ID)
    wanted = choice.wanted(limit=5, states=(State.NEW,))
    assert (wanted.product_id, wanted.reasons, wanted.order_id, wanted.limit) == (4, {"UNREADABLE"}, ORDER_ID, 5)
    assert wanted.states == {LetterState.NEW}
    assert Choice(states=[State.RESOLVED]).wanted(limit=1, states=(State.NEW,)).states == {LetterState.RESOLVED}
    assert choice.given
    assert not Choice().given


def test_the_command_lines_states_are_the_letters() -> None:
    """No state is missing from the command line, and none is invented there."""
    assert [each.value for each in State] == [each.value for each in LetterState]


@pytest.mark.parametrize(
    ("idents", "yes", "dry_run", "dry"),
    [
        (("7",), False, None, False),
        (("7", "8"), False, None, True),
        ((), False, None, True),
        ((), True, None, False),
        (("7",), False, True, True),
        ((), False, False, False),
    ],
)
def test_more_than_one_letter_is_a_dry_run(
    idents: tuple[str, ...], *, yes: bool, dry_run: bool | None, dry: bool
) -> None:
    """Only one letter that was named is taken up at once; everything else waits for --yes."""
    assert is_dry(Target(idents), yes=yes, dry_run=dry_run) is dry


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["replay"], "which letters"),
        (["replay", "7", "--all"], "exclude each other"),
        (["replay", "7", "--reason", "UNREADABLE"], "exclude each other"),
        (["replay", "7"], "--note"),
        (["replay", "7", "--note", "  "], "--note"),
        (["replay", "7", "--note", "x" * 1_001], "--note"),
        (["replay", "7", "--note", "n", "--operator", "x" * 101], "--operator"),
        (["replay", "--all", "--yes"], "--note"),
        (["replay", "--all", "--yes", "--dry-run"], "--dry-run"),
        (["replay", "7", "--limit", "3", "--note", "n"], "--limit"),
        (["replay", "7", "8", "--edit", "--note", "n"], "--edit"),
        (["replay", "7", "--edit", "--payload", "f", "--note", "n"], "exclude each other"),
        (["replay", "7", "--payload", "/no/such/file", "--note", "n"], "/no/such/file"),
        (["replay", "--since", "yesterday"], "--since"),
        (["discard"], "which letters"),
        (["discard", "7"], "--note"),
        (["discard", "--all", "--no-dry-run"], "--note"),
        (["list", "--reason", "WHATEVER"], "UNREADABLE"),
        (["list", "--state", "lost"], "replaying"),
        (["list", "--order", "seven"], "--order"),
        (["list", "--since", "1h", "--until", "2h"], "--until"),
        (["list", "--limit", "0"], "--limit"),
        (["stats", "--user", "0"], "--user"),
        (["watch", "--interval", "0"], "--interval"),
        (["show"], "LETTER"),
    ],
)
def test_wrong_usage_names_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], named: str
) -> None:
    """Every wrong option ends with 2, before anything is opened, and the line names it."""
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["dlq", *arguments])
    assert ended.exit_code == USAGE, ended.stderr
    assert named.lower() in ended.stderr.lower()
    assert ended.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["list"], ["stats"], ["show", "7"], ["replay", "7", "--note", "n"], ["rebuild"]])
def test_an_index_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]) -> None:
    """One line names the database and the command that makes it; exit code 3, and no file is made by looking."""
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["dlq", *command])
    assert ended.exit_code == UNREACHABLE
    assert len(ended.stderr.splitlines()) == 1
    assert "dead_letters.database_url" in ended.stderr
    assert "seckill db upgrade dead-letters" in ended.stderr
    assert not list(tmp_path.iterdir())


# --- edits -----------------------------------------------------------------------------------------------------------


def test_a_payload_reads_well_and_goes_back_on_one_line() -> None:
    """JSON is indented for eyes and compact in a record; other bytes stay what they are."""
    assert readable(b'{"a":1}') == '{\n  "a": 1\n}'
    assert compact(readable(b'{"a":1}').encode()) == b'{"a":1}'
    assert readable(b"{broken") == "{broken"
    assert compact(b"{broken\n") == b"{broken"
    assert readable(b"\xff\x00") == "\\xff\x00"


def test_a_diff_tells_what_an_edit_changed() -> None:
    """One line out, one line in, whatever the record's own layout is."""
    lines = diff_lines(b'{"user_id":"seven","product_id":1}', b'{"user_id":7,"product_id":1}')
    assert '-  "user_id": "seven",' in lines
    assert '+  "user_id": 7,' in lines
    assert not any(line.startswith(("-  \"product", "+  \"product")) for line in lines)  # fmt: skip
    assert diff_lines(b'{"a": 1}', b'{"a":1}') == []


def editor(tmp_path: Path, script: str) -> str:
    """A program that stands in for a person at an editor: it gets the file's path."""
    path = tmp_path / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_editor_gets_the_payload_and_gives_the_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the editor saves is the new payload; its file does not stay."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor(tmp_path, f'cp "$1" {tmp_path}/given; sed -i s/seven/7/ "$1"'))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert edited(b'{"user_id": "seven"}') == b'{"user_id":"7"}'
    assert (tmp_path / "given").read_text() == '{\n  "user_id": "seven"\n}'


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [("true", CliError, "left as it was"), ("exit 3", CliError, "ended with 3"), (None, WrongUsage, "set EDITOR")],
)
def test_an_editor_that_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, kind: type[CliError], said: str
) -> None:
    """Leaving the file alone, quitting with an error, or having no editor replays nothing."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor(tmp_path, script) if script else os.fspath(tmp_path / "no-such-editor"))
    with pytest.raises(kind, match=said):
        edited(b"{}")


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_letter_tells_what_to_do_next() -> None:
    """A new letter is to be replayed or discarded, what is no order edited; an unfinished one resumed."""
    assert "replay 7 --note" in hint_of(letter())
    assert "--edit" in hint_of(letter(order_id=None))
    assert hint_of(letter(open_intent="replay")) == "seckill dlq resume"
    assert hint_of(letter(state=LetterState.RESOLVED)) == ""


def test_a_replay_that_failed_again_is_seen() -> None:
    """A letter that came back after a replay says so in lists, in its story and as the end of a replay."""
    back = letter(replays=1)
    assert state_of(back) == "new again"
    assert "came back" in facts_of(back)["replays"]
    assert end_of(Done(back, "published")).startswith("a dead letter again")
    ended = letter(state=LetterState.RESOLVED, replays=1, outcome="rejected:SOLD_OUT")
    assert end_of(Done(ended, "published")) == "rejected:SOLD_OUT"
    assert end_of(Done(letter(), "refused: no")) == "refused: no"


def test_only_new_letters_are_discarded() -> None:
    """What has ended, is under way or was begun by somebody else is refused before anything is asked of a store."""
    assert discardable(letter()).refused == ""
    assert discardable(letter(state=LetterState.REPLAYING)).refused == "it is replaying"
    assert "was begun" in discardable(letter(open_intent="discard")).refused


def test_watching_tells_each_change_once() -> None:
    """A letter is told when it is new and when something became of it, in the order in which that happened."""
    seen = Seen()
    first, second = letter(1, updated_ms=5), letter(2, updated_ms=4)
    assert [each.letter_id for each in seen.news([first, second])] == [2, 1]
    assert seen.news([first, second]) == []
    resolved = letter(2, updated_ms=9, state=LetterState.RESOLVED)
    assert seen.news([first, resolved]) == [resolved]


def test_any_header_can_be_shown() -> None:
    """Text as it is; bytes of other producers in hex, with the number that they may be; nothing is nothing."""
    assert header_text(b"seckill-topic") == "seckill-topic"
    assert header_text((42).to_bytes(4)) == "0x0000002a (42)"
    assert header_text(b"\xff\xfe") == "0xfffe"
    assert header_text(None) is None
    assert bytes_document(b"\xff") == {"text": None, "base64": "/w=="}
    assert bytes_document(None) is None


def test_a_document_says_whether_a_letter_loops() -> None:
    """What a program reads has places and states as plain values."""
    document = letter_document(letter(replays=2))
    assert document["looping"] is True
    assert document["record"] == {"topic": "seckill-topic", "partition": 2, "offset": 15}


async def test_letters_are_taken_up_no_faster_than_asked() -> None:
    """Five letters at 50 a second take four pauses."""
    began = time.monotonic()
    assert [each async for each in paced(range(5), per_s=50)] == [0, 1, 2, 3, 4]
    assert time.monotonic() - began >= 4 / 50


def test_the_live_screen_has_sums_and_the_newest_letters() -> None:
    """How many, in which state, why and how fast; then the letters, as a terminal of any width shows them."""
    stats = Stats(
        total=3,
        by_state={LetterState.NEW: 2, LetterState.DISCARDED: 1},
        by_reason={DeadLetterReason.UNREADABLE: 1, DeadLetterReason.BRANCH_FAILED: 2},
        oldest_ms=60_000,
        last_minute=2,
        looping=1,
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(screen_of(stats, [letter(8), letter(7, replays=1)], now_ms=360_000))
    shown = console.export_text()
    assert "3 dead letters: 2 new, 1 discarded" in shown
    assert "2 letters failed in the last minute; the oldest open one failed first 5 min ago" in shown
    assert "1 letter came back after a replay" in shown
    assert shown.index("BRANCH_FAILED") < shown.index("UNREADABLE")
    assert "new again" in shown
