"""The page in a real browser: what it keeps, catches up with, and does when something fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
from playwright.sync_api import expect

from newllm.inference.sampling import Sampling
from newllm.serve.app import make_app
from newllm.serve.connections import bind, make_server
from newllm.serve.service import Limits, Service
from tests.serve.browsing import (
    Open,
    ask,
    facts,
    needs_browser,
    said,
    session_id,
    spoken,
)
from tests.serve.serving import NAME, Running, Start, tiny_model


@needs_browser
def test_reduced_motion_draws_the_present_alone(visit: Open, server: Running) -> None:
    moving, still = visit(), visit(reduced_motion="reduce")
    for page in (moving, still):
        ask(page, "one")
        ask(page, "two")  # at least a moment each, however many tokens come at once
    same = (
        "document.querySelector('#picture').getContext('2d').getImageData(0, {}, 64, 1).data.join()"
    )
    still.wait_for_timeout(600)
    assert still.evaluate(same.format(0)) == still.evaluate(same.format(239))
    assert moving.evaluate(same.format(0)) != moving.evaluate(same.format(239))


@needs_browser
def test_settings_are_asked_for_and_remembered(visit: Open, server: Running) -> None:
    page = visit()
    page.click("#open-settings")
    page.fill("#temperature", "1.5")
    page.fill("#top_p", "0.5")
    page.fill("#repetition_penalty", "1.2")
    page.fill("#seed", "7")
    page.fill("#max_tokens", "3")
    page.click(".primary")

    def answer() -> tuple[Any, str]:
        with page.expect_request("**/turns") as request:
            said = ask(page, "hello")
        return request.value.post_data_json, said

    body, first = answer()
    chosen = {"temperature": 1.5, "top_p": 0.5, "repetition_penalty": 1.2, "seed": 7}
    assert body.pop("revision")
    assert body == {"content": "hello", "stream": True, "context": True, "max_tokens": 3, **chosen}
    expect(page.locator(".assistant .note")).to_contain_text("3 tokens, the limit in the settings")
    page.click("#new")
    assert answer()[1] == first, "the same seed"
    page.click("#open-settings")
    page.fill("#max_tokens", "99999999")  # more than the server writes
    page.keyboard.press("Escape")
    expect(page.locator("#max_tokens")).to_have_value("3")
    page.click("#open-settings")
    page.click("#defaults")
    page.click(".primary")
    page.click("#new")
    defaults = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 256}
    body = answer()[0]
    assert body.pop("revision")
    assert body == {"content": "hello", "stream": True, "context": True, **defaults}


@needs_browser
def test_what_went_on_elsewhere_is_caught_up_with(visit: Open, server: Running) -> None:
    page = visit()
    ask(page, "one")
    name = session_id(page)
    with server.http() as http:
        http.post(f"/v1/sessions/{name}/turns", json={"content": "elsewhere", "max_tokens": 4})
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#messages .text")).to_have_count(4)
    assert said(page) == spoken(server, name)
    other = visit(f"{server.url}/#{name}")
    expect(other.locator("#messages .text")).to_have_count(4)


@needs_browser
def test_deleting(visit: Open, server: Running) -> None:
    page = visit()
    ask(page, "one")
    name = session_id(page)
    page.click("#delete")
    expect(page.locator(f"#sessions [data-id='{name}']")).to_have_count(0)
    page.click("#notice-action")
    expect(page.locator(f"#sessions [data-id='{name}']")).to_have_count(1)
    expect(page.locator("#undo")).to_be_enabled()
    page.click("#delete")
    with page.expect_response(lambda r: r.request.method == "DELETE"):
        page.click("#notice-close")
    assert facts(server, name)["error"]["code"] == "session_not_found"


@needs_browser
def test_a_key(visit: Open, start: Start) -> None:
    server = start(key="secret")
    page = visit(server.url, silent=False)
    expect(page.locator("#notice-words")).to_contain_text("asks for an API key")
    page.click("#notice-action")
    expect(page.locator("#api-key")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text(NAME)
    expect(page.locator("#notice")).to_be_hidden()
    ask(page, "one")
    assert "secret" not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")


@needs_browser
def test_errors_lose_nothing(visit: Open, start: Start) -> None:
    page = visit(start(prompt_tokens=50).url, silent=False)
    ask(page, "one")
    long = "word " * 100
    page.fill("#question", long)
    page.keyboard.press("Enter")
    expect(page.locator("#notice-words")).to_contain_text("Send it in several turns")
    expect(page.locator("#question")).to_have_value(long.strip())
    expect(page.locator("#messages .text")).to_have_count(2)
    page.click("#new")
    page.keyboard.press("Enter")
    expect(page.locator("#notice-words")).to_contain_text("Send it in several turns")
    expect(page.locator("#sessions li")).to_have_count(1)


@needs_browser
def test_a_server_that_went_away(visit: Open) -> None:
    port, stop = serve(0)
    page = visit(f"http://127.0.0.1:{port}", silent=False)
    ask(page, "one")
    stop()
    page.fill("#question", "two")
    page.keyboard.press("Enter")
    expect(page.locator("#notice-words")).to_contain_text("does not answer")
    expect(page.locator("#question")).to_have_value("two")
    _, stop = serve(port)
    expect(page.locator("#notice-words")).to_contain_text("put back from this page's copy")
    expect(page.locator("#messages .text")).to_have_count(2)
    session = tiny_model().chat(Sampling(0, repetition_penalty=1))
    session.say("one", 16)
    assert ask(page, "two") == (session.say("two", 16).strip() or "(an empty answer)")
    stop()


def serve(port: int) -> tuple[int, Callable[[], None]]:
    """A server on a port of one's choice: its port, and how to stop it."""
    service = Service({NAME: tiny_model()}, Limits())
    server = make_server(make_app(service), "127.0.0.1", port, service)
    server.config.timeout_graceful_shutdown = 1
    sockets = [bind("127.0.0.1", port)]
    thread = threading.Thread(target=server.run, args=[sockets], daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    return server.servers[0].sockets[0].getsockname()[1], stop


def test_health_is_asked_without_a_key(start: Start) -> None:
    server = start(key="secret")
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    assert httpx.get(f"{server.url}/app.js", trust_env=False).status_code == 200
