"""Every reader of files and requests, as a function of bytes that an enemy chose.

A target may refuse (UserError of one line, a `Malformed` row, a 4xx answer) or accept; anything
else, an exception, is a finding. The seeds are what the readers are made for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from newllm.config import read_yaml
from newllm.errors import UserError
from newllm.results.climb import read_climb
from newllm.results.marks import _read as read_marks
from newllm.results.summary import load_summary
from newllm.serve.app import make_app
from newllm.serve.service import Limits, Service
from newllm.settings import resolve
from tests.fuzz import models, row_files
from tests.fuzz.common import Target, clean_up, refusing

__all__ = ["NAMES", "clean_up", "make"]


def _settings(path: Path) -> None:
    values = read_yaml(path)
    try:
        resolve("dolly", {}, values)
    except UserError as error:
        assert len(str(error)) < 100_000


_CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2,
         "temperature": 0.5, "stop": ["x"], "seed": 1, "stream": True}  # fmt: skip
_TEXT = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "logprobs": 1, "top_p": 0.9}
_SESSION = {"system": None, "temperature": 1.0, "repetition_penalty": 1.1}
_PART = {"type": "input_text", "text": "hello"}
_ASKED = {"model": "tiny", "input": [{"role": "user", "content": [_PART]}], "instructions": "short",
          "max_output_tokens": 2, "stream": True, "metadata": {"a": "b"}, "store": False,
          "text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "auto"}  # fmt: skip


def _requests(*paths: str) -> Target:
    """The body of a request; its first byte says to which of the paths."""
    limits = replace(Limits(), answer_tokens=4)
    service = Service({"tiny": models.tiny()}, limits)
    app = make_app(service)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service.start())

    async def ask(path: str, body: bytes) -> int:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "",
        }  # fmt: skip
        status: list[int] = []
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        await app(scope, receive, send)
        return status[0]

    def target(content: bytes) -> None:
        path = paths[content[0] % len(paths)] if content else paths[0]
        status = loop.run_until_complete(asyncio.wait_for(ask(path, content[1:]), 30))
        assert status < 500, status

    return target


_SUMMARY = json.dumps(
    {"format": "new-llm summary", "version": 1, "verdict": {}, "advice": [{"text": "a"}]}
).encode()
_CLIMB = json.dumps(
    {"format": "new-llm climb", "version": 1, "levels": ["dolly"], "results": [
        {"dataset": "dolly", "grown": None, "evaluations": {"dolly": {"bpb": 1.5}}}]}
).encode()  # fmt: skip


def _records(content: bytes) -> None:
    """The small JSON files: the first byte says which one it is."""
    kind = content[0] % 3 if content else 0
    readers: list[tuple[Callable[[Path], object], str]] = [
        (load_summary, "a.summary.json"),
        (read_marks, "marks.json"),
        (lambda path: read_climb(path.parent), "climb.json"),
    ]
    refusing(*readers[kind])(content[1:])


_YAML = b"num_layers: 2\nrehearse: [dolly, math]\nlearning-rate: 1e-3\nminutes: null\n"

_TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    **row_files.TARGETS,
    **models.TARGETS,
    "yaml": lambda: (refusing(_settings, "a.yaml"), [_YAML]),
    "records": lambda: (_records, [b"\0" + _SUMMARY, b"\1[]", b"\2" + _CLIMB]),
    "request": lambda: (
        _requests("/v1/chat/completions", "/v1/completions", "/v1/sessions", "/v1/sessions/file"),
        [bytes([i]) + json.dumps(b).encode() for i, b in enumerate((_CHAT, _TEXT, _SESSION))],
    ),
    "responses": lambda: (
        _requests("/v1/responses"),
        [b"\0" + json.dumps(asked).encode() for asked in (_ASKED, {"model": "tiny", "input": "q"})],
    ),
}

NAMES = list(_TARGETS)


def make(name: str) -> tuple[Target, list[bytes]]:
    """A target and its seeds."""
    return _TARGETS[name]()
