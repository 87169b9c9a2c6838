"""The command line's manners: help that teaches, exit codes, one-line errors, secrets that stay hidden."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr
from typer.testing import CliRunner

from seckill.cli.app import app
from seckill.cli.console import brief_moment, exact_moment, fitted_table, moment
from seckill.cli.errors import INTERRUPTED, OK, TERMINATED, UNREACHABLE, USAGE
from seckill.cli.roles import EVERY_ADDRESS
from seckill.cli.run_file import run_file, running_overrides
from seckill.cli.settings_text import MASK, document, masked_url, to_toml
from seckill.cli.times import parse_moment, parse_price
from seckill.embedded import embedded_redis
from seckill.log import configure_logging
from seckill.settings import FrontSettings, Settings, load_settings

COMMANDS = [
    "demo", "up", "publish", "status", "audit", "front", "worker", "product", "coordinator", "order", "order show",
    "sale", "sale create", "sale list", "sale show", "sale update", "sale pause", "sale resume", "sale close",
    "tx", "tx list", "tx show", "tx retry", "tx resolve", "db", "db upgrade", "db status", "db prune", "doctor",
    "dlq", "dlq watch", "dlq list", "dlq show", "dlq stats", "dlq replay", "dlq discard", "dlq resume", "dlq rebuild",
    "dead-letters", "alerts", "alerts test", "topics", "topics create", "bench", "bench backlog", "bench accept",
    "reconcile", "config", "config check", "config show-default",
]  # fmt: skip

ORDER_ID = "1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and no running pipeline of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SECKILL")]:
        monkeypatch.delenv(name)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that refuses connections: taken, so that nobody else gets it, but not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        roles = ("FRONT__HTTP", "PRODUCT__OPS", "ORDER__OPS", "WORKER__OPS", "RECONCILE__OPS", "DTM__HTTP")
        for name in (*roles, "DEAD_LETTERS__HTTP", "ALERTS__OPS"):
            monkeypatch.setenv(f"SECKILL__{name}", address)
        monkeypatch.setenv("SECKILL__KAFKA__BOOTSTRAP", address)
        monkeypatch.setenv("SECKILL__REDIS__URL", f"redis://{address}/0")
        yield address


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(runner: CliRunner, command: str) -> None:
    """`--help` of every command ends with 0 and shows a line to type."""
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == OK
    assert "Example" in result.stdout
    assert f"seckill {command}" in result.stdout or f"seckill --config seckill.toml {command}" in result.stdout


def test_every_command_is_covered_by_the_help_test(runner: CliRunner) -> None:
    """A new command cannot forget its example."""
    listed = runner.invoke(app, ["--help"]).stdout
    for command in {name.split()[0] for name in COMMANDS}:
        assert command in listed
    assert {name.split()[0] for name in COMMANDS} == _names(app) - {None}


def _names(typer_app: object) -> set[str | None]:
    commands = {each.name for each in typer_app.registered_commands}  # type: ignore[attr-defined]
    return commands | {each.name for each in typer_app.registered_groups}  # type: ignore[attr-defined]


def test_help_starts_quickly() -> None:
    """`seckill --help` imports no server, client or database library."""
    heavy = "{'aiohttp', 'aiokafka', 'grpc', 'sqlalchemy', 'redis', 'fastapi', 'pydantic', 'fakeredis'}"
    code = f"import sys, seckill.cli.app; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["sale", "create", "--product", "1"],
        ["sale", "create", "--product", "1", "--stock", "0"],
        ["sale", "create", "--product", "1", "--stock", "5", "--ends", "tomorrow"],
        ["sale", "create", "--product", "1", "--stock", "5", "--price", "1.999"],
        ["sale", "create", "--product", "1", "--stock", "5", "--ends", "-1h"],
        ["sale", "create", "--product", "1", "--stock", "5", "--starts", "+2h", "--ends", "+1h"],
        ["sale", "update", "1"],
        ["sale", "update", "1", "--add-stock", "1", "--remove-stock", "1"],
        ["order", "show", "not-an-order"],
        ["publish"],
        ["publish", "--user", "1"],
        ["publish", "orders.jsonl", "--user", "1", "--product", "1"],
        ["publish", "--user", "1", "--product", "1", "--sale", "1"],
        ["publish", "--user", "1", "--product", "1", "--request-id", "two words"],
        ["publish", "/no/such/file.csv"],
        ["publish", "/"],
        ["demo", "--stock", "0"],
        ["up", "--port", "70000"],
        ["reconcile", "--json"],
        ["reconcile", "--all"],
        ["reconcile", "--once", "--rebuild"],
        ["--config", "/no/such/file.toml", "status"],
    ],
)
def test_wrong_usage_ends_with_2(runner: CliRunner, arguments: list[str]) -> None:
    """Wrong options and settings end with 2, say so on stderr, and print no data and no traceback."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_a_csv_without_columns_is_wrong_usage(runner: CliRunner, nobody: str) -> None:
    """Nothing is sent of a CSV whose first line does not name the columns."""
    result = runner.invoke(app, ["publish", "-"], input="7,1\n8,1\n")
    assert result.exit_code == USAGE
    assert "user_id,product_id" in result.stderr


def test_config_check_masks_secrets(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The effective settings are TOML without a secret in it, and are those that the environment asks for."""
    monkeypatch.setenv("SECKILL__FRONT__OPERATOR_TOKEN", "open-sesame")
    monkeypatch.setenv("SECKILL__REDIS__URL", "rediss://seckill:hunter2@redis.internal:6379/0?x=hunter3")
    monkeypatch.setenv("SECKILL__WORKER__BATCH_MAX", "123")
    monkeypatch.setenv("SECKILL__ALERTS__TARGETS", '["json://hunter4.internal/B/C"]')
    result = runner.invoke(app, ["config", "check"])
    assert result.exit_code == OK
    shown = tomllib.loads(result.stdout)
    assert shown["alerts"]["targets"] == [MASK]
    assert shown["front"]["operator_token"] == MASK
    assert shown["redis"]["url"] == f"rediss://seckill:{MASK}@redis.internal:6379/0?x={MASK}"
    assert shown["worker"]["batch_max"] == 123
    for secret in ("open-sesame", "hunter2", "hunter3", "hunter4"):
        assert secret not in result.stdout + result.stderr
    assert json.loads(runner.invoke(app, ["config", "check", "--json"]).stdout) == shown


def test_config_check_names_every_wrong_setting(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong value is named with its key, all of them at once; exit code 2."""
    monkeypatch.setenv("SECKILL__WORKER__BATCH_MAX", "0")
    monkeypatch.setenv("SECKILL__FRONT__HTTP", "nowhere")
    monkeypatch.setenv("SECKILL__WORKER__BATCHMAX", "1")
    result = runner.invoke(app, ["config", "check"])
    assert result.exit_code == USAGE
    assert "worker.batch_max = '0'" in result.stderr
    assert "front.http = 'nowhere'" in result.stderr
    assert "SECKILL__WORKER__BATCHMAX: no such setting" in result.stderr


def test_the_default_profile_is_a_settings_file(runner: CliRunner, tmp_path: Path) -> None:
    """What `config show-default` prints can be given to --config."""
    path = tmp_path / "seckill.toml"
    path.write_text(runner.invoke(app, ["config", "show-default"]).stdout)
    checked = runner.invoke(app, ["--config", str(path), "config", "check"])
    assert checked.exit_code == OK
    assert checked.stdout == runner.invoke(app, ["config", "check"]).stdout


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["sale", "list"], "front.http"),
        (["sale", "show", "1"], "front.http"),
        (["sale", "pause", "1"], "front.http"),
        (["sale", "create", "--product", "1", "--stock", "5"], "front.http"),
        (["order", "show", ORDER_ID], "front.http"),
        (["publish", "--user", "1", "--product", "1"], "front.http"),
        (["publish", "--user", "1", "--product", "1", "--direct"], "kafka"),
        (["tx", "list"], "dtm.http"),
        (["tx", "show", "some-gid"], "dtm.http"),
        (["tx", "retry", "some-gid"], "dtm.http"),
        (["tx", "resolve", "some-gid", "--dry-run"], "dtm.http"),
        (["audit"], "redis"),
    ],
)
def test_silence_is_one_line_and_3(runner: CliRunner, nobody: str, arguments: list[str], setting: str) -> None:
    """What does not answer is named with its setting and address on one line; exit code 3."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == UNREACHABLE
    assert len(result.stderr.strip().splitlines()) == 1
    assert setting in result.stderr
    assert nobody in result.stderr


def test_debug_shows_the_traceback(runner: CliRunner, nobody: str) -> None:
    """--debug adds the story; the exit code and the line stay."""
    result = runner.invoke(app, ["--debug", "sale", "list"])
    assert result.exit_code == UNREACHABLE
    assert "Traceback" in result.stderr
    assert nobody in result.stderr.splitlines()[-1]


def test_status_of_nothing_tells_about_every_part(runner: CliRunner, nobody: str) -> None:
    """With nothing running every role is listed as unreachable; exit code 3."""
    result = runner.invoke(app, ["status", "--json"])
    assert result.exit_code == UNREACHABLE
    report = json.loads(result.stdout)
    roles = {"front", "product", "order", "worker", "reconcile", "dead-letters", "alerts", "coordinator"}
    assert {role["role"] for role in report["roles"]} == roles
    assert all(role["state"] == "unreachable" and role["address"] == nobody for role in report["roles"])
    assert all("error" in report[part] for part in ("lag", "ledger", "undecided"))


def test_a_taken_port_names_its_setting(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role whose port is taken says which setting, which address and what to do; exit code 3."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("SECKILL__PRODUCT__GRPC", address)
        monkeypatch.setenv("SECKILL__PRODUCT__OPS", "127.0.0.1:0")
        result = runner.invoke(app, ["product"])
    assert result.exit_code == UNREACHABLE
    assert f"cannot listen on {address} (product.grpc)" in result.stderr
    assert "SECKILL__PRODUCT__GRPC" in result.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, INTERRUPTED, "seckill: interrupted"), (signal.SIGTERM, TERMINATED, "seckill: terminated")],
)
def test_a_signal_ends_a_command_that_waits(
    nobody: str, tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    """Ctrl-C ends with 130, SIGTERM with 143: one line, no traceback."""
    watching = subprocess.Popen(
        [sys.executable, "-m", "seckill.cli", "status", "--watch", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.send_signal(number)
        _, errors = watching.communicate(timeout=30)
    finally:
        watching.kill()
        watching.wait()
    assert (watching.returncode, errors.strip()) == (code, said)


def test_an_interrupted_file_is_accounted_for(tmp_path: Path) -> None:
    """Ctrl-C while publish waits for more lines: 130, and it says from which line on nothing was sent."""
    program = "import os, signal, threading; from seckill.cli import main; {}; main()".format(
        "threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", program, "publish", "-"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert waiting.stdin is not None
        waiting.stdin.write("user_id,product_id\nnobody,1\n")
        waiting.stdin.flush()
        assert waiting.wait(timeout=30) == INTERRUPTED
        assert waiting.stderr is not None
        malformed, unsent, interrupted = waiting.stderr.read().splitlines()
    finally:
        waiting.kill()
        waiting.communicate()
    assert malformed.startswith("line 2: MALFORMED: user_id: ")
    assert unsent == "seckill: interrupted: lines from 3 on were not sent"
    assert interrupted == "seckill: interrupted"


@pytest.mark.parametrize(
    ("role", "setting", "value", "shown"),
    [
        ("worker", "kafka.bootstrap", "{nobody}", "{nobody}"),
        ("front", "redis.url", "redis://:geheim@{nobody}/0", "{nobody}"),
        ("front", "kafka.bootstrap", "{nobody}", "{nobody}"),
        ("product", "product.database_url", "mysql+asyncmy://u:geheim@{nobody}/db", "{nobody}"),
        ("order", "order.database_url", "sqlite+aiosqlite:////no/such/folder/o.db", "/no/such/folder/o.db"),
        ("coordinator", "coordinator.database_url", "sqlite+aiosqlite:////no/such/folder/c.db", "/no/such/folder/c.db"),
    ],
)  # fmt: skip
def test_a_role_without_what_it_needs(
    *, runner: CliRunner, monkeypatch: pytest.MonkeyPatch, nobody: str, role: str, setting: str, value: str, shown: str
) -> None:
    """What a role cannot reach at start is named in its last line: setting, address, remedy; exit code 3."""
    for address in EVERY_ADDRESS:
        monkeypatch.setenv(variable(address), "127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        if setting == "kafka.bootstrap":
            monkeypatch.setenv("SECKILL__REDIS__URL", stack.enter_context(embedded_redis()))
        monkeypatch.setenv(variable(setting), value.format(nobody=nobody))
        result = runner.invoke(app, [role])
    assert result.exit_code == UNREACHABLE, result.stderr
    last = result.stderr.splitlines()[-1]
    for fact in (setting, shown.format(nobody=nobody), variable(setting)):
        assert fact in last
    assert "Traceback" not in result.stderr
    assert "geheim" not in result.stderr


def variable(setting: str) -> str:
    return f"SECKILL__{setting.replace('.', '__').upper()}"


def test_the_lines_of_libraries_look_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """With JSON lines asked for, every line of the log is JSON, whoever wrote it."""
    configure_logging("info", json_lines=True)
    structlog.get_logger().info("order_taken", gid="g")
    logging.getLogger("some.library").warning("odd: %s", "thing")
    ours, theirs = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (ours["event"], ours["level"], ours["gid"]) == ("order_taken", "info", "g")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("odd: thing", "warning", "some.library")


@pytest.mark.parametrize(("columns", "left_out"), [(80, []), (20, ["price"]), (12, ["price", "starts"])])
def test_a_narrow_terminal_loses_columns_that_can_be_spared(
    monkeypatch: pytest.MonkeyPatch, columns: int, left_out: list[str]
) -> None:
    """Rather than cutting every cell, the columns named as spare go, in their order, and that is said."""
    monkeypatch.setenv("COLUMNS", str(columns))
    table = fitted_table(
        ["sale", "price", "starts", "sold"], [["1", "19.90", "12:00:00", "3"]], spare=("price", "starts", "none such")
    )
    assert [column.header for column in table.columns] == [
        name for name in ("sale", "price", "starts", "sold") if name not in left_out
    ]
    assert table.caption == (f"left out for lack of room: {', '.join(left_out)}" if left_out else None)


# --- the run file --------------------------------------------------------------------------------------------------


def test_a_running_pipeline_is_found_while_it_runs() -> None:
    """The run file gives later commands the settings with the token, is private, and ends with its owner."""
    token = SecretStr("made-up")
    settings = load_settings().model_copy(update={"front": FrontSettings(http="127.0.0.1:4711", operator_token=token)})
    assert running_overrides() is None
    with run_file(settings) as path:
        assert path.is_relative_to(os.environ["XDG_RUNTIME_DIR"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found = load_settings(overrides=running_overrides())
        assert found == settings
    assert running_overrides() is None
    assert not path.exists()


def test_the_file_of_a_dead_process_is_ignored_and_removed() -> None:
    """A pipeline that was killed leaves a file behind, which must not send commands into the void."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    with run_file(Settings()) as path:
        stale = path.with_name(f"up-{ended.pid}.toml")
        stale.write_text(path.read_text())
    assert running_overrides() is None
    assert not stale.exists()


def test_a_directory_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    """Somebody else's file must not send commands, or the operator token, elsewhere."""
    with run_file(Settings()) as path:
        path.parent.chmod(0o777)
        assert running_overrides() is None
        path.parent.chmod(0o700)
        assert running_overrides() is not None


# --- texts ---------------------------------------------------------------------------------------------------------


def test_settings_survive_their_own_toml() -> None:
    """What is written to the run file reads back as the same values, whatever characters they hold."""
    nasty = 'quote " backslash \\ newline \n tab \t del \x7f umlaut ü clef 𝄞'
    values = {"profile": "real", "one": {"text": nasty, "number": 3, "yes": True}, "two": {"no": False}}
    assert tomllib.loads(to_toml(values)) == values


def test_the_document_holds_every_setting() -> None:
    """No section and no set key is missing from `config check`."""
    settings = load_settings()
    shown = document(settings)
    for section in Settings.SECTIONS:
        expected = {key for key, value in getattr(settings, section) if value is not None}
        assert set(shown[section]) == expected


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pw@h/0", f"redis://:{MASK}@h/0"),
        ("redis://pw@h/0", f"redis://{MASK}@h/0"),
        ("mysql+asyncmy://u:p@ss@h:3306/db?password=q&ssl_key=k", f"mysql+asyncmy://u:{MASK}@h:3306/db?password={MASK}&ssl_key={MASK}"),
        ("sqlite+aiosqlite:///product.db", "sqlite+aiosqlite:///product.db"),
        ("sqlite+aiosqlite:////var/lib/product.db", "sqlite+aiosqlite:////var/lib/product.db"),
    ],
)  # fmt: skip
def test_urls_lose_their_secrets_only(url: str, masked: str) -> None:
    """Passwords and query values are hidden, the address is not."""
    assert masked_url(url) == masked


NOON = datetime(2026, 11, 11, 12, 0, tzinfo=timezone(timedelta(hours=8)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOON),
        ("+10m", NOON + timedelta(minutes=10)),
        ("-30s", NOON - timedelta(seconds=30)),
        ("+2h", NOON + timedelta(hours=2)),
        ("+1d", NOON + timedelta(days=1)),
        ("2026-11-11T20:00:00+08:00", NOON + timedelta(hours=8)),
        ("2026-11-11T20:00", NOON + timedelta(hours=8)),
        ("2026-11-11T12:00:00Z", datetime(2026, 11, 11, 12, 0, tzinfo=UTC)),
    ],
)
def test_moments(text: str, expected: datetime) -> None:
    """Times are relative to now or ISO 8601; without an offset they are local."""
    assert parse_moment(text, now=NOON) == int(expected.timestamp() * 1000)


@pytest.mark.parametrize("text", ["", "10m", "+10", "+10w", "soon", "2026-13-01", "-999999d", "+٣m"])
def test_what_is_no_moment_is_named(text: str) -> None:
    """Anything else is refused with what is allowed."""
    with pytest.raises(ValueError, match="ISO 8601"):
        parse_moment(text, now=NOON)


def test_prices_are_exact() -> None:
    """Cents come from decimal arithmetic; what cannot be cents is refused."""
    assert [parse_price(text) for text in ("19.90", "0", "1", "0.07", "1e2")] == [1990, 0, 100, 7, 10_000]
    for text in ("-1", "1.999", "NaN", "Infinity", "cheap", "1e999999999"):
        with pytest.raises(ValueError, match="no price"):
            parse_price(text)


@pytest.mark.parametrize("at_ms", [999_999_999_999_999, 2**63 - 1, -(2**63), 253_402_300_799_999])
def test_a_time_that_no_calendar_has_is_shown_all_the_same(at_ms: int) -> None:
    """Whoever writes a record may claim any: it breaks no screen."""
    assert [shown.split()[0][:4] for shown in (moment(at_ms), exact_moment(at_ms), brief_moment(at_ms))]
    assert moment(10**18) == exact_moment(10**18) == brief_moment(10**18) == f"{10**18} ms"
