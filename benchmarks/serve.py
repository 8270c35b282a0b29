"""The server with one and with many clients, with many conversations kept, and with a long one.

    newllm bench serve --checkpoint checkpoints/best_new_llm_dolly_layers1_bpe.pt

First text: a client's wait for it, beside what passes in the server until its engine has written
it (`newllm_first_text_seconds`). Clients: `newllm serve` in a process of its own, asked over HTTP
by this one; answers of fixed length, not streamed. Kept: started on a folder of so many
conversations, its `/health` asked every ten milliseconds while another client turns all pages of
their list. Session: turns of some thousand tokens, each with a short answer; the speed of reading
and writing, memory and the size of the session's file as it grows longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from benchmarks.measure import Report, Row, progress, report_options, rounds
from newllm.errors import UserError
from newllm.inference.sampling import Sampling
from newllm.train.memory import resident_bytes
from newllm.trained import TrainedModel

CHAT = "/v1/chat/completions"
CLIENTS = (1, 8, 50)
FIRST_TEXTS = 100
ROUNDS, SPEED_ROUNDS = 3, 15
LISTENED_SECONDS = 10.0
TURN_WORDS, ANSWER_TOKENS = 2000, 200


@click.command()
@click.option("--checkpoint", required=True, metavar="FILE", help="The model that is served.")
@click.option("--answer-tokens", default=100, show_default=True, type=click.IntRange(min=1),
              help="Length of every answer.")  # fmt: skip
@click.option("--kept", "count", default=10_000, show_default=True, type=click.IntRange(min=1),
              help="Conversations in the folder of sessions.")  # fmt: skip
@click.option("--tokens", default=1_000_000, show_default=True, type=click.IntRange(min=100),
              help="Tokens that the session reads.")  # fmt: skip
@report_options
def command(checkpoint: str, answer_tokens: int, count: int, tokens: int) -> Report:
    model = TrainedModel.load(checkpoint, "cpu")
    with running_server(checkpoint) as server:
        first = first_text(server.url, model.path.stem)
        together = clients(server.url, model.path.stem, answer_tokens)
    tables = {
        "First text of a streamed answer": first,
        "Clients at the same time": together,
        "Conversations kept": kept(model, checkpoint, count),
        "One session as it grows": long_session(model, tokens),
    }
    return Report(tables, {"model": checkpoint, "parameters": model.parameters})


@dataclass(frozen=True)
class RunningServer:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def running_server(
    checkpoint: str, *more: str, clone: Path | None = None
) -> Iterator[RunningServer]:
    """A server that answers.

    Args:
        checkpoint: what is served.
        more: of its command line.
        clone: whose code runs; None: this one's.
    """
    arguments = ["serve", checkpoint, "--port", "0", "--device", "cpu", *more]
    command = [sys.executable, "-u", "-m", "newllm", *arguments]
    environment = {**os.environ, **({"PYTHONPATH": str(clone)} if clone else {})}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL, env=environment,
        cwd=clone,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            if " at " not in told:
                raise UserError(f"{clone or checkpoint}: no server starts (newllm serve says why)")
            yield RunningServer(told.split(" at ")[1].split()[0], process)
        finally:
            process.terminate()


def first_text(url: str, name: str) -> list[Row]:
    """Milliseconds to the first text of an answer: at the client, and of them in the engine."""
    at_client: list[float] = []
    in_server: list[float] = []
    metric = "newllm_first_text_seconds_sum "
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:

        def written() -> float:
            lines = client.get("/metrics").text.splitlines()
            return float(next(line for line in lines if line.startswith(metric)).split()[1])

        for number in range(FIRST_TEXTS):
            body = {
                "model": name,
                "messages": [{"role": "user", "content": f"Question {number}: what is a river?"}],
                "max_tokens": 5,
                "min_tokens": 5,
                "stream": True,
                "seed": number,
            }
            before, started = written(), time.perf_counter()
            with client.stream("POST", CHAT, json=body) as answer:
                answer.raise_for_status()
                arrived = [
                    time.perf_counter()
                    for line in answer.iter_lines()
                    if line.startswith("data: {") and _text(json.loads(line[6:]))
                ]
            at_client.append(1e3 * (arrived[0] - started))
            in_server.append(1e3 * (written() - before))
    between = np.array(at_client) - in_server
    return [
        {
            "answers": len(at_client),
            "client_ms": float(np.median(at_client)),
            "server_ms": float(np.median(in_server)),
            "between_ms": float(np.median(between)),
            "between_ms_99th": float(np.percentile(between, 99)),
        }
    ]


def _text(event: dict[str, Any]) -> str:
    """What an event of a chat's stream adds to the answer."""
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def clients(url: str, name: str, tokens: int) -> list[Row]:
    """Tokens a second of all answers together, against one client whose answers come in turn."""
    lost: dict[int, int] = dict.fromkeys(CLIENTS, 0)
    waited: dict[int, list[float]] = {count: [] for count in CLIENTS}

    async def ask(client: httpx.AsyncClient, count: int, number: int) -> None:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": f"Question {number}: what is a river?"}],
            "max_tokens": tokens,
            "min_tokens": tokens,
            "seed": number,
        }
        started = time.perf_counter()
        answer = await client.post(CHAT, json=body)
        waited[count].append(time.perf_counter() - started)
        lost[count] += answer.status_code != 200

    async def all_at_once(count: int) -> None:
        # One client asks a few times, so that its round is not over at once.
        turns = max(1, 4 // count)
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
            for turn in range(turns):
                await asyncio.gather(
                    *(ask(client, count, turn * count + number) for number in range(count))
                )

    candidates = {
        f"{count}": lambda count=count: asyncio.run(all_at_once(count)) for count in CLIENTS
    }
    work = {f"{count}": tokens * count * max(1, 4 // count) for count in CLIENTS}
    return [
        {
            "clients": int(timing.name),
            "tokens_per_second": timing.per_second,
            "spread": timing.spread,
            "ratio_to_one": timing.ratio,
            "seconds_an_answer": float(np.median(waited[int(timing.name)])),
            "lost": lost[int(timing.name)],
        }
        for timing in rounds(candidates, ROUNDS, work=work)
    ]


def kept(model: TrainedModel, checkpoint: str, count: int) -> list[Row]:
    """Start and `/health` beside one conversation and beside so many."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        session = model.chat(Sampling(seed=0))
        session.say("What is a river?", 30)
        first = Path(folder) / f"{secrets.token_hex(16)}.session"
        session.save(first)
        content = first.read_bytes()
        for wanted in (1, count):
            for _ in range(wanted - sum(1 for _ in Path(folder).glob("*.session"))):
                (Path(folder) / f"{secrets.token_hex(16)}.session").write_bytes(content)
            started = time.perf_counter()
            with running_server(checkpoint, "--sessions-dir", folder) as server:
                seconds = time.perf_counter() - started
                milliseconds, pages = _health_beside_lists(server.url)
            rows.append(
                {
                    "conversations": wanted,
                    "start_seconds": seconds,
                    "health_ms": float(np.median(milliseconds)),
                    "health_ms_99th": float(np.percentile(milliseconds, 99)),
                    "pages_read": pages,
                }
            )
            progress(f"{wanted:,} conversations: {rows[-1]['health_ms']:.1f} ms")
    return rows


def _health_beside_lists(url: str) -> tuple[list[float], int]:
    """Milliseconds of each `/health`, and pages of the list that another client read meanwhile."""
    done, milliseconds, pages = threading.Event(), [], 0

    def turn_pages() -> None:
        nonlocal pages
        after: dict[str, str] = {}
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while not done.is_set():
                found = client.get("/v1/sessions", params={"limit": 100, **after}).json()
                after = {"after": found["data"][-1]["id"]} if found["has_more"] else {}
                pages += 1

    reader = threading.Thread(target=turn_pages)
    reader.start()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        client.get("/health")
        ends = time.perf_counter() + LISTENED_SECONDS
        while time.perf_counter() < ends:
            started = time.perf_counter()
            client.get("/health").raise_for_status()
            milliseconds.append(1e3 * (time.perf_counter() - started))
            time.sleep(0.01)
    done.set()
    reader.join()
    return milliseconds, pages


def long_session(model: TrainedModel, tokens: int) -> list[Row]:
    """Turns until so many tokens are read; copies made on the way are timed in turns at the end."""
    session, rows, copies = model.chat(Sampling(seed=0)), [], {}
    random = np.random.default_rng(0)
    words = "the river runs down to the sea and nobody asks it for its name".split()
    marks = [tokens // 100, tokens // 10, tokens]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "long.session"
        while marks:
            session.say(" ".join(random.choice(words, TURN_WORDS)), 1)
            if session.tokens_read < marks[0]:
                continue
            marks = [mark for mark in marks if mark > session.tokens_read]
            copies[f"{session.tokens_read}"] = session.fork()
            session.save(file)
            rows.append(
                {
                    "tokens_read": session.tokens_read,
                    "state_bytes": session.state_bytes,
                    "file_bytes": file.stat().st_size,
                    "resident_mb": resident_bytes() / 1e6,
                }
            )
            progress(f"{session.tokens_read:,} tokens")
    text = " ".join(random.choice(words, TURN_WORDS))
    probe = model.chat(Sampling(seed=0))
    probe.say(text, 1)
    candidates = {
        name: {
            "read": lambda copy=copy: copy.fork().say(text, 1),
            "written": lambda copy=copy: copy.fork().say("Go on.", ANSWER_TOKENS, ANSWER_TOKENS),
        }
        for name, copy in copies.items()
    }
    for what, work in (("read", probe.tokens_read), ("written", ANSWER_TOKENS)):
        doing = {name: actions[what] for name, actions in candidates.items()}
        for row, timing in zip(rows, rounds(doing, SPEED_ROUNDS, work=work), strict=True):
            row[f"{what}_per_second"] = timing.per_second
            row[f"{what}_ratio"] = timing.ratio
    return rows
