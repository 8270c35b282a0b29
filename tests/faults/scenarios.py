"""Work that is struck at every point: what it begins from, its command, and what it must end in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from newllm.config import read_yaml
from newllm.train import checkpoint, sharding

NAME = "new_llm_dolly_layers1_bpe"
TINY = [
    "--context-dim", "64", "--embed-dim", "16", "--hidden-dim", "24", "--pair-rows", "16",
    "--max-seq-length", "32", "--batch-size", "8", "--device", "cpu",
]  # fmt: skip
_TIMES = {"created", "seconds", "total_seconds", "minutes", "machine", "torch_version"}


@dataclass(frozen=True)
class Scenario:
    """One kind of work in a folder of its own."""

    name: str
    work: str
    arguments: Callable[[Path, Path], list[str]]
    """Of the folder of the rows, and of the folder of the work."""
    resume: list[str] = field(default_factory=list)
    """What the command has besides, when it is given again."""
    before: Callable[[Path], list[tuple[str, list[str]]]] = lambda folder: []
    """Works that are done once, before: what the struck one finds there."""
    places: tuple[str, ...] = ("out",)
    """Folders of the work that are watched and compared; with `cache` it is new every time."""
    held: Callable[[Path], None] = lambda folder: None
    """Raises where something is lost or left over, however the work was ended."""
    imports: tuple[str, ...] = ()
    """Modules that are imported before the first fork."""
    repeats: bool = False
    """Every time it is done adds something, so that it ends in one of two ways."""
    processes: int = 1
    """How many do it together, each of which says why it ends."""


def write_rows(folder: Path) -> Path:
    """Rows of two levels."""
    makers: dict[str, Callable[[int], dict[str, Any]]] = {
        "dolly": lambda n: {
            "instruction": f"What comes after {n}?", "context": "", "category": "open_qa",
            "response": f"After {n} comes {n + 1}.",
        },
        "ultrachat": lambda n: {
            "messages": [
                {"role": "user", "content": f"Tell me of {n}"},
                {"role": "assistant", "content": f"{n} lies between {n - 1} and {n + 1}."},
            ]
        },
    }  # fmt: skip
    for dataset, make in makers.items():
        (folder / dataset).mkdir(parents=True)
        for split, start, count in (("train", 0, 24), ("validation", 1000, 4)):
            lines = [json.dumps(make(start + number)) + "\n" for number in range(count)]
            (folder / dataset / f"{split}.jsonl").write_text("".join(lines))
    return folder


def write_pairs(folder: Path) -> str:
    """Rows of preferences; where they are."""
    part = folder / "pairs" / "helpful-base"
    if not part.exists():
        part.mkdir(parents=True)
        for split, start, count in (("train", 0, 16), ("validation", 1000, 4)):
            begun = [f"\n\nHuman: What is {start + n}?\n\nAssistant:" for n in range(count)]
            rows = [{"chosen": f"{b} a number", "rejected": f"{b} no"} for b in begun]
            (part / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder / "pairs")


def _train(rows: Path, folder: Path) -> list[str]:
    return ["train", "dolly", "--data", str(rows / "dolly"), "--out", str(folder / "out"), *TINY,
            "--vocab-size", "320", "--epochs", "2", "--save-minutes", "0"]  # fmt: skip


def _model(folder: Path) -> list[tuple[str, list[str]]]:
    """A trained model in the folder `model`."""
    rows = write_rows(folder / "rows")
    command = _train(rows, folder)
    command[command.index("--out") + 1] = str(folder / "model")
    return [("command", command)]


def best(folder: Path) -> str:
    """The checkpoint that works begin with."""
    return str(folder / "model" / f"best_{NAME}.pt")


def _parts_belong(folder: Path) -> None:
    """Folders of parts are whole, and each is named by a resume file."""
    named = set()
    for file in (folder / "out").glob("*_resume*.pt"):
        stored = checkpoint.load(file)
        sharding.check_parts(_newest(file), stored)
        named |= {stored["parts"]["folder"]} if stored.get("parts") else set()
    found = {path.name for path in (folder / "out").glob("*.parts-*") if path.is_dir()}
    assert found >= named


def _newest(resume: Path) -> Path:
    """The name after which folders of parts are called, of a resume file and the one before."""
    return resume.with_name(resume.name.replace(".previous", ""))


def _parts(resume: Path, stored: dict[str, Any]) -> Any:
    """All tensors of a folder of parts."""
    folder = sharding.parts_folder(_newest(resume), stored["parts"]["folder"])
    with tempfile.NamedTemporaryFile() as file:
        dcp_to_torch_save(folder, file.name)
        return torch.load(file.name, weights_only=True)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("train", "command", _train, ["--resume"]),
        Scenario(
            "prepare", "command",
            lambda rows, _: ["data", "dolly", "--data", str(rows / "dolly"), "--vocab-size", "320"],
            places=("cache",),
        ),
        Scenario(  # beside the rows: the tables of counts, which are made once as well
            "counts", "command",
            lambda rows, folder: [
                *_train(rows, folder)[:-4], "--epochs", "1", "--counts", "20KB",
                "--recall-slots", "64",
            ],
            ["--resume"],
            places=("cache", "out"),
        ),
        Scenario(
            "sharded", "sharded",
            lambda rows, folder: [
                *_train(rows, folder), "--shard", "--epochs", "1", "--num-layers", "1",
            ],
            ["--resume"],
            imports=("torch.distributed.fsdp", "torch.distributed.checkpoint",
                     "torch.distributed.tensor"),
            held=_parts_belong,
            processes=2,
        ),
        Scenario(
            "reward", "command",
            lambda rows, folder: [
                "prefer", best(folder), "--data", write_pairs(rows), "--method", "reward",
                "--device", "cpu",
            ],
            before=_model,
            places=("model",),  # the head lies beside its checkpoint
        ),
        Scenario(
            "sessions", "served", lambda _, folder: [best(folder), str(folder / "out")],
            before=_model,
        ),
        Scenario(
            "climb", "climbed",
            lambda rows, folder: [str(rows), str(folder / "out")], ["--resume"],
        ),
        Scenario(
            "prefer", "command",
            lambda rows, folder: [
                "prefer", best(folder), "--data", write_pairs(rows), "--batch-size", "4",
                "--epochs", "2", "--save-minutes", "0", "--device", "cpu", "--name", "preferred",
                "--out", str(folder / "out"),
            ],
            ["--resume"],
            before=_model,
        ),
        Scenario(
            "practise", "practised",
            lambda _, folder: [best(folder), str(folder / "rows"), str(folder / "out")],
            ["--resume"],
            before=_model,
        ),
        Scenario(
            "tokenizer", "command",
            lambda rows, folder: [
                "tokenizer", "train", "--levels", "dolly", "--levels", "ultrachat",
                "--data-dir", str(rows), "--vocab-size", "320",
                "-o", str(folder / "out" / "tokenizer.json"),
            ],
        ),
        Scenario(
            "session", "session",
            lambda _, folder: [best(folder), str(folder / "out" / "a.session")],
            before=lambda folder: [
                *_model(folder), ("session", [best(folder), str(folder / "out" / "a.session")])
            ],
            repeats=True,
        ),
        Scenario(
            "export", "command",
            lambda _, folder: ["export", best(folder), "-o", str(folder / "out" / "folder")],
            before=_model,
            imports=("transformers.modeling_utils", "transformers.tokenization_utils_fast",
                     "transformers.generation", "safetensors.torch"),
        ),
        Scenario(
            "marks", "marks", lambda *_: ["dolly"],
            before=lambda _: [("marks", ["math"])],
            places=("cache",),
        ),
    )
}  # fmt: skip


def content(path: Path) -> Any:
    """What a file says, without what differs between two equal runs.

    Raises an exception where the file is not whole.
    """
    if path.suffix == ".pt":
        loaded = checkpoint.load(path)
        if loaded["kind"] == "model":
            return {"model": loaded["model"], "metrics": _timeless(loaded["metrics"])}
        if loaded["kind"] == "reward":
            return loaded["weight"]
        if loaded.get("parts"):
            return _parts(path, loaded)
        return {"model": loaded["trainer"]["model"], "optimizers": loaded["trainer"]["optimizers"]}
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".yaml":
        return {key: value for key, value in read_yaml(path).items() if key not in ("out", "data")}
    return path.read_bytes()


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, tensors included."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def _timeless(value: Any) -> Any:
    """Without clocks, and without the folder it was made in."""
    if isinstance(value, dict):
        kept = {key: _timeless(part) for key, part in value.items() if key not in _TIMES}
        for key in ("checkpoint", "out", "data_dir", "data", "source", "rehearse", "init_from"):
            if isinstance(kept.get(key), (str, list)):
                del kept[key]
        return kept
    if isinstance(value, list):
        return [_timeless(part) for part in value]
    return value
