"""Steps of a server's texts by a CUDA graph: equal to the module's, row by row, in any company.

On a CPU, where `tests/train/replay.py` stands in for the graph; the kernels are the definitions,
since numba's would not be seen.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from newllm import cuda_graph
from newllm.cuda_graph import WARM_UP
from newllm.data.tokenizers import BPE
from newllm.inference import graphed
from newllm.inference.answer_text import AnswerText
from newllm.inference.decoder import (
    START,
    Decoder,
    FusedDecoder,
    ModuleDecoder,
    Stream,
    make_decoder,
)
from newllm.inference.engine import Engine, Job
from newllm.inference.graphed import GraphedSlots, can_capture
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.model import build_model, kernels, residual
from newllm.model.context.decode import ContextSlots
from tests.model.test_counts import VOCAB, model_of
from tests.model.test_distributions import assert_steps_sum_to_one
from tests.train.replay import Replays

CASES: dict[str, dict[str, Any]] = {
    "recall, counts and pairs": {"pair_rows": 50},
    "counts alone": {"recall_slots": 0},
    "recall alone": {"counts": 0},
    "bare": {"recall_slots": 0, "counts": 0},
    "mingru": {"architecture": "mingru"},
}


@pytest.fixture(autouse=True)
def _replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "Surroundings", Replays)
    for module in (kernels, residual):
        monkeypatch.setattr(module, "active_kernel", lambda *_: "reference")


def graphed_of(model: Any, capacity: int = 1) -> FusedDecoder:
    return FusedDecoder(model, GraphedSlots(model, capacity))


def replays(decoder: Any) -> Replays:
    return decoder._slots._graph._around


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, part in one.items():
        torch.testing.assert_close(part, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_module_and_the_fused_step(case: str) -> None:
    """Slots open, close, read prompts, answer and are looked at while others go on; 1 to 8 rows."""
    model, random = model_of(**CASES[case]), np.random.default_rng(0)
    decoders: list[Decoder] = [graphed_of(model), ModuleDecoder(model), make_decoder(model)]
    assert isinstance(decoders[2], FusedDecoder) == (case != "mingru")
    texts: list[list[int]] = []  # of each: its slot in every decoder
    took = 0
    for number in range(120):
        if number % 6 == 0 and len(texts) < 7:
            state = decoders[number % 3].state(texts[0][number % 3]) if number % 4 else None
            texts.append([decoder.add(state) for decoder in decoders])
        if number == 90:
            for decoder, slot in zip(decoders, texts.pop(2), strict=True):
                decoder.remove(slot)
        chosen = random.permutation(len(texts))[: random.integers(1, len(texts) + 1)].tolist()
        for i in chosen if number % 17 in (5, 11) else chosen[:1]:  # an answer is read by steps
            for decoder, slot in zip(decoders, texts[i], strict=True):
                begins = number % 5 == 2 and number % 17 not in (5, 11)
                (decoder.begin_answer if begins else decoder.end_answer)(slot)
        if number % 17 == 11:
            ids = random.integers(0, VOCAB, (len(chosen), 5)).tolist()
            said = [d.read([texts[i][k] for i in chosen], ids) for k, d in enumerate(decoders)]
        elif number % 17 == 5:
            ids = random.integers(0, VOCAB, 4).tolist()
            said = [d.read_scored(texts[chosen[0]][k], ids) for k, d in enumerate(decoders)]
        else:
            ids = random.integers(0, 9 if number % 4 else VOCAB, len(chosen)).tolist()
            said = [d.step([texts[i][k] for i in chosen], ids) for k, d in enumerate(decoders)]
            took += 1
        for other in said[1:]:
            np.testing.assert_allclose(said[0], other, rtol=1e-4, atol=1e-4)
        for text in texts:
            proposed = [d.recalled(slot) for d, slot in zip(decoders, text, strict=True)]
            assert proposed[1:] == proposed[:1] * 2
    for text in texts:
        kept = [d.state(slot) for d, slot in zip(decoders, text, strict=True)]
        assert_same_state(kept[1], kept[0])
        assert_same_state(kept[2], kept[0])
    assert replays(decoders[0]).captured == 4  # of 1, 2, 4 and 8 rows
    assert replays(decoders[0]).replayed == took - 4 * WARM_UP > 50


@torch.no_grad()
def test_every_distribution_sums_to_one() -> None:
    model = model_of(pair_rows=50)
    assert_steps_sum_to_one(graphed_of(model), graphed_of(model.without_counts()), model)


def test_a_row_does_not_depend_on_its_company() -> None:
    """To the bit, in whatever row it is, also when one of the others has gone mad."""
    model = model_of(pair_rows=50)
    alone, together = graphed_of(model, 8), graphed_of(model, 8)
    single = alone.add()
    mad = {name: part * torch.nan if part.is_floating_point() else part
           for name, part in model.initial_state(1).items()}  # fmt: skip
    slots = [together.add(mad), *(together.add() for _ in range(7))]
    for token in range(30):
        expected = alone.step([single], [token])[0]
        company = [slot for slot in slots[:-1] if (slot + token) % 3]
        still = next(slot for slot in slots[1:-1] if slot not in company)
        before = together.state(still)
        said = together.step([*company, slots[-1]], [*(7 for _ in company), token])
        assert np.array_equal(said[-1], expected)
        for name, part in together.state(still).items():
            assert torch.equal(part, before[name]), "nothing was read there"
    together.remove(slots[0])
    new = graphed_of(model, 8)
    assert np.array_equal(together.step([together.add()], [5]), new.step([new.add()], [5]))


def test_a_text_goes_on_from_any_other_step() -> None:
    """What a conversation keeps is nobody's own: undone, forked and loaded, it is the same."""
    model = model_of(pair_rows=50)
    decoders = [graphed_of(model), ModuleDecoder(model), FusedDecoder(model, ContextSlots(model))]
    whole = Stream(decoders[1])
    whole.read(range(30))
    for first in decoders:
        for second in decoders:
            stream = Stream(first)
            stream.read(range(20))
            for token in range(20, 25):
                stream.take(token)
            taken = stream.snapshot
            stream.read([1, 2, 3])
            stream.take(4)
            for _ in range(2):
                again = Stream(second, taken)
                for token in range(25, 30):
                    again.take(token)
                assert again.logits is not None
                assert whole.logits is not None
                np.testing.assert_allclose(again.logits, whole.logits, rtol=1e-4, atol=1e-4)
                assert_same_state(dict(again.state or {}), dict(whole.state or {}))


def test_a_replay_knows_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stand-in is for: tokens that do not come with what is sent are the recorded ones."""
    model, plain = model_of(), ModuleDecoder(model_of())
    decoder = graphed_of(model)
    slots: Any = decoder._slots
    step, look_up, last = slots._step, slots._look_up, {}

    def remembering(*given: Any) -> Any:
        last.update(look_up(*given))
        return last

    monkeypatch.setattr(slots, "_look_up", remembering)
    monkeypatch.setattr(slots, "_step", lambda sent: step({**sent, "tokens": last["tokens"]}))
    slot, other, equal = decoder.add(), plain.add(), []
    for token in range(6):
        said, right = decoder.step([slot], [token]), plain.step([other], [token])
        equal.append(np.allclose(said, right, atol=1e-4))
    assert equal == [True] * (WARM_UP + 1) + [False] * 2


def test_what_cannot_be_captured_is_launched_and_said_once(monkeypatch, caplog) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("this driver is too old\nmore of it")

    monkeypatch.setattr(Replays, "capture", refuse)
    model = model_of()
    plain, first = ModuleDecoder(model), graphed_of(model)
    for decoder in (first, first.empty_copy(), first.empty_copy(4)):
        slot, other = decoder.add(), plain.add()
        for token in range(6):
            said, right = decoder.step([slot], [token]), plain.step([other], [token])
            np.testing.assert_allclose(said, right, rtol=1e-4, atol=1e-4)
    (said,) = caplog.messages
    assert said.endswith("CUDA graph, and launched one by one: this driver is too old")
    assert replays(first).captured == 0


def test_copies_share_weights_and_tables_but_no_rows() -> None:
    model = model_of()
    first = graphed_of(model)
    other: Any = first.empty_copy(4)
    assert len(other._slots._answering) == 4
    assert other._slots._counts is first._slots._counts  # type: ignore[attr-defined]
    one, two = first.add(), other.add()
    first.step([one], [3])
    assert np.array_equal(first.step([one], [4]), first.step([first.add()], [4])) is False
    assert not other.state(two)["context"].any()
    assert first.step([], []).shape == (0, VOCAB)
    with pytest.raises(IndexError, match="not open"):
        first.step([5], [0])
    with pytest.raises(IndexError, match=f"token {VOCAB} is not in"):
        first.step([one], [VOCAB])


def test_which_models_are_captured(tiny_model_settings, monkeypatch) -> None:
    model = model_of()
    assert not can_capture(model)  # there is no GPU
    monkeypatch.setattr(graphed, "_on_gpu", lambda _: True)
    assert can_capture(model)
    assert can_capture(model_of("mingru"))
    assert not any(can_capture(model_of(other)) for other in ("gru", "transformer"))
    assert not can_capture(build_model(tiny_model_settings(architecture="original"), 50))
    drops = model_of().train()
    drops.set_dropout(0.1)
    assert not can_capture(drops)
    monkeypatch.setattr(kernels, "FORCED", "reference")
    assert not can_capture(model)


def test_answers_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once, of any length, drawn and greedy, are those of each alone, to the letter."""
    tokenizer = BPE.train(["some words that are said again and again"], 290)
    monkeypatch.setattr("tests.model.test_counts.VOCAB", tokenizer.vocab_size)
    model = model_of(pair_rows=50)

    def job(number: int) -> Job:
        sampler = Sampler(Sampling(temperature=number % 3 / 2, seed=number), ())
        ids, tokens = list(range(1, 2 + number)), 4 + 3 * number
        return Job(START, ids, sampler, AnswerText(tokenizer), tokens, tokens)

    def written(jobs: list[Job], decoder: Decoder) -> list[str]:
        engine = Engine(decoder, tokenizer.end, 4, lambda jobs: None, queue=8)
        assert engine.submit(*jobs)
        engine.start()
        try:
            until = time.monotonic() + 60
            while engine.jobs and time.monotonic() < until:
                time.sleep(0.01)
        finally:
            engine.stop()
        assert [job.reason for job in jobs] == ["length"] * len(jobs)
        return ["".join(piece.text for piece in job.pieces) for job in jobs]

    decoder = graphed_of(model)
    together = written([job(number) for number in range(7)], decoder)
    assert len(set(together)) == 7
    for number, text in enumerate(together):
        assert written([job(number)], decoder) == [text]
    assert written([job(number) for number in range(7)], ModuleDecoder(model)) == together
