"""What tests of the page in a real browser share: a browser, visitors, and what they see and do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import newllm.serve
from newllm.inference.sampling import Sampling
from tests.serve.serving import Running, tiny_model

FOLDER = Path(newllm.serve.__file__).parent / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SECONDS = 20
GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 16}

DRAWN = (
    "new Set(new Uint32Array(document.querySelector('#picture').getContext('2d')"
    ".getImageData(0, 0, 64, 240).data.buffer)).size"
)
"""How many colours the picture has."""

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"
)
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    tiny_model().chat(Sampling(0)).say("a", 2)  # compiles the step: answers come at once
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, server: Running) -> Iterator[Open]:
    """Open the page as a new visitor; nothing may go wrong in it unnoticed."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def begin(
        url: str = server.url,
        sampling: dict[str, Any] | None = None,
        width: int = 1400,
        silent: bool = True,
        **options: Any,
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 844}, accept_downloads=True,
            **{"locale": "en-US", **options},
        )  # fmt: skip
        contexts.append(context)
        stored = json.dumps(json.dumps(sampling or GREEDY))
        context.add_init_script(f"localStorage.setItem('newllm.sampling', {stored})")
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        if silent:
            page.on(
                "console", lambda told: faults.append(told.text) if told.type == "error" else None
            )
        page.goto(url)
        return page

    yield begin
    for context in contexts:
        context.close()
    assert faults == []


def ask(page: Page, text: str) -> str:
    """Say something and wait for the answer, to its end."""
    answers = page.locator("#messages .assistant")
    count = answers.count()
    page.fill("#question", text)
    page.keyboard.press("Enter")
    expect(answers).to_have_count(count + 1)
    expect(page.locator("#send")).to_be_visible()
    expect(answers.last.locator(".note")).not_to_be_empty()
    return said(page)[-1]


def until(page: Page, expression: str, holds: Callable[[Any], bool]) -> Any:
    """The value of an expression, as soon as it is right (the page's policy forbids `eval`)."""
    deadline = time.monotonic() + SECONDS
    while not holds(value := page.evaluate(expression)):
        assert time.monotonic() < deadline, (expression, value)
        page.wait_for_timeout(20)
    return value


def said(page: Page) -> list[str]:
    """All messages on the page."""
    return [message.strip() for message in page.locator("#messages .text").all_inner_texts()]


def session_id(page: Page) -> str:
    expect(page.locator("#fork")).to_be_enabled()
    return page.url.partition("#")[2]


def facts(server: Running, name: str) -> dict[str, Any]:
    with server.http() as http:
        return http.get(f"/v1/sessions/{name}").json()


def spoken(server: Running, name: str) -> list[str]:
    """The transcript that the server has, as the page shows it."""
    return [m["content"].strip() or "(an empty answer)" for m in facts(server, name)["transcript"]]


def drop(page: Page, file: Path) -> None:
    expect(page.locator("#model")).not_to_be_empty()
    content = page.evaluate_handle(
        """([bytes, name]) => {
          const carried = new DataTransfer();
          carried.items.add(new File([new Uint8Array(bytes)], name));
          return carried;
        }""",
        [list(file.read_bytes()), file.name],
    )
    page.dispatch_event("#page", "dragover", {"dataTransfer": content})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("#page", "drop", {"dataTransfer": content})
    expect(page.locator("#drop")).to_be_hidden()
