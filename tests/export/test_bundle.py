"""The modelling file is our own source, and stands alone."""

from __future__ import annotations

import ast
import inspect

import pytest

from newllm.export import bundle as bundling
from newllm.export.bundle import bundle
from newllm.model.context import reference
from newllm.model.residual import Block, ResidualLM

MODULE = "newllm.export.modeling_new_llm"


@pytest.fixture(scope="module")
def source() -> str:
    return bundle(MODULE)


def test_it_imports_torch_and_transformers_alone(source: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
    library = {"__future__", "collections", "dataclasses", "functools", "math", "sys", "typing"}
    assert imported == {"numpy", "torch", "transformers"} | library  # numpy comes with them


@pytest.mark.parametrize("part", [reference.context_read, Block, ResidualLM.forward])
def test_definitions_are_ours_word_for_word(source: str, part: object) -> None:
    code = inspect.getsource(part)  # type: ignore[arg-type]
    if part is Block:  # what training alone needs is left out
        code = code[: code.index("    def mixing_matrices")].rstrip()
    assert code in source


def test_what_training_alone_needs_is_left_out(source: str) -> None:
    methods = {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)}
    assert not methods & bundling.TRAINING_ALONE
    assert "sum_of_nats" not in source


def test_names_that_do_not_exist_or_clash_are_refused() -> None:
    parts = bundling._Parts()
    module = bundling._Module.find(MODULE)
    with pytest.raises(ValueError, match="does not define nonsense"):
        parts.add("nonsense", module)
    parts.add("State", module)
    with pytest.raises(ValueError, match="State is defined in"):
        parts._define("State", bundling._Module("another", ["State = 1"], ast.parse("State = 1")))
