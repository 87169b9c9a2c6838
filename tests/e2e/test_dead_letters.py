"""`seckill dlq` in a second terminal beside `seckill up`: looking at dead letters, mending them, giving them up."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from seckill.cli.errors import FAILED, INTERRUPTED, OK, USAGE
from seckill.cli.run_file import running_overrides
from tests.support.letter_office import DEAD_LETTERS, Office, until

if TYPE_CHECKING:
    from tests.e2e.conftest import Seckill

pytestmark = pytest.mark.slow

SETTINGS = {
    "SECKILL__RETRY__TOPIC_DELAYS_MS": "[]",  # a letter after the attempts in place
    "SECKILL__RETRY__BASE_MS": "10",
    "SECKILL__RETRY__CAP_MS": "20",
    "SECKILL__DEAD_LETTERS__LOOK_EVERY_MS": "200",
    "SECKILL__DEAD_LETTERS__OPERATOR_TOKEN": "open-sesame",
}

KILLED_AT = """
import os, signal
from seckill.crashpoints import arm
arm(lambda point: os.kill(os.getpid(), signal.SIGKILL) if point == {point!r} else None)
from seckill.cli import main
main()
"""


@pytest.fixture(scope="module")
def seckill(new_seckill: Callable[[], Seckill]) -> Seckill:
    made = new_seckill()
    made.environment.update(SETTINGS)
    return made


@pytest.fixture(scope="module")
def office(seckill: Seckill) -> Iterator[Office]:
    """A running pipeline whose failed orders become letters quickly."""
    running = seckill.start("up", "--base-port", "0", "--json")
    yield Office(seckill.environment, json.loads(running.line())["addresses"])
    assert running.stop(signal.SIGTERM) == OK, running.stderr


def an_order(product_id: int, user_id: object, **over: object) -> bytes:
    order = {"order_id": f"{product_id}-{os.urandom(16).hex()}", "user_id": user_id, "product_id": product_id}
    return json.dumps(order | {"quantity": 1} | over).encode()


# --- looking ---------------------------------------------------------------------------------------------------------


def test_watch_tells_letters_as_they_come_and_end(seckill: Seckill, office: Office) -> None:
    """A line of JSON when a letter comes in, another when something became of it; Ctrl-C ends with 130."""
    watching = seckill.start("dlq", "watch", "--reason", "unreadable", "--json", "--interval", "0.2")
    office.send(b"\xff\xfe{ no order")
    came = json.loads(watching.line())
    assert (came["state"], came["reason"], came["order_id"]) == ("new", "UNREADABLE", None)
    office.json("dlq", "discard", str(came["letter_id"]), "--note", "noise")
    *_, ended = until(lambda: _until_state(watching.line(), "discarded"), "the discarded letter")
    assert ended["letter_id"] == came["letter_id"]
    assert watching.stop(signal.SIGINT) == INTERRUPTED
    assert "Traceback" not in watching.stderr


def _until_state(line: str, state: str) -> list[dict[str, Any]] | None:
    letter = json.loads(line)
    return [letter] if letter["state"] == state else None


def test_a_letter_shows_everything_that_is_needed(office: Office) -> None:
    """Error, payload, headers and where it lies; as a table, as a story, as sums, and by any of its names."""
    office.send(an_order(4711, "seven"))
    [letter, *_] = office.letters("--reason", "invalid_field", "--state", "new")
    shown = office.seckill("dlq", "show", str(letter["letter_id"]))
    assert shown.exit_code == OK, shown.stderr
    for fact in ("INVALID_FIELD", "user_id", "seckill-origin", '"seven"', letter["subject"], "seckill-topic-dlt/"):
        assert fact in shown.stdout
    story = office.json("dlq", "show", letter["subject"])
    assert json.loads(story["record"]["value"]["text"])["product_id"] == 4711
    assert story["timeline"]
    listed = office.seckill("dlq", "list", "--since", "10m", "--limit", "1")
    assert listed.exit_code == OK
    assert listed.stdout.splitlines()[0].split()[:2] == ["letter", "last"]
    stats = office.json("dlq", "stats")
    assert stats["by_reason"]["INVALID_FIELD"] >= 1
    assert stats["last_minute"] >= 1
    assert "INVALID_FIELD" in office.seckill("dlq", "stats").stdout


@pytest.mark.parametrize("ident", ["999999", "1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b", "seckill-topic/0/999999", "'; --"])
@pytest.mark.parametrize("command", [("show",), ("replay", "--note", "n"), ("discard", "--note", "n")])
def test_an_unknown_letter(office: Office, command: tuple[str, ...], ident: str) -> None:
    """A letter that nobody knows ends with 1 and one line that names it."""
    ended = office.seckill("dlq", command[0], *command[1:], "--", ident)
    assert ended.exit_code == FAILED
    assert ident in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["list", "replay", "discard"])
def test_a_filter_that_matches_nothing(office: Office, command: str) -> None:
    """Says so and ends with 1, also where it would only be a dry run."""
    ended = office.seckill("dlq", command, "--user", "123456789")
    assert ended.exit_code == FAILED
    assert "letter matches" in ended.stderr


# --- replaying -------------------------------------------------------------------------------------------------------


def test_an_unreadable_order_is_replayed_after_an_edit(office: Office, tmp_path: Path) -> None:
    """Unchanged it would only come back; an edit that is no order is refused and changes nothing; a good one confirms.
    Who did it and why is kept, and a letter that is resolved is not replayed again.
    """
    product_id, sale_id = office.sale()
    office.send(an_order(product_id, "seven"))
    [letter, *_] = office.letters("--reason", "invalid_field", "--state", "new")
    ident = str(letter["letter_id"])
    replay = ("dlq", "replay", ident, "--operator", "ann", "--note", "a number, not a name")
    refused = office.seckill(*replay)
    assert (refused.exit_code, "refused" in refused.stdout) == (FAILED, True)
    wrong = tmp_path / "wrong.json"
    wrong.write_bytes(an_order(product_id, 7, quantity=0))
    bad = office.seckill(*replay, "--payload", str(wrong))
    assert (bad.exit_code, "quantity" in bad.stderr) == (USAGE, True)
    assert (office.letter(letter["letter_id"])["state"], office.letter(letter["letter_id"])["replays"]) == ("new", 0)

    good = an_order(product_id, 7, sale_id=sale_id)
    dry = office.seckill(*replay, "--payload", "-", "--dry-run", stdin=good.decode())
    assert dry.exit_code == OK, dry.stderr
    assert '+  "user_id": 7,' in dry.stdout
    assert office.letter(letter["letter_id"])["state"] == "new"
    done = office.seckill(*replay, "--payload", "-", stdin=good.decode())
    assert done.exit_code == OK, done.stderr + done.stdout
    assert f"letter {ident}: confirmed" in done.stdout
    story = office.json("dlq", "show", ident)
    replayed = next(each for each in story["actions"] if each["action"] == "replay")
    assert (replayed["operator"], replayed["note"]) == ("ann", "a number, not a name")
    assert json.loads(replayed["payload"]["text"]) == json.loads(good)
    again = office.seckill(*replay)
    assert (again.exit_code, "resolved" in again.stdout) == (FAILED, True)


def test_letters_of_a_filter_wait_for_yes(office: Office) -> None:
    """A filter only says what it would do; with --yes every order is confirmed, and the sum says so."""
    product_id, sale_id = office.sale()
    office.stranded(product_id, sale_id, users=(1, 2, 3))
    office.json("sale", "resume", str(sale_id))
    mine = ("dlq", "replay", "--product", str(product_id))
    dry = office.json(*mine)
    assert (dry["dry_run"], dry["counts"]) == (True, {"replayed": 3, "refused": 0})
    assert office.json("sale", "show", str(sale_id))["sold"] == 0
    told = office.seckill(*mine)
    assert "--yes" in told.stderr
    done = office.json(*mine, "--yes", "--note", "resumed")
    assert (done["dry_run"], done["counts"]) == (False, {"confirmed": 3})
    assert office.json("sale", "show", str(sale_id))["sold"] == 3
    assert office.json("audit", "--sale", str(sale_id))["holds"]


def test_a_replay_that_comes_back_is_seen(office: Office) -> None:
    """What is replayed before it is mended is a letter again: exit code 1, counted as looping, one row, and refused
    after its last allowed replay.
    """
    product_id, sale_id = office.sale()
    [letter] = office.stranded(product_id, sale_id, users=(1,))
    replay = ("dlq", "replay", str(letter["letter_id"]), "--note", "hope")
    for round_ in (1, 2, 3):
        back = office.json(*replay, code=FAILED)
        assert back["counts"] == {"came back": 1}
        assert back["letters"][0]["letter"]["replays"] == round_
    assert office.json("dlq", "stats", "--product", str(product_id))["looping"] == 1
    enough = office.json(*replay, code=FAILED)
    assert enough["counts"] == {"refused": 1}
    office.json("sale", "resume", str(sale_id))
    assert office.json(*replay, "--force")["counts"] == {"confirmed": 1}


@pytest.mark.parametrize("point", ["replay_intended", "replay_published"])
def test_a_killed_replay_is_finished_by_resume(seckill: Seckill, office: Office, point: str) -> None:
    """SIGKILL between any two steps: resumed by a command or by the role, and one order is confirmed."""
    product_id, sale_id = office.sale()
    [letter] = office.stranded(product_id, sale_id, users=(1,))
    office.json("sale", "resume", str(sale_id))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT.format(point=point), "dlq", "replay", str(letter["letter_id"]), "--note", "n"],
        env=seckill.environment, cwd=seckill.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = office.seckill("dlq", "resume")
    assert resumed.exit_code == OK, resumed.stderr

    def ended() -> dict[str, Any] | None:
        found = office.letter(letter["letter_id"])
        return found if found["state"] == "resolved" else None

    assert until(ended, "the letter is resolved")["outcome"] == "confirmed"
    assert office.json("sale", "show", str(sale_id))["sold"] == 1


def test_an_interrupted_replay_says_what_is_left(seckill: Seckill, office: Office) -> None:
    """Ctrl-C between two letters: 130, how many were taken up, and the others are as they were."""
    product_id, sale_id = office.sale()
    office.stranded(product_id, sale_id, users=(1, 2))
    office.json("sale", "resume", str(sale_id))
    slow = ("--product", str(product_id), "--rate", "0.1", "--yes", "--note", "n")
    replaying = seckill.start("dlq", "replay", *slow)
    office.letters("--product", str(product_id), "--state", "resolved")
    assert replaying.stop(signal.SIGINT) == INTERRUPTED
    assert "1 letter replayed, 1 left as they were" in replaying.stderr
    [left] = office.letters("--product", str(product_id), "--state", "new")
    assert left["replays"] == 0


# --- discarding, foreign records, the index --------------------------------------------------------------------------


def test_a_discarded_order_is_rejected_for_its_buyer(office: Office) -> None:
    """The buyer is told rejected(DISCARDED), nothing is sold, and there is no way back."""
    product_id, sale_id = office.sale()
    [letter] = office.stranded(product_id, sale_id, users=(1,))
    ident = str(letter["letter_id"])
    gone = office.json("dlq", "discard", ident, "--note", "the buyer gave up")
    assert gone["counts"] == {"discarded": 1}
    told = office.json("order", "show", letter["order_id"], "--wait", "10")
    assert (told["status"], told["reason"]) == ("rejected", "DISCARDED")
    for command in ("replay", "discard"):
        refused = office.json("dlq", command, ident, "--note", "again", code=FAILED)
        assert refused["counts"] == {"refused": 1}
    sale = office.json("sale", "show", str(sale_id))
    assert (sale["stock"], sale["sold"]) == (10, 0)


def test_records_that_others_put_there(office: Office) -> None:
    """Spring's headers are read; a record without any story is listed, shown and can be discarded."""
    spring = [
        ("kafka_dlt-original-topic", b"their-topic"),
        ("kafka_dlt-original-partition", (3).to_bytes(4)),
        ("kafka_dlt-original-offset", (42).to_bytes(8)),
        ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"no stock bean"),
    ]
    office.send(b"whatever this is", topic=DEAD_LETTERS, headers=spring)
    office.send(b"no story at all", topic=DEAD_LETTERS)
    letters = {each["exception"]: each for each in office.letters("--reason", "foreign", count=2)}
    theirs = letters["java.lang.IllegalStateException"]
    assert theirs["record"] == {"topic": "their-topic", "partition": 3, "offset": 42}
    shown = office.seckill("dlq", "show", str(theirs["letter_id"]))
    assert shown.exit_code == OK, shown.stderr
    assert "0x000000000000002a (42)" in shown.stdout
    assert "no stock bean" in shown.stdout
    gone = office.json("dlq", "discard", "--reason", "foreign", "--yes", "--note", "not ours")
    assert gone["counts"] == {"discarded": 2}


def test_a_lost_index_is_made_again(office: Office, seckill: Seckill, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its rows are gone, rebuild has every letter of the topic again, and says how the orders ended."""
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, seckill.environment[name])
    product_id, sale_id = office.sale()
    [letter] = office.stranded(product_id, sale_id, users=(1,))
    office.json("dlq", "discard", str(letter["letter_id"]), "--note", "n")
    known = office.json("dlq", "stats")["total"]
    running = running_overrides()
    assert running is not None
    path = urlsplit(running["dead_letters"]["database_url"]).path.removeprefix("/")
    with sqlite3.connect(path) as index:
        index.execute("DELETE FROM letter_action")
        index.execute("DELETE FROM letter")
    index.close()
    rebuilt = office.json("dlq", "rebuild")
    assert rebuilt["added"] == known
    [again] = office.letters("--product", str(product_id))
    assert again["state"] == "discarded"
    assert office.json("dlq", "rebuild")["added"] == 0
