"""The page in a real browser: code, another answer, forks to edit, the way back, drafts, tabs."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, expect

from tests.serve.browsing import Open, ask, facts, needs_browser, said, session_id, spoken
from tests.serve.serving import Running, Start, tiny_model

pytestmark = needs_browser

CODE = """Here is **a function**, with `code`:

```python
def add(a, b):
    return a + b
```

And one without a fence:
def sub(a, b):
    return a - b

Done, for x = 1."""


def told(page: Page, text: str) -> None:
    """Have the page show an answer of one's own."""
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": part}, "finish_reason": None}]}
        for part in (text[:20], text[20:90], text[90:])
    ]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    events.append({"choices": [], "usage": {"completion_tokens": 3, "total_tokens": 9}})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/turns", lambda r: r.fulfill(body=body, content_type="text/event-stream"))


def test_code_stands_in_blocks_and_is_copied(visit: Open, server: Running) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    told(page, CODE)
    ask(page, "hello")
    answer = page.locator(".assistant .text").last
    assert answer.evaluate("e => e.textContent") != "", "every character is there"
    whole = answer.evaluate(
        "e => [...e.querySelectorAll('.code-head')].forEach(h => h.remove()) ?? e.textContent"
    )
    assert whole == CODE
    page.reload()
    told(page, CODE)
    ask(page, "hello")
    blocks = page.locator(".assistant .listing")
    expect(blocks).to_have_count(2)
    expect(page.locator(".assistant strong:not(.mark)")).to_have_text("a function")
    expect(blocks.first.locator(".language")).to_have_text("python")
    blocks.first.locator("button").click()
    expect(blocks.first.locator("button")).to_have_text("Copied")
    clipboard = page.evaluate("navigator.clipboard.readText()")
    assert clipboard == "def add(a, b):\n    return a + b\n"
    blocks.last.locator("button").click()
    expect(blocks.last.locator("button")).to_have_text("Copied")
    clipboard = page.evaluate("navigator.clipboard.readText()")
    assert clipboard == "def sub(a, b):\n    return a - b\n"
    page.click("[data-does=copy]")
    expect(page.locator("[data-does=copy]")).to_have_attribute("title", "Copied")
    assert page.evaluate("navigator.clipboard.readText()") == CODE


def test_another_answer_and_another_question(visit: Open, server: Running) -> None:
    page = visit(sampling={"temperature": 1.5, "max_tokens": 16})
    ask(page, "one")
    first = ask(page, "two")
    home = session_id(page)
    with page.expect_response("**/turns"):  # from here on the new answer stands, without a note
        page.click("[data-does=again]")
    expect(page.locator("#messages li")).to_have_count(4)
    expect(page.locator("#messages .assistant").last.locator(".note")).not_to_be_empty()
    assert said(page)[2] == "two"
    assert said(page)[3] != first
    assert said(page) == spoken(server, home)
    before = said(page)
    page.click("[data-does=edit]")
    expect(page.locator("#title")).to_have_text("one (fork)")
    expect(page.locator("#question")).to_have_value("two")
    expect(page.locator("#messages li")).to_have_count(2)
    ask(page, "three")
    assert said(page)[2] == "three"
    assert spoken(server, home) == before, "what was said stays"


def test_back_and_forward_go_through_the_conversations(visit: Open, server: Running) -> None:
    page = visit()
    expect(page.locator("#model")).not_to_be_empty()
    ask(page, "one")
    first = session_id(page)
    page.click("#new")
    ask(page, "two")
    second = session_id(page)
    assert first != second
    page.go_back()
    expect(page.locator("#title")).to_have_text("one")
    page.go_forward()
    expect(page.locator("#title")).to_have_text("two")
    page.click("#new")
    page.go_back()
    expect(page.locator("#title")).to_have_text("two")
    assert page.url.endswith(second)


def test_a_draft_stays_where_it_was_written(visit: Open, server: Running) -> None:
    page = visit()
    ask(page, "one")
    page.fill("#question", "for one")
    page.click("#new")
    expect(page.locator("#question")).to_have_value("")
    page.fill("#question", "for a new one")
    page.locator("#sessions button").first.click()
    expect(page.locator("#question")).to_have_value("for one")
    page.reload()
    expect(page.locator("#question")).to_have_value("for one")
    page.click("#new")
    expect(page.locator("#question")).to_have_value("for a new one")


def test_two_tabs_on_one_conversation(visit: Open, server: Running) -> None:
    """The second tab shows what was said in the first before anything is added to it."""
    one = visit()
    ask(one, "one")
    two = visit(f"{server.url}/#{session_id(one)}", silent=False)
    expect(two.locator("#messages li")).to_have_count(2)
    ask(one, "from the first tab")
    two.fill("#question", "from the second")
    two.keyboard.press("Enter")
    expect(two.locator("#notice-words")).to_contain_text("went on elsewhere")
    assert said(two) == spoken(server, session_id(one)) == said(one)
    expect(two.locator("#question")).to_have_value("from the second")
    ask(two, "from the second")
    assert said(two) == spoken(server, session_id(one))


def test_what_safari_composes_is_not_sent(visit: Open, server: Running) -> None:
    page = visit(locale="ja-JP")
    expect(page.locator("#model")).not_to_be_empty()
    page.fill("#question", "にほんご")
    page.evaluate(
        "document.querySelector('#question').dispatchEvent(new KeyboardEvent('keydown',"
        " { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true }))"
    )
    expect(page.locator("#question")).to_have_value("にほんご")
    expect(page.locator("#messages li")).to_have_count(0)


def test_conversations_are_looked_for(visit: Open, start: Start) -> None:
    page = visit(start().url)
    for text in ("about rivers", "about bread"):
        page.click("#new")
        ask(page, text)
    expect(page.locator("#sessions small").first).to_contain_text("now")
    page.fill("#search", "RIVER")
    expect(page.locator("#sessions span")).to_have_text(["about rivers"])
    page.fill("#search", "nothing")
    expect(page.locator("#no-sessions")).to_have_text("None found.")
    page.fill("#search", "")
    expect(page.locator("#sessions button")).to_have_count(2)


def test_full_and_forgotten(visit: Open, start: Start) -> None:
    server = start(sessions=1)
    page = visit(server.url, silent=False)
    ask(page, "one")
    kept = session_id(page)
    with server.http() as http:
        http.delete(f"/v1/sessions/{kept}")
    page.fill("#question", "two")
    page.keyboard.press("Enter")
    expect(page.locator("#notice-action")).to_have_text("Put it back")
    page.click("#notice-action")
    expect(page.locator("#notice-words")).to_contain_text("put back")
    expect(page.locator("#messages li")).to_have_count(2)
    page.click("#new")
    page.fill("#question", "three")
    page.keyboard.press("Enter")
    expect(page.locator("#notice-action")).to_have_text("Delete the oldest")
    page.click("#notice-action")
    expect(page.locator("#notice-words")).to_contain_text("Deleted: one")
    expect(page.locator("#question")).to_have_value("three")
    ask(page, "three")


def test_a_key_can_last_as_long_as_the_tab(visit: Open, start: Start) -> None:
    page = visit(start(key="sesame").url, silent=False)
    page.click("#notice-action")
    page.fill("#api-key", "sesame")
    page.check("#keep-key")
    page.keyboard.press("Enter")
    ask(page, "one")
    page.reload()
    expect(page.locator("#messages li")).to_have_count(2)
    assert page.evaluate("localStorage.getItem('newllm.key')") is None


def test_several_models_to_choose_from(visit: Open, start: Start) -> None:
    server = start(model={"one": tiny_model(), "two": tiny_model(seed=5)})
    page = visit(server.url)
    page.select_option("#models", "two")
    ask(page, "hello")
    assert facts(server, session_id(page))["model"] == "two"
    expect(page.locator("#model")).to_contain_text("two")
    expect(page.locator("#choose-model")).to_be_hidden()


def test_nothing_is_cut_and_nothing_empty_is_shown(visit: Open, server: Running) -> None:
    page = visit(width=1280)
    page.set_viewport_size({"width": 1280, "height": 800})
    expect(page.locator("#suggestions button").first).to_be_visible()
    expect(page.locator("#state")).to_be_hidden()
    cut = (
        "[...document.querySelectorAll('#scroll, #model')]"
        ".filter(e => e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth)"
        ".map(e => e.id)"
    )
    assert page.evaluate(cut) == []
    ask(page, "one")
    expect(page.locator("#state")).to_be_visible()
