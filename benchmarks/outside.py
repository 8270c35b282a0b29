"""The same rows, minutes and parameters given to programs of others: nanoGPT, a GRU, llama2.c.

    newllm bench outside --data rows/dolly --nanogpt CLONE --llama2c CLONE

Clones of their repositories are needed (nothing is downloaded, and nothing of theirs is kept here).
nanoGPT trains on the tokens of our encoded rows, as its own `train.py` does, for as many steps as
fit the minutes, at each of the rates; its checkpoint is scored on our validation rows in windows of
its block size, each token but the first of a row with half a block before it at least. So is
torch's own GRU, one layer with a tied embedding, trained at each of the rates as nanoGPT is: AdamW,
the same batches, a warm-up and a cosine down to a tenth. Beside them `newllm train` in the same
minutes, with and without recall and counts. llama2.c is compiled with its `make runfast` for this
machine and writes with a random model of as many parameters as ours, in turns with our trained one.
One core.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import newllm
from benchmarks.measure import Report, Row, progress, report_options, rounds
from benchmarks.trials import train_trial
from newllm.config import Settings
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.shards import EncodedSplit
from newllm.data.sources import open_chosen
from newllm.inference.sampling import Sampling
from newllm.results.summary import load_summary
from newllm.settings import resolve

BLOCK, ROWS, LAYERS, HEADS, VOCABULARY = 128, 32, 4, 4, 2048
CALIBRATED = 12
"""Steps that tell how long one takes."""
WRITTEN = 512
"""Tokens of one timing of writing."""


@click.command()
@click.option("--data", default="sample", show_default=True, help="Rows of Dolly.")
@click.option("--nanogpt", type=click.Path(exists=True, path_type=Path), help="A clone of it.")
@click.option("--llama2c", type=click.Path(exists=True, path_type=Path), help="A clone of it.")
@click.option("--minutes", default=1.0, show_default=True, help="Of each training.")
@click.option(
    "--rates", default="0.001,0.002,0.004", show_default=True, help="Of nanoGPT and the GRU."
)
@click.option("--parameters", default=1_400_000, show_default=True, help="At most.")
@click.option("--out", default=Path("benchmark_runs/outside"), show_default=True,
              type=click.Path(path_type=Path), help="Runs are kept there.")  # fmt: skip
@report_options
def command(
    data: str, nanogpt: Path | None, llama2c: Path | None, minutes: float, rates: str,
    parameters: int, out: Path,
) -> Report:  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tables: dict[str, list[Row]] = {}
    if nanogpt is not None:
        learnt = [_ours(data, minutes, parameters, out, memories) for memories in (True, False)]
        settings, chosen = _settings(data), [float(rate) for rate in rates.split(",")]
        encoded = prepare_training(open_chosen(settings), Encoding.of(settings))
        theirs = _NanoGPT(nanogpt.resolve(), encoded, minutes, parameters)
        learnt += [theirs.trained(rate) for rate in chosen]
        learnt += [_gru_trained(encoded, minutes, parameters, rate) for rate in chosen]
        tables["Learnt"] = learnt
    if llama2c is not None:
        if nanogpt is None:
            _ours(data, minutes, parameters, out, memories=True)
        tables["Written"] = _written(llama2c.resolve(), parameters, out)
    if not tables:
        raise click.UsageError("nothing to compare with: give --nanogpt or --llama2c")
    return Report(tables, {"minutes": minutes, "rows": str(data)})


def _name(memories: bool) -> str:
    return "ours" if memories else "ours_without"


def _settings(data: str) -> Settings:
    return resolve("dolly", {"data": data, "vocab_size": VOCABULARY})


def _ours(data: str, minutes: float, parameters: int, out: Path, memories: bool) -> Row:
    settings: dict[str, Any] = {
        "data": data, "vocab_size": VOCABULARY, "params": parameters, "minutes": minutes,
        "epochs": 1000, "patience": 1000, "dropout": 0.0, "threads": 1,
    }  # fmt: skip
    settings |= {} if memories else {"recall_slots": 0, "counts": 0}
    train_trial("dolly", _name(memories), settings, out)
    summary = load_summary(out / f"{_name(memories)}.summary.json")
    progress(f"{_name(memories)}: {summary.best['bpb']:.4f}")
    return {
        "program": "newllm train" + ("" if memories else ", no recall, no counts"),
        "parameters": summary.parameters, "rate": None, "steps": summary.best["steps"],
        "bits_per_byte": summary.best["bpb"],
    }  # fmt: skip


class _NanoGPT:
    """Trainings by a clone of nanoGPT on our tokens."""

    def __init__(self, clone: Path, encoded: Encoded, minutes: float, parameters: int) -> None:
        self._split: EncodedSplit = encoded.splits["validation"]
        self._clone, self._minutes = clone, minutes
        vocabulary = encoded.tokenizer.vocab_size
        fits = (
            width
            for width in range(1024, 0, -HEADS)
            if (vocabulary + BLOCK) * width + 12 * LAYERS * width**2 <= parameters
        )
        self._width = next(fits)
        folder = clone / "data" / "newllm"
        folder.mkdir(parents=True, exist_ok=True)
        for name, split in (("train", "train"), ("val", "validation")):
            encoded.splits[split].all_tokens()[0].astype(np.uint16).tofile(folder / f"{name}.bin")
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))

    def trained(self, rate: float) -> Row:
        """What a training at this rate reached."""
        steps = round(60 * self._minutes / self._step_seconds())
        self._run(
            f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={steps}",
            f"--learning_rate={rate}", f"--min_lr={rate / 10}", f"--warmup_iters={steps // 20}",
        )  # fmt: skip
        size, bits = self._scored()
        progress(f"nanoGPT at {rate}: {bits:.4f}")
        return {
            "program": "nanoGPT", "parameters": size, "rate": rate, "steps": steps,
            "bits_per_byte": bits,
        }  # fmt: skip

    def _step_seconds(self) -> float:
        said = self._run(f"--max_iters={CALIBRATED}", "--eval_interval=1000000", "--log_interval=1")
        times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", said)]
        return float(np.median(times[4:])) / 1000

    def _run(self, *flags: str) -> str:
        words = [
            sys.executable, "train.py", "--dataset=newllm", "--device=cpu", "--compile=False",
            f"--block_size={BLOCK}", f"--batch_size={ROWS}", f"--n_layer={LAYERS}",
            f"--n_head={HEADS}", f"--n_embd={self._width}", "--dropout=0.0", "--bias=False",
            "--gradient_accumulation_steps=1", "--beta2=0.99", "--eval_iters=1",
            "--always_save_checkpoint=True", "--out_dir=out-newllm", *flags,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, cwd=self._clone, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise click.ClickException(f"nanoGPT: {done.stderr.strip()[-500:]}")
        return done.stdout

    def _scored(self) -> tuple[int, float]:
        """Parameters of its last checkpoint, and its bits per byte on our validation rows."""
        spec = importlib.util.spec_from_file_location("nanogpt_model", self._clone / "model.py")
        assert spec is not None
        assert spec.loader is not None
        theirs = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = theirs  # its dataclass asks for its module
        spec.loader.exec_module(theirs)
        content = torch.load(self._clone / "out-newllm" / "ckpt.pt", weights_only=True)
        model = theirs.GPT(theirs.GPTConfig(**content["model_args"]))
        model.load_state_dict(content["model"])
        return _size(model), _bits_per_byte(model, self._split)


class _GRU(nn.Module):
    """torch's GRU, called as nanoGPT's model is."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = F.linear(self.gru(self.words(ids))[0], self.words.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def _gru_trained(encoded: Encoded, minutes: float, parameters: int, rate: float) -> Row:
    """What torch's GRU reached at this rate."""
    vocabulary = encoded.tokenizer.vocab_size
    fits = (w for w in range(1024, 0, -1) if vocabulary * w + 6 * w * (w + 1) <= parameters)
    torch.manual_seed(0)
    model = _GRU(vocabulary, next(fits))
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.1)
    tokens = torch.from_numpy(encoded.splits["train"].all_tokens()[0].astype(np.int64))
    steps, started = 0, time.perf_counter()
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(20 * share, 0.55 + 0.45 * math.cos(math.pi * share))
        first = torch.randint(len(tokens) - BLOCK, (ROWS, 1))
        rows = tokens[first + torch.arange(BLOCK + 1)]
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:])[1].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    bits = _bits_per_byte(model, encoded.splits["validation"])
    progress(f"torch's GRU at {rate}: {bits:.4f}")
    return {
        "program": "torch's GRU", "parameters": _size(model), "rate": rate, "steps": steps,
        "bits_per_byte": bits,
    }  # fmt: skip


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _bits_per_byte(model: nn.Module, split: EncodedSplit) -> float:
    """Of a model that returns (logits, mean loss of the targets that are not -1)."""
    model.eval()
    nats = 0.0
    for inputs, targets in _windows(split):
        nats += model(inputs, targets)[1].item() * int((targets >= 0).sum())
    return nats / math.log(2) / int(split.content_bytes.sum())


def _windows(split: EncodedSplit) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (ids, targets [64, BLOCK] int64), -1 where a token is not scored in that window:
    every predicted token of every document in one window."""
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for document in range(len(split)):
        tokens = split.tokens(document, 0, int(split.lengths[document])).astype(np.int64)
        for start in range(0, max(1, len(tokens) - 1 - BLOCK // 2), BLOCK // 2):
            piece = tokens[start : start + BLOCK + 1]
            targets = piece[1:].copy()
            targets[: BLOCK // 2 if start else 0] = -1
            missing = BLOCK - len(targets)
            rows.append((np.pad(piece[:-1], (0, missing)),
                         np.pad(targets, (0, missing), constant_values=-1)))  # fmt: skip
    batches = [rows[first : first + 64] for first in range(0, len(rows), 64)]
    return [
        (torch.from_numpy(np.stack([a for a, _ in batch])),
         torch.from_numpy(np.stack([b for _, b in batch])))
        for batch in batches
    ]  # fmt: skip


def _written(clone: Path, parameters: int, out: Path) -> list[Row]:
    """Tokens a second of llama2.c and of our trained model."""
    flags = "CC=gcc -march=native"
    subprocess.run(["make", "runfast", flags], cwd=clone, capture_output=True, check=True)
    size = _write_llama(out / "llama.bin", parameters)
    _write_vocabulary(out / "llama_tokenizer.bin")
    seeds = iter(range(1, 10_000))

    def theirs() -> float:
        words = ["./run", str((out / "llama.bin").resolve()), "-t", "1.0", "-n", str(WRITTEN)]
        words += ["-z", str((out / "llama_tokenizer.bin").resolve()), "-s", str(next(seeds))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        said = subprocess.run(
            words, cwd=clone, env=environment, capture_output=True, check=True
        ).stderr.decode()
        found = re.search(r"achieved tok/s: ([\d.]+)", said)
        assert found is not None, said
        return WRITTEN / float(found[1])

    model = newllm.load(str(out / f"best_{_name(True)}.pt"), device="cpu")
    bare = newllm.load(str(out / f"best_{_name(False)}.pt"), device="cpu") if (
        out / f"best_{_name(False)}.pt"
    ).exists() else None  # fmt: skip

    def ours(model: newllm.TrainedModel) -> float:
        session = model.chat(Sampling(temperature=1.0, seed=next(seeds)))
        started = time.perf_counter()
        for _ in session.stream("Tell me a story.", WRITTEN, WRITTEN):
            pass
        return time.perf_counter() - started

    candidates = {"llama2.c": theirs, "newllm": lambda: ours(model)}
    if bare is not None:
        candidates["newllm, no recall, no counts"] = lambda: ours(bare)
    timings = rounds(candidates, 15, baseline="llama2.c", work=WRITTEN)
    sizes = {"llama2.c": size}
    return [
        {"program": t.name, "parameters": sizes.get(t.name), "tokens_a_second": t.per_second,
         "times_as_fast": t.ratio}
        for t in timings
    ]  # fmt: skip


def _write_llama(path: Path, parameters: int) -> int:
    """A random model in llama2.c's first format; how many parameters it has."""

    def shape(width: int) -> tuple[int, int]:
        hidden = 8 * round(8 * width / 24)
        matrices = LAYERS * (4 * width**2 + 3 * width * hidden) + VOCABULARY * width
        return hidden, matrices + (2 * LAYERS + 1) * width

    width = next(w for w in range(1024, 0, -8) if shape(w)[1] <= parameters)
    hidden, size = shape(width)
    header = (width, hidden, LAYERS, HEADS, HEADS, VOCABULARY, WRITTEN)
    angles = WRITTEN * (width // HEADS // 2)
    weights = np.random.default_rng(0).normal(0, 0.02, size + 2 * angles).astype(np.float32)
    path.write_bytes(struct.pack("7i", *header) + weights.tobytes())
    return size


def _write_vocabulary(path: Path) -> None:
    entries = (f"w{number:04d}".encode() for number in range(VOCABULARY))
    content = b"".join(struct.pack("<fi", 0.0, len(entry)) + entry for entry in entries)
    path.write_bytes(struct.pack("<i", 8) + content)
