"""What docs/dtm.md shows runs, each block as it stands, in a process of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.servers import Servers, fresh_database
from tests.support.coordinators import coordinator_on
from tests.support.examples import examples, printed_by

EXAMPLES = examples("docs/dtm.md")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d ")
ON_SQLITE = ("tcc", "saga", "message")


def test_every_example_is_run() -> None:
    """The page has these examples and no other."""
    assert set(EXAMPLES) == {"bank", *ON_SQLITE, "xa"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `bank.py` is."""
    (tmp_path / "bank.py").write_text(EXAMPLES["bank"], encoding="utf-8")
    return tmp_path


def as_told(printed: str) -> bool:
    """One transfer that went through, and one that was refused and changed nothing."""
    words = [line.partition(":")[0] for line in printed.splitlines() if not LOG_LINE.match(line)]
    return words == ["70 30", "refused", "70 30"]


@pytest.mark.parametrize("name", ON_SQLITE)
async def test_an_example_does_what_its_text_says(name: str, sqlite_log: str, folder: Path) -> None:
    """Against our coordinator, on databases in memory."""
    async with coordinator_on(sqlite_log) as coordinator:
        printed = await printed_by(EXAMPLES[name], {"DTM_GRPC": coordinator.grpc_address}, folder=folder)
    assert as_told(printed), printed


async def test_the_xa_example_does_what_its_text_says(servers: Servers, folder: Path) -> None:
    """Against a DTM, on two databases of a real MariaDB."""
    banks = {name: fresh_database(servers, "bank") for name in ("BANK_A", "BANK_B")}
    printed = await printed_by(EXAMPLES["xa"], {"DTM_GRPC": servers.dtm.grpc, **banks}, folder=folder)
    assert as_told(printed), printed
