"""The page in a real browser: what came out of recall is underlined, and its tables are drawn."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.serve.browsing import Open, ask, needs_browser, said, until
from tests.serve.serving import Running, Start, tiny_model
from tests.untrained import copying

pytestmark = needs_browser

FILLED = (
    "new Set(new Uint32Array(document.querySelector('#tables').getContext('2d')"
    ".getImageData(0, 0, 64, 15).data.buffer)).size"
)
"""How many colours the tables of recall have; two without anything in them: bands and gaps."""


def underlined(page: Page) -> list[str]:
    """The underlined words of each message."""
    return page.locator("#messages li").evaluate_all(
        "all => all.map(e => [...e.querySelectorAll('u.recalled')].map(u => u.innerText).join(''))"
    )


def test_what_is_recalled_is_underlined(visit: Open, start: Start) -> None:
    page = visit(start(copying(tiny_model(counts=0))).url)
    expect(page.locator("#model")).to_contain_text("parameters")
    expect(page.locator("#model")).not_to_contain_text("counts")
    legend = page.locator("#recalled-words")
    expect(page.locator("#recall")).to_be_hidden()
    first = ask(page, "one")
    again = ask(page, "one")
    # The second answer begins as the first one did, and so goes on as that did: all of it is
    # recalled, to the end that followed the same tokens last. What is free in the first one is not
    # underlined.
    assert again
    assert first.startswith(again)
    assert underlined(page)[3] == again != underlined(page)[1]
    assert said(page)[3] == again
    expect(legend).to_have_count(1)
    expect(legend).to_contain_text("recalled")
    ask(page, "one")
    expect(legend).to_have_count(1)

    marked = underlined(page)
    page.click("#language")
    expect(legend).to_contain_text("点線")
    page.click("#fork")
    expect(page.locator("#notice")).to_be_visible()
    assert underlined(page) == marked
    page.click("#undo")
    expect(page.locator("#messages li")).to_have_count(4)
    assert underlined(page) == marked[:4]
    page.reload()  # the server does not keep which words they were
    expect(page.locator("#messages li")).to_have_count(4)
    assert said(page)[3] == again
    expect(legend).to_have_count(0)


def test_an_underline_is_not_copied(visit: Open, start: Start) -> None:
    page = visit(start(copying(tiny_model(counts=0))).url)
    ask(page, "one")
    answer = ask(page, "one")
    copied = page.locator(".assistant .text").last.evaluate(
        """(text) => {
          getSelection().selectAllChildren(text);
          const clipboardData = new DataTransfer();
          text.dispatchEvent(new ClipboardEvent("copy", { clipboardData, bubbles: true }));
          return [[...clipboardData.types], clipboardData.getData("text/plain")];
        }"""
    )
    assert copied == [["text/plain"], answer]


def test_a_text_that_grows_keeps_what_is_selected(visit: Open, server: Running) -> None:
    page = visit()
    found = page.evaluate(
        """async () => {
          const { addPiece } = await import("/runs.js");
          const { drawText } = await import("/message_text.js");
          const runs = [], shown = document.querySelector("#welcome-words");
          shown.replaceChildren();
          const say = (...piece) => { addPiece(runs, ...piece); drawText(shown, { runs }); };
          say("The", false);
          say(" river", true);
          const text = shown.firstElementChild;
          getSelection().selectAllChildren(text);
          const nodes = [...text.childNodes];
          for (const piece of [[" is", true], [" long", false], ["", true], [",\\n", true],
            ["<b>", true], [" \\n", true], ["!", false]]) say(...piece);
          return [
            String(getSelection()), nodes.every((node, i) => text.childNodes[i] === node),
            [...text.childNodes].map((node) => [node.nodeName, node.textContent]),
          ];
        }"""
    )
    assert found == [
        "The river is",
        True,
        [
            ["#text", "The "], ["U", "river is"], ["#text", " long"], ["U", ",\n<b> \n"],
            ["#text", "!"],
        ],
    ]  # fmt: skip


def test_both_memories_are_drawn(visit: Open, server: Running) -> None:
    page = visit(color_scheme="dark")
    ask(page, "one two three")
    expect(page.locator("#recall")).to_be_visible()
    until(page, FILLED, lambda colours: colours > 2)
    page.reload()
    expect(page.locator("#recall")).to_be_visible()  # from the session file
    until(page, FILLED, lambda colours: colours > 2)
    page.click("#new")
    expect(page.locator("#recall")).to_be_hidden()


def test_a_model_without_recall(visit: Open, start: Start) -> None:
    page = visit(start(tiny_model(recall_slots=0)).url)
    ask(page, "one")
    ask(page, "one")
    assert not any(underlined(page))
    expect(page.locator("#recall")).to_be_hidden()
    page.reload()
    expect(page.locator("#messages li")).to_have_count(4)
    expect(page.locator("#recall")).to_be_hidden()
