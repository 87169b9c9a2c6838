"""`seckill publish`: one order by options, or many from a file or stdin; through the front, or straight to Kafka."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import err, note, print_json, print_table, say, stderr_is_terminal
from seckill.cli.errors import FAILED, UNREACHABLE, WrongUsage, front_silent
from seckill.cli.publish_input import InputFormat, InputOrder, Line
from seckill.cli.publish_source import lines_of
from seckill.cli.state import JsonOption, client_settings, front_of, run

if TYPE_CHECKING:
    from seckill.client import FrontClient
    from seckill.messaging.publisher import Publisher
    from seckill.settings import Settings

ATTEMPTS_MAX = 5
"""Tries of an order that the front was too busy to look at."""

BUSY_WAIT_S_MAX = 5.0

ACCEPTED = frozenset({"ACCEPTED", "PUBLISHED", "CONFIRMED"})
"""Codes of orders that need no second look."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one line. `code`: one of ACCEPTED above, the front's code, MALFORMED, UNKNOWN or UNREACHABLE."""

    line: int
    code: str
    order_id: str = ""
    detail: str = ""


@dataclass(slots=True)
class Summary:
    lines: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    not_sent_from: int | None = None  # the first line that was left alone
    interrupted: bool = False

    @property
    def failed(self) -> int:
        return sum(count for code, count in self.codes.items() if code not in ACCEPTED)

    @property
    def exit_code(self) -> int:
        if self.not_sent_from is not None or self.codes["UNREACHABLE"]:
            return UNREACHABLE
        return FAILED if self.failed else 0


Send = Callable[[int, InputOrder], Awaitable[Sent]]


def publish(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="JSONL or CSV; - for stdin.", allow_dash=True)
    ] = None,
    user: Annotated[int | None, typer.Option(min=1, help="The buyer's id.")] = None,
    product: Annotated[int | None, typer.Option(min=1, help="The product's id.")] = None,
    quantity: Annotated[int, typer.Option(min=1, help="Units.")] = 1,
    request_id: Annotated[
        str | None, typer.Option(metavar="KEY", help="Idempotency key: a repeat is one order.")
    ] = None,
    direct: Annotated[bool, typer.Option("--direct", help="Straight to Kafka, past the front.")] = False,
    sale: Annotated[int | None, typer.Option(min=1, help="With --direct: the sale (default: the open one).")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Orders in flight at a time.")] = 64,
    form: Annotated[
        InputFormat, typer.Option("--format", help="Of FILE; auto goes by name and contents.")
    ] = InputFormat.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Place one order by options, or many from a file or stdin.

    A line of JSONL is an object such as

      {"user_id": 7, "product_id": 1, "quantity": 1, "request_id": "k"}

    and a CSV names these columns in its first line; quantity and
    request_id may be left out. Every line is accounted for: what is
    malformed or refused is named with its line number on stderr and makes
    the exit code 1. With --json, stdout has one object for each line as it
    ends, then the summary.

    Examples:

      seckill publish --user 7 --product 1
      seckill publish orders.jsonl
      seckill publish orders.csv --concurrency 200 --json > results.jsonl
      printf 'user_id,product_id\\n7,1\\n8,1\\n' | seckill publish -
      seckill publish --user 7 --product 1 --direct
    """
    single = _single(file, user, product, quantity, request_id)
    if sale and not direct:
        raise WrongUsage("--sale is for --direct: the front finds the open sale itself")
    settings = client_settings(context)

    async def work() -> Summary:
        async with _sender(settings, direct=direct, sale_id=sale, connections_max=concurrency) as send:
            if single is not None:
                return await _publish_one(send, single, as_json)
            assert file is not None
            return await _publish_file(send, file, form, concurrency, as_json)

    summary = run(work())
    if summary.interrupted:
        raise KeyboardInterrupt
    raise typer.Exit(summary.exit_code)


def _single(
    file: Path | None, user: int | None, product: int | None, quantity: int, request_id: str | None
) -> InputOrder | None:
    import msgspec

    if file is not None:
        if user is not None or product is not None or request_id is not None:
            raise WrongUsage("FILE and --user/--product/--request-id exclude each other")
        return None
    if user is None or product is None:
        raise WrongUsage("give --user and --product for one order, or a FILE (- for stdin) for many")
    given = {"user_id": user, "product_id": product, "quantity": quantity, "request_id": request_id}
    try:
        return msgspec.convert(given, InputOrder)
    except msgspec.ValidationError as error:
        raise WrongUsage(str(error)) from error


async def _publish_one(send: Send, order: InputOrder, as_json: bool) -> Summary:
    sent = await send(1, order)
    if as_json:
        print_json({"code": sent.code, "order_id": sent.order_id, "detail": sent.detail})
    elif sent.code in ACCEPTED:
        say(f"{sent.order_id}  {sent.code.lower()}")
    if sent.code not in ACCEPTED:
        note(f"seckill: {_told(sent)}")
    return Summary(lines=1, codes=Counter([sent.code]))


async def _publish_file(send: Send, file: Path, form: InputFormat, concurrency: int, as_json: bool) -> Summary:
    with _progress() as advance:

        def tell(sent: Sent) -> None:
            if as_json:
                print_json(asdict(sent))
            if sent.code not in ACCEPTED:
                note(f"line {sent.line}: {_told(sent)}")
            advance()

        summary = await deliver(lines_of(file, form), send, concurrency=concurrency, tell=tell)
    if summary.not_sent_from is not None:
        why = "interrupted" if summary.interrupted else "nothing answers any more"
        note(f"seckill: {why}: lines from {summary.not_sent_from} on were not sent")
    if as_json:
        print_json({"lines": summary.lines, "failed": summary.failed, "codes": dict(summary.codes.most_common()),
                    "not_sent_from": summary.not_sent_from})  # fmt: skip
    else:
        print_table(["result", "lines"], [*summary.codes.most_common(), ("total", summary.lines)])
    return summary


async def deliver(lines: AsyncIterator[Line], send: Send, *, concurrency: int, tell: Callable[[Sent], None]) -> Summary:
    """Sends every line, at most `concurrency` at a time. Stops reading once nothing answers, and says where.

    Cancelled while it reads, it also stops there: what is on its way ends first, so that every line sent is told of.
    """
    summary = Summary()
    free = asyncio.Semaphore(concurrency)

    def ended(sent: Sent) -> None:
        summary.codes[sent.code] += 1
        tell(sent)

    async def one(number: int, order: InputOrder) -> None:
        try:
            ended(await send(number, order))
        finally:
            free.release()

    async def send_all(tasks: asyncio.TaskGroup) -> None:
        async for line in lines:
            summary.not_sent_from = line.number
            await free.acquire()
            if summary.codes["UNREACHABLE"]:
                return
            summary.lines += 1
            if line.order is None:
                free.release()
                ended(Sent(line.number, "MALFORMED", detail=line.problem))
            else:
                tasks.create_task(one(line.number, line.order))
            summary.not_sent_from = line.number + 1
        summary.not_sent_from = None

    async with asyncio.TaskGroup() as tasks:
        reader = asyncio.current_task()
        assert reader is not None
        try:
            await send_all(tasks)
        except asyncio.CancelledError:
            if reader.uncancel():
                raise  # more than one wants it to end
            summary.interrupted = True
            summary.not_sent_from = summary.not_sent_from or 1
    return summary


@asynccontextmanager
async def _sender(
    settings: Settings, *, direct: bool, sale_id: int | None, connections_max: int
) -> AsyncIterator[Send]:
    if direct:
        from seckill.messaging.publisher import open_publisher

        async with open_publisher(settings.kafka) as publisher:
            await publisher.require_topics({"kafka.topic": settings.kafka.topic})
            yield _to_kafka(publisher, sale_id)
    else:
        async with front_of(settings, connections_max=connections_max) as front:
            yield _to_front(front)


def _to_front(front: FrontClient) -> Send:
    from seckill.client import FrontUnavailable, Problem

    async def once(number: int, order: InputOrder) -> Sent:
        reply = await front.order(
            user_id=order.user_id, product_id=order.product_id, quantity=order.quantity, request_id=order.request_id
        )
        ended = reply["status"] != "processing"  # a repeat of an order that has ended already
        code = reply["status"].upper() if ended else "ACCEPTED"
        return Sent(number, code, reply["order_id"], reply.get("reason") or "")

    async def send(number: int, order: InputOrder) -> Sent:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await once(number, order)
            except Problem as problem:
                busy = problem.code in {"OVERLOADED", "RATE_LIMITED"} and problem.retry_after_s
                if not busy or attempt == ATTEMPTS_MAX:
                    return Sent(number, problem.code, str(problem.facts.get("order_id") or ""), problem.detail)
                await asyncio.sleep(min(problem.retry_after_s, BUSY_WAIT_S_MAX))
            except FrontUnavailable as error:
                if not error.maybe_done:
                    return Sent(number, "UNREACHABLE", detail=front_silent(error))
                return Sent(number, "UNKNOWN", detail=front_silent(error))
        raise AssertionError("the last attempt returns")

    return send


def _to_kafka(publisher: Publisher, sale_id: int | None) -> Send:
    """Records without an admission number: the worker admits them. Sale 0 is the product's open one by then."""
    import uuid_utils

    from seckill.domain.errors import PublishUnknown
    from seckill.domain.order import Order, derived_order_id, order_id_from_key

    async def send(number: int, wish: InputOrder) -> Sent:
        at_ms = time.time_ns() // 1_000_000
        if wish.request_id and sale_id is None:
            return Sent(number, "MALFORMED", detail="a request_id holds for one sale: --direct needs --sale with it")
        if wish.request_id:
            # A repeat must get the same id, whenever it comes: nothing of the clock may be in it.
            parts = ("direct", wish.user_id, sale_id or 0, wish.request_id)
            order_id = derived_order_id(wish.product_id, *parts, at_ms=0)
        else:
            order_id = order_id_from_key(wish.product_id, uuid_utils.uuid7().bytes)
        order = Order(
            order_id=order_id,
            sale_id=sale_id or 0,
            user_id=wish.user_id,
            product_id=wish.product_id,
            quantity=wish.quantity,
            admitted_at_ms=at_ms,
        )
        try:
            await publisher.publish(order)
        except PublishUnknown as error:
            return Sent(number, "UNKNOWN", order_id, f"{error}; the record may be in the topic")
        return Sent(number, "PUBLISHED", order_id)

    return send


def _told(sent: Sent) -> str:
    order = f" (order {sent.order_id})" if sent.order_id else ""
    return f"{sent.code}{order}: {sent.detail}" if sent.detail else f"{sent.code}{order}"


@contextmanager
def _progress() -> Iterator[Callable[[], None]]:
    """A progress line on stderr, only where a terminal shows it; gives the function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("published"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True, disable=not stderr_is_terminal()) as progress:
        task = progress.add_task("published", total=None)
        yield lambda: progress.advance(task)
