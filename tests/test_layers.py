"""Data flows one way: each part of the package imports only the parts before it."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import newllm

PACKAGE = Path(newllm.__file__).parent
ROOT = PACKAGE.parent

LAYERS = [
    {"errors"},
    {"cores", "files"},
    {"config", "device", "threads"},
    {"cuda_graph"},
    {"datasets"},
    {"data"},
    {"model"},
    {"settings"},
    {"results"},
    {"inference"},
    {"evaluate"},
    {"chat"},
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


def nodes_of(file: Path) -> Iterator[ast.AST]:
    """The nodes of a file, also those inside functions."""
    return ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def module_name(file: Path) -> str:
    """`newllm.data.loader`; a package is its `__init__`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imports(file: Path) -> set[str]:
    """Modules of newllm that a file imports, by their full names."""
    found = set()
    for node in nodes_of(file):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys() - {"newllm"}


@pytest.mark.parametrize("depth", range(len(LAYERS)))
def test_a_part_imports_only_what_is_below_it(depth: int) -> None:
    allowed = set().union(*LAYERS[:depth])
    for part in LAYERS[depth]:
        single = PACKAGE / f"{part}.py"
        files = [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))
        assert files, part
        for file in files:
            parts = {name.split(".")[1] for name in imports(file)}
            assert parts <= allowed | {part}, file


def test_every_part_has_a_place() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == set().union(*LAYERS)


def test_no_two_modules_import_each_other() -> None:
    """Nor a longer circle, also of what functions import when they run."""
    graph = {name: imports(file) for name, file in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


STORED = {PACKAGE / "config.py", PACKAGE / "train" / "checkpoint.py"}
"""What a run's files are called, and what older ones hold, depends on an architecture's name."""


def test_architectures_are_told_apart_in_model_alone() -> None:
    """Elsewhere `ModelSpec` says what an architecture does."""
    files = {file for file in MODULES.values() if not file.is_relative_to(PACKAGE / "model")}
    for file in files - STORED:
        assert not [ast.unparse(n) for n in nodes_of(file) if compares_an_architecture(n)], file
    for file in STORED:
        assert any(map(compares_an_architecture, nodes_of(file))), f"{file}: needs no exception"


def compares_an_architecture(node: ast.AST) -> bool:
    """`x.architecture == ...`, or `!=`, whatever holds it."""
    if not isinstance(node, ast.Compare):
        return False
    alike = any(isinstance(operator, (ast.Eq, ast.NotEq)) for operator in node.ops)
    ends = ("architecture", "['architecture']")
    return alike and any(ast.unparse(n).endswith(ends) for n in (node.left, *node.comparators))


def test_only_model_and_export_ask_for_a_context_lm() -> None:
    for file in MODULES.values():
        if file.relative_to(PACKAGE).parts[0] in ("model", "export"):
            continue
        for node in nodes_of(file):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                assert "ContextLM" not in ast.unparse(node.args[1]), file


def test_benchmarks_know_nothing_of_the_command_line() -> None:
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert files
    for file in files:
        assert not any(name.split(".")[1] == "cli" for name in imports(file)), file


def test_what_runs_left_is_read_without_torch() -> None:
    modules = ["results", "report.progress", "report.page"]
    modules += [f"results.{file.stem}" for file in (PACKAGE / "results").glob("[!_]*.py")]
    code = f"import sys, {', '.join(f'newllm.{m}' for m in modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
