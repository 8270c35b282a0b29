"""Servers in this process, on free loopback ports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newllm.serve.app import make_app
from newllm.serve.connections import bind, make_server
from newllm.serve.protect import Access
from newllm.serve.service import Limits, Service
from newllm.trained import TrainedModel
from tests.serve.browsing import browser, visit  # noqa: F401 (fixtures)
from tests.serve.serving import NAME, Running, Start, tiny_model


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start a server with these limits; it is stopped after the module's tests."""
    running: list[Running] = []

    def begin(
        model: TrainedModel | dict[str, TrainedModel] | None = None,
        sessions_dir: Path | None = None,
        key: str | None = None,
        access: Access | None = None,
        aliases: dict[str, str] | None = None,
        **limits: Any,
    ) -> Running:
        models = model if isinstance(model, dict) else {NAME: model or tiny_model()}
        bounds = replace(Limits(), **limits)
        service = Service(models, bounds, sessions_dir, aliases)
        access = access or Access(api_key=key)
        server = make_server(make_app(service, access), access.host, 0, service)
        sockets = [bind("127.0.0.1", 0)]
        thread = threading.Thread(target=server.run, args=[sockets], daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]

        def stop() -> None:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

        running.append(Running(f"http://127.0.0.1:{port}", service, stop, key, server))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def server(start: Start) -> Running:
    """A server with the usual limits."""
    return start()
