"""The n-gram floor: kept beside the shards, and what it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.evaluate.floor import ngram_floor


@pytest.mark.parametrize("tokenizer", ["word1000", "bpe"])
def test_floor_of_a_data_set(dolly_folder: Path, tokenizer: str) -> None:
    source = open_source(DATASETS["dolly"], str(dolly_folder))
    encoded = prepare_training(source, Encoding("dolly", tokenizer, 400, 128))
    floor = ngram_floor(encoded)
    assert 1 < floor.ppl < 50
    assert (floor.bpb is None) == (tokenizer == "word1000")
    assert floor.order == {"word1000": 3, "bpe": 5}[tokenizer]
    assert json.loads((encoded.folder / "ngram.json").read_text())["ppl"] == floor.ppl
    assert ngram_floor(encoded) == floor
    again = ngram_floor(encoded, encoded.splits["validation"])
    assert again == floor
    assert ngram_floor(encoded, encoded.splits["train"]).ppl < floor.ppl
