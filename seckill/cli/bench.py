"""`seckill bench`: how fast the pipeline is on the servers that the settings name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.bench_patterns import patterns
from seckill.cli.console import note, print_json, print_table, say
from seckill.cli.errors import FAILED, WrongUsage
from seckill.cli.state import JsonOption, chosen, role_settings, run_pipeline

if TYPE_CHECKING:
    from seckill.bench.backlog import BacklogResult
    from seckill.bench.front import AcceptResult
    from seckill.bench.memory import MemoryResult
    from seckill.settings import Settings

commands = typer.Typer(
    no_args_is_help=True,
    help="""Measure the pipeline on real servers (Kafka, Redis, SQL, DTM).

    Starts the roles that it measures as processes of its own, on free
    loopback ports; makes a product, a sale and topics of its own. Noise of
    the machine is in every figure: compare figures of one run.

    Examples:

      seckill --config config/compose.toml bench backlog
      seckill bench accept --sold-out --json
      seckill bench patterns --plot patterns.svg
    """,
)

commands.command()(patterns)


@commands.command()
def backlog(
    context: typer.Context,
    orders: Annotated[int, typer.Option(min=1, max=1_000_000, help="Orders of one hot product.")] = 50_000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, max=1_000, help="Of the topic that is made for it.")] = 4,
    own_coordinator: Annotated[
        bool, typer.Option("--own-coordinator", help="Start and use `seckill coordinator` instead of dtm.grpc.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Confirmed orders a second: a backlog of one hot product, from Kafka to SQL.

    The clock runs from the moment the worker ends its first order to the
    moment the last one has ended and is settled.

    Examples:

      seckill --config config/compose.toml bench backlog
      seckill bench backlog --orders 10000 --own-coordinator --json
    """
    settings = measuring_settings(context)
    from seckill.bench.backlog import BacklogOptions, run_backlog

    options = BacklogOptions(orders, workers, partitions, own_coordinator)
    result = run_pipeline(run_backlog(settings, options, config=chosen(context).config))
    if as_json:
        print_json(_backlog_report(result))
    else:
        _show_backlog(result)
    if result.sold != result.orders:
        note(f"seckill: {result.orders - result.sold} of {result.orders} orders were not sold")
        raise typer.Exit(FAILED)


@commands.command()
def accept(
    context: typer.Context,
    seconds: Annotated[int, typer.Option(min=1, max=3_600, help="How long orders come.")] = 10,
    connections: Annotated[int, typer.Option(min=1, max=10_000, help="Connections of the load generator.")] = 128,
    partitions: Annotated[int, typer.Option(min=1, max=1_000, help="Of the topic that is made for it.")] = 4,
    sold_out: Annotated[bool, typer.Option("--sold-out", help="No units: every order is refused.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accepted orders a second over HTTP, each answered after Kafka has acknowledged it.

    The load comes from `wrk`. No worker runs, so nothing but acceptance is
    measured.

    Examples:

      seckill --config config/compose.toml bench accept
      seckill bench accept --sold-out --seconds 5 --json
    """
    settings = measuring_settings(context)
    from seckill.bench.front import AcceptOptions, run_accept

    options = AcceptOptions(seconds, connections, partitions, sold_out)
    result = run_pipeline(run_accept(settings, options, config=chosen(context).config))
    if as_json:
        print_json(_accept_report(result))
    else:
        _show_accept(result)
    if result.broken:
        note(f"seckill: {result.broken} connections broke")
        raise typer.Exit(FAILED)


@commands.command()
def memory(
    context: typer.Context,
    requests: Annotated[int, typer.Option(min=1, max=100_000_000, help="After so many, the last look.")] = 1_000_000,
    first: Annotated[int, typer.Option(min=1, max=100_000_000, help="After so many, the first look.")] = 200_000,
    units: Annotated[int, typer.Option(min=1, max=1_000_000, help="Units of each sale; a sale lasts 5 s.")] = 5_000,
    connections: Annotated[int, typer.Option(min=1, max=10_000, help="Connections of the load generator.")] = 64,
    own_coordinator: Annotated[
        bool, typer.Option("--own-coordinator", help="Start and use `seckill coordinator` instead of dtm.grpc.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Whether a role's memory grows with the requests: its resident size early and late.

    One sale after the other, each with far more buyers than units. Exit code
    1: a role has grown by more than a tenth between the two looks.

    Examples:

      seckill --config config/compose.toml bench memory
      seckill bench memory --requests 400000 --first 100000 --json
    """
    if first >= requests:
        raise WrongUsage("--first must be below --requests")
    settings = measuring_settings(context)
    from seckill.bench.memory import RATIO_MAX, MemoryOptions, run_memory

    options = MemoryOptions(requests, first, units, connections, own_coordinator=own_coordinator)
    result = run_pipeline(run_memory(settings, options, config=chosen(context).config))
    if as_json:
        print_json(_memory_report(result))
    else:
        _show_memory(result)
    if grown := result.grown():
        note(f"seckill: {', '.join(grown)}: grown to more than {RATIO_MAX} times its size")
        raise typer.Exit(FAILED)


def measuring_settings(context: typer.Context, *, embedded: bool = False) -> Settings:
    """For a measurement; called before gRPC is loaded, for the sake of its first line.

    `embedded`: it may also run on stand-ins. Raises WrongUsage.
    """
    # The roles are started while gRPC runs; as new programs, which gRPC's handlers for forks need not prepare for.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from seckill.cli.roles import configure_logs

    settings = role_settings(context)
    if settings.profile == "embedded" and not embedded:
        raise WrongUsage("the stand-ins of the embedded profile are not for measuring; name real servers with --config")
    configure_logs(settings, quiet=True)
    return settings


def _backlog_report(result: BacklogResult) -> dict[str, Any]:
    return {
        "orders": result.orders,
        "sold": result.sold,
        "seconds": round(result.seconds, 3),
        "confirmed_per_second": round(result.confirmed_per_second, 1),
        "admitted_per_second": round(result.admitted_per_second, 1),
        "cpu_us_per_order": {
            name: round(seconds * 1e6 / result.orders, 1) for name, seconds in result.cpu_seconds.items()
        },
    }


def _show_backlog(result: BacklogResult) -> None:
    report = _backlog_report(result)
    rows = [
        ("confirmed", f"{report['confirmed_per_second']:,.0f} a second", f"{result.sold:,} in {result.seconds:.2f} s"),
        ("admitted", f"{report['admitted_per_second']:,.0f} a second", "before, and published, without HTTP"),
        *(
            (f"cpu: {name}", f"{used:,.0f} µs an order", "servers and strangers" if name == "other" else "")
            for name, used in report["cpu_us_per_order"].items()
        ),
    ]
    print_table(("what", "figure", "of that"), rows)


def _accept_report(result: AcceptResult) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 3),
        "requests": result.requests,
        "accepted": result.accepted,
        "refused": result.refused,
        "accepted_per_second": round(result.accepted_per_second, 1),
        "refused_per_second": round(result.refused_per_second, 1),
        "latency_ms": {"p50": result.p50_ms, "p99": result.p99_ms},
        "broken_connections": result.broken,
    }


def _show_accept(result: AcceptResult) -> None:
    rows = [
        ("accepted", f"{result.accepted_per_second:,.0f} a second", f"{result.accepted:,} in {result.seconds:.1f} s"),
        ("refused", f"{result.refused_per_second:,.0f} a second", f"{result.refused:,}"),
        ("latency", f"{result.p50_ms:.1f} ms", f"p50; p99 {result.p99_ms:.1f} ms"),
    ]
    print_table(("what", "figure", "of that"), rows)


def _memory_report(result: MemoryResult) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 1),
        "sales": result.sales,
        "requests": {"first": result.first.requests, "last": result.last.requests},
        "accepted": {"first": result.first.accepted, "last": result.last.accepted},
        "resident_bytes": {
            name: {"first": result.first.resident_bytes[name], "last": last, "ratio": round(result.ratios()[name], 3)}
            for name, last in result.last.resident_bytes.items()
        },
    }


def _show_memory(result: MemoryResult) -> None:
    columns = ("role", f"after {result.first.requests:,}", f"after {result.last.requests:,} requests", "ratio")
    rows = [
        (name, f"{result.first.resident_bytes[name] / 2**20:.1f} MiB", f"{last / 2**20:.1f} MiB",
         f"{result.ratios()[name]:.3f}")
        for name, last in result.last.resident_bytes.items()
    ]  # fmt: skip
    print_table(columns, rows)
    say(f"{result.last.accepted:,} accepted, in {result.sales} sales, in {result.seconds:,.0f} s")
