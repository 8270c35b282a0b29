"""A checkpoint that was never trained, exported once for all tests of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from newllm.cli import main
from newllm.trained import TrainedModel
from tests.untrained import save_model, untrained

_modules = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = _modules.name  # read when transformers is imported

SHAPE = {"num_layers": 2, "context_dim": 16, "embed_dim": 24, "hidden_dim": 32}
TEXTS = ["What comes after 3? After 3 comes 4.", "The river is long, and the sea is deep. " * 3]
RECORD = {"epoch": 1, "epochs": 1, "rows": 2, "tokens": 9, "bpb": 1.5, "bpb_assistant": 1.25,
          "ppl": 2.0, "accuracy": 0.5}  # fmt: skip

Save = Callable[..., TrainedModel]


@pytest.fixture(scope="session")
def save() -> Save:
    """Write a checkpoint far from initialization, and load it."""

    def write(path: Path, dataset: str = "dolly", **changes: Any) -> TrainedModel:
        model = untrained(dataset, *TEXTS, **{**SHAPE, **changes})
        save_model(model, path, RECORD)
        return TrainedModel.load(path, "cpu")

    return write


@pytest.fixture(scope="module")
def trained(save: Save, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return save(tmp_path_factory.mktemp("run") / "model.pt")


@pytest.fixture(scope="module")
def folder(trained: TrainedModel) -> Path:
    """The folder for transformers."""
    output = trained.path.with_name("exported")
    assert main(["export", str(trained.path), "-o", str(output)]) == 0
    return output


def random_ids(vocab_size: int, *shape: int) -> torch.Tensor:
    return torch.randint(6, vocab_size, shape, generator=torch.Generator().manual_seed(1))
