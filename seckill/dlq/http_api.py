"""`/v1/letters` over HTTP: what `seckill dlq` does, for others. Everything needs the operator token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from starlette.types import ASGIApp

from seckill import __version__
from seckill.dlq.batch import all_of, discardable, paced
from seckill.dlq.desk import LetterDesk
from seckill.dlq.documents import (
    considered_document,
    done_document,
    letter_document,
    stats_document,
    story_document,
)
from seckill.dlq.model import By, Considered, Done, Filter, InvalidEdit, Letter, LetterState, UnknownLetter
from seckill.doctor.start import DatabaseUnavailable
from seckill.domain.errors import AdmissionUnavailable, ProductUnavailable, PublishUnknown, SeckillError, Unfit
from seckill.domain.order import MAX_ID
from seckill.domain.reasons import DeadLetterReason
from seckill.front.answers import HANDLERS, BoundedBodies, Handler, answered, describe, described
from seckill.front.operators import OPERATOR_CODES, operator, sent_token, who_is_turned_away
from seckill.front.problems import Problem, ProblemError, invalid, openapi_responses
from seckill.ops import Readiness, ops_routes

log = structlog.get_logger(__name__)

PAGE_MAX = 500
"""Letters of one request."""

ENVELOPE_BYTES = 16_384
"""What a request may hold beside an edited payload."""

CLOSED = "dead letters are not shown here: no operator token is configured (dead_letters.operator_token)"

Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Moment = Annotated[int, Field(ge=0, le=2**48 - 1, description="Milliseconds since 1970")]
Text = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S")]
Ident = Annotated[str, Field(max_length=300)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Wanted(_Strict):
    """Which letters: each field that is given narrows it. Times are of the last failure."""

    since_ms: Moment | None = None
    until_ms: Moment | None = None
    reason: list[DeadLetterReason] = []
    product_id: Id | None = None
    user_id: Id | None = None
    order_id: Annotated[str, Field(max_length=60)] | None = None
    state: list[LetterState] = []
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = 100
    before_id: Annotated[Id, Field(description="Only letters with lower numbers: the next page")] | None = None

    def filter(self, *, states: Sequence[LetterState] = ()) -> Filter:
        return Filter(
            since_ms=self.since_ms,
            until_ms=self.until_ms,
            reasons=frozenset(self.reason),
            product_id=self.product_id,
            user_id=self.user_id,
            order_id=self.order_id,
            states=frozenset(self.state or states),
            limit=self.limit,
            before_id=self.before_id,
        )


class DiscardRequest(_Strict):
    """Who does it and why: kept for ever."""

    operator: Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
    note: Text
    force: Annotated[bool, Field(description="Also what was published again and has not ended")] = False


class ReplayRequest(DiscardRequest):
    payload: Annotated[str, Field(description="Published in the place of the record's own value")] | None = None
    force: Annotated[
        bool, Field(description="Also beyond `replays_max`, what would only come back, and what has not ended yet")
    ] = False


class _Many(_Strict):
    """Letters by their numbers, or by a filter. A dry run, which is the default, needs no operator and note.

    When a store fails in between, the problem's `letters` are those that were done until then.
    """

    letters: Annotated[list[Id], Field(max_length=PAGE_MAX)] | None = None
    filter: Wanted | None = None
    dry_run: bool = True
    operator: Annotated[str, Field(max_length=100)] = ""
    note: Annotated[str, Field(max_length=1_000)] = ""

    @model_validator(mode="after")
    def _complete(self) -> _Many:
        if (self.letters is None) == (self.filter is None):
            raise ValueError("give either letters or filter")
        if not self.dry_run and not (self.operator.strip() and self.note.strip()):
            raise ValueError("operator and note are needed when dry_run is false")
        return self


class DiscardManyRequest(_Many):
    pass


class ReplayManyRequest(_Many):
    force: bool = False


@dataclass(frozen=True, slots=True)
class LettersApi:
    """What the application needs. `body_bytes_max` is of an edited payload."""

    desk: LetterDesk
    readiness: Readiness
    operator_token: SecretStr | None
    replays_per_s: float
    body_bytes_max: int


def create_letters_app(api: LettersApi) -> ASGIApp:
    """The whole application; opens nothing."""
    app = FastAPI(
        title="seckill dead letters",
        version=__version__,
        exception_handlers=dict(_HANDLERS),
        docs_url="/docs",
        redoc_url=None,
    )
    app.include_router(_router(api))
    app.router.routes.extend(ops_routes(api.readiness))
    describe(app, described)
    # A payload in JSON takes up to six times its bytes: every one of them may be an escape.
    turned_away = who_is_turned_away(api.operator_token, closed=CLOSED)
    return BoundedBodies(
        app,
        api.body_bytes_max * 6 + ENVELOPE_BYTES,
        turned_away=lambda scope: turned_away(sent_token(scope["headers"])),
    )


def _router(api: LettersApi) -> APIRouter:
    desk = api.desk
    router = APIRouter(tags=["dead letters"], dependencies=[Depends(operator(api.operator_token, closed=CLOSED))])
    looking = openapi_responses("INVALID_REQUEST", *OPERATOR_CODES)
    one = openapi_responses("UNKNOWN_LETTER", "LETTER_REFUSED", "INVALID_REQUEST", *OPERATOR_CODES)
    many = openapi_responses("UNKNOWN_LETTER", "INVALID_REQUEST", *OPERATOR_CODES)

    @router.get("/v1/letters", summary="List letters, newest first", responses=looking)
    async def list_letters(wanted: Annotated[Wanted, Query()]) -> dict[str, Any]:
        return {"letters": [letter_document(each) for each in await desk.find(wanted.filter())]}

    @router.get("/v1/letters/stats", summary="Count letters by state, reason and product", responses=looking)
    async def show_stats(wanted: Annotated[Wanted, Query()]) -> dict[str, Any]:
        return stats_document(await desk.stats(wanted.filter()))

    @router.post("/v1/letters/replay", summary="Replay letters; by default only say what that would do", responses=many)
    async def replay_many(request: ReplayManyRequest) -> dict[str, Any]:
        considered = await desk.consider(await _letters(desk, request), force=request.force)
        by = By(request.operator.strip(), request.note.strip())
        return await _many(request, considered, api, lambda each: desk.replay(each, by, force=request.force))

    @router.post("/v1/letters/discard", summary="Discard letters; by default only say which", responses=many)
    async def discard_many(request: DiscardManyRequest) -> dict[str, Any]:
        considered = [discardable(each) for each in await _letters(desk, request)]
        by = By(request.operator.strip(), request.note.strip())
        return await _many(request, considered, api, lambda each: desk.discard(each, by))

    @router.post("/v1/letters/{ident:path}/replay", summary="Publish a letter again", responses=one)
    async def replay(ident: Ident, request: ReplayRequest) -> dict[str, Any]:
        letter, edit = await desk.get(ident), None if request.payload is None else request.payload.encode()
        [considered] = await desk.consider([letter], edit=edit, force=request.force)
        _unless_refused(considered.refused)
        by = By(request.operator.strip(), request.note.strip())
        return _done(await desk.replay(letter, by, edit=edit, force=request.force))

    @router.post("/v1/letters/{ident:path}/discard", summary="Give a letter up for good", responses=one)
    async def discard(ident: Ident, request: DiscardRequest) -> dict[str, Any]:
        letter = await desk.get(ident)
        _unless_refused(discardable(letter, force=request.force).refused)
        by = By(request.operator.strip(), request.note.strip())
        return _done(await desk.discard(letter, by, force=request.force))

    @router.get("/v1/letters/{ident:path}", summary="A letter's whole story", responses=one)
    async def show(ident: Ident) -> dict[str, Any]:
        return story_document(await desk.story(await desk.get(ident)))

    return router


async def _letters(desk: LetterDesk, request: _Many) -> list[Letter]:
    if request.filter is not None:
        wanted = request.filter.filter(states=(LetterState.NEW,))
        return await all_of(desk, wanted, most=wanted.limit)
    return [await desk.get(str(number)) for number in dict.fromkeys(request.letters or ())]


async def _many(
    request: _Many, considered: Sequence[Considered], api: LettersApi, do: Callable[[Letter], Awaitable[Done]]
) -> dict[str, Any]:
    if request.dry_run:
        return {"dry_run": True, "letters": [considered_document(replace(each, payload=None)) for each in considered]}
    done = [Done(each.letter, f"refused: {each.refused}") for each in considered if each.refused]
    todo = [each.letter for each in considered if not each.refused]
    try:
        async for letter in paced(todo, per_s=api.replays_per_s):
            done.append(await do(letter))  # noqa: PERF401 - what was done before an error is told
    except SeckillError as error:
        log.warning("letters_cut_short", done=len(done), of=len(considered), error=str(error))
        facts = {"dry_run": False, "letters": [done_document(each) for each in done]}
        raise ProblemError(Problem("UNAVAILABLE", str(error), facts)) from error
    return {"dry_run": False, "letters": [done_document(each) for each in done]}


def _done(done: Done) -> dict[str, Any]:
    _unless_refused(done.refused)
    return done_document(done)


def _unless_refused(refused: str) -> None:
    if refused:
        raise ProblemError(Problem("LETTER_REFUSED", refused))


# --- errors ----------------------------------------------------------------------------------------------------------


async def _on_unknown(_: Request, error: UnknownLetter) -> Response:
    return answered(Problem("UNKNOWN_LETTER", str(error)))


async def _on_invalid_edit(_: Request, error: InvalidEdit) -> Response:
    return answered(invalid((f"payload.{error.field}", error.problem)))


async def _on_unavailable(request: Request, error: Exception) -> Response:
    """In full: whoever may ask here is an operator."""
    log.warning("request_unavailable", path=request.url.path, error=str(error))
    return answered(Problem("UNAVAILABLE", str(error)))


_HANDLERS: dict[int | type[Exception], Handler] = {
    **HANDLERS,
    AdmissionUnavailable: _on_unavailable,
    ProductUnavailable: _on_unavailable,
    UnknownLetter: _on_unknown,
    InvalidEdit: _on_invalid_edit,
    DatabaseUnavailable: _on_unavailable,
    PublishUnknown: _on_unavailable,
    Unfit: _on_unavailable,
}
