"""The map matches the land: every `file:function` of ARCHITECTURE.md exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = re.compile(r"`((?:seckill|consumers|tests)/[\w/]*\.(?:py|lua))(?::(\w+))?`")
REFERENCES = sorted(set(REFERENCE.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))))


@pytest.mark.parametrize(("file", "name"), REFERENCES, ids=[f"{file}:{name}" for file, name in REFERENCES])
def test_a_reference_leads_somewhere(file: str, name: str) -> None:
    """The file is there, and defines the name at its top level."""
    path = ROOT / file
    assert path.is_file()
    if name:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        assert name in defined


def test_the_page_has_references() -> None:
    """The pattern above still finds what it is meant to check."""
    assert len(REFERENCES) > 20
