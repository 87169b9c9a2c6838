"""`seckill alerts test`: who has taken a message, in exit codes and words that hold no secret."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seckill.cli.app import app
from seckill.cli.errors import FAILED, OK, USAGE

TOKEN = "T0kenThatNobodySees"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No running pipeline of whoever runs the tests."""
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def alerts_test(monkeypatch: pytest.MonkeyPatch, *targets: str) -> tuple[int, str]:
    monkeypatch.setenv("SECKILL__ALERTS__TARGETS", json.dumps(targets))
    ended = CliRunner().invoke(app, ["alerts", "test", "--json"])
    assert TOKEN not in ended.output
    return ended.exit_code, ended.output


def test_without_targets_it_says_where_alerts_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody to send to is no failure."""
    code, said = alerts_test(monkeypatch)
    assert (code, json.loads(said)) == (OK, {"targets": []})


def test_a_wrong_target_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that no service has is told by its place, with the exit code of wrong settings."""
    code, said = alerts_test(monkeypatch, f"json://127.0.0.1/{TOKEN}", f"nothing-of-the-kind://{TOKEN}")
    assert code == USAGE
    assert "alerts.targets, number 2" in said


def test_a_wrong_target_is_found_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking the settings finds a URL that no service has, and shows none."""
    monkeypatch.setenv("SECKILL__ALERTS__TARGETS", json.dumps([f"json://127.0.0.1/{TOKEN}", f"slack://{TOKEN}"]))
    ended = CliRunner().invoke(app, ["config", "check"])
    assert ended.exit_code == USAGE
    assert "alerts.targets, number 2" in ended.output
    assert TOKEN not in ended.output


def test_a_target_that_does_not_take_it_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each target is told with what went wrong, and one that has not taken the message makes the command fail."""
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        code, said = alerts_test(monkeypatch, f"json://127.0.0.1:{bound.getsockname()[1]}/{TOKEN}")
    (result,) = json.loads(said)["targets"]
    assert (code, result["target"], result["taken"]) == (FAILED, "json #1", False)
    assert result["problem"]
