"""Applies each patch in this folder to a copy of the project and requires the test that it names to fail.

A patch is a unified diff with two header lines before it:

    # breaks: what rule the change breaks
    # caught by: tests/….py::test_name [more pytest arguments]
    # needs: program            (optional: without it the patch is left out, on CI that is an error)

The named test must pass on the untouched copy and fail on the broken one; anything else is an error here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
COPIED = ("seckill", "consumers", "config", "proto", "tests", "pyproject.toml", "README.md")
TIMEOUT_S = 300
JOBS = 2  # the named tests wait more than they compute
SIDE_BY_SIDE = ("--numprocesses", str(JOBS), "--dist", "loadfile")
TESTS_FAILED = 1  # pytest's exit code for "tests ran, and some failed"


@dataclass(frozen=True, slots=True)
class Mutant:
    path: Path
    breaks: str
    caught_by: list[str]
    needs: str = ""

    @property
    def can_run(self) -> bool:
        return not self.needs or bool(os.environ.get("CI")) or shutil.which(self.needs) is not None


def read(path: Path) -> Mutant:
    facts: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("# "):
            break
        name, _, value = line.removeprefix("# ").partition(":")
        facts[name.strip()] = value.strip()
    return Mutant(path, facts["breaks"], facts["caught by"].split(), facts.get("needs", ""))


def copy_project(folder: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=skip)
        else:
            shutil.copy2(source, folder / name)


def run_test(folder: Path, arguments: list[str]) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--side", "embedded", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def judge(mutant: Mutant) -> str | None:
    """What is wrong, or None when the mutant is caught."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        patched = subprocess.run(
            ["git", "apply", "-p1", str(mutant.path)],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if patched.returncode != 0:
            return f"the patch does not apply:\n{patched.stderr}"
        code, output = run_test(folder, mutant.caught_by)
    if code != TESTS_FAILED:
        return f"survived: pytest ended with {code}\n{output[-2000:]}"
    return None


def unbroken(mutants: list[Mutant]) -> str | None:
    """The named tests pass on an untouched copy: else a mutant's failure would prove nothing."""
    with tempfile.TemporaryDirectory() as name:
        copy_project(Path(name))
        tests = sorted({argument for mutant in mutants for argument in mutant.caught_by})
        code, output = run_test(Path(name), [*SIDE_BY_SIDE, *tests])
    return None if code == 0 else f"the named tests do not pass on the untouched copy:\n{output[-4000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="only these patches (names without .patch)")
    chosen = parser.parse_args().names
    mutants = [read(path) for path in sorted(HERE.glob("*.patch")) if not chosen or path.stem in chosen]
    if not mutants:
        print("no such mutant", file=sys.stderr)
        return 2
    left_out = [mutant for mutant in mutants if not mutant.can_run]
    mutants = [mutant for mutant in mutants if mutant.can_run]
    if problem := unbroken(mutants):
        print(problem, file=sys.stderr)
        return 1
    survivors = 0
    with ThreadPoolExecutor(JOBS) as jobs:
        for mutant, problem in zip(mutants, jobs.map(judge, mutants), strict=True):
            survivors += problem is not None
            print(f"{'caught  ' if problem is None else 'SURVIVED'} {mutant.path.stem:<38} {mutant.breaks}", flush=True)
            if problem:
                print(problem, file=sys.stderr)
    for mutant in left_out:
        print(f"LEFT OUT {mutant.path.stem:<38} {mutant.needs} is not installed")
    print(f"mutants: {len(mutants) - survivors} caught, {survivors} survived, {len(left_out)} left out")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
