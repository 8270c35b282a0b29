"""Every benchmark in tiny form, through the verb: its keys, its table, and a user's mistakes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import newllm
from benchmarks import half
from benchmarks.busy import tokens
from benchmarks.dialogues import write_dialogues
from benchmarks.full_size import measure
from benchmarks.train_speed import settings_of
from newllm.cli import main
from newllm.data.loader import EpochLoader
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset

ROOT = Path(newllm.__file__).parent.parent
SHAPE = "--num-layers 1 --context-dim 16 --embed-dim 16 --hidden-dim 16".split()
MACHINE = {
    "date", "newllm", "python", "torch", "numpy", "numba", "tokenizers", "cpu", "cores", "threads",
    "load", "kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model of dialogues, hardly trained."""
    out = tmp_path_factory.mktemp("run")
    flags = "--vocab-size 400 --max-samples 20 --epochs 1 --data sample --device cpu".split()
    flags += [*SHAPE, "--batch-size", "8", "--out", str(out), "--name", "tiny"]
    assert main(["train", "hh_rlhf", *flags]) == 0
    return str(out / "best_tiny.pt")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `newllm bench .. --json` prints."""
    capsys.readouterr()
    assert main(["bench", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"machine", "facts", "tables"}
    assert set(result["machine"]) == MACHINE
    return result


def keys(result: dict[str, Any]) -> dict[str, list[str]]:
    """Table -> columns, after seeing that all rows have the same."""
    for rows in result["tables"].values():
        assert all(list(row) == list(rows[0]) for row in rows)
    return {title: list(rows[0]) for title, rows in result["tables"].items()}


# -- the verb ------------------------------------------------------------------------------------


def test_the_list_has_a_line_for_each(capsys) -> None:
    assert main(["bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines}
    assert listed >= {"data", "inference", "levels", "memory", "probes"}
    assert not listed & {"measure", "models", "__init__"}
    for line in lines:
        assert len(line.split()) > 4
        assert main(["bench", line.split()[0].replace("_", "-"), "--help"]) == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["infrence"], "unknown benchmark infrence (did you mean inference?)"),
        (["measure"], "unknown benchmark measure"),
        (["inference", "--token", "3"], "No such option '--token'."),
        (["memory", "--tokens", "5"], "5 is not in the range"),
        (["memory", "--checkpoint", "x.pt"], "x.pt: no such checkpoint"),
        (["inference", "--vocab-size", "3"], "--vocab-size 3: input should be greater"),
        (["data", "dolly", "--data", "nowhere"], "nowhere: no such file or folder"),
        (
            ["data", "dolly", "--rows", "50"],
            "--rows: they are made up for ultrachat, not for dolly",
        ),
        (["levels", "--data-dir", "sample", "--dataset", "chat"], "'chat' is not one of"),
    ],
)
def test_mistakes_get_one_line(arguments, says, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_without_a_clone(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(newllm, "__file__", str(tmp_path / "newllm" / "__init__.py"))
    assert main(["bench", "memory"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "clone of the source" in line


# -- the benchmarks ------------------------------------------------------------------------------


def test_inference(capsys) -> None:
    result = run_json(
        capsys, "inference", *SHAPE, "--vocab_size", "300", "--tokens", "3", "--repeats", "2"
    )
    tables = result["tables"]
    assert keys(result) == {
        "One token at a time": [
            "candidate", "microseconds", "tokens_per_second", "spread", "ratio_to_module",
        ],
        "Reading a prompt": [
            "candidate", "milliseconds", "tokens_per_second", "spread", "ratio_to_training",
        ],
        "Independent texts side by side": [
            "candidate", "slots", "tokens_per_second", "spread", "ratio_to_one_slot",
        ],
    }  # fmt: skip
    assert [row["candidate"] for row in tables["One token at a time"]] == [
        "module", "fused step", "fused step, bf16 weights", "fused step, int8 weights",
        "generation, sampling included",
    ]  # fmt: skip
    assert tables["One token at a time"][0]["ratio_to_module"] == 1.0
    assert {row["slots"] for row in tables["Independent texts side by side"]} >= {1, 64}
    assert result["facts"]["context_dim"] == 16


def test_inference_of_a_peer_has_no_fused_step(capsys) -> None:
    result = run_json(
        capsys, "inference", *SHAPE, "--architecture", "gru", "--vocab-size", "300",
        "--tokens", "1", "--repeats", "1",
    )  # fmt: skip
    candidates = [row["candidate"] for row in result["tables"]["One token at a time"]]
    assert candidates == ["module", "generation, sampling included"]


def test_memory(checkpoint: str, capsys) -> None:
    result = run_json(capsys, "memory", "--checkpoint", checkpoint, "--tokens", "2000")
    assert keys(result) == {
        "A text as it grows": [
            "tokens", "tokens_per_second", "spread", "of_a_text_just_begun", "ratio",
            "state_bytes", "resident_mb", "resident_ratio",
        ]
    }  # fmt: skip
    rows = result["tables"]["A text as it grows"]
    assert [row["tokens"] for row in rows] == [100, 1000, 2000]
    recall = 4 * (4 * 1024 + 5)
    assert {row["state_bytes"] for row in rows} == {4 * 4 * 16 + 8 + recall}  # context, tail, an id
    assert all(0.2 < row["ratio"] < 5 for row in rows)
    assert result["facts"]["model"] == checkpoint
    assert main(["bench", "memory", "--checkpoint", checkpoint, "--tokens", "100"]) == 0
    printed = capsys.readouterr().out
    assert "| tokens | tokens per second |" in printed
    assert "| 100 | " in printed


@pytest.mark.parametrize("tokenizer", ["bpe", "word1000"])
def test_data(tokenizer: str, dolly_folder: Path, capsys) -> None:
    result = run_json(
        capsys, "data", "dolly", "--data", str(dolly_folder), "--repeats", "1",
        "--vocab-size", "300", "--tokenizer", tokenizer,
    )  # fmt: skip
    assert keys(result) == {
        "Preparing": [
            "stage", "seconds", "rows_per_second", "megabytes_per_second", "spread",
            "ratio_to_bare_tokenizer",
        ],
        "Memory of a first preparation": ["seconds", "peak_mb", "grown_mb"],
        "Table of counts": ["seconds", "peak_mb", "grown_mb"],
        "Training batches": [
            "rows_in_batch", "row_length", "batches_in_epoch", "seconds_to_plan",
            "batches_per_second", "tokens_per_second", "filled_share",
        ],
    }  # fmt: skip
    assert result["facts"]["rows"] == 72
    stages = {row["stage"]: row for row in result["tables"]["Preparing"]}
    assert stages["bare tokenizer"]["ratio_to_bare_tokenizer"] == 1.0
    assert all(row["seconds"] > 0 for row in stages.values())  # which is longer, load decides
    (batches,) = result["tables"]["Training batches"]
    assert 0 < batches["filled_share"] <= 1


def test_data_of_any_size(tmp_path) -> None:
    prepared, trained = measure(tmp_path, 60, mean_characters=300, minutes=0.001, vocab_size=400)
    assert list(prepared) == [
        "rows", "vocabulary_seconds", "vocabulary_peak_mb", "seconds", "rows_per_second",
        "bare_tokenizer_rows_per_second", "ratio_to_bare_tokenizer", "peak_mb",
        "counting_seconds", "counting_peak_mb", "rows_gb", "shards_gb",
    ]  # fmt: skip
    assert prepared["rows"] == trained["rows"] == 60
    assert 60 * 30 < trained["tokens"] < 60 * 600
    assert trained["steps"] > 0
    assert 0 < trained["seconds_to_first_step"] < trained["seconds"]


def test_made_up_dialogues_have_their_shape_and_are_always_the_same(tmp_path) -> None:
    sizes = [write_dialogues(tmp_path / name, 300, 0, 2000) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sizes[0] == (tmp_path / "a").stat().st_size
    dialogues = [json.loads(line)["data"] for line in (tmp_path / "a").read_text().splitlines()]
    assert len(dialogues) == 300
    assert all(len(messages) >= 4 and len(messages) % 2 == 0 for messages in dialogues)
    assert all(text.strip() for messages in dialogues for text in messages)
    assert 1500 < np.mean([sum(map(len, messages)) for messages in dialogues]) < 2500


def test_probes(checkpoint: str, capsys, tmp_path) -> None:
    picture = tmp_path / "probes.png"
    result = run_json(
        capsys, "probes", "--quick", "--architecture", "context", "--architecture", "gru",
        "--checkpoint", checkpoint, "--dialogues", "5", "--plot", str(picture),
    )  # fmt: skip
    model = ["architecture", "context_dim", "parameters", "state_numbers"]
    recalling = [*model, "recall_slots"]
    assert keys(result) == {
        "Turns of dialogues": [
            "model", "dataset", "context_dim", "turn", "speaker", "dialogues", "tokens",
            "nats_per_token", "nats_per_token_reset", "nats_per_byte", "nats_per_byte_reset",
            "saved_share",
        ],
        "Recall by number of pairs": [*recalling, "pairs_2", "pairs_4"],
        "Recall of 4 pairs by distance": [
            *recalling, *(f"distance_{n}" for n in (8, 16, 32, 64, 128)),
        ],
        "Parity by length": [*model, "length_32", "length_64"],
    }  # fmt: skip
    by_pairs = result["tables"]["Recall by number of pairs"]
    names = [(row["architecture"], row["context_dim"], row["recall_slots"]) for row in by_pairs]
    assert names == [
        ("guess", None, None), *(("context", n, 0) for n in (16, 48, 80)), ("context", 48, 1024),
        ("gru", 48, 0), ("gru", 48, 1024),
    ]  # fmt: skip
    first = result["tables"]["Turns of dialogues"][0]
    assert (first["turn"], first["dialogues"]) == (1, 5)
    assert first["nats_per_byte"] == pytest.approx(first["nats_per_byte_reset"], rel=1e-5)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_probe_of_several_models(checkpoint: str, capsys, tmp_path) -> None:
    picture, copy = tmp_path / "turns.png", tmp_path / Path(checkpoint).name
    shutil.copy(checkpoint, copy)
    probe = ["probes", "--only", "turns", "--checkpoint", checkpoint]
    flags = ["--dataset", "hh_rlhf", "--dialogues", "3"]
    result = run_json(capsys, *probe, "--checkpoint", str(copy), *flags, "--plot", str(picture))
    (rows,) = result["tables"].values()
    half = len(rows) // 2
    names = [f"{Path(file).parent.name}/tiny" for file in (checkpoint, copy)]
    assert [row["model"] for row in rows] == [name for name in names for _ in range(half)]
    assert [{**row, "model": names[1]} for row in rows[:half]] == rows[half:]
    assert max(row["turn"] for row in rows) > 1
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "turns"], "--only turns: needs a model; give its file with --checkpoint"),
        (["--only", "parity", "--checkpoint", "FILE"], "--checkpoint: only turns are probed"),
        (["--checkpoint", "FILE", "--dataset", "dolly"], "no dialogue of dolly in sample has a"),
    ],
)
def test_probes_that_ask_for_nothing(flags, said, checkpoint: str, capsys) -> None:
    words = [checkpoint if word == "FILE" else word for word in flags]
    assert main(["bench", "probes", *words]) == 2
    assert said in capsys.readouterr().err


def test_probes_of_what_has_no_turns(capsys, monkeypatch, tmp_path) -> None:
    out = str(tmp_path)
    flags = [*SHAPE, "--tokenizer", "word1000", "--max-samples", "20", "--epochs", "1",
             "--data", "sample", "--device", "cpu", "--out", out, "--name", "words"]  # fmt: skip
    assert main(["train", "hh_rlhf", *flags]) == 0
    capsys.readouterr()
    assert main(["bench", "probes", "--checkpoint", f"{out}/best_words.pt"]) == 2
    assert "knows no turns" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "probes", "--plot", "x.png"]) == 2
    assert '--plot: needs matplotlib: pip install -e ".[report]"' in capsys.readouterr().err


@pytest.mark.slow
def test_memories_and_what_counts_cost(dolly_folder: Path, capsys, tmp_path) -> None:
    here = ["--data-dir", str(dolly_folder.parent), "--out", str(tmp_path / "out"), "--steps", "2"]
    sizes = ["--slots", "1024", "--counts", "0,8MB", "--sets", "dolly:bpe"]
    result = run_json(capsys, "memories", *here, *sizes, "--seeds", "1", "--cores", "1")
    assert keys(result) == {
        "1.4M parameters, 2 steps": [
            "set", "architecture", "recall_slots", "counts_mb", "parameters", "seed_0", "ngram",
            "minutes",
        ]
    }  # fmt: skip
    ((without, counting),) = result["tables"].values()
    assert without["counts_mb"] == 0 < counting["counts_mb"] < 8
    assert counting["seed_0"] < without["seed_0"]  # two steps teach a network nothing
    result = run_json(capsys, "counts", *here, "--repeats", "1", "--starts", "1")
    assert keys(result) == {
        "Preparation": ["tokens", "tables", "bytes", "seconds", "memory_mb"],
        "A step of training": ["model", "ms", "speed"],
        "A written token": ["model", "us", "speed"],
        "From nothing to a token": ["model", "seconds"],
        "Trust in the longest context, in all": ["rows", "longest", "all"],
    }


def test_busy(capsys, monkeypatch) -> None:
    """The table, of trainings that are made up; the next test has a real one."""
    alone = {1: 100, None: 190}
    monkeypatch.setattr(
        "benchmarks.busy.tokens",
        lambda dataset, data, seconds, threads, later: alone.get(threads, 200) - 50 * later,
    )
    result = run_json(capsys, "busy", "--repeats", "2")
    assert keys(result) == {
        "Tokens in equal time": ["machine", "threads", "tokens", "share", "least"]
    }
    (rows,) = result["tables"].values()
    assert [row["machine"] for row in rows[::3]] == ["as it is", "busy", "busy after a third"]
    assert [row["share"] for row in rows[2::3]] == [1.9, 1.9, 1.4]


@pytest.mark.slow
def test_a_training_beside_others_reads_tokens(dolly_folder: Path) -> None:
    assert tokens("dolly", str(dolly_folder), 0.3, 1, later=1) > 0


@pytest.mark.slow
def test_levels(capsys, tmp_path) -> None:
    result = run_json(
        capsys, "levels", "--data-dir", "sample", "--dataset", "dolly", "--tokenizer", "bpe",
        "--minutes", "0.002", "--max-samples", "50", "--context-dim", "16", "--out", str(tmp_path),
    )  # fmt: skip
    assert keys(result) == {
        "0.002 minutes of training each": [
            "data_set", "tokenizer", "parameters", "rows", "tokens_read", "unk_share", "ngram_ppl",
            "ppl", "accuracy", "bits_per_byte",
        ]
    }  # fmt: skip
    ((row,),) = result["tables"].values()
    assert (row["rows"], row["unk_share"]) == (50, None)
    assert row["bits_per_byte"] > 0
    assert "Level 1" in (tmp_path / "dolly_bpe.log").read_text(encoding="utf-8")


def test_preference(capsys, tmp_path) -> None:
    begin = "\n\nHuman: is {} a number?\n\nAssistant:"
    for part, split in itertools.product(("helpful-base", "harmless-base"), ("train", "test")):
        asked = [begin.format(n) for n in range(8)]
        pairs = [{"chosen": f"{each} yes it is", "rejected": f"{each} no no"} for each in asked]
        (tmp_path / part).mkdir(exist_ok=True)
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (tmp_path / part / f"{split}.jsonl").write_text(text, encoding="utf-8")
    result = run_json(
        capsys, "preference", "--data", str(tmp_path), "--minutes", "0.002", "--seed", "3",
        "--method", "simpo", "--rate", "0.01", "--max-steps", "1", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    ((title, columns),) = keys(result).items()
    assert title == "The chosen answer is likelier, % of the validation pairs"
    assert columns == [
        "seed", "method", "beta", "rate", "before", "after", "gain_low", "gain_high", "longer",
        "reward_accuracy", "ordinary_loss", "rejected_likelier", "refusals_before",
        "refusals_after",
    ]  # fmt: skip
    first, second = result["tables"][title]
    assert (first["beta"], second["beta"]) == (2.0, 10.0)
    assert first["before"] == second["before"]
    assert first["gain_low"] <= first["after"] - first["before"] <= first["gain_high"]
    log = tmp_path / "out" / "preference_3_simpo_10_0.01.log"
    assert "Loss   method simpo" in log.read_text("utf-8")


def test_lessons_rise_when_learned(monkeypatch) -> None:
    """A task that is learned at once, then one that cannot be: it is begun, and repeated."""
    monkeypatch.setattr("newllm.train.optimizers.fast_bf16", lambda device: False)  # all alike
    from benchmarks.probe_tasks import Task
    from benchmarks.probe_training import train_on

    drawn: list[str] = []

    def easy(seed: int) -> Task:
        drawn.append("easy")
        ids = np.random.default_rng(seed).integers(2, size=(8, 8))
        return Task(ids, 2 + ids)

    def hard(seed: int) -> Task:
        drawn.append("hard")
        rng = np.random.default_rng(seed)
        return Task(rng.integers(2, size=(8, 8)), rng.integers(4, size=(8, 8)))

    train_on([easy, hard, easy], 4, "context", 16, 0.01, 60, seed=0)
    begun = drawn.index("hard")
    assert 5 < begun < 40
    assert "easy" in drawn[begun:]  # an earlier lesson again
    assert drawn[begun:].count("hard") > len(drawn[begun:]) / 2


# -- length --------------------------------------------------------------------------------------


def test_length(checkpoint: str, capsys) -> None:
    result = run_json(
        capsys, "length", "--checkpoint", checkpoint, "--data", "sample", "--times", "4"
    )
    (rows,) = result["tables"].values()
    assert [row["positions"] for row in rows] == ["0 to 128", "128 to 256", "256 to 512"]
    for row in rows:
        assert row["nats_a_token"] > 0
        assert row["ratio"] == pytest.approx(row["nats_a_token"] / row["with_resets"])


def test_length_beyond_the_rows(checkpoint: str, capsys) -> None:
    assert main(["bench", "length", "--checkpoint", checkpoint, "--times", "100000"]) == 2
    assert "lower --times" in capsys.readouterr().err


# -- serve ---------------------------------------------------------------------------------------


def test_serve(checkpoint: str, capsys, monkeypatch) -> None:
    from benchmarks import serve

    monkeypatch.setattr(serve, "CLIENTS", (1, 3))
    monkeypatch.setattr(serve, "FIRST_TEXTS", 3)
    monkeypatch.setattr(serve, "TURN_WORDS", 20)
    monkeypatch.setattr(serve, "LISTENED_SECONDS", 0.3)
    arguments = ["--checkpoint", checkpoint, "--answer-tokens", "5", "--tokens", "1000"]
    tables = run_json(capsys, "serve", *arguments, "--kept", "3")["tables"]
    first, together, kept, session = tables.values()
    assert 0 < first[0]["server_ms"] < first[0]["client_ms"]
    assert [row["clients"] for row in together] == [1, 3]
    assert [row["lost"] for row in together] == [0, 0]
    assert [row["conversations"] for row in kept] == [1, 3]
    assert all(row["pages_read"] > 0 < row["health_ms"] for row in kept)
    assert session[-1]["tokens_read"] >= 1000
    assert len({row["state_bytes"] for row in session}) == 1


@pytest.mark.slow
def test_load(checkpoint: str, capsys, monkeypatch) -> None:
    from benchmarks import load

    monkeypatch.setattr(load, "LISTENED_SECONDS", 0.1)
    monkeypatch.setattr(load, "WATCHED_SECONDS", 0.1)
    monkeypatch.setattr(load, "_DRIPPED", 0.05)
    arguments = ["--checkpoint", checkpoint, "--answer-tokens", "5", "--clients", "6"]
    tables = run_json(capsys, "load", *arguments, "--slow", "5", "--seconds", "0.3")["tables"]
    ((asked,), slow, memory) = tables.values()
    assert (asked["clients"], asked["lost"]) == (6, 0)
    assert 1 <= asked["slowest_to_median"] < 100
    assert [row["slow_clients"] for row in slow] == list(load.FORMS)
    assert [row["still_open"] for row in slow] == [0] + [5] * 8, "none had to give way"
    assert all(0 < row["health_ms"] <= row["health_ms_worst"] for row in slow)
    assert len(memory) >= 3
    assert all(row["resident_mb"] > 50 for row in memory)
    assert memory[-1]["answers"] + memory[-1]["conversations"] + memory[-1]["left"] > 0


@pytest.mark.slow
def test_versions(checkpoint: str, capsys, monkeypatch) -> None:
    """This version beside itself."""
    from benchmarks import versions

    for name, value in (("CLIENTS", (1, 2)), ("REPEATS", 1), ("STREAMS", 1)):
        monkeypatch.setattr(versions, name, value)
    arguments = ["--checkpoint", checkpoint, "--against", str(ROOT), "--answer-tokens", "3"]
    (rows,) = run_json(capsys, "versions", *arguments)["tables"].values()
    assert [row["what"] for row in rows] == [
        "1 clients, tokens/s", "2 clients, tokens/s", "first text, ms", "whole stream, ms",
    ]  # fmt: skip
    assert all(row["older"] > 0 < row["this"] and row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_shard(capsys) -> None:
    result = run_json(capsys, "shard", "--params", "600000", "--steps", "2", "--tokens", "64")
    assert keys(result) == {
        "A step": ["processes", "held_mb", "held_of_one", "grown_mb", "step_s", "loss_differs"]
    }
    one, after, during, shared = result["tables"]["A step"]
    assert one["held_of_one"] == after["held_of_one"] == during["held_of_one"] == 1
    assert 0.4 < shared["held_of_one"] < 0.7
    assert max(row["loss_differs"] for row in result["tables"]["A step"]) < 1e-3


@pytest.mark.parametrize("gru", [False, True], ids=["context", "torch GRU"])
def test_half_precision_beside_torchs_own(gru: bool) -> None:
    """A step of both models, whose parameters are as many; the command does it on three CPUs."""
    settings = settings_of("context", 1, 1000)
    source = open_source(find_dataset("dolly"), "sample", "all")
    data = prepare_training(source, Encoding.of(settings.model_copy(update={"data": "sample"})))
    batch = EpochLoader(data.splits["train"], 128, 32, (0, 0)).batch(0)
    step = half.losses([batch], torch.float32, gru)
    assert 5 < step() < 8  # ln 1000 is 6.9
    assert step() < 6.9
