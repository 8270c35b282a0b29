"""A tiny model that was never trained, and a server of it as its clients see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import torch

from newllm.data.tokenizers import BPE
from newllm.levels import resolve
from newllm.model import build_model
from newllm.serve.service import Service
from newllm.train import checkpoint
from newllm.trained import TrainedModel

TINY = {"context_dim": 16, "embed_dim": 24, "hidden_dim": 32, "vocab_size": 300, "device": "cpu"}
NAME = "tiny"


def tiny_model(seed: int = 0, dataset: str = "dolly", **changes: Any) -> TrainedModel:
    """A model far from birth, so that its texts differ."""
    settings = resolve(dataset, {**TINY, "data": "sample", **changes})
    tokenizer = BPE.train(["What comes after 3? After 3 comes 4."], 300)
    torch.manual_seed(seed)
    model = build_model(settings.model_settings(), tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return TrainedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        settings=settings,
        metrics={},
        data={},
        versions={},
        path=Path(f"{NAME}.pt"),
        device=torch.device("cpu"),
    )


def save(model: TrainedModel, path: Path) -> str:
    """The model as a checkpoint."""
    content = {
        "kind": "model",
        "model": model.model.state_dict(),
        "settings": model.settings.model_dump(),
        "tokenizer": model.tokenizer.to_dict(),
        "metrics": {},
        "data": {"fingerprint": "none"},
        "newllm_version": "0",
        "torch_version": "0",
        "created": "now",
    }
    checkpoint.save(path, content)
    return str(path)


@dataclass
class Running:
    """A server that is up."""

    url: str
    service: Service
    stop: Callable[[], None]
    key: str | None = None

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, **options
        )

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def wait_idle(self) -> None:
        """Until no answer is being written."""
        deadline = time.monotonic() + 20
        while self.service.engine.jobs:
            assert time.monotonic() < deadline, "an answer holds its place"
            time.sleep(0.01)


Start = Callable[..., Running]
