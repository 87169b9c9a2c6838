"""Programs that some tests need: where one is missing they are skipped, and on CI that is a failure."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str) -> str:
    """The program's path. Without it the test is skipped; with `CI` set it fails."""
    path = shutil.which(program)
    if path is not None:
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{program} is not installed, and on CI nothing may be left out")
    pytest.skip(f"{program} is not installed")
