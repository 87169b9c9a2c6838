"""How many orders a second the front accepts over HTTP, each answered after Kafka has acknowledged it.

The load comes from `wrk`, a generator that costs little beside what it measures. Accepted orders are counted in Redis,
where admission wrote them, not by the generator.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from seckill.admission import open_admission
from seckill.bench.backlog import make_topics, new_sale, with_overrides
from seckill.bench.roles import free_addresses, running_role
from seckill.domain.errors import SeckillError
from seckill.front.product_client import ProductClient
from seckill.settings import Settings
from seckill.wiring import open_channel

UNITS_MAX = 10_000_000

_SCRIPT = """
local counter, thread = 0, 0
function setup(t) t:set("thread", thread); thread = thread + 1 end
function request()
  counter = counter + 1
  local user = %(first_user)d + thread * 100000000 + counter
  local body = '{"user_id":' .. user .. ',"product_id":%(product_id)d,"quantity":1}'
  local headers = {["Content-Type"] = "application/json"}
  if %(keyed_every)d > 0 and counter %% %(keyed_every)d == 0 then headers["Idempotency-Key"] = "key-" .. user end
  return wrk.format("POST", "/v1/orders", headers, body)
end
function done(summary, latency, requests)
  io.write(string.format('\\nRESULT {"requests":%%d,"duration_us":%%d,"status_errors":%%d,"socket_errors":%%d,' ..
    '"p50_us":%%d,"p99_us":%%d}\\n', summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class NoGenerator(SeckillError):
    """The load generator is not there."""

    retryable = True

    def __init__(self) -> None:
        super().__init__("`wrk` is not installed (Debian: apt-get install wrk)")


class GeneratorFailed(SeckillError):
    """The load generator did not tell its figures."""


@dataclass(frozen=True, slots=True)
class AcceptOptions:
    """`sold_out`: the sale has no units, so that every order is refused."""

    seconds: int = 10
    connections: int = 128
    partitions: int = 4
    sold_out: bool = False


class Told(msgspec.Struct):
    """What the generator says of one load."""

    requests: int
    duration_us: int
    status_errors: int
    socket_errors: int
    p50_us: int
    p99_us: int


@dataclass(frozen=True, slots=True)
class AcceptResult:
    """`accepted` is counted in Redis; `refused` are answers with an error status; latencies are of all answers."""

    seconds: float
    requests: int
    accepted: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float

    @property
    def accepted_per_second(self) -> float:
        return self.accepted / self.seconds

    @property
    def refused_per_second(self) -> float:
        return self.refused / self.seconds


async def run_accept(settings: Settings, options: AcceptOptions, *, config: Path | None = None) -> AcceptResult:
    """A product and a front of its own; no worker runs. Raises NoGenerator, RoleFailed, GeneratorFailed."""
    require_generator()
    run = uuid.uuid4().hex[:8]
    overrides = free_addresses(["product.grpc", "product.ops", "front.http", "front.grpc"]) | {
        "kafka.topic": f"bench-{run}",
        "kafka.dead_letter_topic": f"bench-{run}-dlt",
        "ledger.entries_max": str(UNITS_MAX),
    }
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-bench-")))
        settings = with_overrides(settings, overrides)
        await make_topics(settings, options.partitions)
        for name in ("product", "front"):
            await stack.enter_async_context(running_role(name, folder, config, overrides))
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        product = ProductClient(channel, address=settings.product.grpc)
        units = 0 if options.sold_out else UNITS_MAX
        sale = (await product.create_sale(uuid.uuid4().hex, new_sale(units))).sale
        await admission.sales.warm(sale)
        script = folder / "orders.lua"
        script.write_text(order_script(sale.product_id), encoding="ascii")
        told = await load(settings.front.http, script, seconds=options.seconds, connections=options.connections)
        view = await admission.sales.read(sale.product_id)
        accepted = units - view.stock if view is not None else 0
        return AcceptResult(
            seconds=told.duration_us / 1e6,
            requests=told.requests,
            accepted=accepted,
            refused=told.status_errors,
            broken=told.socket_errors,
            p50_ms=told.p50_us / 1000,
            p99_ms=told.p99_us / 1000,
        )


def require_generator() -> str:
    """Where `wrk` is. Raises NoGenerator."""
    generator = shutil.which("wrk")
    if generator is None:
        raise NoGenerator
    return generator


def order_script(product_id: int, *, first_user: int = 0, keyed_every: int = 0) -> str:
    """Orders of one product, each of another buyer; one of `keyed_every` has an idempotency key (0: none)."""
    return _SCRIPT % {"product_id": product_id, "first_user": first_user, "keyed_every": keyed_every}


async def load(address: str, script: Path, *, seconds: int, connections: int) -> Told:
    """Has the generator run the script against the front. Raises NoGenerator and GeneratorFailed."""
    process = await asyncio.create_subprocess_exec(
        require_generator(), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s",
        "--timeout", "10s", "--script", str(script), f"http://{address}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    for line in output.decode(errors="replace").splitlines():
        if line.startswith("RESULT "):
            return msgspec.json.decode(line.removeprefix("RESULT "), type=Told)
    raise GeneratorFailed(f"wrk ended with {process.returncode}: {output.decode(errors='replace')[-300:]}")
