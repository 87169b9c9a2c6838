"""The dead letters' HTTP API on the role that serves it: who may ask, what is answered, and what nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from pydantic import SecretStr

from seckill.crashpoints import CrashPoint
from seckill.dlq.model import LetterState
from seckill.domain.errors import ProductUnavailable
from seckill.wiring import ROLES, Role, with_values
from tests.support.backbone import open_backbone
from tests.support.letters import Letters, open_letters
from tests.support.rebuilds import at_point
from tests.support.sides import Side, embedded_side

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "open-sesame"
WHO = {"operator": "ann", "note": "the product service is mended"}
WITHIN_S = 20


@dataclass(frozen=True, slots=True)
class Api:
    http: aiohttp.ClientSession
    letters: Letters

    async def get(self, path: str, code: int = 200, **params: Any) -> Any:
        async with self.http.get(path, params=params) as reply:
            document = await reply.json(content_type=None)
            assert reply.status == code, document
            return document

    async def post(self, path: str, body: Any, code: int = 200) -> Any:
        async with self.http.post(path, json=body) as reply:
            document = await reply.json(content_type=None)
            assert reply.status == code, document
            return document

    async def new_letter(self) -> dict[str, Any]:
        """Of an order that was admitted and failed; the role has it in its index."""
        sale = await self.letters.backbone.open_sale(stock=5)
        letter = await self.letters.buried(await self.letters.backbone.admit(sale, user_id=1))
        found: dict[str, Any] = (await self.get(f"/v1/letters/{letter.letter_id}"))["letter"]
        return found

    async def ends(self, letter_id: int, state: str) -> dict[str, Any]:
        """The letter once the role has seen that its order has ended."""
        async with asyncio.timeout(WITHIN_S):
            while (letter := (await self.get(f"/v1/letters/{letter_id}"))["letter"])["state"] != state:
                await asyncio.sleep(0.1)
        found: dict[str, Any] = letter
        return found


@pytest.fixture(scope="module")
def stand_ins(kafka_server: str, redis_server: str) -> Side:
    """HTTP is the same on every server."""
    return embedded_side(kafka_server, redis_server)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def letters(stand_ins: Side, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Letters]:
    folder = tmp_path_factory.mktemp("letters")
    async with open_backbone(stand_ins, folder) as backbone, open_letters(backbone, stand_ins, folder) as opened:
        yield opened


def served(letters: Letters, token: str | None) -> AbstractAsyncContextManager[Role]:
    """The role, on a free port; in a group of its own, because Kafka's stand-in takes one member a group."""
    secret = None if token is None else SecretStr(token)
    own = {"http": "127.0.0.1:0", "operator_token": secret, "look_every_ms": 100, "replays_per_s": 100}
    group = {"group": f"group-{uuid4().hex[:8]}"}
    return ROLES["dead_letters"](with_values(letters.settings, {"dead_letters": own, "kafka": group}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(letters: Letters) -> AsyncIterator[Api]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        served(letters, TOKEN) as role,
        aiohttp.ClientSession(f"http://{role.addresses['dead_letters.http']}", headers=headers) as http,
    ):
        yield Api(http, letters)


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/letters"),
        ("GET", "/v1/letters/stats"),
        ("GET", "/v1/letters/1"),
        ("POST", "/v1/letters/1/replay"),
        ("POST", "/v1/letters/1/discard"),
        ("POST", "/v1/letters/replay"),
        ("POST", "/v1/letters/discard"),
    ],
)
async def test_nothing_is_told_without_the_token(api: Api, method: str, path: str) -> None:
    """No token and a wrong one are 401, on every path, before the request is even looked at."""
    for wrong in ("", "Bearer wrong", f"Basic {TOKEN}"):
        async with api.http.request(method, path, headers={"Authorization": wrong}) as reply:
            document = await reply.json(content_type=None)
        assert (reply.status, document["code"]) == (401, "UNAUTHORIZED")
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_stranger_is_told_so_whatever_he_sends(api: Api) -> None:
    """The token comes first: a body that is too large, or none, is not even looked at."""
    for body in (b"{", b" " * 8_000_000):
        headers = {"Authorization": "Bearer wrong", "content-type": "application/json"}
        async with api.http.post("/v1/letters/replay", data=body, headers=headers) as reply:
            assert (reply.status, (await reply.json(content_type=None))["code"]) == (401, "UNAUTHORIZED")


async def test_the_api_is_closed_by_default(letters: Letters) -> None:
    """Without a configured token every path is 403, whatever is sent; health, readiness and metrics are not."""
    async with (
        served(letters, None) as role,
        aiohttp.ClientSession(f"http://{role.addresses['dead_letters.http']}") as http,
    ):
        for headers in ({}, {"Authorization": "Bearer None"}, {"Authorization": "Bearer "}):
            async with http.get("/v1/letters", headers=headers) as reply:
                document = await reply.json(content_type=None)
            assert (reply.status, document["code"]) == (403, "CLOSED")
            assert "dead_letters.operator_token" in document["detail"]
        for path in ("/healthz", "/readyz", "/metrics"):
            async with http.get(path) as reply:
                assert reply.status == 200, path


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_letters_are_listed_counted_and_shown(api: Api) -> None:
    """Filters and pages, sums, and a story by number, order id or subject, which may hold slashes."""
    first, second = await api.new_letter(), await api.new_letter()
    mine = await api.get("/v1/letters", product_id=second["product_id"], state="new", reason="BRANCH_FAILED")
    assert [each["letter_id"] for each in mine["letters"]] == [second["letter_id"]]
    page = await api.get("/v1/letters", limit=1, before_id=second["letter_id"])
    assert [each["letter_id"] for each in page["letters"]] == [first["letter_id"]]
    stats = await api.get("/v1/letters/stats", product_id=first["product_id"])
    assert (stats["total"], stats["by_reason"]) == (1, {"BRANCH_FAILED": 1})
    story = await api.get(f"/v1/letters/{first['order_id']}")
    assert msgspec.json.decode(story["record"]["value"]["text"])["order_id"] == first["order_id"]
    assert story["timeline"]
    unreadable = await api.letters.unreadable(b"\xff")
    shown = await api.get(f"/v1/letters/{quote(unreadable.subject, safe='')}")
    assert (shown["letter"]["letter_id"], shown["record"]["value"]["text"]) == (unreadable.letter_id, None)


@pytest.mark.parametrize(
    ("path", "code", "status"),
    [
        ("/v1/letters/999999", "UNKNOWN_LETTER", 404),
        ("/v1/letters/'; --", "UNKNOWN_LETTER", 404),
        ("/v1/letters?limit=0", "INVALID_REQUEST", 422),
        ("/v1/letters?limit=501", "INVALID_REQUEST", 422),
        ("/v1/letters?reason=WHATEVER", "INVALID_REQUEST", 422),
        ("/v1/letters?product=1", "INVALID_REQUEST", 422),
        ("/v1/nothing", "NOT_FOUND", 404),
    ],
)
async def test_a_question_that_has_no_answer(api: Api, path: str, code: str, status: int) -> None:
    """Each is a problem document with its code."""
    assert (await api.get(path, status))["code"] == code


# --- changing --------------------------------------------------------------------------------------------------------


async def test_many_letters_are_a_dry_run_by_default(api: Api) -> None:
    """Nothing is changed until dry_run is false, which needs operator and note; then all are, and resolved."""
    letter = await api.new_letter()
    wanted: dict[str, Any] = {"filter": {"product_id": letter["product_id"]}}
    for path in ("/v1/letters/replay", "/v1/letters/discard"):
        dry = await api.post(path, wanted)
        assert (dry["dry_run"], [each["refused"] for each in dry["letters"]]) == (True, [""])
    assert (await api.get(f"/v1/letters/{letter['letter_id']}"))["letter"] == letter
    nameless = await api.post("/v1/letters/replay", wanted | {"dry_run": False}, 422)
    assert "operator and note" in nameless["detail"]
    done = await api.post("/v1/letters/replay", wanted | WHO | {"dry_run": False})
    assert [each["what"] for each in done["letters"]] == ["published"]
    await api.letters.carry()
    ended = await api.ends(letter["letter_id"], "resolved")
    assert (ended["outcome"], ended["replays"]) == ("confirmed", 1)
    [action, *_] = (await api.get(f"/v1/letters/{letter['letter_id']}"))["actions"]
    assert (action["action"], action["operator"], action["note"]) == ("replay", WHO["operator"], WHO["note"])


async def test_letters_by_their_numbers(api: Api) -> None:
    """Each is answered for; what cannot be done says why, and the others are done."""
    gone, kept = await api.new_letter(), await api.new_letter()
    await api.post(f"/v1/letters/{gone['letter_id']}/discard", WHO)
    numbers = [gone["letter_id"], kept["letter_id"], kept["letter_id"]]
    done = await api.post("/v1/letters/discard", {"letters": numbers, "dry_run": False, **WHO})
    what = {each["letter"]["letter_id"]: each["what"] for each in done["letters"]}
    assert what[gone["letter_id"]] == "refused: it is discarded (rejected:DISCARDED)"
    assert len(what) == len(done["letters"]) == 2
    assert {each["letter"]["state"] for each in done["letters"]} == {"discarded"}
    await api.post("/v1/letters/discard", {"letters": [999_999]}, 404)


async def test_many_letters_that_are_cut_short(api: Api) -> None:
    """The problem has what was done before it, so that nobody need guess."""
    numbers = [(await api.new_letter())["letter_id"] for _ in range(3)]
    left = [None, ProductUnavailable("product", "gone")]

    def deed(_: CrashPoint) -> None:
        if left and (error := left.pop(0)) is not None:
            raise error

    with at_point(CrashPoint.DISCARD_INTENDED, deed):
        cut = await api.post("/v1/letters/discard", {"letters": numbers, "dry_run": False, **WHO}, 503)
    assert (cut["code"], [each["letter"]["letter_id"] for each in cut["letters"]]) == ("UNAVAILABLE", numbers[:1])
    assert (await api.get(f"/v1/letters/{numbers[1]}"))["letter"]["open_intent"] == "discard"
    assert (await api.get(f"/v1/letters/{numbers[2]}"))["letter"]["open_intent"] == ""


async def test_a_letter_that_does_not_allow_it(api: Api) -> None:
    """A replay or discard of what has ended is 409, with the reason, and changes nothing."""
    letter = await api.new_letter()
    path = f"/v1/letters/{letter['letter_id']}"
    assert (await api.post(f"{path}/discard", WHO))["letter"]["state"] == "discarded"
    for deed in ("replay", "discard"):
        refused = await api.post(f"{path}/{deed}", WHO, 409)
        assert (refused["code"], "discarded" in refused["detail"]) == ("LETTER_REFUSED", True)
    assert (await api.post("/v1/letters/999999/replay", WHO, 404))["code"] == "UNKNOWN_LETTER"


async def test_an_edit_over_http(api: Api) -> None:
    """A payload that is no order is 422 and names its field, and changes nothing; a good one is published."""
    sale = await api.letters.backbone.open_sale(stock=5)
    letter = await api.letters.unreadable(b"{broken")
    path = f"/v1/letters/{letter.letter_id}/replay"
    order = {"user_id": 7, "product_id": sale.product_id, "sale_id": sale.sale_id}
    wrong = await api.post(path, {**WHO, "payload": msgspec.json.encode(order | {"quantity": 0}).decode()}, 422)
    assert wrong["errors"][0]["field"] == "payload.quantity"
    assert (await api.letters.desk.get(str(letter.letter_id))).state is LetterState.NEW
    done = await api.post(path, {**WHO, "payload": msgspec.json.encode(order | {"quantity": 1}).decode()})
    assert (done["what"], done["letter"]["user_id"]) == ("published", 7)
    await api.letters.carry()
    assert (await api.ends(letter.letter_id, "resolved"))["outcome"] == "confirmed"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"operator": "ann"}, "note"),
        ({"operator": "ann", "note": "   "}, "note"),
        ({"operator": "", "note": "n"}, "operator"),
        ({**WHO, "dry": True}, "dry"),
        ({**WHO, "note": "x" * 1_001}, "note"),
    ],
)
async def test_who_and_why_are_required(api: Api, body: dict[str, Any], field: str) -> None:
    """A change without operator or note, or with a field that is none, is refused and names it."""
    letter = await api.new_letter()
    refused = await api.post(f"/v1/letters/{letter['letter_id']}/discard", body, 422)
    assert [each["field"] for each in refused["errors"]] == [field]
    assert (await api.get(f"/v1/letters/{letter['letter_id']}"))["letter"] == letter


@pytest.mark.parametrize("body", [{}, {"letters": [1], "filter": {}}, {"letters": ["one"]}, {"filter": {"lim": 1}}])
async def test_many_are_named_in_one_way(api: Api, body: dict[str, Any]) -> None:
    """Numbers or a filter, never both or none, and no field that there is not: else nothing is done."""
    assert (await api.post("/v1/letters/replay", body, 422))["code"] == "INVALID_REQUEST"


async def test_a_service_that_does_not_answer(api: Api, letters: Letters) -> None:
    """503 with what is down; the discard stays written down, and is not begun a second time."""
    letter = await api.new_letter()
    path = f"/v1/letters/{letter['letter_id']}"
    await letters.backbone.stop("product")
    try:
        down = await api.post(f"{path}/discard", WHO, 503)
    finally:
        await letters.backbone.start("product")
    assert (down["code"], "product service" in down["detail"]) == ("UNAVAILABLE", True)
    assert (await api.get(path))["letter"]["open_intent"] == "discard"
    again = await api.post(f"{path}/discard", WHO, 409)
    assert "was begun" in again["detail"]
    async with asyncio.timeout(WITHIN_S):  # the connection to product takes a moment to come back
        while (await letters.desk.get(str(letter["letter_id"]))).state is not LetterState.DISCARDED:
            with suppress(ProductUnavailable):
                await letters.desk.resume()


async def test_bodies_that_are_none(api: Api) -> None:
    """What is no JSON is 400, and what is too large 413."""
    for body, status, code in ((b"{", 400, "MALFORMED_JSON"), (b" " * 8_000_000, 413, "BODY_TOO_LARGE")):
        async with api.http.post(
            "/v1/letters/replay", data=body, headers={"content-type": "application/json"}
        ) as reply:
            assert (reply.status, (await reply.json(content_type=None))["code"]) == (status, code)


async def test_the_description_names_every_path(api: Api) -> None:
    """What a web page is written against: each path, its problems, and the token that all of them need."""
    document = await api.get("/openapi.json")
    assert {path for path in document["paths"] if path.startswith("/v1/letters")} == {
        "/v1/letters", "/v1/letters/stats", "/v1/letters/{ident}", "/v1/letters/replay", "/v1/letters/discard",
        "/v1/letters/{ident}/replay", "/v1/letters/{ident}/discard",
    }  # fmt: skip
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert all(each["security"] == [{"operatorToken": []}] for each in operations)
    assert "UNKNOWN_LETTER" in str(document["paths"]["/v1/letters/{ident}"]["get"]["responses"])
