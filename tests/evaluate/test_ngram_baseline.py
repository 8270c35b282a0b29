"""The n-gram baseline: kept beside the shards, and what it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.evaluate.ngram import ngram_baseline


@pytest.mark.parametrize("tokenizer", ["word1000", "bpe"])
def test_baseline_of_a_data_set(dolly_folder: Path, tokenizer: str) -> None:
    source = open_source(DATASETS["dolly"], str(dolly_folder))
    encoded = prepare_training(source, Encoding("dolly", tokenizer, 400, 128))
    baseline = ngram_baseline(encoded)
    assert 1 < baseline.ppl < 50
    assert (baseline.bpb is None) == (tokenizer == "word1000")
    assert baseline.order == {"word1000": 3, "bpe": 5}[tokenizer]
    assert json.loads((encoded.folder / "ngram.json").read_text())["ppl"] == baseline.ppl
    assert ngram_baseline(encoded) == baseline
    again = ngram_baseline(encoded, encoded.splits["validation"])
    assert again == baseline
    assert ngram_baseline(encoded, encoded.splits["train"]).ppl < baseline.ppl
