"""A checkpoint that was never trained, exported once for all tests of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from newllm.cli import main
from newllm.data.tokenizers import BPE
from newllm.model import build_model
from newllm.recipes import resolve
from newllm.train import checkpoint
from newllm.trained import TrainedModel

_modules = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = _modules.name  # read when transformers is imported

SHAPE = {"num_layers": 2, "context_dim": 16, "embed_dim": 24, "hidden_dim": 32}
TEXTS = ["What comes after 3? After 3 comes 4.", "The river is long, and the sea is deep. " * 3]
RECORD = {"epoch": 1, "epochs": 1, "rows": 2, "tokens": 9, "bpb": 1.5, "bpb_assistant": 1.25,
          "ppl": 2.0, "accuracy": 0.5}  # fmt: skip

Save = Callable[..., TrainedModel]


@pytest.fixture(scope="session")
def save() -> Save:
    """Write a checkpoint far from birth, and load it."""

    def write(path: Path, dataset: str = "dolly", **changes: object) -> TrainedModel:
        settings = resolve(dataset, {**SHAPE, "vocab_size": 300, "device": "cpu", **changes})
        tokenizer = BPE.train(TEXTS, 300)
        torch.manual_seed(0)
        model = build_model(settings.model_settings(), tokenizer.vocab_size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        content = {
            "kind": "model",
            "model": model.state_dict(),
            "settings": settings.model_dump(),
            "tokenizer": tokenizer.to_dict(),
            "metrics": RECORD,
            "data": {"fingerprint": "none", "source": "nowhere"},
            "newllm_version": "0",
            "torch_version": "0",
            "created": "now",
        }
        checkpoint.save(path, content)
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
