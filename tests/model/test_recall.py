"""Recall: what it finds, that its kernel finds the same, what a model makes of it, and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newllm.config import ModelSettings
from newllm.inference.decoder import ModuleDecoder, make_decoder
from newllm.model import build_model
from newllm.model.kernels.reference import let_copy_
from newllm.model.recall import cpu, reference
from newllm.model.recall.reference import (
    LONGEST,
    MOST_TIMES,
    OPEN,
    ORDER_UNIT,
    ORDERS,
    TIMES_UNIT,
    WAYS,
    in_sets,
)
from newllm.model.trunk import TrunkOutput
from newllm.settings import resolve

VOCAB = 50


def empty(sequences: int, sets: int = 16) -> tuple[Tensor, Tensor]:
    return (
        torch.zeros(len(ORDERS), sequences, sets, WAYS, dtype=torch.int32),
        torch.zeros(LONGEST, sequences, dtype=torch.int32),
    )


def found(match: int) -> tuple[int, int, int] | None:
    """(candidate, tokens of context, times in a row) of a match."""
    if match == 0:
        return None
    order, rest = divmod(match, ORDER_UNIT)
    return rest % TIMES_UNIT, ORDERS[order], rest // TIMES_UNIT


def matches_of(text: str) -> list[tuple[str, int, int] | None]:
    ids = torch.tensor([[ord(letter) for letter in text]])
    matches, *_ = reference.recall(ids, None, None, *empty(1, 256))
    read = [found(match) for match in matches[0].tolist()]
    return [None if each is None else (chr(each[0]), *each[1:]) for each in read]


def test_it_says_what_followed_last_time() -> None:
    assert matches_of("abcab") == [None, None, None, ("b", 1, 1), ("c", 2, 1)]
    assert matches_of("ab ac a")[-1] == ("c", 2, 1)  # " a", not the "b" that followed first
    assert matches_of("abababab")[-1] == ("a", 5, 1)
    assert matches_of("xyz.xyz.xyz.xyz.xyz")[-1] == (".", 5, 3)  # "yz.xyz" has five, four times
    assert matches_of("abc")[-1] is None


def test_times_in_a_row_are_counted_up_to_a_bound() -> None:
    assert found(int(reference.recall(
        torch.tensor([[7] * 40]), None, None, *empty(1)
    )[0][0, -1])) == (7, 5, MOST_TIMES)  # fmt: skip
    assert matches_of("a1a1a2a")[-1] == ("2", 1, 1)


def test_other_contexts_take_a_slot_and_are_told_apart() -> None:
    """With two sets nearly everything collides; but for one in 500, what is found did follow."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (1, 400), generator=generator)
    matches, *_ = reference.recall(ids, None, None, *empty(1, 2))
    text, wrong, some = ids[0].tolist(), 0, 0
    for t, match in enumerate(matches[0].tolist()):
        if (read := found(match)) is None:
            continue
        token, length, _ = read
        context = text[t + 1 - length : t + 1]
        followed = [
            text[i + length] for i in range(t - length + 1) if text[i : i + length] == context
        ]
        some += 1
        wrong += not followed or followed[-1] != token
    assert some > 80
    assert wrong <= 6


def test_a_set_keeps_what_was_entered_last() -> None:
    letters = [reference.entered([0] * WAYS, check, 7)[0] for check in (1, 2, 3, 4)]
    one, two, three, four = letters
    held = [0] * WAYS
    for check in (1, 2, 3, 4):
        held = reference.entered(held, check, 7)
    assert held == [four, three, two, one]
    again = reference.entered(held, 2, 7)
    assert again == [two + TIMES_UNIT, four, three, one]
    assert reference.entered(again, 5, 7)[1:] == [two + TIMES_UNIT, four, three]


@pytest.mark.parametrize("slots", [4, 64, 1000])
def test_tables_from_before_there_were_sets_know_the_same(slots: int) -> None:
    """One slot a context, h mod slots; here of texts that leave most of them alone."""
    ids = torch.randint(0, 9, (1, slots // 2), generator=torch.Generator().manual_seed(slots))
    old, contexts = torch.zeros(len(ORDERS), 1, slots, dtype=torch.int32), {}
    for order, length in enumerate(ORDERS):
        for t in range(length, ids.shape[1]):
            last = [token + 1 for token in reversed(ids[0, t - length : t].tolist())]
            hashed = 0
            for token in last:
                hashed = (hashed * reference.HASH_FACTOR + token) % reference.HASH_PRIME
            value, check = int(ids[0, t]) + TIMES_UNIT, hashed // slots % reference.CHECKS
            old[order, 0, hashed % slots] = value + reference.CHECK_UNIT * check
            contexts[order, hashed % slots] = last, value
    moved = in_sets(old)
    assert moved.shape == (len(ORDERS), 1, slots // WAYS, WAYS)
    assert sorted((moved % reference.CHECK_UNIT).flatten().tolist()) == sorted(
        (old % reference.CHECK_UNIT).flatten().tolist()
    )
    assert in_sets(moved) is moved
    for (order, _), (last, value) in contexts.items():
        alone = torch.zeros_like(moved)
        alone[order] = moved[order]
        recent = np.array([*last, *[0] * (LONGEST - len(last))])
        assert reference.longest_match(alone[:, 0].numpy(), recent) == value + ORDER_UNIT * order


@given(
    seed=st.integers(0, 10**6),
    length=st.sampled_from([1, 2, 7, 33, 65]),
    letters=st.sampled_from([2, 5, 60]),
    sets=st.sampled_from([1, 3, 16, 250]),
    resets=st.sampled_from([0.0, 0.1]),
    padded=st.booleans(),
    answers=st.booleans(),
    closing=st.sampled_from([None, (0, 1)]),
)
def test_the_kernel_is_the_definition(
    seed: int, length: int, letters: int, sets: int, resets: float, padded: bool, answers: bool,
    closing: tuple[int, int] | None,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def text() -> Tensor:
        return torch.randint(0, letters, (3, length), generator=generator)

    reset = torch.rand(3, length, generator=generator) < resets if resets else None
    lengths = torch.randint(0, length + 1, (3,), generator=generator) if padded else None
    state = reference.recall(text(), None, None, *empty(3, sets))[1:]
    looked_up = empty(3, sets)[0] if answers else None
    if closing and looked_up is None:
        looked_up = torch.full_like(state[0], OPEN)
    before = [part.clone() for part in state]
    ids = text()
    own = [None if looked_up is None else looked_up.clone() for _ in range(2)]
    ours = cpu.recall(ids, reset, lengths, *state, own[0], closing)
    theirs = reference.recall(ids, reset, lengths, *state, own[1], closing)
    if own[0] is not None and own[1] is not None and looked_up is not None:
        assert torch.equal(own[0], own[1])
        assert closing or torch.equal(own[0], looked_up)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == torch.int32
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
    assert bool(reference.possible_slots(ours[1], letters).all())


def model_of(architecture: str = "context", **changes: int):
    torch.manual_seed(0)
    width = {"gru": 24, "lstm": 24, "transformer": 48}.get(architecture, 16)
    settings = ModelSettings(
        architecture=architecture, num_layers=2, context_dim=width, embed_dim=24, hidden_dim=40,
        **{"recall_slots": 64, **changes},
    )  # fmt: skip
    model = build_model(settings, VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ids_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed))


def test_a_fresh_model_recalls_nothing_and_learns_to() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 1, "context_dim": 16, "embed_dim": 24, "hidden_dim": 40}
    with_it: Any = build_model(ModelSettings(**shape, recall_slots=64), VOCAB)
    torch.manual_seed(0)
    without = build_model(ModelSettings(**shape), VOCAB)
    with_it.eval()
    without.eval()
    ids = ids_of(2, 30)
    hidden, _ = with_it(ids)
    assert isinstance(hidden, TrunkOutput)
    assert hidden.matches is not None
    assert bool((hidden.matches > 0).any())
    torch.testing.assert_close(hidden.hidden, without(ids)[0])
    with_it.loss(hidden, ids).backward()
    for name, parameter in with_it.named_parameters():
        if name in ("recall.gate", "recall.bias"):
            assert parameter.grad is not None
            assert bool(parameter.grad.any()), name


def test_what_no_row_has_is_copied_like_any_other() -> None:
    """However unlikely the model finds a word by itself, copying adds its own probability."""
    logits = torch.zeros(2, 5)
    logits[:, 3] = -50
    before, scores = logits.clone(), torch.tensor([[4.0], [-torch.inf]])
    let_copy_(logits, torch.tensor([[3], [0]]), scores)
    p = logits.softmax(-1)
    assert float(p[0, 3]) == pytest.approx(np.exp(4) / (4 + np.exp(4)))
    torch.testing.assert_close(p[1], before[1].softmax(-1))


@pytest.mark.parametrize("architecture", ["context", "gru", "transformer"])
def test_the_loss_knows_of_copying(architecture: str) -> None:
    """The fused loss and its gradients are those of the plain logits; also of scored parts."""
    model = model_of(architecture)
    ids, targets = ids_of(2, 40), ids_of(2, 40, seed=2)
    targets[0, 5:9] = -100

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    hidden, _ = model(ids)
    fused = model.loss(hidden, targets)
    ours = gradients(fused)
    hidden, _ = model(ids)
    logits = model.logits(hidden)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(fused, plain)
    for a, b in zip(ours, gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_gradients_are_right_in_float64() -> None:
    model: Any = model_of().double()
    ids = ids_of(1, 12)
    names = ("recall.project", "recall.order", "recall.times", "recall.gate", "recall.bias")
    parameters = [model.get_parameter(name) for name in names]

    def loss(*values: Tensor) -> Tensor:
        changed: dict[str, Tensor] = dict(zip(names, values, strict=True))
        hidden, _ = torch.func.functional_call(model, changed, (ids,))
        gate, bias = changed["recall.gate"], changed["recall.bias"]
        assert model.recall is not None
        copying = torch.func.functional_call(
            _Copying(model.recall), {"layer.gate": gate, "layer.bias": bias}, (hidden,)
        )
        logits = F.linear(hidden.hidden, model.embedding.weight)
        logits = logits.flatten(0, 1)
        let_copy_(logits, *(part.flatten(0, 1) for part in copying))
        return logits.square().sum()

    assert torch.autograd.gradcheck(loss, parameters)


class _Copying(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, read: TrunkOutput) -> tuple[Tensor, Tensor]:
        return self.layer.copying(read.hidden, read.matches)  # type: ignore[operator]


@pytest.mark.parametrize("architecture", ["context", "gru", "mingru", "transformer"])
def test_an_answer_does_not_look_into_itself(architecture: str) -> None:
    """Written by the fused step and by the module: looked up is what was read before, alone."""
    model = model_of(architecture)
    prompt, answer = ids_of(1, 30), ids_of(1, 30, seed=3)
    with torch.no_grad():
        _, state = model(prompt)
        hidden, after = model(answer, {**state, "looked_up": state["recall"]})
        expected = model.logits(hidden)[0]
        loose = model.logits(model(answer, state)[0])[0]
    assert not torch.allclose(expected, loose, atol=1e-3)
    assert torch.equal(after["recall"], model(answer, state)[1]["recall"])  # entered all the same
    for decoder in (make_decoder(model), ModuleDecoder(model, batched=True)):
        slot, other = decoder.add(state), decoder.add(state)
        decoder.begin_answer(slot)
        for t, token in enumerate(answer[0].tolist()):
            both = decoder.step([slot, other], [token, token])
            np.testing.assert_allclose(both[0], expected[t], atol=1e-4)
            np.testing.assert_allclose(both[1], loose[t], atol=1e-4)
        for name in ("recall", "recent"):
            assert torch.equal(decoder.state(slot)[name], after[name])
        assert set(decoder.state(slot)) == set(state)
        decoder.end_answer(slot)
        with torch.no_grad():
            ended = model.logits(model(prompt[:, :1], decoder.state(slot))[0])[0, 0]
        np.testing.assert_allclose(decoder.step([slot], [int(prompt[0, 0])])[0], ended, atol=1e-4)


@pytest.mark.parametrize("architecture", ["context", "gru"])
def test_answers_can_be_read_as_they_are_written(architecture: str) -> None:
    """Closed from the token before an answer to the one behind it, however the text is split."""
    model: Any = model_of(architecture)
    opens, closes = 20, 21
    question, answer, more = ids_of(30).tolist(), ids_of(25, seed=3).tolist(), ids_of(9).tolist()
    decoder = make_decoder(model)
    slot, expected = decoder.add(), []
    for token in [*question, opens]:
        expected.append(decoder.step([slot], [token])[0].copy())
    decoder.begin_answer(slot)
    for token in [*answer, closes]:
        expected.append(decoder.step([slot], [token])[0].copy())
    decoder.end_answer(slot)
    for token in more:
        expected.append(decoder.step([slot], [token])[0].copy())
    text = torch.tensor([[*question, opens, *answer, closes, *more]])
    closed = model.reading_closed((opens, closes))
    assert model.closing is None
    twice = torch.cat([text, text], dim=1)  # the second a document of its own
    starts = torch.zeros_like(twice, dtype=torch.bool)
    starts[0, text.shape[1]] = True
    with torch.no_grad():
        loose = model.logits(model(text)[0])[0].numpy()
        assert not np.allclose(loose, np.stack(expected), atol=1e-3)
        for parts in ([66], [31, 35], [40, 26], [1, 64, 1], [57, 9]):
            state, read = closed.initial_state(1), []
            for ids in text.split(parts, dim=1):
                hidden, state = closed(ids, state)
                read.append(closed.logits(hidden)[0].numpy())
            np.testing.assert_allclose(np.concatenate(read), np.stack(expected), atol=1e-4)
        both = closed.logits(closed(twice, None, starts)[0])[0].numpy()
    np.testing.assert_allclose(both, np.stack([*expected, *expected]), atol=1e-4)
    written = make_decoder(closed)  # it needs no state of its own for that
    slot = written.add()
    np.testing.assert_allclose(written.read([slot], [question])[0], expected[29], atol=1e-4)


def test_the_proposal_is_that_of_two_tokens_or_more() -> None:
    model = model_of()
    for decoder in (make_decoder(model), ModuleDecoder(model)):
        slot = decoder.add()
        proposals = []
        for token in [1, 2, 3, 1, 2]:
            decoder.step([slot], [token])
            proposals.append(decoder.recalled(slot))
        assert proposals == [None, None, None, None, 3]
        decoder.begin_answer(slot)
        for token in (7, 8, 9, 7, 8):
            decoder.step([slot], [token])
        assert decoder.recalled(slot) is None  # its own words are not looked up
        decoder.end_answer(slot)
        assert decoder.recalled(slot) == 9
    assert make_decoder(model_of(recall_slots=0)).recalled(make_decoder(model).add()) is None


def test_which_models_have_it() -> None:
    assert resolve("dolly", {}).recall_slots == 1024
    assert resolve("dolly", {"architecture": "gru"}).recall_slots == 1024
    assert resolve("dolly", {"architecture": "original"}).recall_slots == 0
    with pytest.raises(Exception, match="--recall-slots 8: original has no recall"):
        resolve("dolly", {"architecture": "original", "recall_slots": 8})
    model = build_model(resolve("dolly", {}).model_settings(), 4096)
    size = sum(part.numel() * part.element_size() for part in model.initial_state(1).values())
    assert size <= 24 * 1024
    with pytest.raises(Exception, match="--recall-slots"):
        resolve("dolly", {"recall_slots": -1})
