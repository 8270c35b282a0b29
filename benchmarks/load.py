"""The server under pressure: many clients at once, clients slow on purpose, minutes of load.

    newllm bench load --checkpoint checkpoints/best_new_llm_dolly_layers1_bpe.pt

Clients: openai's own, with its usual retries, each asking once at the same moment. Slow clients:
connections held in every way that is known to starve servers (slowloris), more than the server
allows, while another client asks over connections of its own. Memory: texts of all lengths,
conversations begun, gone on with, forked and deleted, and clients that leave; resident memory
every ten seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import click
import httpx
import numpy as np
import openai
import psutil

from benchmarks.measure import Report, Row, progress, report_options
from benchmarks.serve import CHAT, running_server
from newllm.trained import TrainedModel

LISTENED_SECONDS = 5.0
WATCHED_SECONDS = 10.0
READERS = 50
"""Clients that read nothing of a long answer: fewer than answers are written at the same time, so
that what is measured is not the queue."""

WORKERS = 8


@click.command()
@click.option("--checkpoint", required=True, metavar="FILE", help="The model that is served.")
@click.option("--clients", default=200, show_default=True, type=click.IntRange(min=1),
              help="Official clients that ask at the same moment.")  # fmt: skip
@click.option("--answer-tokens", default=200, show_default=True, type=click.IntRange(min=1),
              help="Length of their answers.")  # fmt: skip
@click.option("--slow", default=1200, show_default=True, type=click.IntRange(min=1),
              help="Connections that slow clients hold.")  # fmt: skip
@click.option("--seconds", default=300.0, show_default=True, type=click.FloatRange(min=0.1),
              help="Length of the load whose memory is watched.")  # fmt: skip
@report_options
def command(checkpoint: str, clients: int, answer_tokens: int, slow: int, seconds: float) -> Report:
    model = TrainedModel.load(checkpoint, "cpu")
    name = model.path.stem
    with running_server(checkpoint) as server:
        at_once = official_clients(server.url, name, clients, answer_tokens)
        held = [beside(server.url, name, form, slow) for form in FORMS]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(checkpoint, "--sessions-dir", folder) as server,
    ):
        grown = memory(server.url, name, server.process.pid, seconds)
    tables = {
        "Official clients at once": at_once,
        "Beside slow clients": held,
        "Memory under load": grown,
    }
    return Report(tables, {"model": checkpoint, "parameters": model.parameters})


def official_clients(url: str, name: str, count: int, tokens: int) -> list[Row]:
    """One question each, with the client's own retries and deadlines."""
    waited: list[float] = []
    lost: Counter[str] = Counter()

    async def one() -> None:
        transport = openai.DefaultAsyncHttpxClient(verify=False, trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", http_client=transport
        ) as client:
            ready.release()
            await go.wait()
            started = time.perf_counter()
            try:
                await client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": "What is a river?"}],
                    max_tokens=tokens, extra_body={"min_tokens": tokens},
                )  # fmt: skip
            except openai.OpenAIError as error:
                lost[type(error).__name__] += 1
            else:
                waited.append(time.perf_counter() - started)

    async def all_of_them() -> None:
        asking = [asyncio.create_task(one()) for _ in range(count)]
        for _ in range(count):
            await ready.acquire()
        go.set()
        await asyncio.gather(*asking)

    ready, go = asyncio.Semaphore(0), asyncio.Event()
    asyncio.run(all_of_them())
    for error, times in lost.items():
        progress(f"{error}: {times}")
    middle, slowest = (float(np.median(waited)), max(waited)) if waited else (0.0, 0.0)
    return [
        {
            "clients": count,
            "lost": count - len(waited),
            "median_s": middle,
            "slowest_s": slowest,
            "slowest_to_median": slowest / middle if waited else 0.0,
        }
    ]


# -- slow clients --------------------------------------------------------------------------------

_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BODY = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n"
_DRIPPED = 1.0
"""Seconds between two bytes of those that drip."""

FORMS: dict[str, tuple[bytes, bytes]] = {
    "none": (b"", b""),
    "silent": (b"", b""),
    "kept alive, idle": (_HEALTH, b""),
    "half a head": (_HEALTH[:-3], b""),
    "a head, byte by byte": (_HEALTH[:-2] + b"X-A: ", b"a"),
    "half a second head": (_HEALTH + _HEALTH[:-3], b""),
    "half a body": (_BODY + b"{", b""),
    "a body, byte by byte": (_BODY, b" "),
    "answers not read": (b"", b""),
}
"""What each connection sends at first, and then each second."""


def beside(url: str, name: str, form: str, count: int) -> Row:
    """How fast another client is answered, over new connections, while so many are held."""
    health, token = [], []
    one = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with ExitStack() as stack:
        held = stack.enter_context(_held(url, name, form, count))
        first = _milliseconds(url, "GET", "/health")  # behind all that came at once
        first_token = _milliseconds(url, "POST", CHAT, one)
        ends = time.perf_counter() + LISTENED_SECONDS
        while time.perf_counter() < ends:
            health.append(_milliseconds(url, "GET", "/health"))
            token.append(_milliseconds(url, "POST", CHAT, one))
            time.sleep(0.02)
        still_open = sum(map(_is_open, held))
    progress(f"{form}: {max(health):.1f} ms")
    return {
        "slow_clients": form,
        "connections": len(held),
        "still_open": still_open,
        "first_health_ms": first,
        "health_ms": float(np.median(health)),
        "health_ms_worst": max(health),
        "first_token_ms": first_token,
        "one_token_ms": float(np.median(token)),
        "one_token_ms_worst": max(token),
    }


def _milliseconds(url: str, method: str, path: str, body: object = None) -> float:
    """From nothing to the end of the answer, over a connection of its own."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    started = time.perf_counter()
    with _connect(url) as client:
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = b""
        while more := client.recv(65536):
            answer += more
    taken = 1e3 * (time.perf_counter() - started)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{path}: {answer[:200]!r}")
    return taken


@contextmanager
def _held(url: str, name: str, form: str, count: int) -> Iterator[list[socket.socket]]:
    first, then = FORMS[form]
    endless = json.dumps({
        "model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4096,
        "min_tokens": 4096, "stream": True, "logprobs": True, "top_logprobs": 20,
    }).encode()  # fmt: skip
    if form == "answers not read":
        count = min(count, READERS)
        first = _BODY.replace(b"9000", str(len(endless)).encode()) + endless
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 256, hard), hard))
    done = threading.Event()
    with ExitStack() as stack:
        held = []
        for _ in range(0 if form == "none" else count):
            client = stack.enter_context(_connect(url))
            with suppress(OSError):  # it may have been closed at once
                client.sendall(first)
            held.append(client)

        def drip() -> None:
            while not done.wait(_DRIPPED):
                for client in held:
                    with suppress(OSError):
                        client.sendall(then)

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            yield held
        finally:
            done.set()
            dripping.join()


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect((parts.hostname, parts.port))
    return client


def _is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while more := client.recv(65536):
            del more
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


# -- memory --------------------------------------------------------------------------------------


def memory(url: str, name: str, process: int, seconds: float) -> list[Row]:
    """Resident memory every ten seconds of load, and what had been done by then."""
    done: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    server = psutil.Process(process)

    async def work(http: httpx.AsyncClient, kind: int) -> None:
        drawn = random.Random(kind)
        while time.monotonic() < ends:
            if kind % 4 == 1:
                await _conversation(http, drawn)
                done["conversations"] += 1
            elif kind % 4 == 2 and drawn.random() < 0.1:
                await _leave(http, _asked(name, drawn))
                done["left"] += 1
            else:
                answer = await http.post(CHAT, json=_asked(name, drawn))
                answer.raise_for_status()
                done["answers"] += 1

    started = time.monotonic()

    def now() -> Row:
        row = {
            "seconds": round(time.monotonic() - started),
            "resident_mb": server.memory_info().rss / 1e6,
            **{what: done[what] for what in ("answers", "conversations", "left")},
        }
        progress(f"{row}")
        return row

    async def watch() -> list[Row]:
        rows = [now()]
        while (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(WATCHED_SECONDS, left))
            rows.append(now())
        return rows

    async def all_of_it() -> list[Row]:
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            watching = asyncio.create_task(watch())
            await asyncio.gather(*(work(http, number) for number in range(WORKERS)))
            return [*await watching, now()]

    return asyncio.run(all_of_it())


_WORDS = "river dog house tree moon Paul Paris bread".split()


def _text(drawn: random.Random, most: int) -> str:
    return " ".join(drawn.choices(_WORDS, k=drawn.randrange(1, most)))


def _asked(name: str, drawn: random.Random) -> Row:
    messages = [{"role": "user", "content": _text(drawn, 4000)}]
    return {"model": name, "messages": messages, "max_tokens": 50, "stream": drawn.random() < 0.5}


async def _conversation(http: httpx.AsyncClient, drawn: random.Random) -> None:
    """Begun, gone on with, forked, and the first of both deleted: the other stays."""
    system = {"system": "x" * 5000}
    session = (await http.post("/v1/sessions", json=system)).raise_for_status().json()["id"]
    for _ in range(3):
        turn = {"content": _text(drawn, 600), "max_tokens": 20}
        (await http.post(f"/v1/sessions/{session}/turns", json=turn)).raise_for_status()
    (await http.post(f"/v1/sessions/{session}/fork")).raise_for_status()
    (await http.delete(f"/v1/sessions/{session}")).raise_for_status()


async def _leave(http: httpx.AsyncClient, asked: Row) -> None:
    """Go away after the first of a long answer."""
    asked |= {"max_tokens": 4000, "min_tokens": 4000, "stream": True}
    async with http.stream("POST", CHAT, json=asked) as stream:
        async for _ in stream.aiter_bytes():
            return
