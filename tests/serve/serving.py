"""A tiny model that was never trained, and a server of it as its clients see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn

from newllm.serve.service import Service
from newllm.trained import TrainedModel
from tests.untrained import untrained

TINY = {"context_dim": 16, "embed_dim": 24, "hidden_dim": 32, "vocab_size": 300, "device": "cpu"}
NAME = "tiny"


def tiny_model(seed: int = 0, dataset: str = "dolly", **changes: Any) -> TrainedModel:
    """A model far from its initialization, so that its texts differ."""
    settings = {**TINY, "data": "sample", **changes}
    return untrained(dataset, seed=seed, scale=0.3, path=f"{NAME}.pt", **settings)


@dataclass
class Running:
    """A server that is up."""

    url: str
    service: Service
    stop: Callable[[], None]
    key: str | None = None
    server: uvicorn.Server | None = None

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._client(), **options)

    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._client())

    def _client(self) -> dict[str, Any]:
        """Its own five seconds to connect are short where this process also compiles."""
        return {
            "base_url": f"{self.url}/v1", "api_key": self.key or "none", "max_retries": 0,
            "timeout": 120,
        }  # fmt: skip

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def wait_idle(self) -> None:
        """Until no answer is being written."""
        deadline = time.monotonic() + 60
        while any(served.engine.jobs for served in self.service.models.values()):
            assert time.monotonic() < deadline, "an answer holds its place"
            time.sleep(0.01)

    def wait_saved(self) -> None:
        """Until every conversation is on disk."""
        deadline = time.monotonic() + 20
        while self.service.store.unsaved:
            assert time.monotonic() < deadline, "a conversation is not written"
            time.sleep(0.01)


Start = Callable[..., Running]
