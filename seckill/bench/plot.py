"""The figures of the patterns as a picture, by matplotlib: an extra (`plot`) that nothing else needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from seckill.bench.pattern_figures import CellResult
from seckill.settings import Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")

Value = Callable[[dict[str, Any]], float | None]

PANELS: Sequence[tuple[str, Value]] = (
    ("confirmed orders a second", lambda told: told["confirmed_per_second"]),
    ("p99 latency, ms", lambda told: told["latency_ms"]["p99"]),
    ("connections held, ms an order", lambda told: told["connections"]["held_ms_per_order"]),
    ("transactions open, ms an order", lambda told: (told["transactions"] or {}).get("open_ms_per_order")),
)


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot(results: Sequence[CellResult], file: Path) -> None:
    """Writes an SVG or PNG, by the file's ending. A panel for each figure, a line for each kind of cell.

    Raises OSError when the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and half a second

    figure = Figure(figsize=(11, 8), layout="constrained")
    lines = _lines(results)
    for axes, (title, value) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for label, cells in lines.items():
            _draw(axes, label, cells, value)
        _dress(axes, title)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(file)


def _lines(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    found: dict[str, list[CellResult]] = {}
    for result in results:
        cell = result.cell
        groups = f", groups of {cell.orders_each}" if cell.orders_each > 1 else ""
        label = f"{cell.pattern}{groups}, {cell.products} product{'s' if cell.products > 1 else ''}"
        found.setdefault(label, []).append(result)
    return found


def _draw(axes: Axes, label: str, results: Sequence[CellResult], value: Value) -> None:
    """A colour for each pattern, dashes for many products, squares for groups. What has no value is no point."""
    points = [(each.cell.concurrency, value(each.report())) for each in results]
    known = [(at, figure) for at, figure in points if figure is not None]
    first = results[0].cell
    axes.plot(
        [at for at, _ in known],
        [figure for _, figure in known],
        color=f"C{get_args(Pattern).index(first.pattern)}",
        linestyle="--" if first.products > 1 else "-",
        marker="s" if first.orders_each > 1 else "o",
        label=label,
    )


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("global transactions at a time")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(visible=True, alpha=0.3)
