"""Sums that do not depend on batching; bits per byte and UNK share by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.quality import nats_by_document
from newllm.data.encode import Accounting, Block
from newllm.data.render import ChatRenderer, Document
from newllm.data.shards import EncodedSplit, SplitWriter
from newllm.data.tokenizers import BPE, Word1000
from newllm.evaluate.metrics import evaluate
from newllm.model import build_model
from newllm.model.trunk import TokenScores
from newllm.results.records import Metrics


class Uniform(nn.Module):
    """Gives every token the same probability."""

    TOKENS_ON_CPU = False

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"context": torch.zeros(1, batch_size, 1)}

    def forward(self, ids: Tensor, state=None, reset=None, valid=None):
        return torch.zeros(*ids.shape, 1), state

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.zeros(*hidden.shape[:-1], self.vocab_size)

    def token_scores(self, hidden: Tensor, targets: Tensor) -> TokenScores:
        nats = torch.full(targets.shape, math.log(self.vocab_size))
        return TokenScores(nats, targets == 0, None)


def encode(folder: Path, documents: list[Document]) -> EncodedSplit:
    writer = SplitWriter(folder, "validation")
    writer.add(Block.of(documents, Accounting()))
    writer.finish_shard()
    return EncodedSplit(folder, "validation", writer.shards)


def test_bits_per_byte_by_hand(tmp_path: Path) -> None:
    """Three conversations with characters of several bytes, under a uniform model."""
    tokenizer = BPE.train(["abc"], 262)  # the 256 bytes and the special tokens: no merges
    conversations = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in (("hi", "é"), ("日本", "ok"), ("", "🦊!"))
    ]
    split = encode(tmp_path, ChatRenderer(tokenizer).documents(conversations))  # type: ignore[arg-type]
    metrics = evaluate(Uniform(262), split, tokenizer, torch.device("cpu"))  # type: ignore[arg-type]
    content = sum(len((q + a).encode()) for q, a in (("hi", "é"), ("日本", "ok"), ("", "🦊!")))
    assistant = len("éok🦊!".encode())
    assert content == 2 + 2 + 6 + 2 + 5
    scored = content + 3 * 4  # each byte a token, and <user> <end> <assistant> <end>
    assert metrics["tokens"] == scored
    assert metrics["rows"] == 3
    assert metrics["bpb"] == pytest.approx(scored * math.log2(262) / content)
    assert metrics["bpb_assistant"] == pytest.approx(
        (assistant + 3) * math.log2(262) / assistant  # its bytes and the end of each turn
    )
    assert metrics["ppl"] == pytest.approx(262)
    assert metrics["unk_share"] is None


def test_word1000_scores_unk_and_eos_but_not_bos(tmp_path: Path) -> None:
    documents = [Document(ids, [False] * len(ids), 9, 0) for ids in ([2, 1, 4, 3], [2, 1, 1])]
    split = encode(tmp_path, documents)
    tokenizer = Word1000(["a"])
    metrics = evaluate(Uniform(1000), split, tokenizer, torch.device("cpu"))  # type: ignore[arg-type]
    assert metrics["tokens"] == 5
    assert metrics["unk_share"] == pytest.approx(3 / 5)
    assert metrics["ppl"] == pytest.approx(1000)
    assert metrics["bpb"] is None


@pytest.mark.parametrize("architecture", ["context", "original"])
def test_sums_do_not_depend_on_the_batch_size(
    architecture: str, tmp_path: Path, tiny_model_settings
) -> None:
    generator = torch.Generator().manual_seed(0)
    documents = []
    for length in (2, 300, 17, 700, 5, 64, 257, 3, 40):
        ids = torch.randint(6, 40, (length,), generator=generator).tolist()
        documents.append(Document(ids, [i % 3 == 0 for i in range(length)], 2 * length, length))
    split = encode(tmp_path, documents)
    torch.manual_seed(0)
    model = build_model(tiny_model_settings(architecture=architecture), 40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    tokenizer = BPE.train(["x"], 262)
    results: list[Metrics] = [
        evaluate(model, split, tokenizer, torch.device("cpu"), batch_size)
        for batch_size in (1, 2, 5, 32)
    ]
    for other in results[1:]:
        assert other["tokens"] == results[0]["tokens"]
        assert other["nats"] == pytest.approx(results[0]["nats"], rel=1e-6)
        assert other["bpb_assistant"] == pytest.approx(results[0]["bpb_assistant"], rel=1e-6)
    # And they are those of each document read alone, token by token.
    alone = []
    for document in documents:
        state, log_probability = None, 0.0
        for token, following in zip(document.ids, document.ids[1:], strict=False):
            hidden, state = model(torch.tensor([[token]]), state)
            distribution = torch.log_softmax(model.logits(hidden[0, 0]), 0)
            log_probability += distribution[following].item()
        alone.append(-log_probability)
    assert results[0]["nats"] == pytest.approx(sum(alone), rel=1e-5)
    cpu = torch.device("cpu")
    assert nats_by_document(model, split, cpu, batch_size=2) == pytest.approx(alone, rel=1e-5)


def test_metrics_leave_the_model_in_its_mode(tmp_path: Path, tiny_model_settings) -> None:
    split = encode(tmp_path, [Document([1, 7, 8], [False] * 3, 2, 0)])
    model = build_model(tiny_model_settings(dropout=0.5), 40).train()
    first, second = (
        evaluate(model, split, BPE.train(["x"], 262), torch.device("cpu")) for _ in range(2)
    )
    assert first == second, "dropout is off"
    assert model.training
