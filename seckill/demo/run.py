"""The demo's course: open the sales, let the crowd in, wait until everything has ended, and judge the stores.

Talks to a pipeline that runs already, wherever its settings say; the crowd is a process of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from seckill.audit.reading import read_facts
from seckill.audit.rules import Verdict, judge
from seckill.audit.stores import open_stores, rest
from seckill.client import FrontClient, Json, front_url, open_front
from seckill.demo.plan import Done, Latency, Message, Plan, Progress
from seckill.demo.stores import confirm_latency
from seckill.domain.errors import SeckillError
from seckill.security import front_context
from seckill.settings import Settings

WATCH_EVERY_S = 0.25
SALE_LASTS_MS = 3_600_000


class CrowdFailed(SeckillError):
    """The buyers' process ended without its last word."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`stock` is of each product."""

    stock: int = 1_000
    buyers: int = 10_000
    products: int = 1
    seed: int = 1
    concurrency: int = 64
    rest_timeout_s: float = 60.0
    close_sales: bool = False  # when it is over: the pipeline goes on without them


@dataclass(slots=True)
class Live:
    """What is known while it runs, for a person to watch. The verdict does not use it."""

    stage: str = "opening"
    requests: int = 0
    accepted: list[str] = field(default_factory=list)
    confirmed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """`unrest` says what had not ended when the time was up; empty is well."""

    options: DemoOptions
    crowd: Done
    verdict: Verdict
    accepted: Sequence[str]
    confirm: Latency
    seconds: float  # from the first request until everything had ended
    unrest: str

    @property
    def fine(self) -> bool:
        return self.verdict.holds and not self.unrest and not self.crowd.unexpected_count


async def run_demo(settings: Settings, options: DemoOptions, watch: Callable[[Live], None]) -> DemoResult:
    """One sale of each product, from opening to verdict. Raises what the front, the stores or the crowd raise."""
    live = Live()
    token = settings.front.operator_token
    async with (
        open_front(
            settings.front.http,
            operator_token=token.get_secret_value() if token else None,
            tls=front_context(settings.front),
        ) as front,
        open_stores(settings) as stores,
    ):
        products = await _unsold_products(front, options.products)
        sales = [await _open_sale(front, product_id, options) for product_id in products]
        started = time.perf_counter()
        async with _watched(front, sales, live, watch):
            crowd = await _let_in(_plan(settings, options, products), live)
            live.stage = "the last orders"
            unfinished = await rest(stores, products, timeout_s=options.rest_timeout_s)
            seconds = time.perf_counter() - started
        facts = await read_facts(stores, accepted=live.accepted, product_ids=products)
        if options.close_sales:
            for sale in sales:
                await front.set_sale_state(sale["sale_id"], "close")
        return DemoResult(
            options=options,
            crowd=crowd,
            verdict=judge(facts),
            accepted=tuple(live.accepted),
            confirm=await confirm_latency(stores, products),
            seconds=round(seconds, 3),
            unrest=unfinished,
        )


async def _unsold_products(front: FrontClient, count: int) -> list[int]:
    """Product ids that no sale has had so far: the pipeline may have served others before."""
    first = max((sale["product_id"] for sale in await front.sales()), default=0) + 1
    return list(range(first, first + count))


async def _open_sale(front: FrontClient, product_id: int, options: DemoOptions) -> Json:
    now_ms = time.time_ns() // 1_000_000
    fields = {
        "product_id": product_id,
        "stock": options.stock,
        "name": f"demo product {product_id}",
        "starts_at_ms": now_ms - 1_000,
        "ends_at_ms": now_ms + SALE_LASTS_MS,
        "per_user_limit": 1,
        "price_cents": 1_990,
    }
    return await front.create_sale(fields, change_id=uuid.uuid4().hex)


def _plan(settings: Settings, options: DemoOptions, products: Sequence[int]) -> Plan:
    return Plan(
        url=front_url(settings.front.http, https=settings.front.https),
        ca=settings.front.tls_ca,
        products=list(products),
        unknown_product=products[-1] + 1_000_000,
        buyers=options.buyers,
        seed=options.seed,
        concurrency=options.concurrency,
        body_bytes_max=settings.front.body_bytes_max,
    )


# --- the crowd -----------------------------------------------------------------------------------------------------


async def _let_in(plan: Plan, live: Live) -> Done:
    """Runs the buyers' process to its end; their progress goes to `live`. Raises CrowdFailed."""
    live.stage = "selling"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "seckill.demo.buyers",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C is for the demo, which then ends the crowd
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(plan))
        process.stdin.close()
        last: Done | None = None
        async for message in _messages(process.stdout):
            if isinstance(message, Done):
                last = message
            else:
                _note(message, live)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if last is None or code != 0:
        raise CrowdFailed(f"the buyers' process ended with exit code {code}")
    return last


async def _messages(stream: asyncio.StreamReader) -> AsyncIterator[Message]:
    """NDJSON, read in pieces of any size: a line may be longer than the reader's own bound."""
    decoder = msgspec.json.Decoder(Message)
    rest_of_line = b""
    while piece := await stream.read(1 << 16):
        *lines, rest_of_line = (rest_of_line + piece).split(b"\n")
        for line in lines:
            yield decoder.decode(line)


def _note(progress: Progress, live: Live) -> None:
    live.requests = progress.requests
    live.accepted += progress.accepted
    live.rejected = Counter(progress.rejected)


@asynccontextmanager
async def _watched(
    front: FrontClient, sales: Sequence[Json], live: Live, watch: Callable[[Live], None]
) -> AsyncIterator[None]:
    """Shows `live` several times a second; the confirmed units come from the sales' rows."""

    ours = {sale["sale_id"] for sale in sales}

    async def follow() -> None:
        while True:
            live.confirmed = sum(view["sold"] for view in await front.sales() if view["sale_id"] in ours)
            watch(live)
            await asyncio.sleep(WATCH_EVERY_S)

    following = asyncio.create_task(follow(), name="watch")
    try:
        yield
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        watch(live)
