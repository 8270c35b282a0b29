"""Synthetic tasks against brute force; later turns against conversations scored on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.probe_tasks import (
    PARITY_VOCABULARY,
    RECALL_KEYS,
    RECALL_VOCABULARY,
    Task,
    answers,
    exchanges,
    parity_task,
    recall_distances,
    recall_guess,
    recall_task,
    turn_losses,
)
from newllm.data.loader import IGNORED
from newllm.data.render import ChatRenderer
from newllm.data.tokenizers import BPE
from newllm.datasets.conversations import Conversation
from newllm.model import build_model

seeds = st.integers(0, 2**31)


@given(seed=seeds, rows=st.integers(1, 5), pairs=st.integers(1, 32), more=st.integers(0, 40))
def test_recall_asks_for_what_was_shown(seed: int, rows: int, pairs: int, more: int) -> None:
    task = recall_task(seed, rows, pairs, 2 * pairs + more)
    assert task.ids.shape == task.targets.shape == (rows, 2 * pairs + more)
    assert 0 <= task.ids.min() <= task.ids.max() < RECALL_VOCABULARY
    distances = recall_distances(task)
    for ids, targets, far in zip(task.ids, task.targets, distances, strict=True):
        keys, values = ids[0 : 2 * pairs : 2].tolist(), ids[1 : 2 * pairs : 2].tolist()
        assert len(set(keys)) == pairs
        assert max(keys) < RECALL_KEYS <= min(values)
        assert (targets[: 2 * pairs] == IGNORED).all()
        assert (far[: 2 * pairs] == 0).all()
        last = {key: 2 * place for place, key in enumerate(keys)}
        for position in range(2 * pairs, len(ids), 2):
            key = int(ids[position])
            assert targets[position] == values[keys.index(key)]
            assert far[position] == position - last[key]
            last[key] = position
            assert targets[position + 1 : position + 2].tolist() in ([], [IGNORED])
            assert ids[position + 1 : position + 2].tolist() in ([], [targets[position]])


def test_tasks_are_functions_of_their_seed() -> None:
    for draw in (lambda s: recall_task(s, 4, 8, 40), lambda s: parity_task(s, 4, 40)):
        one, same, other = draw(1), draw(1), draw(2)
        assert (one.ids == same.ids).all()
        assert (one.targets == same.targets).all()
        assert (one.ids != other.ids).any()


def test_guess_by_hand() -> None:
    """Values 32, 32, 33: answering 32 is right for questions 0 and 1 of four."""
    ids = np.array([[0, 32, 1, 32, 2, 33, 0, 1, 2, 2]])
    targets = np.array([[IGNORED] * 6 + [32, 32, 33, 33]])
    assert recall_guess(Task(ids, targets)) == 0.5


@given(seed=seeds, rows=st.integers(1, 4), length=st.integers(1, 50))
def test_parity_by_counting(seed: int, rows: int, length: int) -> None:
    task = parity_task(seed, rows, length)
    assert task.targets.max() < PARITY_VOCABULARY
    for ids, targets in zip(task.ids.tolist(), task.targets.tolist(), strict=True):
        assert targets == [2 + sum(ids[: n + 1]) % 2 for n in range(length)]


class Counter(nn.Module):
    """Answers parity rightly, but only of the first `most` tokens."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.anchor = most, nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        ones = ids.cumsum(1) % 2
        ones[:, self.most :] ^= 1
        return nn.functional.one_hot(2 + ones, PARITY_VOCABULARY).float(), None

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def test_answers_are_marked_where_something_is_asked() -> None:
    task = parity_task(0, 3, 10)
    task.targets[:, 0] = IGNORED
    right = answers(Counter(7), task)  # type: ignore[arg-type]
    assert right.tolist() == 3 * [[False] + 6 * [True] + 3 * [False]]


# -- dialogues -----------------------------------------------------------------------------------

TALK: Conversation = [
    {"role": "system", "content": "kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hé"},
    {"role": "user", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "unanswered"},
]


def test_exchanges() -> None:
    assert exchanges(TALK) == [TALK[:3], TALK[3:6]]
    assert exchanges(TALK[:2]) == []


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(BPE.train(["abc"], 262))  # bytes alone: no merges


@pytest.fixture
def model(renderer: ChatRenderer, tiny_model_settings):
    torch.manual_seed(0)
    model = build_model(tiny_model_settings(), renderer.tokenizer.vocab_size).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def test_later_turns_count_their_tokens(model, renderer: ChatRenderer) -> None:
    sums = turn_losses(model, renderer, [TALK, TALK[:3], TALK[:2]])
    assert list(sums) == [(1, "user"), (1, "assistant"), (2, "user"), (2, "assistant")]
    assert [total.dialogues for total in sums.values()] == [2, 2, 1, 1]
    # <system>4 bytes<end><user>2<end><assistant>, but for the first; then 3 bytes and <end>.
    assert (sums[1, "user"].tokens, sums[1, "user"].content_bytes) == (2 * 10, 2 * 6)
    assert (sums[1, "assistant"].tokens, sums[1, "assistant"].content_bytes) == (2 * 4, 2 * 3)
    # <user>1<end><user>1<end><assistant>, but for the first; then 1 byte and <end>.
    assert (sums[2, "user"].tokens, sums[2, "user"].content_bytes) == (6, 2)
    assert (sums[2, "assistant"].tokens, sums[2, "assistant"].content_bytes) == (2, 1)


def test_later_turns_are_scored_with_and_without_the_earlier(model, renderer) -> None:
    together = turn_losses(model, renderer, [TALK])
    alone = turn_losses(model, renderer, [TALK[3:6]])
    for speaker in ("user", "assistant"):
        first, second = together[1, speaker], together[2, speaker]
        assert first.nats_carried == pytest.approx(first.nats_reset, rel=1e-6)
        assert second.nats_reset == pytest.approx(alone[1, speaker].nats_reset, rel=1e-6)
        assert second.nats_carried != pytest.approx(second.nats_reset, rel=1e-4)
    document = renderer.documents([TALK[:6]])[0]
    ids = torch.tensor([document.ids])
    with torch.inference_mode():
        hidden, _ = model(ids)
        log_p = model.logits(hidden[0, :-1]).log_softmax(dim=-1)
    nats = -log_p.gather(1, ids[0, 1:, None])[:, 0]
    spoken = torch.tensor(document.assistant[1:])
    carried = sum(together[turn, "assistant"].nats_carried for turn in (1, 2))
    assert carried == pytest.approx(float(nats[spoken].sum()), rel=1e-5)
    opening = float(nats[0] + nats[len(renderer.documents([TALK[:3]])[0].ids) - 1])
    carried = sum(together[turn, "user"].nats_carried for turn in (1, 2))
    assert carried == pytest.approx(float(nats[~spoken].sum()) - opening, rel=1e-5)
