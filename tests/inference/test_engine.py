"""The engine where something goes wrong beside the answers that others read."""

from __future__ import annotations

import time

import torch

from newllm.data.tokenizers import BPE
from newllm.inference.answer_text import AnswerText
from newllm.inference.decoder import START, make_decoder
from newllm.inference.engine import Engine, Job
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.model import build_model


def test_an_answer_that_finds_no_memory_is_told_so(tiny_model_settings, monkeypatch) -> None:
    """Else its client waits for ever, and its place in the queue is never free again."""
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")
    tokenizer = BPE.train(["some words"], 290)
    torch.manual_seed(0)
    model = build_model(tiny_model_settings(), tokenizer.vocab_size).eval()
    engine = Engine(make_decoder(model), tokenizer.end, 4, lambda jobs: None)

    def answered(tokens: int = 3) -> Job:
        sampler = Sampler(Sampling(temperature=0), ())
        job = Job(
            START, [1, 7, 8], sampler, AnswerText(tokenizer), tokens, min_tokens=tokens,
            top_logprobs=1, prompt_logprobs=tokens == 0,
        )  # fmt: skip
        assert engine.submit(job)
        until = time.monotonic() + 60
        while engine.jobs and time.monotonic() < until:
            time.sleep(0.01)
        return job

    def full(state: object = None) -> int:
        raise MemoryError

    engine.start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engine._decoder, "add", full)
            assert answered().reason == "error"
        assert answered().reason == "length"
        assert [told and told.token for told in answered(0).prompt] == [None, 7, 8]
    finally:
        engine.stop()


def test_those_that_wait_are_written_when_all_others_end_at_once(
    tiny_model_settings, monkeypatch
) -> None:
    """Two of equal length end in the same round: nobody has to come for the next two to begin."""
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")
    tokenizer = BPE.train(["some words"], 290)
    torch.manual_seed(0)
    model = build_model(tiny_model_settings(), tokenizer.vocab_size).eval()
    engine = Engine(make_decoder(model), tokenizer.end, 2, lambda jobs: None, queue=4)
    jobs = [
        Job(START, [1, 7, 8], Sampler(Sampling(temperature=0), ()), AnswerText(tokenizer), 3, 3)
        for _ in range(6)
    ]
    assert engine.submit(*jobs)
    engine.start()
    try:
        until = time.monotonic() + 60
        while engine.jobs and time.monotonic() < until:
            time.sleep(0.01)
        assert [job.reason for job in jobs] == ["length"] * 6
    finally:
        engine.stop()
