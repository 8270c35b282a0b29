"""The example's page in Chromium: its texts and session files are those of Python."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from newllm.chat import session_file
from newllm.chat.session import ChatSession
from newllm.inference.sampling import Sampling
from newllm.trained import TrainedModel
from tests.examples.talking import GREEDY, TOKENS, choose, needs_both, saved, session, shown
from tests.export.conftest import Save
from tests.serve.browsing import DRAWN, HOSTILE, ask, drop, said, until

pytestmark = needs_both


def test_a_greedy_talk_is_that_of_python(page: Page, trained: TrainedModel) -> None:
    python = trained.chat(Sampling(0))
    for text in ["What comes after 3?", "日本語 <|end|> 👍", "and\nthen?"]:
        assert ask(page, text) == shown(python.say(text, TOKENS))
    expect(page.locator("#tokens")).to_have_text(str(python.tokens_read))
    expect(page.locator("#state-bytes")).to_have_text(f"{python.state_bytes / 1000:.1f} kB")
    until(page, DRAWN, lambda colours: colours > 8)
    page.click("#undo")
    expect(page.locator("#messages li")).to_have_count(4)
    python.undo()
    assert ask(page, "something else") == shown(python.say("something else", TOKENS))


def test_a_seed_draws_the_same_text(page: Page, trained: TrainedModel, tmp_path: Path) -> None:
    choose(page, temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=7, max_tokens=TOKENS)
    python = trained.chat(Sampling(0.8, 0.9, 7, 1.2))
    assert ask(page, "a river") == shown(python.say("a river", TOKENS))
    choose(page, temperature=0.8, top_p=0.9, repetition_penalty=1.2, max_tokens=TOKENS)
    assert ask(page, "and on") == shown(python.say("and on", TOKENS))
    ours = session(trained, saved(page, tmp_path / "drawn.session")).dialogue.next_turn
    assert ours.rng_state == python.dialogue.next_turn.rng_state
    assert ours.snapshot.tokens_read == python.tokens_read


def test_a_file_of_the_page_goes_on_in_python_and_back(
    page: Page, trained: TrainedModel, tmp_path: Path
) -> None:
    python = trained.chat(Sampling(0))
    for text in ["The sea", HOSTILE]:
        assert ask(page, text) == shown(python.say(text, TOKENS))
    file = saved(page, tmp_path / "page.session")
    here = ChatSession.load(file, trained.decoder, trained.renderer)
    assert here.dialogue.sampling == Sampling(0)
    assert here.transcript == python.transcript
    assert here.tokens_read == python.tokens_read
    answer = here.say("go on", TOKENS)
    assert answer == python.say("go on", TOKENS)
    here.dialogue.sampling = Sampling(0.5, 0.75, 2**61 + 1)
    here.save(tmp_path / "python.session")
    page.click("#new")
    drop(page, tmp_path / "python.session")
    expect(page.locator("#messages .text")).to_have_count(6)
    assert said(page) == [shown(message["content"]) for message in here.transcript]
    assert ask(page, "further") == shown(python.say("further", TOKENS))
    assert page.title() != "owned"
    expect(page.locator("#messages img, #messages script")).to_have_count(0)
    again = ChatSession.load(saved(page, tmp_path / "3"), trained.decoder, trained.renderer)
    assert again.dialogue.sampling == Sampling(0.5, 0.75, 2**61 + 1)
    assert again.transcript == python.transcript


def test_a_file_with_places_to_go_back_to(
    page: Page, trained: TrainedModel, tmp_path: Path
) -> None:
    python = trained.chat(Sampling(0))
    for text in ["The sea", "is deep"]:
        python.say(text, TOKENS)
    content = session_file.encode(python.dialogue, python.model, python.renderer, undo=True)
    (tmp_path / "places.session").write_bytes(content)
    drop(page, tmp_path / "places.session")
    expect(page.locator("#messages .text")).to_have_count(4)
    page.click("#undo")
    expect(page.locator("#messages .text")).to_have_count(2)
    python.undo()
    assert ask(page, "is blue") == shown(python.say("is blue", TOKENS))


def test_what_a_system_message_began_goes_on(
    page: Page, trained: TrainedModel, tmp_path: Path
) -> None:
    begun = trained.chat(Sampling(0), system="Say little.")
    begun.save(tmp_path / "system.session")
    drop(page, tmp_path / "system.session")
    expect(page.locator("#sessions [aria-current]")).to_have_count(1)
    assert ask(page, "a river") == shown(begun.say("a river", TOKENS))


def test_other_files_are_refused_in_one_line(
    page: Page, trained: TrainedModel, save: Save, tmp_path: Path
) -> None:
    talk = trained.chat(Sampling(0))
    talk.say("a river", 4)
    talk.save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    other = save(tmp_path / "other.pt", embed_dim=32).chat(Sampling(0))
    other.say("a river", 4)
    other.save(tmp_path / "other")
    refused = {
        "another model": (tmp_path / "other").read_bytes(),
        "not a New-LLM session": b"PK\3\4" + good,
        "damaged or edited": good[:-1],
    }
    refused |= {f"damaged {n}": good[:n] for n in (20, 40, 200)}
    refused["damaged bit"] = good[:-40] + bytes([good[-40] ^ 1]) + good[-39:]
    before = page.locator("#sessions li").count()
    for words, content in refused.items():
        (tmp_path / "refused").write_bytes(content)
        drop(page, tmp_path / "refused")
        expect(page.locator("#notice-words")).to_contain_text(
            "damaged or edited" if words.startswith("damaged") else words
        )
        assert "\n" not in page.locator("#notice-words").inner_text()
        page.click("#notice-close")
    assert page.locator("#sessions li").count() == before


def test_what_is_stopped_is_kept_as_it_is(
    page: Page, trained: TrainedModel, tmp_path: Path
) -> None:
    python = trained.chat(Sampling(0))
    python.say("hello", 500)
    assert python.tokens_read > 500, "this answer ends too soon to be stopped"
    page.evaluate(
        """async () => {
          const { Model } = await import("/model.js");
          const read = Model.prototype.read;
          Model.prototype.read = async function (...given) {
            await new Promise((resolve) => setTimeout(resolve, 50));
            return read.apply(this, given);
          };
          window.hurry = () => { Model.prototype.read = read; };
        }"""
    )
    choose(page, temperature=0, max_tokens=500)
    page.fill("#question", "hello")
    page.keyboard.press("Enter")
    text = "document.querySelector('.assistant .text')?.textContent.length ?? 0"
    until(page, text, lambda length: length > 3)
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".assistant .note")).to_have_text("stopped")
    page.evaluate("hurry()")
    stopped = session(trained, saved(page, tmp_path / "stopped.session"))
    assert stopped.tokens_read < python.tokens_read
    assert [shown(message["content"]) for message in stopped.transcript] == said(page)
    choose(page, **GREEDY)
    assert ask(page, "go on") == shown(stopped.say("go on", TOKENS))
