"""The example page in Chromium: the texts, tokens and session files are those of Python."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue, Place
from newllm.chat.sampling import Point, Sampling
from newllm.chat.session import ChatSession
from newllm.cli import main
from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.export.onnx_folder import open_graph, read
from newllm.trained import TrainedModel
from tests.export.conftest import Save
from tests.serve.browsing import (
    DRAWN,
    HOSTILE,
    SECONDS,
    ask,
    browser,  # noqa: F401 (a fixture)
    drop,
    needs_browser,
    said,
    until,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
RUNTIME = list(EXAMPLE.glob("onnxruntime-web-*"))
TOKENS = 24
GREEDY = {"temperature": 0, "max_tokens": TOKENS}

pytestmark = [
    needs_browser,
    pytest.mark.skipif(
        not RUNTIME, reason="no onnxruntime-web here (python examples/browser/fetch.py)"
    ),
]


@pytest.fixture(scope="module")
def folder(trained: TrainedModel) -> Path:
    output = trained.path.with_name("onnx")
    assert main(["export", str(trained.path), "--format", "onnx", "-o", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of the example's server, as a user starts it."""
    command = [sys.executable, str(EXAMPLE / "serve.py"), str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[0]
        server.terminate()


@pytest.fixture(scope="module")
def modules(browser: Browser, address: str) -> Iterator[Page]:  # noqa: F811
    """A page in which the example's modules can be called; without a model."""
    page = browser.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}/icon.svg")
    yield page
    page.close()


@pytest.fixture(scope="module")
def visited(browser: Browser, address: str) -> Iterator[tuple[Page, list[str]]]:  # noqa: F811
    """The page with the model in it, and what went wrong or elsewhere."""
    context = browser.new_context(accept_downloads=True, locale="en-US")
    page, faults = context.new_page(), []
    page.set_default_timeout(SECONDS * 1000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            faults.append(request.url)
            if not request.url.startswith((address, f"blob:{address}"))
            else None
        ),
    )
    page.goto(address)
    expect(page.locator("#model")).to_contain_text("parameters", timeout=3 * SECONDS * 1000)
    yield page, faults
    context.close()


@pytest.fixture
def page(visited: tuple[Page, list[str]]) -> Iterator[Page]:
    """The page in a new conversation; nothing may go wrong in it unnoticed."""
    page, faults = visited
    choose(page, **GREEDY)
    page.click("#new")
    yield page
    assert faults == []


def choose(page: Page, **sampling: Any) -> None:
    """Settings, as the dialog stores them."""
    page.evaluate("value => localStorage.setItem('newllm.sampling', value)", json.dumps(sampling))


def saved(page: Page, path: Path) -> Path:
    """The conversation as the file that the page hands out."""
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(path)
    return path


def shown(text: str) -> str:
    return text.strip() or "(an empty answer)"


def session(model: TrainedModel, path: Path) -> ChatSession:
    found = ChatSession.load(path, model.model, model.renderer)
    found.dialogue.sampling = Sampling(0)
    return found


TEXTS = [
    "", "a", "What comes after 3?", "  two  blanks ", "\r\n\n\t x\n\n", "it's I'LL we'Ve 'ſ 'K'S",
    "<|user|><|end|>", "<|assistant\ufdd0|>", "12345 ٣٤ Ⅷ½", "naïve café Ångström ﬁ",
    "日本語の文章。",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301\u0323", "\u0085\u00a0\u2003\u3000x\ufeff\u200b", "\0\x01\x7f",
    "a" * 300 + "!" * 300,
    "\ud800 \udc00x \udbff", "x" + "\ud83d", "ßẞ ŉ ǅ", "river river RIVER\u2028the sea",
]  # fmt: skip
"""Texts that a tokenizer may stumble over; also every 211th code point of Unicode."""


def test_tokens_are_those_of_python(modules: Page, trained: TrainedModel, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pieces = [*TEXTS, *"aB1 \n'.<|é漢😀\ud834", "ll", " the", "river"]
    mixed = ["".join(generator.choice(pieces, 6)) for _ in range(200)]
    points = [f"a{chr(c)}b 1{chr(c)}{chr(c)}!{chr(c)} " for c in range(0, 0x110000, 211)]
    texts = TEXTS + mixed + points
    units = [list(np.frombuffer(t.encode("utf-16-le", "surrogatepass"), "<u2")) for t in texts]
    found = modules.evaluate(
        """async (texts) => {
          const { Tokenizer, AnswerText } = await import("/tokenizer.js");
          const tokenizer = new Tokenizer(await (await fetch("/model/tokenizer.json")).json(), 6);
          return texts.map((units) => {
            const ids = tokenizer.encode(String.fromCharCode(...units));
            const text = new AnswerText();
            return [ids, ids.map((id) => text.add(tokenizer.piece(id))).join("") + text.finish()];
          });
        }""",
        [[int(unit) for unit in text] for text in units],
    )
    whole = [t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in texts]
    expected = trained.tokenizer.encode_batch(whole)
    assert [ids for ids, _ in found] == expected
    assert [text for _, text in found] == [
        trained.tokenizer.decode(ids).lstrip() for ids in expected
    ]


def test_broken_characters_read_as_in_python(modules: Page, trained: TrainedModel) -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(6, 262, 12).tolist() for _ in range(200)]
    found = modules.evaluate(
        """async (rows) => {
          const { Tokenizer, AnswerText } = await import("/tokenizer.js");
          const tokenizer = new Tokenizer(await (await fetch("/model/tokenizer.json")).json(), 6);
          return rows.map((ids) => {
            const text = new AnswerText();
            return ids.map((id) => text.add(tokenizer.piece(id))).join("") + text.finish();
          });
        }""",
        rows,
    )
    assert found == [trained.tokenizer.decode(ids).lstrip() for ids in rows]


@pytest.mark.parametrize("plain_text", [False, True])
@pytest.mark.parametrize("last_token", [None, BPE.end, 40])
def test_prompts_are_those_of_python(
    modules: Page, trained: TrainedModel, plain_text: bool, last_token: int | None
) -> None:
    dialogue = Dialogue(Sampling(), "Say little.")
    if last_token is not None:
        dialogue.place = Place(Point(None, last_token, 7), None, 2)
    assert isinstance(trained.tokenizer, BPE)
    expected = dialogue.prompt(ChatRenderer(trained.tokenizer, plain_text), "a river\ud800")
    found = modules.evaluate(
        """async ([plain_text, place]) => {
          const { Tokenizer } = await import("/tokenizer.js");
          const { Dialogue, START } = await import("/dialogue.js");
          const read = async (name) => (await fetch(`/model/${name}`)).json();
          const facts = { ...(await read("new_llm.json")), plain_text };
          const tokenizer = new Tokenizer(await read("tokenizer.json"), 6);
          const place_and_system = { place: { ...START, ...place }, system: "Say little." };
          const dialogue = Object.assign(new Dialogue(), place_and_system);
          return dialogue.prompt({ facts, tokenizer }, "a river\\ud800");
        }""",
        [plain_text, {"last_token": last_token, "tokens_read": 7} if last_token else {}],
    )
    assert found == expected


def test_random_numbers_are_numpys(modules: Page) -> None:
    seeds = [0, 1, 7, 2**32, 2**53 + 1, 2**62 - 1]
    found = modules.evaluate(
        """async (seeds) => {
          const { Random } = await import("/random.js");
          return seeds.map((seed) => {
            const random = new Random(BigInt(seed));
            const numbers = Array.from({ length: 4 }, () => random.uniform());
            const later = new Random(0);
            later.draws = random.draws;
            return [...numbers, later.uniform(), String(random.draws.state)];
          });
        }""",
        list(map(str, seeds)),
    )
    for seed, numbers in zip(seeds, found, strict=True):
        generator = np.random.Generator(np.random.PCG64(seed))
        assert numbers[:4] == generator.random(4).tolist()
        state: Any = generator.bit_generator.state
        assert numbers[5] == str(state["state"]["state"])
        assert numbers[4] == generator.random()


def test_int8_graphs_run_and_are_another_model(
    browser: Browser,  # noqa: F811
    trained: TrainedModel,
    folder: Path,
    tmp_path: Path,
) -> None:
    rounded = tmp_path / "int8"
    command = ["export", str(trained.path), "--format", "onnx", "--int8", "-o", str(rounded)]
    assert main(command) == 0
    facts = [json.loads((f / "new_llm.json").read_text("utf-8")) for f in (folder, rounded)]
    assert facts[0]["session"]["model"] == trained.fingerprint
    assert facts[1]["session"]["model"] not in ("", trained.fingerprint)
    ids = [1, 4, 40, 50, 60]
    state = {name: part.numpy() for name, part in trained.model.initial_state(1).items()}
    logits, _ = read(open_graph(rounded / "prefill.onnx"), np.array([ids]), state)
    serve = [sys.executable, str(EXAMPLE / "serve.py"), str(rounded), "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        other = browser.new_page()
        other.goto(f"{server.stdout.readline().split()[0]}/icon.svg")
        found = other.evaluate(
            """async (ids) => {
              const { Model } = await import("/model.js");
              const model = await Model.load("/model/");
              return [...(await model.read(ids, model.zeroState()))[0]];
            }""",
            ids,
        )
        other.close()
        server.terminate()
    assert np.abs(np.array(found) - logits[0]).max() < 0.01 * np.abs(logits).max()


def test_a_greedy_talk_is_that_of_python(page: Page, trained: TrainedModel) -> None:
    python = trained.chat(Sampling(0))
    for text in ["What comes after 3?", "日本語 <|end|> 👍", "and\nthen?"]:
        assert ask(page, text) == shown(python.say(text, TOKENS))
    expect(page.locator("#tokens")).to_have_text(str(python.tokens_read))
    expect(page.locator("#state-bytes")).to_have_text(f"{python.state_bytes} bytes")
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
    ours = session(trained, saved(page, tmp_path / "drawn.session")).dialogue.place
    assert ours.draws == python.dialogue.place.draws
    assert ours.point.tokens_read == python.tokens_read


def test_a_file_of_the_page_goes_on_in_python_and_back(
    page: Page, trained: TrainedModel, tmp_path: Path
) -> None:
    python = trained.chat(Sampling(0))
    for text in ["The sea", HOSTILE]:
        assert ask(page, text) == shown(python.say(text, TOKENS))
    here = session(trained, saved(page, tmp_path / "page.session"))
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
    again = ChatSession.load(saved(page, tmp_path / "3"), trained.model, trained.renderer)
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


def test_the_server_hands_out_its_files_alone(address: str) -> None:
    def status(path: str, host: str = "localhost") -> int:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=SECONDS)
        connection.request("GET", path, headers={"Host": host})
        found = connection.getresponse().status
        connection.close()
        return found

    assert status("/model/step.onnx") == 200
    for path in ("/serve.py", "/../api.js", "/%2e%2e/api.js", "/model/../api.js", "/x"):
        assert status(path) == 404, path
    assert status("/", "elsewhere.example") == 404
    with httpx.Client(base_url=address, trust_env=False) as client:
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "'unsafe-eval'" not in policy
        assert client.get("/api.js").content == (EXAMPLE / "api.js").read_bytes()


def test_mistakes_get_one_line(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        command = [sys.executable, str(EXAMPLE / "serve.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=6 * SECONDS)
        assert done.returncode != 0
        return done.stderr.strip()

    assert "newllm export FILE --format onnx" in told(str(tmp_path))
    assert "\n" not in told(str(tmp_path))


def test_a_package_that_differs_is_not_kept(tmp_path: Path) -> None:
    script = tmp_path / "fetch.py"
    script.write_bytes((EXAMPLE / "fetch.py").read_bytes())
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        '#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\necho > "$2/a.tgz"\n'
    )
    npm.chmod(0o755)
    path = f"{npm.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "is not what was tested" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin", "fetch.py"]
