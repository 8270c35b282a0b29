"""Every test is offline, keeps to its own cache, and finds NaN where memory was never written."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too
# All CPUs train alike, in fp32; a test that is about 16 bits says so.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from newllm.config import ModelSettings
from tests.faults.forkserver import Jobs

torch.set_num_threads(1)  # one core a worker: tests run in parallel
# A shell that runs the tests in its background has them ignore Ctrl-C; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis_settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
hypothesis_settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make faults` tries everywhere what the usual tests try at a few places."""
    parser.addoption("--all-faults", action="store_true", help="strike at every point")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded data of tests never mixes with the user's, and is shared within a worker.

    Of the whole session, so that the trainings of wider fixtures use it too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEWLLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def jobs(_own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """The server of jobs: real processes that are forked where everything is imported already."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the harness needs fork and /proc")
    server = Jobs(tmp_path_factory.mktemp("jobs"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN (by torch's default), so a kernel that forgets to write is found."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tiny_model_settings() -> Callable[..., ModelSettings]:
    """Settings of a model small enough for float64 comparisons."""

    def make(**changes: Any) -> ModelSettings:
        values = {
            "num_layers": 2,
            "context_dim": 16,
            "embed_dim": 24,
            "hidden_dim": 32,
            "dropout": 0.0,
        }
        return ModelSettings(**{**values, **changes})

    return make


@pytest.fixture
def dolly_folder(tmp_path: Path) -> Path:
    """A folder of Dolly-like rows: 60 for training, 12 for validation."""
    return _write_rows(tmp_path / "dolly")


@pytest.fixture(scope="module")
def shared_dolly_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, for all tests of a file."""
    return _write_rows(tmp_path_factory.mktemp("shared") / "dolly")


def _write_rows(folder: Path) -> Path:
    folder.mkdir()
    for name, count, shift in (("train", 60, 0), ("validation", 12, 1000)):
        rows = [
            {
                "instruction": f"What comes after {i + shift}?",
                "context": "Counting goes up by one." if i % 3 == 0 else "",
                "response": f"After {i + shift} comes {i + shift + 1}.",
                "category": "open_qa",
            }
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
