"""`seckill db`: what it says before and after, its exit codes, and what a role says on a schema that is not its own."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seckill.cli.app import app
from seckill.cli.errors import FAILED, OK, UNREACHABLE, USAGE
from seckill.cli.times import parse_age
from seckill.schema import DATABASES, NEWEST

ARGUMENTS = [name.replace("_", "-") for name in DATABASES]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases in a folder of the test's own, and nothing of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SECKILL")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_upgrade_says_before_and_after(runner: CliRunner, tmp_path: Path) -> None:
    """One line a database, the same as JSON, and nothing to do the second time."""
    result = runner.invoke(app, ["db", "upgrade"])
    assert result.exit_code == OK, result.stderr
    assert result.stdout.splitlines() == [
        f"{argument}: nothing -> {NEWEST[name]}" for argument, name in zip(ARGUMENTS, DATABASES, strict=True)
    ]
    assert {file.name for file in tmp_path.glob("*.db")} == {f"{name}.db" for name in DATABASES}
    again = runner.invoke(app, ["db", "upgrade", "product", "--json"])
    newest = NEWEST["product"]
    assert json.loads(again.stdout) == {
        "databases": [{"database": "product", "before": newest, "after": newest, "adopted": False}]
    }
    assert "nothing to do" in runner.invoke(app, ["db", "upgrade", "dead-letters"]).stdout


def test_sql_prints_and_changes_nothing(runner: CliRunner, tmp_path: Path) -> None:
    """The statements of a whole schema, which SQLite itself takes, and no file."""
    result = runner.invoke(app, ["db", "upgrade", "order", "--sql"])
    assert result.exit_code == OK, result.stderr
    assert list(tmp_path.iterdir()) == []
    with closing(sqlite3.connect(tmp_path / "order.db")) as connection:
        connection.executescript(result.stdout)
    assert runner.invoke(app, ["db", "status", "order"]).exit_code == OK


def test_status_tells_found_and_wanted(runner: CliRunner, tmp_path: Path) -> None:
    """Exit code 1 while one is not current, and a line that names the command."""
    runner.invoke(app, ["db", "upgrade", "order", "product"])
    with closing(sqlite3.connect(tmp_path / "order.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'order_0001'")
        connection.commit()
    result = runner.invoke(app, ["db", "status", "--json"])
    assert result.exit_code == FAILED
    rows = {row["database"]: row for row in json.loads(result.stdout)["databases"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "product": "current", "order": "old", "coordinator": "absent", "dead-letters": "absent",
    }  # fmt: skip
    assert (rows["order"]["found"], rows["order"]["wanted"]) == ("order_0001", NEWEST["order"])
    assert "`seckill db upgrade order`" in result.stderr
    assert "`seckill db upgrade dead-letters`" in result.stderr
    assert runner.invoke(app, ["db", "status", "product"]).exit_code == OK


def test_a_database_that_does_not_answer_is_named(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting, address and remedy in one line, without the password; exit code 3."""
    monkeypatch.setenv("SECKILL__PRODUCT__DATABASE_URL", "mysql+asyncmy://shop:hunter2@127.0.0.1:1/product")
    for command in (["status"], ["upgrade"], ["upgrade", "--sql"]):
        result = runner.invoke(app, ["db", *command, "product"])
        assert result.exit_code == UNREACHABLE
        [line] = result.stderr.splitlines()
        for fact in ("product.database_url", "shop:***@127.0.0.1:1/product", "SECKILL__PRODUCT__DATABASE_URL"):
            assert fact in line
        assert "hunter2" not in result.stdout + result.stderr


def test_whose_databases_they_are_is_said_when_nobody_has_named_them(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file, stderr says that they are not those of `seckill up`; nothing for who names file or address."""
    for command in ("upgrade", "status"):
        [line] = runner.invoke(app, ["db", command, "order"]).stderr.splitlines()
        assert "`seckill up` keeps databases of its own" in line
        assert "--config" in line
    (tmp_path / "s.toml").touch()
    assert runner.invoke(app, ["--config", "s.toml", "db", "status", "order"]).stderr == ""
    monkeypatch.setenv("SECKILL__ORDER__DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/order.db")
    assert runner.invoke(app, ["db", "status", "order"]).stderr == ""
    assert "`seckill up` keeps databases of its own" in runner.invoke(app, ["db", "--help"]).stdout


def test_the_dead_letters_have_one_name(runner: CliRunner) -> None:
    """Sentences, tables, JSON and arguments name that database alike."""
    status = runner.invoke(app, ["db", "status", "dead-letters"])
    assert "the dead-letters database at" in status.stderr
    assert status.stdout.splitlines()[1].startswith("dead-letters ")
    statements = runner.invoke(app, ["db", "upgrade", "dead-letters", "--sql", "--json"]).stdout
    assert list(json.loads(statements)["statements"]) == ["dead-letters"]


@pytest.mark.parametrize("role", ["product", "order", "coordinator"])
def test_a_role_does_not_start_without_its_schema(
    runner: CliRunner, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3, one line with the command that mends it, and no tables made behind the operator's back."""
    for address in ("GRPC", "OPS", "HTTP"):
        if (role, address) not in {("coordinator", "OPS"), ("product", "HTTP"), ("order", "HTTP")}:
            monkeypatch.setenv(f"SECKILL__{role.upper()}__{address}", "127.0.0.1:0")
    result = runner.invoke(app, [role])
    assert result.exit_code == UNREACHABLE, result.stderr
    line = result.stderr.splitlines()[-1]
    for fact in (
        f"{role}.database_url",
        f"sqlite+aiosqlite:///{role}.db",
        NEWEST[role],
        f"`seckill db upgrade {role}`",
    ):
        assert fact in line
    assert not list(tmp_path.glob("*.db"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["upgrade", "products"],
        ["status", "front"],
        ["prune"],
        ["prune", "--older-than", "30"],
        ["prune", "--older-than", "30w"],
        ["prune", "--older-than", "59m"],
        ["prune", "--older-than", "30d", "--piece", "0"],
    ],
)
def test_wrong_usage_ends_with_2(runner: CliRunner, arguments: list[str]) -> None:
    """A database that there is none of, and a retention that is none, or too short."""
    result = runner.invoke(app, ["db", *arguments])
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_prune_needs_the_schemas(runner: CliRunner) -> None:
    """Nothing is pruned where a schema is missing, and the line names the command."""
    result = runner.invoke(app, ["db", "prune", "--older-than", "30d"])
    assert result.exit_code == UNREACHABLE
    assert "`seckill db upgrade product`" in result.stderr


def test_prune_needs_those_who_may_hold_an_order(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis nobody knows what may come back, so nothing goes."""
    monkeypatch.setenv("SECKILL__REDIS__URL", "redis://127.0.0.1:1/0")
    runner.invoke(app, ["db", "upgrade"])
    result = runner.invoke(app, ["db", "prune", "--older-than", "30d"])
    assert result.exit_code == UNREACHABLE
    assert "redis.url" in result.stderr


@pytest.mark.parametrize(("text", "milliseconds"), [("1s", 1_000), ("90m", 5_400_000), ("30d", 2_592_000_000)])
def test_ages(text: str, milliseconds: int) -> None:
    """A length of time is a number and s, m, h or d."""
    assert parse_age(text) == milliseconds
