"""Conversations: the state carried, nothing read twice, nothing shared, nothing growing."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newllm.chat.session import ChatSession
from newllm.data.render import ProtocolRenderer
from newllm.data.tokenizers import Word1000, never_written
from newllm.datasets import DATASETS
from newllm.errors import UserError
from newllm.inference.decoder import Stream, make_decoder, write_tokens
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.model import build_model
from newllm.model.recall import reference

GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize("limit", [3, 40])  # answers cut short, and answers that may end
def test_a_conversation_equals_rereading_it(model, renderer, limit: int, read) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=4), system="Be brief.")
    for text in ("hello", "and now?", "bye"):
        session.say(text, max_new_tokens=limit)
    assert session.tokens_read == len(read.tokens)
    assert read.tokens.count(renderer.tokenizer.bos) == 1
    assert read.tokens.count(renderer.tokenizer.roles["assistant"]) == 3
    again = read.again(make_decoder(model))
    state = session.dialogue.next_turn.snapshot.state
    assert state is not None
    assert again.state is not None
    for name, part in again.state.items():
        torch.testing.assert_close(part, state[name], rtol=1e-4, atol=1e-4)


def test_one_pass_and_token_by_token_give_the_same_opinion(model, renderer) -> None:
    ids = renderer.prompt([{"role": "user", "content": "hello there, how are you?"}])
    whole, steps = Stream(make_decoder(model)), Stream(make_decoder(model))
    whole.read(ids)
    for token in ids:
        steps.read([token])
    assert whole.logits is not None
    assert steps.logits is not None
    np.testing.assert_allclose(whole.logits, steps.logits, rtol=1e-4, atol=1e-4)


@given(cuts=st.lists(st.integers(1, 40), max_size=12, unique=True))
@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_read_in_any_pieces(model, renderer, kernel, cuts, monkeypatch) -> None:
    """Single tokens take the fused step, pieces the module; the state goes along."""
    monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
    ids = (renderer.prompt([{"role": "user", "content": "hello there, how are you?"}]) * 4)[:41]
    whole, pieces = Stream(make_decoder(model)), Stream(make_decoder(model))
    whole.read(ids)
    edges = [0, *sorted(cuts), 41]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        pieces.read(ids[start:stop])
    assert whole.logits is not None
    assert pieces.logits is not None
    np.testing.assert_allclose(whole.logits, pieces.logits, rtol=1e-4, atol=1e-4)
    assert (pieces.tokens_read, pieces.last_token) == (41, ids[-1])
    assert whole.state is not None
    assert pieces.state is not None
    for name, part in whole.state.items():
        torch.testing.assert_close(part, pieces.state[name], rtol=1e-4, atol=1e-4)


def test_a_stream_begins_from_a_state_and_leaves_it(model, renderer) -> None:
    ids = renderer.prompt([{"role": "user", "content": "hello"}])
    before = Stream(make_decoder(model))
    before.read(ids)
    assert before.state is not None
    kept = {name: part.clone() for name, part in before.state.items()}
    answers = []
    for _ in range(2):
        stream = Stream(make_decoder(model), before.snapshot)
        for token in (7, 8, 9):
            stream.read([token])
        assert stream.logits is not None
        answers.append(stream.logits.copy())
    assert np.array_equal(*answers)
    assert all(torch.equal(kept[name], part) for name, part in before.state.items())


def test_conversations_side_by_side_say_what_they_say_alone(model, renderer) -> None:
    """Slots come and go; every one has its own sampler, and gets its own text, token for token."""
    prompts = [renderer.prompt([{"role": "user", "content": f"say {i}!"}]) for i in range(9)]
    end, limit = renderer.tokenizer.end, 40
    forbidden = never_written(renderer.tokenizer)

    def begin(number: int) -> tuple[Stream, Sampler]:
        stream = Stream(make_decoder(model))
        stream.read(prompts[number])
        return stream, Sampler(Sampling(1.0, 0.95, seed=number), forbidden)

    alone = [list(write_tokens(*begin(number), end, limit)) for number in range(9)]
    assert min(map(len, alone)) < limit, "some end early"

    together: list[list[int]] = [[] for _ in prompts]
    decoder, waiting = make_decoder(model), list(range(9))
    running: dict[int, tuple[int, Sampler]] = {}
    drawn: dict[int, int] = {}
    while waiting or running:
        while waiting and len(running) < 4:
            stream, sampler = begin(waiting[0])
            assert stream.logits is not None
            slot = decoder.add(stream.state)
            decoder.begin_answer(slot)
            running[slot] = (waiting.pop(0), sampler)
            drawn[slot] = sampler.draw(stream.logits)
        for slot in list(running):
            number = running[slot][0]
            if drawn[slot] == end or len(together[number]) == limit:
                decoder.remove(slot)
                del running[slot], drawn[slot]
            else:
                together[number].append(drawn[slot])
        logits = decoder.step(list(running), [drawn[slot] for slot in running])
        for row, (slot, (_, sampler)) in zip(logits, running.items(), strict=True):
            drawn[slot] = sampler.draw(row)
    assert together == alone


def test_interleaved_sessions_do_not_touch(model, renderer) -> None:
    alone = ChatSession(make_decoder(model), renderer, Sampling(seed=5))
    expected = [alone.say(text, max_new_tokens=8) for text in ("a", "b", "c")]
    first, other = (ChatSession(make_decoder(model), renderer, Sampling(seed=5)) for _ in range(2))
    said = []
    for text in ("a", "b", "c"):
        said.append(first.say(text, max_new_tokens=8))
        other.say(text + "!", max_new_tokens=3)
    assert said == expected


def test_streamed_pieces_are_the_answer(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=2))
    pieces = list(session.stream("hi", max_new_tokens=30))
    assert "".join(pieces) == session.transcript[-1]["content"]
    assert [m["role"] for m in session.transcript] == ["user", "assistant"]


def test_reader_that_stops_reading_leaves_a_usable_session(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=2), system="Be brief.")
    stream = session.stream("hi", max_new_tokens=30, min_new_tokens=30)
    next(stream)
    stream.close()
    assert session.transcript[0]["role"] == "system"
    assert session.transcript[-1]["content"]
    session.say("go on", max_new_tokens=4)
    assert [m["role"] for m in session.transcript[-2:]] == ["user", "assistant"]


@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_recall_knows_a_stopped_answer_and_forgets_an_undone_one(
    model, renderer, kernel, read, monkeypatch
) -> None:
    """A turn that ends has entered its words, however it ends; one that is taken back, none."""
    monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=2))
    session.say("hello, hello", 5)
    before = recall_of(session)
    answer = session.stream("hello, hi", 30, 30)
    for _ in range(3):
        next(answer)
    answer.close()
    assert session.transcript[-1]["content"], "some of it was written"
    stopped = recall_of(session)
    tables, recent = map(torch.zeros_like, before)
    _, *expected = reference.recall(torch.tensor([read.tokens]), None, None, tables, recent)
    assert all(map(torch.equal, stopped, expected))
    fork, decoder = session.fork(), session.decoder.empty_copy()
    slot = decoder.add(session.dialogue.next_turn.snapshot.state)
    match = reference.longest_match(*(part[:, 0].numpy() for part in stopped))
    assert decoder._match(slot) == match
    session.say("and now?", 5)
    for _ in range(2):
        session.undo()
    assert all(map(torch.equal, recall_of(session), before))
    assert all(map(torch.equal, recall_of(fork), stopped))


def test_an_answer_that_is_given_up_leaves_recall_alone(model, renderer, monkeypatch) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=2))
    session.say("hello, hello", 5)
    before = recall_of(session)
    draw, drawn = Sampler.draw, []

    def spoilt(self: Sampler, *arguments: Any) -> int:
        if len(drawn) == 3:
            raise FloatingPointError("the model's scores are not finite")
        drawn.append(draw(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(Sampler, "draw", spoilt)
    with pytest.raises(UserError, match="as it was before"):
        session.say("hello, hi", 30, 30)
    assert all(map(torch.equal, recall_of(session), before))


def recall_of(session: ChatSession) -> tuple[Tensor, Tensor]:
    """A copy of the tables of a conversation, and its last tokens."""
    state = session.dialogue.next_turn.snapshot.state
    assert state is not None
    return state["recall"].clone(), state["recent"].clone()


def test_only_text_is_written(model, renderer) -> None:
    stream = Stream(make_decoder(model))
    stream.read(renderer.prompt([{"role": "user", "content": "x"}]))
    sampler = Sampler(
        Sampling(temperature=5.0, top_p=1.0, seed=0), never_written(renderer.tokenizer)
    )
    tokens = list(write_tokens(stream, sampler, renderer.tokenizer.end, 500, min_new_tokens=500))
    assert len(tokens) == 500
    assert all(renderer.tokenizer.special_name(token) is None for token in tokens)


def test_top_p_keeps_the_likeliest(renderer) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = {p: {Sampler(Sampling(1.0, p, seed), []).draw(logits) for seed in range(60)}
             for p in (0.4, 0.7, 1.0)}  # fmt: skip
    assert draws == {0.4: {0}, 0.7: {0, 1}, 1.0: {0, 1, 2, 3}}


def test_word1000_never_says_unk(tiny_model_settings) -> None:
    tokenizer = Word1000.train(["the cat sat on the mat"])
    renderer = ProtocolRenderer(tokenizer, DATASETS["dolly"], 128)
    model = build_model(tiny_model_settings(), 1000).eval()
    session = ChatSession(make_decoder(model), renderer, Sampling(5.0, 1.0, 0))
    answer = session.say("hi", min_new_tokens=40, max_new_tokens=40)
    assert "<UNK>" not in answer


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(model, renderer) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=0))
    for _ in session.stream("go", max_new_tokens=1000, min_new_tokens=1000):
        pass
    before, size = psutil.Process().memory_info().rss, session.state_bytes
    for _ in session.stream("go on", max_new_tokens=20_000, min_new_tokens=20_000):
        pass
    assert session.state_bytes == size
    assert psutil.Process().memory_info().rss < 1.02 * before
