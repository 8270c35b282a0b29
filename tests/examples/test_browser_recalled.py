"""The example's page in Chromium: what came out of recall is what Python says it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from newllm.inference.engine import state_picture
from newllm.inference.sampling import Sampling
from newllm.trained import TrainedModel
from tests.examples.talking import GREEDY, TOKENS, choose, exported, needs_both, shown, started
from tests.export.conftest import SHAPE, TEXTS
from tests.serve.browsing import SECONDS, ask
from tests.untrained import copying, save_model, untrained

pytestmark = needs_both


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """It always takes what recall proposes."""
    path, shape = tmp_path_factory.mktemp("run") / "model.pt", dict[str, Any](SHAPE)
    save_model(copying(untrained("dolly", *TEXTS, counts=0, **shape)), path)
    return TrainedModel.load(path, "cpu")


@pytest.fixture(scope="module")
def address(model: TrainedModel) -> Iterator[str]:
    with started(exported(model, model.path.with_name("onnx"))) as found:
        yield found


def test_what_is_recalled_is_what_python_recalls(
    browser: Browser, address: str, model: TrainedModel
) -> None:
    page = browser.new_page(locale="en-US")
    page.goto(address)
    expect(page.locator("#model")).to_contain_text("parameters", timeout=3 * SECONDS * 1000)
    texts, python, recalled = ["The river", "The river", "is long"], model.chat(Sampling(0)), []
    told = page.evaluate(
        """async ([texts, asked]) => {
          const { Api } = await import("/api.js");
          const api = new Api();
          const { id } = await api.json("POST", "/v1/sessions", {});
          const turns = [];
          for (const content of texts) {
            const turn = { pieces: [], recall: [] };
            const { signal } = new AbortController();
            for await (const told of api.turn(id, { content, ...asked }, signal)) {
              turn.pieces.push(...(told.pieces ?? []));
              turn.recall = told.recall ?? turn.recall;
            }
            turns.push(turn);
          }
          return turns;
        }""",
        [texts, {"temperature": 0, "top_p": 1, "repetition_penalty": 1, "max_tokens": TOKENS}],
    )
    for text, turn in zip(texts, told, strict=True):
        answer = python.say(text, TOKENS)
        assert answer.startswith("".join(piece for piece, _ in turn["pieces"]))
        assert sum(found for _, found in turn["pieces"]) == python.recalled_tokens
        state = python.dialogue.next_turn.snapshot.state
        assert state is not None
        assert np.allclose(turn["recall"], state_picture(state).recall, atol=0.001)
        recalled.append(python.recalled_tokens)
    assert recalled[1] > recalled[0]

    choose(page, **GREEDY)
    ask(page, texts[0])
    answer = ask(page, texts[1])
    underlined = page.locator(".assistant .text").last.locator("u.recalled")
    assert shown("".join(underlined.all_inner_texts())) == answer
    expect(page.locator("#recalled-words")).to_have_count(1)
    expect(page.locator("#recall")).to_be_visible()
    page.close()
