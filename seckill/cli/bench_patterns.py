"""`seckill bench patterns`: what each transaction pattern costs, beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from seckill.cli.console import note, print_json, print_table, stderr_is_terminal
from seckill.cli.errors import FAILED, WrongUsage
from seckill.cli.state import JsonOption, chosen, run_pipeline

if TYPE_CHECKING:
    from seckill.bench.pattern_figures import Cell, CellResult, PatternsResult
    from seckill.settings import Settings

NUMBER_MAX = 1_000


def patterns(
    context: typer.Context,
    pattern: Annotated[str, typer.Option(metavar="NAMES", help="Which, with commas between.")] = "tcc,saga,xa,message",
    concurrency: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Global transactions at a time, with commas between.")
    ] = "1,4,16,64",
    products: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Products that the orders are spread over, with commas between.")
    ] = "1",
    seconds: Annotated[float, typer.Option(min=0.1, max=3_600, help="Of each measurement.")] = 4,
    groups: Annotated[
        bool, typer.Option("--groups/--no-groups", help="Also groups of worker.batch_max, of the patterns that can.")
    ] = True,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the figures: FILE.svg or FILE.png (needs matplotlib).")
    ] = None,
    own_coordinator: Annotated[
        bool, typer.Option("--own-coordinator", help="Start and use `seckill coordinator` instead of dtm.grpc.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What each transaction pattern costs: orders a second, latency, connections and transactions that it holds.

    One order a transaction, so that the patterns can be compared; TCC and XA
    with groups besides. Measures the checkout over gRPC, without Kafka and
    Redis, which are the same for all. Latency: from the start of an order's
    global transaction until its end is read back. "ms an order": how long
    connections are held, and transactions open, for one order; "opened":
    connections made for it. A prepared XA transaction counts as open.

    On the embedded profile SQLite stands in, without XA: for trying it out.
    Exit code 1 when the databases do not hold what was confirmed.

    Examples:

      seckill --config config/compose.toml bench patterns
      seckill bench patterns --pattern tcc,xa --products 1,10 --plot xa.svg
      seckill bench patterns --seconds 2 --json
    """
    from seckill.cli.bench import measuring_settings

    settings = measuring_settings(context, embedded=True)
    _unheard(settings)
    from seckill.bench.pattern_figures import PatternsResult
    from seckill.bench.patterns import PatternsOptions, left_out, run_patterns
    from seckill.settings import Pattern

    names = chosen_names(pattern, get_args(Pattern))
    result = PatternsResult(left_out=left_out(settings, names))
    options = PatternsOptions(
        patterns=tuple(name for name in names if name not in result.left_out),
        concurrencies=chosen_numbers("--concurrency", concurrency),
        products=chosen_numbers("--products", products),
        seconds=seconds,
        groups=groups,
        own_coordinator=own_coordinator,
    )
    if not options.patterns:
        raise WrongUsage(f"--pattern {pattern}: {'; '.join(result.left_out.values())}")
    _check_plot(plot)
    work = run_patterns(settings, options, result, config=chosen(context).config, measured=_measured)
    try:
        run_pipeline(work)
    finally:
        _tell(result, plot, as_json=as_json)
    if result.sums and (wrong := result.sums.wrong()):
        note(f"seckill: {wrong}")
        raise typer.Exit(FAILED)


def chosen_names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names with commas between, each once. Raises WrongUsage."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in known]:
        raise WrongUsage(f"--pattern: {unknown[0]!r} is none of {', '.join(known)}")
    return names


def chosen_numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, each once. Raises WrongUsage."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= NUMBER_MAX for part in parts):
        raise WrongUsage(f"{option}: {text!r} must be whole numbers from 1 to {NUMBER_MAX:,}, with commas between")
    return tuple(dict.fromkeys(map(int, parts)))


def _check_plot(file: Path | None) -> None:
    """Before anything is measured. Raises WrongUsage."""
    if file is None:
        return
    from seckill.bench.plot import FORMATS, can_plot

    if file.suffix not in FORMATS:
        raise WrongUsage(f"--plot: {file} must end with {' or '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise WrongUsage(f"--plot: there is no folder {file.parent}")
    if not can_plot():
        raise WrongUsage("--plot needs matplotlib, which is not installed: pip install 'seckill[plot]'")


def _unheard(settings: Settings) -> None:
    """Warnings of the checkout are kept back unless asked for: what fails is counted here, and told with its reason."""
    from seckill.log import configure_logging

    if "level" not in settings.log.model_fields_set:
        configure_logging("error", json_lines=settings.log.json_lines, colors=stderr_is_terminal())


def _measured(result: CellResult) -> None:
    """A word to who watches."""
    if stderr_is_terminal():
        note(f"seckill: {named(result.cell)}: {result.report()['confirmed_per_second']:,.0f} orders a second")


def named(cell: Cell) -> str:
    """A measurement in words."""
    each = f"{cell.orders_each} orders each" if cell.orders_each > 1 else "one order each"
    return f"{cell.pattern}, {cell.concurrency} at once, {each}, products: {cell.products}"


def _tell(result: PatternsResult, file: Path | None, *, as_json: bool) -> None:
    """What there is, also of a measurement that was interrupted."""
    from seckill.bench.pattern_figures import COLUMNS, SPARE, rows

    for name, why in result.left_out.items():
        note(f"seckill: without {name}: {why}")
    if result.blind:
        note(f"seckill: no figures of open transactions: {result.blind}")
    if not result.cells:
        return
    for each in result.cells:
        for why, orders in each.not_confirmed.items():
            note(f"seckill: {named(each.cell)}: {orders:,} orders not confirmed: {why}")
    if as_json:
        print_json(result.report())
    else:
        print_table(COLUMNS, rows(result.cells), spare=SPARE)
    if file is not None:
        from seckill.bench.plot import plot

        plot(result.cells, file)
        note(f"seckill: drawn to {file}")
