"""The modelling file is our own source, and stands alone."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from newllm.export import bundle as bundling
from newllm.export.bundle import bundle
from newllm.model.block import Block
from newllm.model.context import reference
from newllm.model.residual import ResidualLM

MODULE = "newllm.export.modeling_new_llm"


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no wheels for this system"
)


@pytest.fixture(scope="module")
def source() -> str:
    return bundle(MODULE)


@pytest.fixture(scope="module")
def file(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundled.py"
    path.write_text(source, encoding="utf-8")
    return path


@pytest.fixture
def bundled(file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The bundle as a module, where Triton cannot be imported."""
    monkeypatch.setitem(sys.modules, "triton", None)  # type: ignore[arg-type]
    return load(file)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def inputs(batch: int = 2, time: int = 7, channels: int = 8) -> list[Any]:
    """Of `context_read`, with documents that start and sequences that end."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, time, 3 * channels), (channels,), (channels,), (4, channels), (channels,),
              (batch, channels), (batch, 3, channels))  # fmt: skip
    drawn = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    reset = torch.rand(batch, time, generator=generator) < 0.3
    return [*drawn[:5], reset, torch.tensor([time, time - 3]), *drawn[5:]]


def test_it_imports_torch_and_transformers_alone(source: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
    needed = {"numpy", "torch", "transformers"}  # numpy comes with them
    assert imported - {"triton"} - sys.stdlib_module_names == needed


def test_transformers_asks_nobody_to_install_triton(file: Path) -> None:
    from transformers.dynamic_module_utils import get_imports

    assert "triton" not in get_imports(file)


def test_no_name_is_defined_twice(source: str) -> None:
    names = Counter(
        node.name
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    )
    assert set(names.values()) == {1}
    assert {"context_read", "torch_context_read", "triton_context_read"} <= set(names)


def test_a_gpu_with_triton_runs_the_kernel_and_all_else_the_loop(
    bundled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two is called, with neither a GPU nor Triton."""
    for kind in ("torch", "triton"):
        monkeypatch.setattr(bundled, f"{kind}_context_read", lambda *_, kind=kind: kind)

    def called(dtype: torch.dtype = torch.float32, on_gpu: bool = True, numbers: int = 1) -> str:
        projected = SimpleNamespace(is_cuda=on_gpu, dtype=dtype, numel=lambda: numbers)
        return bundled.context_read(projected, *[None] * 8)

    assert bundled.triton is None
    assert called() == "torch"
    monkeypatch.setattr(bundled, "triton", object())
    assert [called(d) for d in (torch.float32, torch.bfloat16, torch.float16)] == ["triton"] * 3
    assert called(on_gpu=False) == called(torch.float64) == called(numbers=0) == "torch"
    monkeypatch.setattr(bundled, "FORCED", "reference")
    assert called() == "torch"


def test_without_triton_it_reads_as_ever(bundled: ModuleType) -> None:
    given = inputs()
    for ours, theirs in zip(
        reference.context_read(*given), bundled.context_read(*given), strict=True
    ):
        assert torch.equal(ours, theirs)


@needs_triton
def test_its_kernel_equals_its_loop(file: Path) -> None:
    """In Triton's interpreter, which has to be chosen before Triton is imported."""
    words = [sys.executable, str(Path(__file__)), str(file)]
    done = subprocess.run(
        words,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10 tensors are equal\n"


def _compare(path: Path) -> None:
    module = load(path)
    found = []
    for read in (module.triton_context_read, module.torch_context_read):
        given = inputs()
        outputs = read(*given)
        parts = [(x * torch.arange(x.numel()).view(x.shape).cos()).sum() for x in outputs]
        torch.stack(parts).sum().backward()
        gradients = [x.grad for x in given if x.is_floating_point() and x.grad is not None]
        found.append([*outputs, *gradients])
    for fast, slow in zip(*found, strict=True):
        assert torch.allclose(fast, slow, atol=1e-5, rtol=1e-5), (fast - slow).abs().max()
    print(len(found[0]), "tensors are equal")


@pytest.mark.parametrize("part", [reference.context_read, Block, ResidualLM.forward])
def test_definitions_are_ours_word_for_word(source: str, part: object) -> None:
    code = inspect.getsource(part)  # type: ignore[arg-type]
    code = code.replace("def context_read(", "def torch_context_read(")
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
        parts.add("State", bundling._Module("another", ["State = 1"], ast.parse("State = 1")))


if __name__ == "__main__":
    _compare(Path(sys.argv[1]))
