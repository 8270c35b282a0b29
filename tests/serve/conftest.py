"""Servers in this process, on free loopback ports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newllm.serve.app import make_app, make_server
from newllm.serve.service import Limits, Service
from newllm.trained import TrainedModel
from tests.serve.browsing import browser, visit  # noqa: F401 (fixtures)
from tests.serve.serving import NAME, Running, Start, tiny_model


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start a server with these limits; it is stopped after the module's tests."""
    running: list[Running] = []

    def begin(
        model: TrainedModel | None = None,
        sessions_dir: Path | None = None,
        key: str | None = None,
        **limits: Any,
    ) -> Running:
        service = Service(model or tiny_model(), NAME, replace(Limits(), **limits), sessions_dir)
        server = make_server(make_app(service, key), "127.0.0.1", 0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]

        def stop() -> None:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

        running.append(Running(f"http://127.0.0.1:{port}", service, stop, key))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def server(start: Start) -> Running:
    """A server with the usual limits."""
    return start()
