"""The page in a real browser, against a real server: talking, files, keyboard, languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from newllm.inference.sampling import Sampling
from tests.serve.browsing import (
    DRAWN,
    FOLDER,
    HOSTILE,
    Open,
    ask,
    drop,
    facts,
    needs_browser,
    said,
    session_id,
    spoken,
    until,
)
from tests.serve.serving import Running, Start, tiny_model


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
    expect(page.locator("#model")).to_contain_text(re.compile(r"[\d.]+ kB of counts"))
    expect(page.locator("#welcome-words")).to_contain_text(re.compile(r"[\d.]+ kB of counts"))
    expect(page.locator("#cannot li")).to_have_count(3)
    assert page.evaluate(DRAWN) == 1
    answer = ask(page, "hello")
    told = tiny_model().chat(Sampling(0, repetition_penalty=1)).say("hello", 16)
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
    expect(page.locator("#state-bytes")).to_have_text(f"{model['state_bytes'] / 1000:.1f} kB")
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
        "new", "search", "session", "open", "theme", "language", "rename", "undo", "fork",
    ]  # fmt: skip
    expect(page.locator("#question")).to_be_focused()
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#open-settings")).to_be_focused()


@needs_browser
def test_a_question_before_the_page_knows_its_model(visit: Open) -> None:
    page = visit()
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    page.fill("#question", "one")
    page.keyboard.press("Enter")
    until(page, "document.readyState", lambda _: bool(held))
    assert page.locator("#messages .assistant").count() == 0
    held[0].continue_()
    expect(page.locator("#messages .assistant")).to_have_count(1)


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
    # As many tokens as the server knows of: otherwise the page finds that the conversation went
    # on elsewhere, and shows what the server has.
    read = facts(server, session_id(page))["tokens_read"]
    events = [
        {"choices": [{"delta": {"content": HOSTILE}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 3, "total_tokens": read}},
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
    expect(page.locator("#model")).to_contain_text("数え上げの表")
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
