"""Fixtures that every suite shares: the stand-ins and the real servers, each one for the whole run, on loopback.

`side` is where a test runs: every test that asks for it runs on the embedded stand-ins and on real servers. Where real
servers cannot be had, their half is skipped, and the last lines of the run say so; with CI set it fails.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
import structlog

from seckill.embedded import embedded_kafka, embedded_redis
from tests.servers import Servers, ServersMissing, can_start_twice, real_servers
from tests.support.histories import register_profiles
from tests.support.sides import SIDES, Side, embedded_side, real_side

pytest_plugins = ["tests.support.coordinator_fixtures"]

register_profiles()

MISSING = "real servers are missing"


LANES = 2
"""Test processes side by side, file by file: the tests wait more than they compute. Each has servers of its own."""


def pytest_xdist_auto_num_workers() -> int:
    return LANES if can_start_twice() else 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--side", choices=SIDES, help="run on this side only; what needs no servers runs anyway")
    parser.addoption("--all-crash-points", action="store_true", help="kill, hang and cut at every crash point")
    parser.addoption("--crash-table", metavar="FILE", help="write there how long each crash point took to heal")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of the side that was not asked for."""
    wanted = config.getoption("--side")
    if wanted is None:
        return
    chosen = [item for item in items if _side_of(item) in (wanted, None)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _side_of(item: pytest.Item) -> str | None:
    """Where a test runs; None for both and for neither."""
    side = item.callspec.params.get("side") if hasattr(item, "callspec") else None
    return side or ("real" if "servers" in getattr(item, "fixturenames", ()) else None)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that ran in this process has set up logging, on a stream that ends with the test."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        logging.basicConfig(force=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a Redis stand-in that lives as long as the test run."""
    with embedded_redis() as url:
        yield url


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[str]:
    """Bootstrap address of a Kafka stand-in that lives as long as the test run."""
    with embedded_kafka() as bootstrap:
        yield bootstrap


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Real servers that live as long as the test run."""
    with real_servers() as found:
        yield found


@pytest.fixture(scope="session", params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    """The stand-ins, then the real servers."""
    if request.param == "real":
        return real_side(request.getfixturevalue("servers"))
    return embedded_side(request.getfixturevalue("kafka_server"), request.getfixturevalue("redis_server"))


# --- what cannot be tested here --------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _without_what_is_missing())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _without_what_is_missing())


def _without_what_is_missing() -> Generator[None, object, object]:
    """A test that needs a server which cannot be had is skipped, wherever it asked for it; with CI set it fails."""
    try:
        return (yield)
    except ServersMissing as error:
        if os.environ.get("CI"):
            pytest.fail(f"{MISSING}, and on CI nothing may be left out: {error}")
        pytest.skip(f"{MISSING}: {error}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """The last word: which real servers were not there, and what was therefore not tested."""
    yield
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if MISSING in str(report.longrepr)]
    if not skipped:
        return
    terminalreporter.section("NOT TESTED ON REAL SERVERS", sep="!", red=True, bold=True)
    reasons = {reason for report in skipped for reason in _reasons(report)}
    for reason in sorted(reasons):
        terminalreporter.line(reason)
    terminalreporter.line(f"{len(skipped)} tests did not run; what they try was tried on no real server:")
    for file, count in Counter(report.nodeid.partition("::")[0] for report in skipped).items():
        terminalreporter.line(f"  {file}: {count}")


def _reasons(report: pytest.TestReport) -> list[str]:
    _, _, text = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
    return text.partition(f"{MISSING}: ")[2].split("; ")
