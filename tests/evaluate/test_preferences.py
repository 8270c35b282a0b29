"""Which of two answers a model finds likelier, by nats per byte of what differs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.datasets.conversations import Conversation
from newllm.evaluate.preferences import Pair, preference_pair, score_preferences
from newllm.model import LanguageModel, build_model

BEGIN = "\n\nHuman: hello\n\nAssistant: hi"


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(BPE.train(["hello and good day to you, thank you"], 300))


@pytest.fixture
def model(renderer: ChatRenderer, tiny_model_settings) -> LanguageModel:
    torch.manual_seed(1)
    model = build_model(tiny_model_settings(), renderer.tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def pair(chosen: str, rejected: str) -> Pair | None:
    return preference_pair({"chosen": chosen, "rejected": rejected})


def test_where_dialogues_part() -> None:
    found = pair(f"{BEGIN}\n\nHuman: a\n\nAssistant: b", f"{BEGIN}\n\nHuman: a\n\nAssistant: c")
    assert found is not None
    assert found.alike == 3
    found = pair(f"{BEGIN}\n\nHuman: a\n\nAssistant: b", f"{BEGIN}\n\nHuman: x\n\nAssistant: b")
    assert found is not None
    assert found.alike == 2
    assert pair(BEGIN, BEGIN) is None
    assert pair(BEGIN, f"{BEGIN}\n\nHuman: a\n\nAssistant: b") is None
    with pytest.raises(ValueError, match="'rejected' is missing"):
        preference_pair({"chosen": BEGIN})


def by_hand(model: LanguageModel, tokenizer: BPE, dialogue: Conversation, alike: int) -> float:
    """Nats per byte, token by token."""
    ids, nats, size = [tokenizer.bos], 0.0, 0
    for number, message in enumerate(dialogue):
        ids.append(tokenizer.roles[message["role"]])
        spoken = [*tokenizer.encode_batch([message["content"]])[0], tokenizer.end]
        for token in spoken:
            if number >= alike and message["role"] == "assistant":
                hidden, _ = model(torch.tensor([ids]))
                scores = model.logits(hidden[0, -1])
                nats += F.cross_entropy(scores, torch.tensor(token)).item()
            ids.append(token)
        if number >= alike and message["role"] == "assistant":
            size += len(message["content"].encode())
    return nats / size


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_scores_are_those_by_hand(model, renderer, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr("newllm.evaluate.preferences.DIALOGUES_AT_ONCE", at_once)
    texts = [
        (f"{BEGIN}\n\nHuman: a\n\nAssistant: good", f"{BEGIN}\n\nHuman: a\n\nAssistant: dü zzz"),
        (f"{BEGIN} there\n\nHuman: a\n\nAssistant: b", BEGIN),
        (f"{BEGIN} {'you ' * 150}", f"{BEGIN} {'zq ' * 160}"),  # longer than what is read at once
        ("\n\nHuman: x\n\nAssistant: b", "\n\nHuman: y\n\nAssistant: b"),
    ]
    pairs = [found for chosen, rejected in texts if (found := pair(chosen, rejected))]
    assert len(pairs) == 4
    sides = [
        (by_hand(model, renderer.tokenizer, p.chosen, p.alike),
         by_hand(model, renderer.tokenizer, p.rejected, p.alike))
        for p in pairs
    ]  # fmt: skip
    share = sum(chosen < rejected for chosen, rejected in sides) / 4
    scores = score_preferences(model, renderer, pairs)
    assert scores["prefers_chosen"] == share
    assert scores["standard_error"] == pytest.approx((share * (1 - share) / 4) ** 0.5)
    assert scores["longer_chosen"] == 2 / 4
    single = score_preferences(model, renderer, pairs[:1])
    assert single["chosen_nats_per_byte"] == pytest.approx(sides[0][0], rel=1e-4)
    assert single["rejected_nats_per_byte"] == pytest.approx(sides[0][1], rel=1e-4)


def test_a_model_that_learned_one_side_prefers_it(
    renderer, tiny_model_settings, monkeypatch
) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")  # no compiling for a few steps
    torch.manual_seed(0)
    model = build_model(tiny_model_settings(), renderer.tokenizer.vocab_size)
    found = pair(f"{BEGIN}\n\nHuman: a\n\nAssistant: good", f"{BEGIN}\n\nHuman: a\n\nAssistant: zz")
    assert found is not None
    ids = torch.tensor([renderer.documents([found.chosen])[0].ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        hidden, _ = model(ids[:, :-1])
        loss = model.loss(hidden[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reverse = Pair(found.rejected, found.chosen, found.alike)
    assert score_preferences(model.eval(), renderer, [found])["prefers_chosen"] == 1
    assert score_preferences(model, renderer, [reverse])["prefers_chosen"] == 0
