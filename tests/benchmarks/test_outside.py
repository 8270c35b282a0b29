"""Programs of others beside ours, without them: a program like nanoGPT, files as llama2.c's."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import outside
from newllm.cli import main
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.results.summary import load_summary

MODEL = '''
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    vocab_size: int

class GPT(nn.Module):
    """Every next token is as likely as any other."""
    def __init__(self, config):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
    def forward(self, ids, targets):
        logits = self.bias.expand(*ids.shape, -1)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
'''
TRAIN = """
import os, pickle, sys, torch
from model import GPT, GPTConfig
assert os.path.getsize("data/newllm/train.bin") > os.path.getsize("data/newllm/val.bin") > 0
size = pickle.load(open("data/newllm/meta.pkl", "rb"))["vocab_size"]
os.makedirs("out-newllm", exist_ok=True)
args = {"vocab_size": size}
model = GPT(GPTConfig(size))
torch.save({"model": model.state_dict(), "model_args": args}, "out-newllm/ckpt.pt")
for step in range(12):
    print(f"iter {step}: loss 1.0, time 600000.0ms, mfu 1%")
open("asked.txt", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""


def test_a_clone_is_trained_and_scored(
    tmp_path: Path, dolly_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Of a model that knows nothing the bits are those of its vocabulary; ours is beside it."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "model.py").write_text(MODEL)
    (clone / "train.py").write_text(TRAIN)
    out, trained = tmp_path / "out", []

    def train(dataset: str, name: str, settings: dict, folder: Path) -> None:
        trained.append((name, settings["minutes"], settings.get("counts")))
        words = ["--data", str(dolly_folder), "--context-dim", "64", "--embed-dim", "16"]
        shape = [*words, "--hidden-dim", "24", "--max-steps", "2", "--counts", "0"]
        assert main(["train", dataset, "--name", name, "--out", str(folder), *shape]) == 0

    def gru(encoded: object, minutes: float, parameters: int, rate: float) -> dict:
        return {"program": "torch's GRU", "rate": rate}

    monkeypatch.setattr(outside, "train_trial", train)
    monkeypatch.setattr(outside, "_gru_trained", gru)
    capsys.readouterr()
    words = ["--data", str(dolly_folder), "--nanogpt", str(clone), "--rates", "0.01,0.02"]
    assert main(["bench", "outside", *words, "--minutes", "20", "--out", str(out), "--json"]) == 0
    ours, without, first, second, *grus = json.loads(capsys.readouterr().out.splitlines()[-1])[
        "tables"
    ]["Learnt"]
    assert trained == [("ours", 20, None), ("ours_without", 20, 0)]
    assert ours["bits_per_byte"] == load_summary(out / "ours.summary.json").best["bpb"]
    assert without["steps"] == 2
    asked = (clone / "asked.txt").read_text().splitlines()
    assert "--max_iters=2 " in asked[1] + " "  # two steps of ten minutes
    assert [row["rate"] for row in (first, second)] == [0.01, 0.02]
    assert [row["rate"] for row in grus] == [0.01, 0.02]
    split = _validation(dolly_folder)
    entries, tokens = first["parameters"], int(split.lengths.sum()) - len(split)
    wanted = tokens * np.log2(entries) / split.content_bytes.sum()
    assert first["bits_per_byte"] == pytest.approx(wanted, rel=1e-5)


def test_a_gru_learns_in_its_minutes(dolly_folder: Path) -> None:
    settings = outside._settings(str(dolly_folder))
    encoded = prepare_training(outside.open_chosen(settings), Encoding.of(settings))
    short, longer = (outside._gru_trained(encoded, m, 60_000, 0.01) for m in (0.002, 0.05))
    assert 0.9 * 60_000 < longer["parameters"] <= 60_000
    assert short["steps"] < longer["steps"]
    assert longer["bits_per_byte"] < short["bits_per_byte"]


def _validation(folder: Path):
    source = open_source(find_dataset("dolly"), str(folder))
    encoding = Encoding.of(outside._settings(str(folder)))
    return prepare_training(source, encoding).splits["validation"]


def test_every_token_is_scored_once_with_half_a_block_before_it(
    dolly_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "BLOCK", 8)
    split = _validation(dolly_folder)
    scored, before = [], []
    for ids, targets in outside._windows(split):
        assert ids.shape == targets.shape
        for row in targets.tolist():
            places = [place for place, token in enumerate(row) if token >= 0]
            scored += [row[place] for place in places]
            before.append(places[0])
    documents = [split.tokens(d, 1, int(n)) for d, n in enumerate(split.lengths.tolist())]
    assert scored == np.concatenate(documents).tolist()
    assert set(before) == {0, 4}


def test_files_as_llama2c_reads_them(tmp_path: Path) -> None:
    size = outside._write_llama(tmp_path / "model.bin", 1_400_000)
    content = (tmp_path / "model.bin").read_bytes()
    width, hidden, layers, heads, _, entries, length = struct.unpack("7i", content[:28])
    matrices = layers * (4 * width**2 + 3 * width * hidden + 2 * width)
    assert size == matrices + (entries + 1) * width <= 1_400_000
    assert len(content) == 28 + 4 * (size + length * width // heads)
    outside._write_vocabulary(tmp_path / "words.bin")
    words = (tmp_path / "words.bin").read_bytes()
    assert words[:17] == struct.pack("<ifi", 8, 0.0, 5) + b"w0000"
    assert len(words) == 4 + entries * 13


def test_nothing_to_compare_with(capsys) -> None:
    assert main(["bench", "outside"]) == 2
    assert "--nanogpt or --llama2c" in capsys.readouterr().err
