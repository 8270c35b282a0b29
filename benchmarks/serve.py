"""The server with one and with many clients, and a session that reads a million tokens.

    newllm bench serve --checkpoint checkpoints/best_new_llm_dolly_layers1_bpe.pt

Clients: `newllm serve` in a process of its own, asked over HTTP by this one; answers of fixed
length, not streamed. Session: turns of some thousand tokens, each with a short answer; the speed of
reading and writing, memory and the size of the session's file as it grows longer.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import numpy as np

from benchmarks.measure import Report, Row, progress, report_options, rounds
from newllm.inference.sampler import Sampling
from newllm.train.memory import resident_bytes
from newllm.trained import TrainedModel

CLIENTS = (1, 8, 50)
ROUNDS, SPEED_ROUNDS = 3, 15
TURN_WORDS, ANSWER_TOKENS = 2000, 200


@click.command()
@click.option("--checkpoint", required=True, metavar="FILE", help="The model that is served.")
@click.option("--answer-tokens", default=100, show_default=True, type=click.IntRange(min=1),
              help="Length of every answer.")  # fmt: skip
@click.option("--tokens", default=1_000_000, show_default=True, type=click.IntRange(min=100),
              help="Tokens that the session reads.")  # fmt: skip
@report_options
def command(checkpoint: str, answer_tokens: int, tokens: int) -> Report:
    model = TrainedModel.load(checkpoint, "cpu")
    with running_server(checkpoint) as url:
        together = clients(url, model.path.stem, answer_tokens)
    tables = {
        "Clients at the same time": together,
        "One session as it grows": long_session(model, tokens),
    }
    return Report(tables, {"model": checkpoint, "parameters": model.parameters})


@contextmanager
def running_server(checkpoint: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    arguments = ["serve", checkpoint, "--port", "0", "--device", "cpu"]
    command = [sys.executable, "-u", "-m", "newllm", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split(" at ")[1].split()[0]
        finally:
            process.terminate()


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
        answer = await client.post("/v1/chat/completions", json=body)
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
