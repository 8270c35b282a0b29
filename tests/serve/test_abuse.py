"""Clients that leave, send too much, too little or nonsense: a clear refusal, the others go on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from newllm.cli import main
from newllm.inference.engine import Engine
from newllm.inference.sampling import Sampling
from newllm.model import ContextLM
from newllm.serve import connections
from tests.serve.serving import NAME, Running, Start, tiny_model
from tests.untrained import save_model

CHAT = "/v1/chat/completions"


def body(text: str = "hello", **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": 8, **options}


def alive(server: Running) -> None:
    """It answers as ever, and nobody holds a place."""
    server.wait_idle()
    with server.http() as http:
        answer = http.post(CHAT, json=body()).json()["choices"][0]["message"]["content"]
    assert answer == tiny_model().chat(Sampling(0)).say("hello", 8)


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def post(content: bytes, **headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = {"Host": "127.0.0.1", "Content-Length": str(len(content)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + content


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\x00\x01\x02", "invalid_json"),
        (b'{"model": "\xff\xfe"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (json.dumps(body("a\ud800b")).encode(), "invalid_json"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\x00"}]}', "invalid_json"),
        (json.dumps(body("a\0b")).encode(), "invalid_value"),
        (b"[]", "invalid_value"),
        (b'"text"', "invalid_value"),
        (json.dumps(body(temperature=float("nan"))).encode(), "invalid_value"),
        (json.dumps(body(seed=10**40)).encode(), "invalid_value"),
        (json.dumps(body(max_tokens=1e300)).encode(), "invalid_value"),
    ],
)
def test_nonsense(server: Running, content: bytes, code: str) -> None:
    with server.http() as http:
        answer = http.post(CHAT, content=content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == code
    alive(server)


def test_too_much(server: Running) -> None:
    with server.http() as http:
        for size in (2**20 + 1, 5 * 2**20):
            for content in (b"x" * size, iter([b"x" * 2**16] * (size // 2**16 + 1))):
                answer = http.post(CHAT, content=content)
                assert answer.status_code == 413
                assert answer.json()["error"]["code"] == "request_too_large"
        long = http.post(CHAT, json=body("word " * 200_000))
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        one_word = http.post(CHAT, json=body("a" * 1_000_000))
        assert one_word.status_code == 400
    alive(server)


def test_a_client_that_leaves_frees_its_place(start: Start) -> None:
    server = start(requests=2, queue=0, answer_tokens=10**9)
    endless: dict[str, Any] = {"max_tokens": 10**9, "min_tokens": 10**9}
    with server.http() as http:
        session = http.post("/v1/sessions", json={"temperature": 0}).json()["id"]
        turn = {"content": "hello", "stream": True, **endless}
        with http.stream("POST", f"/v1/sessions/{session}/turns", json=turn) as stream:
            lines = stream.iter_lines()
            next(lines)
            with http.stream("POST", CHAT, json=body(stream=True, **endless)) as other:
                other_lines = other.iter_lines()
                next(other_lines)
                full = http.post(CHAT, json=body())
                assert (full.status_code, full.json()["error"]["code"]) == (
                    429,
                    "too_many_requests",
                )
                busy = http.post(f"/v1/sessions/{session}/turns", json={"content": "x"})
                assert busy.json()["error"]["code"] == "session_busy"
                for path in ("undo", "fork"):
                    assert http.post(f"/v1/sessions/{session}/{path}").status_code == 409
        server.wait_idle()
        facts = http.get(f"/v1/sessions/{session}").json()
        assert facts["messages"] == 2, "the answer is closed as it was"
        assert http.post(f"/v1/sessions/{session}/undo").status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            http.post(CHAT, json=body(**endless), timeout=0.5)
    alive(server)


def test_a_client_that_does_not_read(start: Start) -> None:
    """Its answer is written to the end, and its connection closed; nobody waits for it."""
    server = start(client_seconds=1.0, answer_tokens=50_000)
    with connect(server) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = body(stream=True, max_tokens=50_000, min_tokens=50_000, logprobs=True)
        silent.sendall(post(json.dumps({**ask, "top_logprobs": 20}).encode()))
        with server.http() as http:
            assert http.post(CHAT, json=body()).status_code == 200
        server.wait_idle()
        alive(server)


def test_half_a_request(start: Start) -> None:
    server = start(client_seconds=0.5)
    whole = post(json.dumps(body()).encode())
    with connect(server) as half:
        half.sendall(whole[:-5])
        answer = half.recv(4096)
        assert b" 408 " in answer
        assert b"too_slow" in answer + half.recv(4096)
    with connect(server) as gone:
        gone.sendall(whole[:60])
    with connect(server) as slow:
        for start_, stop in ((0, 50), (50, 90), (90, len(whole))):
            slow.sendall(whole[start_:stop])
            time.sleep(0.05)
        assert b" 200 " in slow.recv(4096)
    alive(server)


def test_half_a_head(start: Start) -> None:
    server = start(client_seconds=0.3)
    with connect(server) as silent, connect(server) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127")
        assert silent.recv(100) == half.recv(100) == b"", "both are closed"
    alive(server)


def test_pages_of_other_sites_are_refused(server: Running) -> None:
    with server.http() as http:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert http.post(CHAT, json=body(), headers=headers).status_code == 403
        own = {"Origin": server.url}
        assert http.post(CHAT, json=body(), headers=own).status_code == 200


def test_a_model_that_breaks(start: Start) -> None:
    model = tiny_model()
    assert isinstance(model.model, ContextLM)
    model.model.norm[0] = float("nan")
    server = start(model)
    with server.http() as http:
        answer = http.post(CHAT, json=body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "not_finite")
        stream = http.post(CHAT, json=body(stream=True)).text
        assert '"not_finite"' in stream
        assert http.get("/health").json()["active_answers"] == 0


def test_a_fault_in_a_round_ends_these_answers_alone(start: Start, monkeypatch) -> None:
    server = start()
    decoder = server.service.default.engine._decoder

    def broken(*arguments):
        raise RuntimeError("broken")

    with server.http() as http:
        monkeypatch.setattr(decoder, "step", broken)
        assert http.post(CHAT, json=body()).status_code == 500
    alive(server)


def test_answers_that_outlast_the_grace_end_as_at_their_limit(start: Start, monkeypatch) -> None:
    """Streamed or whole: what there is of them is sent. Of one in the queue nothing was read."""
    monkeypatch.setattr(connections, "GRACE_SECONDS", 0.2)
    write = Engine._write

    def slowly(self: Engine) -> None:
        write(self)
        time.sleep(0.02)

    monkeypatch.setattr(Engine, "_write", slowly)
    server = start(requests=2)

    def ask(stream: bool) -> str:
        asked = {"max_tokens": 4000, "min_tokens": 4000, "stream": stream}
        with server.http() as http:
            answer = http.post(CHAT, json=body(**asked))
        if answer.status_code != 200:
            return answer.json()["error"]["code"]
        if not stream:
            return answer.json()["choices"][0]["finish_reason"]
        events = [line[6:] for line in answer.text.splitlines() if line]
        if events[-1] != "[DONE]":
            return json.loads(events[-1])["error"]["code"]
        return json.loads(events[-2])["choices"][0]["finish_reason"]

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, stream) for stream in (True, False)]
        while server.service.active < 2:
            time.sleep(0.01)
        asked += [pool.submit(ask, stream) for stream in (True, False)]
        while server.service.waiting < 2:
            time.sleep(0.01)
        server.stop()
        ends = [answer.result() for answer in asked]
    assert ends == ["length", "length", "shutting_down", "shutting_down"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
    + ([(signal.SIGHUP, 129)] if hasattr(signal, "SIGHUP") else []),
)
def test_the_command_stops_gracefully(tmp_path: Path, number: int, code: int) -> None:
    """A streamed answer goes on for a while and is cut; the session is on disk afterwards."""
    file = save_model(tiny_model(), tmp_path / "tiny.pt")
    command = [sys.executable, "-m", "newllm", "serve", file, "--port", "0", "--device", "cpu"]
    before = signal.signal(number, signal.SIG_DFL)  # below nohup the server would ignore it too
    with subprocess.Popen(
        [*command, "--sessions-dir", str(tmp_path / "sessions")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        signal.signal(number, before)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        url = line.split(" at ")[1].split()[0]
        with httpx.Client(base_url=url, trust_env=False) as http:
            session = http.post("/v1/sessions", json={}).json()["id"]
            http.post(f"/v1/sessions/{session}/turns", json={"content": "hi", "max_tokens": 3})
        process.send_signal(number)
        assert process.wait(30) == code
        said = process.stderr.read()
    assert f"Sessions in {tmp_path / 'sessions'}: 1." in said
    assert "Traceback" not in said
    assert (tmp_path / "sessions" / f"{session}.session").exists()


def test_mistakes_on_the_command_line(tmp_path: Path, capsys, monkeypatch) -> None:
    assert main(["serve", str(tmp_path / "none.pt")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "newllm.serve.app", raising=False)
    assert main(["serve", "x.pt"]) == 2
    assert 'serve: needs uvicorn: pip install -e ".[serve]"' in capsys.readouterr().err


def test_a_port_that_is_taken(server: Running) -> None:
    from newllm.errors import UserError
    from newllm.serve.app import serve
    from newllm.serve.protect import Access
    from newllm.serve.service import Limits

    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
        serve({NAME: tiny_model()}, port, Access(), Limits())


def test_freed_memory_is_given_back_while_it_serves(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr("newllm.serve.app._TRIM_SECONDS", 0.01)
    monkeypatch.setattr("newllm.serve.app.trim_freed_memory", trimmed.set)
    server = start()
    assert trimmed.wait(10)
    alive(server)
    trimmed.clear()
    assert trimmed.wait(10)
