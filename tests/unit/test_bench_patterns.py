"""The figures of `seckill bench patterns`: what they mean, and how they are told."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seckill.bench.holding import held_of, look_of
from seckill.bench.pattern_figures import (
    COLUMNS,
    SPARE,
    Cell,
    CellResult,
    Held,
    Look,
    OpenTransactions,
    PatternsResult,
    Sums,
    percentiles,
    planned,
    rows,
    weighed,
)
from seckill.bench.plot import plot
from seckill.cli.app import app
from seckill.cli.errors import USAGE

TCC = CellResult(
    Cell("tcc", 1, 1, 4),
    seconds=2.0,
    confirmed=100,
    not_confirmed={"BranchFailed": 3},
    latencies_ms=[float(n) for n in range(1, 101)],
    held=Held(count=400, seconds=1.0, opened=2),
    transactions=OpenTransactions(mean=1.5, max=4, prepared_mean=0.75, waiting_mean=0.25),
)
NOTHING = CellResult(Cell("xa", 1, 1, 1), 2.0, 0, {}, [], Held(0, 0, 0), None)


@pytest.mark.parametrize(
    ("values", "expected"), [([], (None, None)), ([7.0], (7.0, 7.0)), ([float(n) for n in range(101)], (50.0, 99.0))]
)
def test_percentiles(values: list[float], expected: tuple[float | None, float | None]) -> None:
    """p50 and p99 of what there is; nothing has none."""
    assert percentiles(values) == expected


def test_what_is_prepared_has_no_connection() -> None:
    """Every transaction is open; one without a thread is a prepared one, and one in LOCK WAIT waits for a row."""
    look = look_of([(17, "RUNNING"), (18, "LOCK WAIT"), (0, "RUNNING")])
    assert (look.open, look.prepared, look.waiting) == (3, 1, 1)


def test_looks_are_weighed_by_how_long_they_held() -> None:
    """A long time with one open transaction outweighs a moment with ten; the maximum is told all the same."""
    told = weighed([Look(0.0, 1, 0, 0), Look(9.0, 10, 3, 4), Look(10.0, 2, 0, 0)])
    assert told is not None
    assert math.isclose(told.mean, 1.9)
    assert math.isclose(told.prepared_mean, 0.3)
    assert math.isclose(told.waiting_mean, 0.4)
    assert told.max == 10


def test_one_look_tells_nothing() -> None:
    """Without a time between two looks there is no mean."""
    assert weighed([]) is None
    assert weighed([Look(0.0, 3, 0, 0)]) is None


def test_what_is_measured_and_in_which_order() -> None:
    """The patterns beside each other, one order at a time; then groups, of those that have them, while a worker could
    hold the orders.
    """
    cells = list(planned(["tcc", "saga"], [1, 64], [1, 10], group=500, inflight_max=5_000))
    assert cells == [
        Cell("tcc", 1, 1, 1), Cell("saga", 1, 1, 1), Cell("tcc", 1, 1, 64), Cell("saga", 1, 1, 64),
        Cell("tcc", 1, 10, 1), Cell("saga", 1, 10, 1), Cell("tcc", 1, 10, 64), Cell("saga", 1, 10, 64),
        Cell("tcc", 500, 1, 1), Cell("tcc", 500, 10, 1),
    ]  # fmt: skip


def test_connections_are_read_from_a_roles_metrics() -> None:
    """All databases of a role together; other metrics, and the histogram's buckets, do not count."""
    metrics = """
# TYPE seckill_database_connections_opened counter
seckill_database_connections_opened_total{database="product"} 3.0
# TYPE seckill_database_connection_held_seconds histogram
seckill_database_connection_held_seconds_bucket{database="product",le="0.1"} 5.0
seckill_database_connection_held_seconds_bucket{database="product",le="+Inf"} 5.0
seckill_database_connection_held_seconds_count{database="product"} 5.0
seckill_database_connection_held_seconds_sum{database="product"} 0.25
seckill_database_connection_held_seconds_bucket{database="other",le="+Inf"} 1.0
seckill_database_connection_held_seconds_count{database="other"} 1.0
seckill_database_connection_held_seconds_sum{database="other"} 0.5
# TYPE process_open_fds gauge
process_open_fds 12.0
"""
    assert held_of(metrics) == Held(count=6, seconds=0.75, opened=3)


def test_the_json_of_a_cell() -> None:
    """Rates by the seconds that were measured, what is held by the orders that were confirmed."""
    assert TCC.report() == {
        "pattern": "tcc", "orders_each": 1, "products": 1, "concurrency": 4,
        "seconds": 2.0, "confirmed": 100, "not_confirmed": {"BranchFailed": 3}, "confirmed_per_second": 50.0,
        "latency_ms": {"p50": 50.5, "p99": 99.0},
        "connections": {"in_use_mean": 0.5, "held_ms_mean": 2.5, "held_ms_per_order": 10.0, "opened_per_order": 0.02},
        "transactions": {
            "open_mean": 1.5, "open_max": 4, "prepared_mean": 0.75, "waiting_mean": 0.25, "open_ms_per_order": 30.0,
        },
    }  # fmt: skip


def test_what_has_no_figure_is_null() -> None:
    """A cell without orders has no percentiles, and a database that does not tell has no transactions."""
    told = NOTHING.report()
    assert told["latency_ms"] == {"p50": None, "p99": None}
    assert told["connections"]["held_ms_per_order"] is None
    assert told["transactions"] is None


def test_a_row_has_a_cell_for_each_column() -> None:
    """The table is as wide as its head, and can do without columns that it has."""
    table = list(rows([TCC, NOTHING]))
    assert {len(row) for row in table} == {len(COLUMNS)}
    assert table[0][-1] == 3
    assert set(SPARE) < set(COLUMNS)


@pytest.mark.parametrize(
    ("sums", "said"),
    [
        (Sums(confirmed=5, sold=5, order_rows=5, frozen=0), ""),
        (Sums(confirmed=5, sold=6, order_rows=6, frozen=0), "5 orders were confirmed"),
        (Sums(confirmed=5, sold=5, order_rows=4, frozen=0), "4 are in the order database"),
        (Sums(confirmed=5, sold=5, order_rows=5, frozen=2), "2 units frozen"),
        (Sums(confirmed=5, sold=5, order_rows=5, frozen=0, prepared=1), "1 XA transactions prepared"),
    ],
)
def test_every_sum_has_to_fit(sums: Sums, said: str) -> None:
    """What was confirmed is sold and has its order's row, no more and no less, and nothing is left undecided."""
    assert sums.wrong() == "" if not said else said in sums.wrong()


def test_what_there_is_of_an_interrupted_measurement() -> None:
    """Its cells are told; its sums are null, because nobody has checked them."""
    told = PatternsResult([TCC], left_out={"xa": "no XA here"}).report()
    assert [cell["pattern"] for cell in told["cells"]] == ["tcc"]
    assert told["left_out"] == {"xa": "no XA here"}
    assert told["sums"] is None


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_picture_is_drawn_by_its_ending(tmp_path: Path, ending: str) -> None:
    """SVG and PNG, also of cells that lack figures."""
    file = tmp_path / f"patterns{ending}"
    plot([TCC, NOTHING], file)
    assert file.read_bytes().startswith({".svg": b"<?xml", ".png": b"\x89PNG"}[ending])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pattern", "tcc,2pc"], "'2pc' is none of tcc, saga, xa, message"),
        (["--concurrency", "1,0"], "--concurrency"),
        (["--products", "many"], "--products"),
        (["--plot", "patterns.pdf"], ".svg or .png"),
        (["--plot", "absent/patterns.svg"], "no folder absent"),
        (["--plot", "patterns.svg"], "pip install 'seckill[plot]'"),
        (["--pattern", "xa"], "XA transactions need MySQL or MariaDB"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that cannot be meant, a plot without matplotlib and XA on SQLite alone end with 2 and say why."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    monkeypatch.delenv("SECKILL_CONFIG", raising=False)
    ended = CliRunner().invoke(app, ["bench", "patterns", *arguments])
    assert ended.exit_code == USAGE
    assert said in ended.stderr
