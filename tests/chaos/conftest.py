"""These tests are long: how one failed is told at once."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.support.crash_site import Site
from tests.support.failures import FAILED, tell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        site: Any = getattr(item, "funcargs", {}).get("site")
        if isinstance(site, Site):
            report.sections.append(("What the roles wrote last", site.last_words()))
        tell(item, report)
    return report
