"""Where a coordinator keeps its log: fixtures for the suites that must hold on every database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.coordinators import Logs, mariadb_logs, sqlite_logs

LOG_KINDS = ["sqlite", "mariadb"]


@pytest.fixture(params=LOG_KINDS)
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Logs:
    """Databases for logs; the test runs once on SQLite and once on MariaDB."""
    return mariadb_logs(request.getfixturevalue("servers")) if request.param == "mariadb" else sqlite_logs(tmp_path)


@pytest.fixture
async def log_url(logs: Logs) -> str:
    """A fresh log; the test runs once on SQLite and once on MariaDB."""
    return await logs.fresh()


@pytest.fixture
async def sqlite_log(tmp_path: Path) -> str:
    """A fresh log, for a test to which the database does not matter."""
    return await sqlite_logs(tmp_path).fresh()
