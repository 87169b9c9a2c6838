"""The Dockerfile, as far as one gets without an engine: read by BuildKit's own parser, its steps done one by one here.

What stays untried: the base image, the layers, and the image as a whole.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.compose.loader import FILE, ROOT, Json, Refused, build_context, compose_file, dockerfile
from tests.servers import install

STEP_TIMEOUT_S = 240
INSTALLED_MB_MAX = 250

pytestmark = [pytest.mark.slow, pytest.mark.timeout(STEP_TIMEOUT_S * 3)]


@dataclass(frozen=True, slots=True)
class Image:
    """The build stage, done in folders of this machine: `/src` and `/opt/seckill` lie below `root`."""

    root: Path

    def words(self, text: str) -> str:
        return text.replace("/opt/seckill", str(self.root / "opt/seckill")).replace("/src", str(self.root / "src"))

    def run(self, *command: str, cwd: Path | None = None) -> str:
        ended = subprocess.run(
            command, cwd=cwd or self.root, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=STEP_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout[-3_000:]}"
        return ended.stdout

    def environment(self) -> dict[str, str]:
        """`python` is one without anything installed, as in the base image; pip asks whom it asks here."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "http"))}
        path = os.pathsep.join((str(self.root / "base/bin"), os.environ["PATH"]))
        return {**kept, "PATH": path, "HOME": str(self.root), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def instructions(stage: str, *names: str) -> list[Json]:
    return [each for each in dockerfile()["instructions"] if each["stage"] == stage and each["name"] in names]


@pytest.fixture(scope="module")
def built() -> Iterator[Image]:
    """Every step of the build stage, in order, on the files that a build is sent."""
    root = Path(tempfile.mkdtemp(prefix="seckill-image-"))
    root.chmod(0o755)  # another user runs what lies here
    try:
        venv.create(root / "base", with_pip=True)
        image = Image(root)
        for instruction in instructions("build", "COPY", "RUN"):
            (root / "src").mkdir(exist_ok=True)
            if instruction["name"] == "COPY":
                *sources, target = instruction["words"]
                for source in sources:
                    copy(source, root / "src" / target)
            else:
                image.run("/bin/sh", "-c", image.words(instruction["text"]), cwd=root / "src")
        yield image
    finally:
        shutil.rmtree(root)


def copy(source: str, target: Path) -> None:
    """As COPY does: a file to a name or into a folder, a folder's content into a folder; only what the builder has."""
    sent = [Path(name) for name in build_context() if Path(name).is_relative_to(source)]
    assert sent, f"COPY {source}: .dockerignore keeps it from the builder"
    for name in sent:
        here = target / name.relative_to(source) if (ROOT / source).is_dir() else target
        here = here / name.name if here.is_dir() else here
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, here)


def test_buildkit_has_nothing_to_say() -> None:
    """BuildKit's parser takes every instruction and flag, and its linter has no warning."""
    assert dockerfile()["warnings"] == []


def test_buildkit_would_say_something(tmp_path: Path) -> None:
    """A misspelt instruction is refused, a doubtful one is warned of: the test above can fail."""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM scratch\nRUNN true\n")
    with pytest.raises(Refused, match="RUNN"):
        dockerfile(wrong)
    wrong.write_text("FROM scratch as Build\nMAINTAINER me\n")
    assert {each["rule"] for each in dockerfile(wrong)["warnings"]} >= {"FromAsCasing", "MaintainerDeprecated"}


def test_the_builder_is_sent_no_more_than_it_needs() -> None:
    """Nothing of the tests, the documents, local settings or history goes to the builder."""
    tops = {Path(name).parts[0] for name in build_context()}
    copied = {word.split("/")[0] for each in instructions("build", "COPY") for word in each["words"][:-1]}
    assert tops == copied


def test_it_runs_as_nobody_in_particular() -> None:
    """The last stage ends with a numeric user that is not root, which one of its steps has made."""
    last = dockerfile()["stages"][-1]["base"]
    (user,) = instructions(last, "USER")
    uid, gid = user["text"].split(":")
    assert uid.isdigit()
    assert uid != "0"
    made = " ".join(each["text"] for each in instructions(last, "RUN"))
    assert f"--uid {uid} --gid {gid}" in made
    assert [each["words"] for each in instructions(last, "ENTRYPOINT")] == [["seckill"]]
    assert dockerfile()["instructions"][-1]["name"] == "CMD"


def test_everything_is_installed_by_hash() -> None:
    """No step installs what a lock file does not name; bases have a version."""
    for each in instructions("build", "RUN"):
        for command in each["text"].split("&&"):
            if " install " in command:
                assert "--require-hashes" in command or "--no-deps --no-index" in command, command
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", stage["base"]) for stage in dockerfile()["stages"])


def test_the_build_steps_work(built: Image) -> None:
    """The build stage leaves `seckill` in its folder, runnable by the image's user, small, and without pip."""
    program = built.root / "opt/seckill/bin/seckill"
    (user,) = instructions(dockerfile()["stages"][-1]["base"], "USER")
    uid, gid = user["text"].split(":")
    identity = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", "--bounding-set=-all")
    command = (*(("setpriv", *identity, "--") if os.geteuid() == 0 else ()), str(program))
    assert built.run(*command, "--version").startswith("seckill ")
    assert "coordinator" in built.run(*command, "--help")
    assert not (built.root / "opt/seckill/bin/pip").exists()
    total = sum(path.stat().st_size for path in (built.root / "opt").rglob("*") if not path.is_symlink())
    assert total < INSTALLED_MB_MAX * 2**20


def test_python_is_the_one_that_is_tested() -> None:
    """The image has the Python that pyproject.toml asks for at least, which is what the lock files are made for."""
    asked = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert asked is not None
    assert {stage["base"].split(":")[1].split("-")[0] for stage in dockerfile()["stages"]} == {asked[1]}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes users, in a folder of its own")
def test_the_user_can_be_made(tmp_path: Path) -> None:
    """The step that makes the user works, on an empty list of users."""
    if install.program("useradd") is None:
        pytest.skip("no useradd here")
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group", "shadow", "gshadow"):
        (tmp_path / "etc" / name).touch()
    (step,) = instructions(dockerfile()["stages"][-1]["base"], "RUN")
    command = re.sub(r"\b(groupadd|useradd) ", rf"\1 --prefix {tmp_path} ", step["text"])
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=30)
    assert "seckill:x:10001:10001::/nonexistent:/usr/sbin/nologin" in (tmp_path / "etc" / "passwd").read_text()


def test_every_role_of_the_compose_file_is_a_command(built: Image) -> None:
    """What docker-compose.yml gives the image to do, the image can do."""
    commands = {spec["command"][0] for spec in compose_file(FILE)["services"].values() if "build" in spec}
    known = built.run(str(built.root / "opt/seckill/bin/seckill"), "--help")
    assert {command for command in commands if not re.search(rf"^│ {command} ", known, re.M)} == set()
