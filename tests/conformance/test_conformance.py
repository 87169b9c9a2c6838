"""Neither DTM's own client nor ours can tell our coordinator from a DTM server; nor can DTM tell the two clients apart.

A Go program on DTM's client module and our client, one after the other, play the same scenarios against DTM 1.19.0 on
its SQL store and on its Redis store, and against our coordinator on SQLite and on MariaDB. What each was answered, what
its branches saw, what it sent (a proxy before each coordinator listens) and how each transaction ended must be equal
but for what `differences.py` lists. The reference is DTM's client on DTM's SQL store, live; where there is no DTM, the
recording `dtm-1.19.0.jsonl`, which a live DTM is itself compared with.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conformance.differences import (
    COORDINATORS,
    KINDS,
    OURS,
    REFERENCE,
    UNKNOWN,
    difference_of,
    without_client_differences,
    without_client_reason,
)
from tests.conformance.playing import BUILD_TIMEOUT_S, RUN_TIMEOUT_S, built, play_go, play_python
from tests.conformance.records import RECORDING, Record, Records, answers_of, calls_of, read_records
from tests.conformance.scenarios import SCENARIOS
from tests.servers import DtmAddress, Servers, ServersMissing, native
from tests.support.coordinators import Logs, coordinator_on, mariadb_logs, sqlite_logs
from tests.support.programs import needs

CLIENTS = ("go", "python")
Play = Callable[[], Awaitable[Records]]
ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"

CRON_INTERVAL_MS = 1_000  # of all of them; each repeat and each time-out waits for the next cron run

# The least pauses, in ms: doubling after a failure, even after "ongoing". A time-out's own second is in its pause.
LEAST_GAPS_MS = {
    "Confirm fails twice": {"02/confirm": [2_000, 4_000]},
    "Confirm is ongoing twice": {"01/confirm": [1_000, 1_000]},
    "Confirm refuses": {"01/confirm": [2_000]},
    "Confirm refuses in the old way of saying ongoing": {"01/confirm": [1_000]},
    "Confirm times out": {"02/confirm": [7_000]},
    "Cancel fails once": {"02/cancel": [2_000]},
    "abort waits as Prepare said": {"01/cancel": [2_000]},
    "saga: action fails twice": {"02/action": [2_000, 4_000]},
    "saga: action is ongoing twice": {"02/action": [1_000, 1_000]},
    "saga: action times out": {"02/action": [7_000]},
    "saga: first compensation fails once": {"01/compensate": [2_000]},
    "saga: compensation is ongoing": {"01/compensate": [1_000]},
    "saga: concurrent, an action fails once": {"02/action": [2_000]},
    "msg: second action fails twice": {"02/action": [2_000, 4_000]},
    "msg: action is ongoing twice": {"01/action": [1_000, 1_000]},
    "msg: nobody submits, the query is ongoing, then says yes": {"00/msg": [2_000]},
    "msg: nobody submits, the query fails, then says yes": {"00/msg": [4_000]},
    "xa: first commit fails twice": {"01/commit": [2_000, 4_000]},
    "xa: commit is ongoing twice": {"01/commit": [1_000, 1_000]},
    "xa: rollback fails once": {"01/rollback": [2_000]},
}
TIME_TO_FAIL_MS = {"nobody submits": {"02/cancel": 2_000}, "msg: delayed": {"01/action": 2_000}}

# DTM counts in whole seconds: its stores cut or round a time by up to one.
EARLY_MS = {"sqlite": 50, "mariadb": 50, "dtm-sql": 1_050, "dtm-redis": 1_050}
LATE_MS = {"sqlite": 0, "mariadb": 0, "dtm-sql": 1_000, "dtm-redis": 1_000}
SLACK_MS = 1_000  # of a busy machine
LOOKS_AGAIN_MS = 10_000  # and a DTM that looked for what timed out a part of a second too early looks again after this

PLAYS_MAX = 3
"""Of one DTM server. On a busy machine its cron can take up, after a second, what the server still carries itself."""

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S + len(CLIENTS) * PLAYS_MAX * RUN_TIMEOUT_S)


@dataclass(slots=True)
class Recordings:
    """What was seen, by client and kind of coordinator; and why the others could not be played."""

    seen: dict[tuple[str, str], Records] = field(default_factory=dict)
    missing: dict[str, BaseException] = field(default_factory=dict)  # by client or kind

    def of(self, client: str, kind: str) -> Records:
        """Raises what was in the way of playing it, which skips the test; on CI it fails."""
        for name in (client, kind):
            if name in self.missing:
                raise self.missing[name]
        return self.seen[client, kind]

    @property
    def reference(self) -> Records:
        return self.seen.get(("go", REFERENCE)) or read_records(RECORDING)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recordings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """All of them, played on all coordinators at the same time: they mostly wait."""
    found = Recordings()
    folder = tmp_path_factory.mktemp("conformance")
    try:
        program = await built(needs("go"))
    except pytest.skip.Exception as skipped:
        found.missing["go"] = skipped
    async with AsyncExitStack() as stack:
        addresses = {"sqlite": await _ours(stack, sqlite_logs(folder))}
        try:
            addresses |= await _on_servers(stack, request.getfixturevalue("servers"), folder)
        except ServersMissing as error:
            found.missing |= dict.fromkeys(set(KINDS) - addresses.keys(), error)
        clients: dict[str, Callable[[DtmAddress], Awaitable[Records]]] = {"python": play_python}
        if "go" not in found.missing:
            clients["go"] = partial(play_go, program=program, folder=folder)
        for client, play in clients.items():  # not both at once: DTM's cron takes one transaction at a time
            seen = await asyncio.gather(*(_played(kind, partial(play, at)) for kind, at in addresses.items()))
            found.seen |= {(client, kind): records for kind, records in zip(addresses, seen, strict=True)}
    return found


async def _played(kind: str, play: Play) -> Records:
    """A DTM server that departs from what a DTM server did is asked again; what it does then is compared."""
    recorded = read_records(RECORDING)
    for _ in range(PLAYS_MAX):
        seen = await play()
        if kind in OURS or not any(_departs(name, kind, seen[name], recorded[name]) for name in seen):
            break
    return seen


def _departs(name: str, kind: str, record: Record, reference: Record) -> bool:
    if difference_of(name, kind) is not None:
        return False
    ends = without_client_reason(record["end"]), without_client_reason(reference["end"])
    return ends[0] != ends[1] or any(record[part] != reference[part] for part in ("answers", "calls"))


async def _on_servers(stack: AsyncExitStack, servers: Servers, folder: Path) -> dict[str, DtmAddress]:
    """Those that need real servers, by kind. Raises ServersMissing before anything is started."""
    redis = native.dtm_process(folder / "dtm", store="redis", redis_url=servers.redis)
    return {
        "dtm-redis": stack.enter_context(redis).address,
        "dtm-sql": servers.dtm,
        "mariadb": await _ours(stack, mariadb_logs(servers)),
    }


async def _ours(stack: AsyncExitStack, logs: Logs) -> DtmAddress:
    coordinator = coordinator_on(await logs.fresh(), cron_interval_ms=CRON_INTERVAL_MS)
    served = await stack.enter_async_context(coordinator)
    return DtmAddress(served.grpc_address, served.http_address)


def test_a_live_dtm_does_what_was_recorded(recordings: Recordings) -> None:
    """The recording's answers, calls, requests and ends are those of a DTM server that runs now."""
    live, recorded = recordings.of("go", REFERENCE), read_records(RECORDING)
    assert list(live) == list(recorded)
    for name, record in live.items():
        for part in ("answers", "calls", "requests", "end"):
            assert record[part] == recorded[name][part], name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS)
def test_coordinators_are_alike(recordings: Recordings, client: str, kind: str) -> None:
    """Answers, order of calls, metadata and payloads are those of DTM, scenario by scenario."""
    seen, reference = recordings.of(client, kind), recordings.reference
    assert seen.keys() == reference.keys()
    for name, record in seen.items():
        wanted = difference_of(name, kind)
        if wanted is not None and wanted.answers is not None:
            assert answers_of(record) == wanted.answers, name
        else:
            assert record["answers"] == reference[name]["answers"], name
        if wanted is not None and wanted.calls is not None:
            assert calls_of(record) == wanted.calls, name
        else:
            assert record["calls"] == reference[name]["calls"], name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS)
def test_coordinators_tell_alike_how_it_ended(recordings: Recordings, client: str, kind: str) -> None:
    """What a query says in the end is what DTM says: status, why it was rolled back, and the state of every branch."""
    seen, reference = recordings.of(client, kind), recordings.reference
    for name, record in seen.items():
        wanted = difference_of(name, kind)
        end, theirs = record["end"], reference[name]["end"]
        if wanted is not None and wanted.end is not None:
            assert end == (None if wanted.end == UNKNOWN else wanted.end), name
        elif client == "go":
            assert end == theirs, name
        else:
            assert without_client_reason(end) == without_client_reason(theirs), name


@pytest.mark.parametrize("kind", KINDS)
def test_clients_are_alike(recordings: Recordings, kind: str) -> None:
    """Our client sends what DTM's client sends: the same methods in the same order, metadata, and fields."""
    ours = recordings.of("python", kind)
    theirs = recordings.seen.get(("go", kind), recordings.reference)
    for name in SCENARIOS:
        assert _sent(ours[name]) == _sent(theirs[name]), name


def _sent(record: Mapping[str, Any]) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    return [
        (each["method"], each["metadata"], without_client_differences(each["method"], each["message"]))
        for each in record["requests"]
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS)
def test_repeats_come_when_dtm_makes_them(recordings: Recordings, client: str, kind: str) -> None:
    """A failed call is repeated after twice the interval, then four times; an ongoing one after the interval."""
    seen, reference = recordings.of(client, kind), recordings.reference
    for name, gaps in LEAST_GAPS_MS.items():
        assert seen[name]["gaps_ms"].keys() == gaps.keys(), name
        for operation, least in gaps.items():
            pauses, theirs = seen[name]["gaps_ms"][operation], reference[name]["gaps_ms"][operation]
            assert len(pauses) == len(least) == len(theirs), name
            for pause, its_least, their_pause in zip(pauses, least, theirs, strict=True):
                _judge_time(name, kind, pause, its_least, their_pause)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS)
def test_time_runs_out_when_dtm_says_so(recordings: Recordings, client: str, kind: str) -> None:
    """A transaction that nobody decides is cancelled after its timeout_to_fail, by the next cron run."""
    seen = recordings.of(client, kind)
    for name, operations in TIME_TO_FAIL_MS.items():
        for operation, least in operations.items():
            after_ms = seen[name]["after_ms"][operation]
            latest = _latest_ms(kind, least) + (0 if kind in OURS else LOOKS_AGAIN_MS)
            assert least - EARLY_MS[kind] <= after_ms < latest, (name, after_ms)


def _latest_ms(kind: str, least_ms: int) -> int:
    return least_ms + CRON_INTERVAL_MS + LATE_MS[kind] + SLACK_MS


def _judge_time(name: str, kind: str, seen_ms: int, least_ms: int, reference_ms: int) -> None:
    assert least_ms - EARLY_MS[kind] <= seen_ms < _latest_ms(kind, least_ms), (name, seen_ms)
    tolerance = CRON_INTERVAL_MS + EARLY_MS[REFERENCE] + SLACK_MS
    assert abs(seen_ms - reference_ms) <= tolerance, (name, seen_ms, reference_ms)


def test_the_recording_shows_what_is_compared() -> None:
    """The recording itself has both branches' Try and Confirm with identity, headers and barrier, and the requests."""
    success = read_records(RECORDING)["success"]
    assert calls_of(success) == [("01", "try"), ("02", "try"), ("02", "confirm"), ("01", "confirm")]
    assert [each["dtm"] for each in success["calls"]] == ["{dtm}", "{dtm}", "", ""]
    assert {each["headers"]["x-trace"] for each in success["calls"]} == {"abc"}
    assert success["calls"][2]["barrier"] == "tcc/02/confirm"
    methods = [each["method"].rpartition("/")[2] for each in success["requests"]]
    assert methods == ["Prepare", "RegisterBranch", "RegisterBranch", "Submit"]
    assert list(read_records(RECORDING)) == list(SCENARIOS)


def test_the_recording_shows_how_transactions_end() -> None:
    """The recording tells why a saga was rolled back and how each branch stands, and whom DTM asks about a message."""
    records = read_records(RECORDING)
    refused = records["saga: first action refused"]
    assert refused["end"]["status"] == "failed"
    assert refused["end"]["rollback_reason"] == "url:{branches}/Action return failed: sold out FAILURE"
    states = [(branch, op, status) for branch, op, status, _ in refused["end"]["branches"]]
    assert states[:2] == [("01", "compensate", "succeed"), ("01", "action", "failed")]
    assert {status for _, _, status in states[2:]} == {"prepared"}
    asked = records["msg: nobody submits, the query says yes"]
    assert calls_of(asked) == [("00", "msg"), ("01", "action"), ("02", "action")]
    assert asked["calls"][0]["barrier"] == "msg/00/msg"


def test_every_difference_is_real_and_every_wanted_one_is_told() -> None:
    """No difference in the table is none; those of ours alone are decisions, which ARCHITECTURE.md lists."""
    reference = read_records(RECORDING)
    page = re.sub(r"\s+", " ", ARCHITECTURE.read_text(encoding="utf-8"))
    for name, difference in COORDINATORS.items():
        assert difference.answers != answers_of(reference[name]), name
        assert difference.calls != calls_of(reference[name]), name
        assert difference.end != reference[name]["end"] or difference.end is None, name
        assert (difference.kinds == OURS) is bool(difference.listed), name
        assert difference.listed in page, name
