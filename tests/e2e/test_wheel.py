"""The wheel in an environment of its own, away from the checkout: what the package needs must travel in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def seckill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `seckill` command of an environment that has the wheel, and our dependencies, but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=CHECKOUT)
    (wheel,) = folder.glob("seckill-*.whl")
    venv.create(folder / "venv", with_pip=False)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    # A plain directory on the path is not searched for .pth files, so the editable install of the checkout stays out.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
        "--ignore-installed", "--disable-pip-version-check", str(wheel), cwd=folder)  # fmt: skip
    return folder / "venv" / "bin" / "seckill"


def run(*command: str, cwd: Path) -> str:
    """The stdout of a command that must end with 0, in an environment without anything of the checkout's."""
    ended = subprocess.run(
        command, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SECKILL", "XDG_", "PYTHON"))}
    return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "XDG_STATE_HOME": str(home / "state")}


def test_the_package_comes_from_the_wheel(seckill: Path, tmp_path: Path) -> None:
    """Nothing of what is tested here is imported from the checkout."""
    program = "import consumers, seckill; print(seckill.__path__[0], consumers.__path__[0])"
    for folder in run(str(seckill.with_name("python")), "-c", program, cwd=tmp_path).split():
        assert Path(folder).is_relative_to(seckill.parent.parent)


def test_a_whole_sale_from_the_wheel(seckill: Path, tmp_path: Path) -> None:
    """The demo runs: scripts, generated code and default settings are there."""
    report: dict[str, Any] = json.loads(
        run(str(seckill), "demo", "--stock", "50", "--buyers", "200", "--json", cwd=tmp_path).splitlines()[-1]
    )
    assert report["fine"]
    assert report["confirmed"] == 50
    assert all(report["invariants"].values())


def test_the_default_settings_travel_in_the_wheel(seckill: Path, tmp_path: Path) -> None:
    """`config show-default` prints the profile of the checkout, and it checks."""
    default = run(str(seckill), "config", "show-default", cwd=tmp_path)
    assert tomllib.loads(default) == tomllib.loads((CHECKOUT / "config" / "embedded.toml").read_text(encoding="utf-8"))
    assert tomllib.loads(run(str(seckill), "config", "check", cwd=tmp_path))["profile"] == "embedded"


def test_the_migrations_travel_in_the_wheel(seckill: Path, tmp_path: Path) -> None:
    """`db upgrade` makes every schema where there is no checkout, and `db status` finds them current."""
    upgraded = json.loads(run(str(seckill), "db", "upgrade", "--json", cwd=tmp_path))["databases"]
    assert [(each["database"], each["before"]) for each in upgraded] == [
        ("product", None), ("order", None), ("coordinator", None), ("dead-letters", None),
    ]  # fmt: skip
    status = json.loads(run(str(seckill), "db", "status", "--json", cwd=tmp_path))["databases"]
    assert {each["state"] for each in status} == {"current"}


def test_up_runs_from_the_wheel(seckill: Path, tmp_path: Path) -> None:
    """`seckill up` starts, a second command finds it, and SIGTERM drains it."""
    command = [str(seckill), "up", "--base-port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        try:
            assert up.stdout is not None
            assert json.loads(up.stdout.readline())["addresses"]
            run(str(seckill), "sale", "create", "--product", "1", "--stock", "3", cwd=tmp_path)
            up.send_signal(signal.SIGTERM)
            _, errors = up.communicate(timeout=TIMEOUT_S)
        finally:
            up.kill()
    assert up.returncode == 0
    assert "drained and ended" in errors
