"""Connections, the queue, and what requests must show: nobody keeps the others out."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import ExitStack, suppress

import httpx
import pytest
import uvicorn

from newllm.errors import Stopped
from newllm.serve import app
from newllm.serve.protect import Access
from newllm.serve.service import Limits
from tests.serve.serving import NAME, Running, Start, tiny_model
from tests.serve.test_abuse import CHAT, body, connect

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answered(server: Running, within: float = 1.0) -> None:
    began = time.monotonic()
    with server.http() as http:
        assert http.get("/health").status_code == 200
    assert time.monotonic() - began < within


def test_answers_are_not_held_back(server: Running) -> None:
    """Nagle's algorithm is off: the second packet of an answer does not wait for the client."""
    assert server.server is not None
    with connect(server) as client:
        client.sendall(HEALTH)
        assert b" 200 " in client.recv(4096)
        transports = [c.transport for c in server.server.server_state.connections]
        sockets = [t.get_extra_info("socket") for t in transports]
        assert sockets
        assert all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets)


def test_the_address_is_told_when_clients_can_connect(monkeypatch) -> None:
    """Whoever waits for the line, a supervisor or a script, asks at once."""
    told: list[str] = []

    def connects(line: str, **options: bool) -> None:
        port = int(line.partition(" at http://127.0.0.1:")[2].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        told.append(line)

    monkeypatch.setattr(app.click, "echo", connects)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    with pytest.raises(Stopped):
        app.serve({NAME: tiny_model()}, 0, Access(), Limits())
    assert len(told) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        HEALTH[:-3],
        HEALTH + HEALTH[:-3],
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
    ],
    ids=["silent", "half a head", "half a second head", "half a body", "a body nobody reads"],
)
def test_silent_clients_give_way(start: Start, sent: bytes, monkeypatch) -> None:
    """More of them than the server takes: a client that asks is answered at once all the same."""
    monkeypatch.setattr("newllm.serve.connections._YOUNG_SECONDS", 0.0)
    server = start(connections=8)
    with ExitStack() as held:
        sockets = [held.enter_context(connect(server)) for _ in range(20)]
        for silent in sockets:
            with suppress(OSError):  # it may have given way already
                silent.sendall(sent)
        for _ in range(5):
            answered(server)


def test_a_half_second_request_is_ended(start: Start) -> None:
    server = start(client_seconds=0.3)
    with connect(server) as half:
        half.sendall(HEALTH + HEALTH[:-3])
        received = b""
        while more := half.recv(4096):
            received += more
        assert received.count(b" 200 ") == 1
    answered(server)


def test_a_queue_in_place_of_refusals(start: Start) -> None:
    """Forty official clients at a server that writes two answers at once: none is lost."""
    server = start(requests=2, queue=40)

    async def all_of_them() -> list[float]:
        async with server.async_openai() as client:

            async def one() -> float:
                began = time.monotonic()
                await client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": "hi"}], max_tokens=40,
                    extra_body={"min_tokens": 40},
                )  # fmt: skip
                return time.monotonic() - began

            return sorted(await asyncio.gather(*(one() for _ in range(40))))

    waited = asyncio.run(all_of_them())
    assert len(waited) == 40
    server.wait_idle()


def test_beyond_the_queue(start: Start) -> None:
    server = start(requests=1, queue=1, answer_tokens=10**9)
    endless = body(max_tokens=10**9, min_tokens=10**9, stream=True)
    with server.http() as http, http.stream("POST", CHAT, json=endless) as first:
        lines = first.iter_lines()  # held: a client that lets go of them has left
        next(lines)
        with http.stream("POST", CHAT, json=endless) as second:
            more_lines = second.iter_lines()
            next(more_lines)
            assert http.get("/health").json() == {
                "status": "ok", "active_answers": 1, "waiting_answers": 1,
            }  # fmt: skip
            full = http.post(CHAT, json=body())
            assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_requests")
            assert int(full.headers["Retry-After"]) >= 1
            assert http.post(CHAT, json=body(n=3)).status_code == 400, "never room for so many"
    server.wait_idle()


def test_malformed_names_are_the_clients_fault(start: Start) -> None:
    server = start(key="secret")
    with server.http() as http:
        for headers in (
            {"Host": "["}, {"Host": "[::1"}, {"Host": "a@localhost"}, {"Host": "localhost:x"},
            {"Host": "localhost:99999"}, {"Host": "localhost/x"}, {"Origin": "http://["},
        ):  # fmt: skip
            answer = http.get("/v1/models", headers={"Authorization": "", **headers})
            assert answer.status_code == 400, headers
            assert answer.json()["error"]["code"] == "bad_request"


def test_a_key_in_any_form_of_the_word(start: Start) -> None:
    server = start(key="secret")
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        for word in ("Bearer", "bearer", "BEARER"):
            answer = http.get("/v1/models", headers={"Authorization": f"{word} secret"})
            assert answer.status_code == 200
        refused = http.get("/v1/models")
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        for path in ("/tokenize", "/detokenize"):
            assert http.post(path, json={}).status_code == 401


def test_two_lengths_of_one_body_are_refused(server: Running) -> None:
    with connect(server) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH
        )
        received = b""
        while more := client.recv(4096):
            received += more
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1") == 1, "nothing was smuggled"


def test_an_old_client_without_a_host(server: Running) -> None:
    with connect(server) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 200 " in client.recv(4096)


def test_host_names(start: Start) -> None:
    at_home = Access()
    assert at_home.answers_as("localhost")
    assert not at_home.answers_as("192.168.0.9")
    assert Access(hosts=["Host.docker.internal"]).answers_as("host.docker.internal")
    everywhere = Access("0.0.0.0")
    assert everywhere.answers_as("192.168.0.9")
    assert everywhere.answers_as("fe80::1")
    assert everywhere.answers_as(socket.gethostname().lower())
    assert not everywhere.answers_as("rebound.example"), "no key: a page may rebind its name"
    assert Access("0.0.0.0", api_key="k").answers_as("talk.example")
    server = start(access=Access(hosts=["box"], origins=["https://chat.example"]))
    with server.http() as http:
        assert http.get("/health", headers={"Host": "box:8000"}).status_code == 200
        assert http.get("/health", headers={"Host": "other"}).status_code == 403


def test_other_origins(start: Start) -> None:
    server = start(access=Access(origins=["https://Chat.example/"]))
    theirs = {"Origin": "https://chat.example"}
    with server.http() as http:
        asked = {**theirs, "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        may = http.options(CHAT, headers=asked)
        assert may.status_code == 200
        assert may.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        answer = http.post(CHAT, json=body(), headers=theirs)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        foreign = http.post(CHAT, json=body(), headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "Access-Control-Allow-Origin" not in foreign.headers


def test_the_access_log_has_no_texts_and_no_keys(start: Start, caplog) -> None:
    server = start(key="hidden-key")
    with caplog.at_level(logging.INFO, logger="newllm.access"), server.http() as http:
        asked = http.post(CHAT, json=body("hidden-text")).headers["x-request-id"]
        http.get("/v1/sessions", params={"search": "hidden-text"})
        http.get("/no%0Awhere")
        deadline = time.monotonic() + 5
        while len(caplog.records) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"127.0.0.1 POST {CHAT} 200 ")
    assert lines[0].endswith(f" ms {asked}")
    assert "/no%0Awhere 404" in lines[2]
    assert "hidden" not in "".join(lines)
