"""The example's modules in Chromium: tokens, prompts, random numbers and logits are Python's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page

from newllm.chat.dialogue import Dialogue, TurnStart
from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.export.onnx_folder import open_graph, read
from newllm.inference.decoder import Snapshot
from newllm.inference.engine import state_picture
from newllm.inference.sampling import Sampling
from newllm.model.recall.reference import ORDER_UNIT, TIMES_UNIT, in_sets, longest_match, recall
from newllm.trained import TrainedModel
from tests.examples.talking import exported, needs_both, started

pytestmark = needs_both

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
        dialogue.next_turn = TurnStart(Snapshot(None, last_token, 7), None, 2)
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


@pytest.mark.parametrize("sets", [1, 7, 25, 256])
def test_recall_is_that_of_python(modules: Page, sets: int) -> None:
    generator = np.random.default_rng(sets)
    tables, recents, matches, pictures = [], [], [], []
    for vocabulary, length in [(3, 300), (60_000, 40), (20, 100), (9, 1), (9, 3), (9, 0)]:
        ids = torch.from_numpy(generator.integers(0, vocabulary, (1, length)))
        empty = torch.zeros(4, 1, sets, 4, dtype=torch.int32)
        none = torch.zeros(5, 1, dtype=torch.int32)
        _, table, recent = recall(ids, None, None, empty, none)
        seen = state_picture({"vectors": torch.zeros(1, 1, 8), "recall": table, "recent": recent})
        for token in range(8):  # other tokens than the last one, in the same table
            last = recent.clone()
            last[0] = token
            tables.append(table.flatten().tolist())
            recents.append(last.flatten().tolist())
            matches.append(longest_match(table[:, 0].numpy(), last[:, 0].numpy()))
            pictures.append(seen.recall)
    found = modules.evaluate(
        """async ([tables, recents]) => {
          const { longestMatch, proposed } = await import("/recall.js");
          const { fullness } = await import("/tables.js");
          return tables.map((slots, i) => {
            const table = Int32Array.from(slots);
            const recent = Int32Array.from(recents[i]);
            return [longestMatch(table, recent, 4), proposed(table, recent, 4), fullness(table, 4)];
          });
        }""",
        [tables, recents],
    )
    assert any(match >= ORDER_UNIT for match in matches)
    old = torch.randint(0, 2**31, (4, 1, 4 * sets), generator=torch.Generator(), dtype=torch.int32)
    moved = modules.evaluate(
        """async (old) => {
          const { inSets } = await import("/recall.js");
          return Array.from(inSets(Int32Array.from(old)));
        }""",
        old.flatten().tolist(),
    )
    assert moved == in_sets(old).flatten().tolist()
    for match, picture, (ours, proposed, full) in zip(matches, pictures, found, strict=True):
        order, rest = divmod(match, ORDER_UNIT)
        times, token = divmod(rest, TIMES_UNIT)
        assert ours == ({"order": order, "times": times, "token": token} if match else None)
        assert proposed == (token if order > 0 else None)
        assert np.allclose(full, picture, atol=0.001)


def test_int8_graphs_run_and_are_another_model(
    browser: Browser, trained: TrainedModel, graphs: Path
) -> None:
    rounded = exported(trained, trained.path.with_name("int8"), "--int8")
    facts = [json.loads((f / "new_llm.json").read_text("utf-8")) for f in (graphs, rounded)]
    assert facts[0]["session"]["model"] == trained.fingerprint
    assert facts[1]["session"]["model"] not in ("", trained.fingerprint)
    ids = [1, 4, 40, 50, 60]
    state = {name: part.numpy() for name, part in trained.model.initial_state(1).items()}
    logits, _ = read(open_graph(rounded / "prefill.onnx"), np.array([ids]), state)
    with started(rounded) as address:
        page = browser.new_page()
        page.goto(f"{address}/icon.svg")
        found = page.evaluate(
            """async (ids) => {
              const { Model } = await import("/model.js");
              const model = await Model.load("/model/");
              return [...(await model.read(ids, model.zeroState()))[0]];
            }""",
            ids,
        )
        page.close()
    assert np.abs(np.array(found) - logits[0]).max() < 0.01 * np.abs(logits).max()
