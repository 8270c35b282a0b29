"""Tests that ask for a device: the GPU where there is one, else the CPU and Triton's interpreter.

`pytest -m gpu` runs them alone. The interpreter has to be chosen before Triton is imported and
cannot be left again: without a GPU they run in a process of their own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# What cuBLAS needs to give the same bits every time; read when CUDA begins.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from newllm.model.kernels import triton_is_installed
from tests.gpu.interpreter import enter_interpreter

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that is in this folder is marked `gpu`, and skipped where Triton cannot be."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not triton_is_installed():
                item.add_marker(pytest.mark.skip(reason="Triton has no wheels for this system"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU, or the CPU in its place."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def on_gpu(device: torch.device) -> None:
    """Skips what the interpreter cannot show."""
    if device.type != "cuda":
        pytest.skip("needs a GPU: torch sees none")


@pytest.fixture(autouse=True)
def _poisoned_memory(device: torch.device) -> Iterator[None]:
    """As everywhere; but a GPU only warns of what torch cannot repeat to the bit."""
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def run(device: torch.device, _own_cache: None) -> Iterator[Callable[..., Any]]:
    """Calls a function where kernels run: here with a GPU, else in the interpreter's process."""
    if device.type == "cuda":
        yield lambda function, *given: function(*given)
        return
    spawn = multiprocessing.get_context("spawn")
    cache = (os.environ["NEWLLM_CACHE"],)
    with ProcessPoolExecutor(1, spawn, enter_interpreter, cache) as pool:
        yield lambda *call: pool.submit(*call).result(timeout=600)
