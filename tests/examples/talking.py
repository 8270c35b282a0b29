"""What tests of examples/browser share: its server, and what one does in its page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from newllm.chat.session import ChatSession
from newllm.cli import main
from newllm.inference.sampling import Sampling
from newllm.trained import TrainedModel
from tests.serve.browsing import needs_browser

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
TOKENS = 24
GREEDY = {"temperature": 0, "max_tokens": TOKENS}

needs_runtime = pytest.mark.skipif(
    not list(EXAMPLE.glob("onnxruntime-web-*")),
    reason="no onnxruntime-web here (python examples/browser/fetch.py)",
)
needs_both = [needs_browser, needs_runtime]


def exported(model: TrainedModel, folder: Path, *options: str) -> Path:
    """The model's graphs, as a user makes them."""
    command = ["export", str(model.path), "--format", "onnx", "-o", str(folder), *options]
    assert main(command) == 0
    return folder


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """The example's server, as a user starts it; its address."""
    command = [sys.executable, str(EXAMPLE / "serve.py"), str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def choose(page: Page, **sampling: Any) -> None:
    """Settings, as the dialog stores them."""
    page.evaluate("value => localStorage.setItem('newllm.sampling', value)", json.dumps(sampling))


def saved(page: Page, path: Path) -> Path:
    """The conversation as the file that the page hands out."""
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(path)
    return path


def shown(text: str) -> str:
    return text.strip() or "(an empty answer)"


def session(model: TrainedModel, path: Path) -> ChatSession:
    found = ChatSession.load(path, model.decoder, model.renderer)
    found.dialogue.sampling = Sampling(0)
    return found
