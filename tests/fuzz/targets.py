"""Every reader of files and requests, as a function of bytes that an enemy chose.

A target may refuse (UserError of one line, a `Malformed` row, a 4xx answer) or accept; anything
else, an exception, is a finding. The seeds are what the readers are made for.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from newllm.chat import session_file
from newllm.config import read_yaml
from newllm.data.located import Located
from newllm.data.rows import read_file
from newllm.data.tokenizers import BPE, load_tokenizer
from newllm.datasets import DATASETS
from newllm.datasets.conversations import LeftOut
from newllm.errors import UserError
from newllm.inference.sampler import Sampling
from newllm.results.climb import read_climb
from newllm.results.marks import _read as read_marks
from newllm.results.summary import load_summary
from newllm.serve.app import make_app
from newllm.serve.service import Limits, Service
from newllm.settings import resolve
from newllm.trained import TrainedModel

Target = Callable[[bytes], None]

FOLDER = Path(tempfile.mkdtemp(prefix="newllm-fuzz-"))
_TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
_ROWS = [
    {"instruction": "q", "context": "", "response": "a"},
    {"messages": _TURNS},
    {"text": "t"},
]


def refusing(read: Callable[[Path], object], name: str) -> Target:
    """Whoever reads a file may refuse it, in one line."""

    def target(content: bytes) -> None:
        path = FOLDER / name
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error), "a complaint of several lines"
            assert str(path) in str(error), "a complaint that names no file"

    return target


def _rows(path: Path) -> None:
    for count, item in enumerate(read_file(path)):
        if isinstance(item, Located):
            for dataset in DATASETS.values():
                try:
                    dataset.conversation(item.row)
                except (ValueError, LeftOut):
                    continue
        if count > 10_000:
            break


def _settings(path: Path) -> None:
    values = read_yaml(path)
    try:
        resolve("dolly", {}, values)
    except UserError as error:
        assert len(str(error)) < 100_000


def _tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    (ids,) = tokenizer.encode_batch(["What comes after 3? \u4f60\ud800"])
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(range(tokenizer.vocab_size))


def _tiny() -> TrainedModel:
    from tests.serve.serving import tiny_model

    return tiny_model(num_layers=1, pair_rows=0)


def _checkpoint_seed() -> bytes:
    from tests.untrained import save_model

    return Path(save_model(_tiny(), FOLDER / "seed.pt")).read_bytes()


def _load(path: Path) -> None:
    TrainedModel.load(path, "cpu")


def _sealed(content: bytes) -> bytes:
    """With a seal that is right, as an enemy can make one."""
    end = content.rfind(b"PK\x05\x06")
    if end < 0 or len(content) < end + 22:
        return content
    body = content[: end + 20] + b"\x4e\x00" + b"NEWLLM-SHA256:"
    return body + hashlib.sha256(body).hexdigest().encode()


def _sessions() -> tuple[Target, Target, list[bytes]]:
    model = _tiny()
    chat = model.chat(Sampling(seed=1))
    chat.say("hello", 5)
    seed = session_file.encode(chat.dialogue, model.model, model.renderer)
    mark = session_file.model_fingerprint(model.model, model.renderer)

    def decode(content: bytes) -> None:
        try:
            session_file.decode(content, model.model, model.renderer, "x.session", mark)
        except UserError as error:
            assert "\n" not in str(error)

    def sealed(content: bytes) -> None:
        decode(content + hashlib.sha256(content).digest())

    return decode, sealed, [seed]


def _requests() -> Target:
    limits = replace(Limits(), answer_tokens=4)
    service = Service({"tiny": _tiny()}, limits)
    app = make_app(service)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service.start())
    paths = ["/v1/chat/completions", "/v1/completions", "/v1/sessions", "/v1/sessions/upload"]

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


def _request_seeds() -> list[bytes]:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2,
            "temperature": 0.5, "stop": ["x"], "seed": 1, "stream": True}  # fmt: skip
    text = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "logprobs": 1, "top_p": 0.9}
    session = {"system": None, "temperature": 1.0, "repetition_penalty": 1.1}
    return [bytes([i]) + json.dumps(b).encode() for i, b in enumerate((chat, text, session))]


def _exported() -> tuple[Target, list[bytes]]:
    """One file of an exported folder is the enemy's; the first byte says which."""
    from tests.fuzz.exported import write_folder

    folder, output = write_folder(FOLDER), FOLDER / "imported.pt"
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    good = {name: (folder / name).read_bytes() for name in names}
    from newllm.export.hf_import import import_hf

    def target(content: bytes) -> None:
        name = names[content[0] % 3] if content else names[0]
        (folder / name).write_bytes(content[1:])
        output.unlink(missing_ok=True)
        try:
            import_hf(folder, output)
        except UserError as error:
            assert "\n" not in str(error)
        finally:
            (folder / name).write_bytes(good[name])

    return target, [bytes([number]) + good[name] for number, name in enumerate(names)]


def _parquet_seed() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_ROWS[:1] * 3), buffer)
    return buffer.getvalue()


_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
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


def make(name: str) -> tuple[Target, list[bytes]]:
    """A target and its seeds."""
    if name in ("session", "session-sealed"):
        plain, sealed, seeds = _sessions()
        return (plain, seeds) if name == "session" else (sealed, [seeds[0][:-32]])
    if name in ("checkpoint", "checkpoint-sealed"):
        seed, target = _checkpoint_seed(), refusing(_load, "a.pt")
        return (target if name == "checkpoint" else lambda c: target(_sealed(c))), [seed]
    if name == "request":
        return _requests(), _request_seeds()
    if name == "import":
        return _exported()
    tokenizer = json.dumps(BPE.train(["abc abd"], 300).to_dict()).encode()
    words = b'{"kind": "word1000", "words": ["a", "b"]}'
    others: dict[str, tuple[Target, list[bytes]]] = {
        "rows": (refusing(_rows, "a.jsonl"), [_LINES]),
        "array": (refusing(_rows, "a.json"), [json.dumps(_ROWS, indent=1).encode()]),
        "gz": (refusing(_rows, "a.jsonl.gz"), [gzip.compress(_LINES)]),
        "parquet": (refusing(_rows, "a.parquet"), [_parquet_seed()]),
        "yaml": (
            refusing(_settings, "a.yaml"),
            [b"num_layers: 2\nrehearse: [dolly, math]\nlearning-rate: 1e-3\nminutes: null\n"],
        ),
        "tokenizer": (refusing(_tokenizer, "tokenizer.json"), [tokenizer, words]),
        "records": (_records, [b"\0" + _SUMMARY, b"\1[]", b"\2" + _CLIMB]),
    }
    return others[name]


NAMES = ["rows", "array", "gz", "parquet", "yaml", "tokenizer", "records", "checkpoint",
         "checkpoint-sealed", "session", "session-sealed", "request", "import"]  # fmt: skip


def clean_up() -> None:
    """Remove what the targets wrote."""
    shutil.rmtree(FOLDER, ignore_errors=True)


torch.set_num_threads(1)
