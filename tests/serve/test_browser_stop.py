"""Answers that are stopped while they are written, in a real browser."""

from __future__ import annotations

import json
import time

import pytest
from playwright.sync_api import Page, Route, expect

from newllm.inference.engine import Engine
from tests.serve.browsing import Open, needs_browser, said, session_id, spoken, until
from tests.serve.serving import Start


def ask_without_end(page: Page) -> None:
    """Send a question whose answer is being written when this returns."""

    def lengthen(route: Route) -> None:
        body = {**(route.request.post_data_json or {}), "min_tokens": 10**9, "max_tokens": 10**9}
        route.continue_(post_data=json.dumps(body))

    page.route("**/turns", lengthen)
    page.fill("#question", "hello")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    text = "document.querySelector('.assistant .text').textContent.length"
    before = until(page, text, lambda length: length > 5)
    until(page, text, lambda length: length > before)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that writes as a larger model does, so that Escape comes early in an answer."""
    write = Engine._write

    def wait_and_write(engine: Engine) -> None:
        time.sleep(0.01)
        write(engine)

    monkeypatch.setattr(Engine, "_write", wait_and_write)


@needs_browser
@pytest.mark.usefixtures("unhurried")
def test_an_answer_streams_and_escape_stops_it(visit: Open, start: Start) -> None:
    server = start(answer_tokens=10**9)
    page = visit(server.url)
    ask_without_end(page)
    assert page.locator("#speed").inner_text() != "–"
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".assistant .note")).to_have_text("stopped")
    assert said(page) == spoken(server, session_id(page)), "the state has read what is shown"
    server.wait_idle()


@needs_browser
@pytest.mark.usefixtures("unhurried")
def test_an_answer_too_long_to_be_kept_as_text(
    visit: Open, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("newllm.chat.dialogue.TRANSCRIPT_BYTES", 8)
    page = visit(start(answer_tokens=10**9).url)
    ask_without_end(page)
    page.keyboard.press("Escape")
    expect(page.locator("#dropped")).to_contain_text("first 2 messages are no longer kept")
    expect(page.locator("#welcome")).to_be_hidden()
    expect(page.locator("#notice")).to_be_hidden()
