"""The page in a real browser, against a real server: what a person sees and does."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

import newllm.serve
from newllm.chat.sampling import Sampling
from newllm.serve.app import make_app, make_server
from newllm.serve.service import Limits, Service
from tests.serve.serving import NAME, Running, Start, tiny_model

FOLDER = Path(newllm.serve.__file__).parent / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SECONDS = 20
GREEDY = {"temperature": 0, "max_tokens": 16}

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


def test_what_is_sent_with_the_files(server: Running) -> None:
    kinds = {
        ".html": "text/html",
        ".js": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg+xml",
    }
    with server.http() as http:
        assert http.get("/").content == (FOLDER / "index.html").read_bytes()
        for file in FOLDER.iterdir():
            answer = http.get(f"/{file.name}")
            assert answer.content == file.read_bytes()
            assert answer.headers["content-type"].split(";")[0] == kinds[file.suffix]
            assert answer.headers["cache-control"] == "no-cache"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            tag = {"If-None-Match": answer.headers["etag"]}
            again = http.get(f"/{file.name}", headers=tag)
            assert (again.status_code, again.content) == (304, b"")
        for path in ("/nothing.js", "/../api.py", "/%2e%2e/api.py", "/page/index.html"):
            assert http.get(path).status_code == 404


def test_nothing_comes_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        found = re.findall(r"https?://[^\s\"']+", file.read_text(encoding="utf-8"))
        assert set(found) <= {"http://www.w3.org/2000/svg"}, file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b", file.read_text())


def test_both_languages_say_everything() -> None:
    text = (FOLDER / "words.js").read_text(encoding="utf-8")
    english, japanese = (
        dict(re.findall(r"^  (\w+): (.*)$", part, re.M))
        for part in re.findall(r"^const (?:en|ja) = \{\n(.*?)^\};", text, re.M | re.S)
    )
    assert list(english) == list(japanese)
    for name, words in english.items():
        places = set(re.findall(r"\{\w+\}", words))
        assert set(re.findall(r"\{\w+\}", japanese[name])) <= places, name
    used = set()
    for file in FOLDER.iterdir():
        code = file.read_text(encoding="utf-8")
        used |= set(re.findall(r'data-(?:word|label|hint)="(\w+)"', code))
        used |= set(re.findall(r'\bsay\(\s*"(\w+)"', code))
    assert used <= set(english)


@needs_browser
def test_chat(visit: Open, server: Running) -> None:
    page = visit()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#cannot li")).to_have_count(3)
    assert page.evaluate(DRAWN) == 1
    answer = ask(page, "hello")
    told = tiny_model().chat(Sampling(0)).say("hello", 16)
    assert answer == (told.strip() or "(an empty answer)")
    expect(page.locator("#welcome")).to_be_hidden()
    ask(page, "and then?")
    known = facts(server, session_id(page))
    assert said(page) == spoken(server, known["id"])
    expect(page.locator("#sessions [aria-current] span")).to_have_text("hello")
    expect(page.locator("#tokens")).to_have_text(str(known["tokens_read"]))
    with server.http() as http:
        model = http.get("/v1/models").json()["data"][0]["newllm"]
    cache = model["kv_cache_bytes_per_token"] * known["tokens_read"]
    expect(page.locator("#state-bytes")).to_have_text(f"{model['state_bytes']} bytes")
    expect(page.locator("#cache-bytes")).to_have_text(f"{cache / 1000:.1f} kB")
    expect(page.locator("#formula")).to_contain_text(
        f"2 × 1 layer × width 24 × {known['tokens_read']} tokens × 4 bytes"
    )
    until(page, DRAWN, lambda colours: colours > 8)
    page.reload()
    expect(page.locator("#messages .text")).to_have_count(4)
    assert said(page) == spoken(server, known["id"])
    until(page, DRAWN, lambda colours: colours > 8)  # from the session file


@needs_browser
def test_an_answer_streams_and_escape_stops_it(visit: Open, start: Start) -> None:
    def lengthen(route: Route) -> None:
        body = {**(route.request.post_data_json or {}), "min_tokens": 10**9, "max_tokens": 10**9}
        route.continue_(post_data=json.dumps(body))

    server = start(answer_tokens=10**9)
    page = visit(server.url)
    page.route("**/turns", lengthen)
    page.fill("#question", "hello")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    text = "document.querySelector('.assistant .text').textContent.length"
    before = until(page, text, lambda length: length > 5)
    until(page, text, lambda length: length > before)
    assert page.locator("#speed").inner_text() != "–"
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".assistant .note")).to_have_text("stopped")
    assert said(page) == spoken(server, session_id(page)), "the state has read what is shown"
    server.wait_idle()


@needs_browser
def test_fork_and_undo(visit: Open, server: Running) -> None:
    page = visit()
    ask(page, "one")
    first = session_id(page)
    ask(page, "two")
    page.click("#fork")
    expect(page.locator("#title")).to_have_text("one (fork)")
    second = session_id(page)
    assert second != first
    page.click("#undo")
    expect(page.locator("#messages .text")).to_have_count(2)
    expect(page.locator("#question")).to_have_value("two")
    ask(page, "three")
    assert said(page) == spoken(server, second)
    page.click(f"#sessions [data-id='{first}']")
    expect(page.locator("#title")).to_have_text("one")
    assert said(page)[::2] == ["one", "two"]
    assert said(page) == spoken(server, first)


@needs_browser
def test_a_saved_conversation_goes_on_where_it_is_dropped(
    visit: Open, server: Running, start: Start, tmp_path: Path
) -> None:
    page = visit()
    ask(page, "one")
    page.click("#rename")
    page.fill("#rename-field", "My talk")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("My talk")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "My talk.session"
    download.value.save_as(tmp_path / "My talk.session")
    there = ask(page, "two")
    page.click("#new")
    page.locator("#file").set_input_files([])  # nothing was chosen: nothing happens
    drop(page, tmp_path / "My talk.session")
    expect(page.locator("#messages .text")).to_have_count(2)
    expect(page.locator("#title")).to_have_text("My talk")
    expect(page.locator("#notice-words")).to_contain_text("none of them read again")
    assert ask(page, "two") == there

    other = visit(start(tiny_model(seed=1)).url, silent=False)
    drop(other, tmp_path / "My talk.session")
    expect(other.locator("#notice-words")).to_contain_text("with another model")
    expect(other.locator("#notice-words")).to_have_attribute("role", "alert")


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


@needs_browser
def test_the_keyboard_is_enough(visit: Open, server: Running) -> None:
    page = visit()
    expect(page.locator("#suggestions button").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    expect(page.locator("#notice")).to_be_hidden()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("more")
    expect(page.locator("#question")).to_have_value("one\nmore")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .note")).not_to_be_empty()
    expect(page.locator("#live")).to_contain_text("Answer:")
    session_id(page)
    seen = []
    page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    for _ in range(30):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id || document.activeElement.dataset.id && 'session',"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name not in seen[-1:]:  # there may be several conversations
            seen.append(name)
        assert outline == "solid" or name == "question", name
        if name == "fork":
            page.keyboard.press("Enter")
            expect(page.locator("#title")).to_have_text("one more (fork)")
            break
    assert seen == [
        "new", "session", "open", "theme", "language", "rename", "undo", "fork",
    ]  # fmt: skip
    expect(page.locator("#question")).to_be_focused()
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#open-settings")).to_be_focused()


@needs_browser
def test_everything_has_a_name_for_those_who_do_not_see_it(visit: Open, server: Running) -> None:
    for width in (1400, 1000, 390):
        page = visit(width=width)
        ask(page, "one")
        nameless = page.locator("button, input, textarea, canvas[role=img]").evaluate_all(
            "all => all.filter(e => e.checkVisibility({visibilityProperty: true})"
            " && !(e.ariaLabel || e.innerText.trim() || e.labels?.[0]?.textContent.trim()))"
            ".map(e => e.outerHTML)"
        )
        assert nameless == []


@needs_browser
def test_hostile_text_stays_text(visit: Open, server: Running) -> None:
    page = visit(silent=False)
    ask(page, HOSTILE)
    events = [
        {"choices": [{"delta": {"content": HOSTILE}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 3, "total_tokens": 9}},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/turns", lambda r: r.fulfill(body=body, content_type="text/event-stream"))
    assert ask(page, "hello") == HOSTILE
    page.click("#rename")
    page.fill("#rename-field", HOSTILE)
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text(HOSTILE[:80])
    with page.expect_download() as download:
        page.click("#save")
    assert not set('<>"/\\:') & set(download.value.suggested_filename)
    page.click("#delete")
    expect(page.locator("#notice-words")).to_contain_text("<img")
    assert page.locator("#messages img, #sessions img, #notice img, #heading img").count() == 0
    assert page.title() != "owned"
    blocked = page.evaluate("try { document.body.innerHTML = '<i>'; 0 } catch { 1 }")
    assert blocked == 1, "the browser itself refuses to make HTML of text"


@needs_browser
def test_colours(visit: Open, server: Running) -> None:
    def brightness(page: Page) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) // 3

    assert brightness(visit(color_scheme="light")) > 240
    page = visit(color_scheme="dark")
    assert brightness(page) < 40
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.click("#theme")
    assert brightness(page) < 40
    page.reload()
    expect(page.locator("#theme")).to_have_text("Light")
    assert brightness(page) < 40, "the choice is remembered"


@needs_browser
def test_japanese(visit: Open, server: Running) -> None:
    page = visit(locale="ja-JP")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(page.locator("#welcome h2")).to_have_text("話しかけてみましょう")
    ask(page, "こんにちは")
    expect(page.locator("#title")).to_have_text("こんにちは")
    assert said(page)[0] == "こんにちは"
    assert "undefined" not in page.locator("body").inner_text()
    page.click("#language")
    expect(page.locator("#fork")).to_have_text("Fork")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


@needs_browser
def test_what_is_composed_is_not_sent(visit: Open, server: Running) -> None:
    page = visit(locale="ja-JP")
    expect(page.locator("#model")).not_to_be_empty()
    page.fill("#question", "にほんご")
    options = {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True}
    page.dispatch_event("#question", "keydown", options)
    expect(page.locator("#question")).to_have_value("にほんご")
    expect(page.locator("#messages li")).to_have_count(0)


@needs_browser
def test_a_phone(visit: Open, server: Running) -> None:
    page = visit(width=390, has_touch=True, is_mobile=True)
    ask(page, "one " + "verylongword" * 20)
    wide = "[document.documentElement, document.body].some(e => e.scrollWidth > innerWidth)"
    assert not page.evaluate(wide)
    page.click("#open-state")
    expect(page.locator("#formula")).to_be_visible()
    page.click("#open-state")
    page.click("#open-tools")
    page.click("#undo")
    expect(page.locator("#messages li")).to_have_count(0)
    page.click("#open-sidebar")
    expect(page.locator("#new")).to_be_focused()
    assert not page.evaluate(wide)
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()


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
    defaults = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1, "max_tokens": 256}
    assert answer()[0] == {"content": "hello", "stream": True, "context": True, **defaults}


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
    session = tiny_model().chat(Sampling(0))
    session.say("one", 16)
    assert ask(page, "two") == (session.say("two", 16).strip() or "(an empty answer)")
    stop()


def serve(port: int) -> tuple[int, Callable[[], None]]:
    """A server on a port of one's choice: its port, and how to stop it."""
    server = make_server(make_app(Service(tiny_model(), NAME, Limits())), "127.0.0.1", port)
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=server.run, daemon=True)
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
