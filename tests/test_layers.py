"""Data flows one way: each part of the package imports only the parts before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import newllm

PACKAGE = Path(newllm.__file__).parent

LAYERS = [
    {"errors", "files"},
    {"config", "device"},
    {"datasets"},
    {"data"},
    {"model"},
    {"settings"},
    {"inference"},
    {"evaluate"},
    {"chat"},
    {"results"},
    {"train"},
    {"trained"},
    {"serve"},
    {"export"},
    {"report"},
    {"curriculum"},
    {"planning"},
    {"cli"},
]
"""From the bottom up. A module may import its own part and every part above it in this list."""


def imports(file: Path) -> set[str]:
    """Parts of newllm that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("newllm."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("newllm.")}
    return found


@pytest.mark.parametrize("depth", range(len(LAYERS)))
def test_a_part_imports_only_what_is_below_it(depth: int) -> None:
    allowed = set().union(*LAYERS[:depth])
    for part in LAYERS[depth]:
        single = PACKAGE / f"{part}.py"
        files = [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))
        assert files, part
        for file in files:
            assert imports(file) <= allowed | {part}, file


def test_every_part_has_a_place() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == set().union(*LAYERS)
