"""Models that were never trained, but are far from initialization, so that their texts differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from newllm.data.tokenizers import BPE
from newllm.model import build_model
from newllm.model.recall.layer import RecallLayer
from newllm.model.residual import ResidualLM
from newllm.results.records import EpochRecord
from newllm.settings import resolve
from newllm.train import checkpoint
from newllm.train.counting import count_tables
from newllm.trained import TrainedModel

TEXT = "What comes after 3? After 3 comes 4."


def untrained(
    dataset: str = "dolly",
    *texts: str,
    seed: int = 0,
    scale: float = 0.1,
    path: str = "untrained.pt",
    **settings: Any,
) -> TrainedModel:
    """A model of these settings with a small vocabulary.

    Args:
        dataset: what it would have been trained on.
        texts: of the vocabulary.
        seed: of the weights.
        scale: how far they are from that.
        path: where it says that it is from.
        settings: of the run.
    """
    decided = resolve(dataset, {"vocab_size": 300, "device": "cpu", **settings})
    tokenizer = BPE.train(texts or [TEXT], 300)
    torch.manual_seed(seed)
    model = build_model(decided.model_settings(), tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    count_something(model, seed)
    return TrainedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        settings=decided,
        metrics=cast(EpochRecord, {}),
        data={},
        versions={},
        path=Path(path),
        device=torch.device("cpu"),
    )


def count_something(model: torch.nn.Module, seed: int = 0) -> None:
    """Give a model a table of counts, of a random text, if it can have one."""
    if not isinstance(model, ResidualLM) or model.counts is None:
        return
    rng = np.random.default_rng(seed)
    ids, edges = rng.integers(6, model.vocab_size, 3000), np.arange(0, 3001, 100)
    folds = np.zeros(0, np.int64)
    model.counts.set_tables(count_tables(ids, edges, folds, model.vocab_size, (0,), 20_000))


def copying(model: TrainedModel) -> TrainedModel:
    """The model changed so that it always takes what recall proposes."""
    recall = model.model.get_submodule("recall")
    assert isinstance(recall, RecallLayer)
    with torch.no_grad():
        recall.bias[1:] += 1000  # of contexts of two tokens or more
    return model


def save_model(
    model: TrainedModel,
    path: Path,
    metrics: dict[str, Any] | None = None,
    source: str = "nowhere",
) -> str:
    """The model as a checkpoint; its path."""
    content = {
        "kind": "model",
        "model": model.model.state_dict(),
        "settings": model.settings.model_dump(),
        "tokenizer": model.tokenizer.to_dict(),
        "metrics": metrics or {},
        "data": {"fingerprint": "none", "source": source},
        "newllm_version": "0",
        "torch_version": "0",
        "created": "now",
    }
    checkpoint.save(path, content)
    return str(path)
