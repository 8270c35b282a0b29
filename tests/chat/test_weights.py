"""`--weights`: a checkpoint used with smaller weights, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from newllm.cli import cli, main
from newllm.errors import UserError
from newllm.inference.decoder import FusedDecoder, Stream
from newllm.inference.sampling import Sampling
from newllm.model.context.decode import ContextSlots
from newllm.model.quantize import RoundedLM, WeightFormat
from newllm.trained import TrainedModel
from tests.untrained import save_model, untrained

TINY = {"context_dim": 16, "embed_dim": 24, "hidden_dim": 32, "vocab_size": 300, "device": "cpu"}


def save(path: Path, data: Path, architecture: str = "context") -> str:
    """A checkpoint of a model that was never trained."""
    model = untrained(**TINY, architecture=architecture, data=str(data))
    return save_model(model, path)


@pytest.fixture
def file(tmp_path: Path, dolly_folder: Path) -> str:
    return save(tmp_path / "model.pt", dolly_folder)


def test_eval_tells_their_price(file: str, capsys) -> None:
    scores = {}
    for weights in ("fp32", "bf16", "int8"):
        assert main(["eval", file, "--weights", weights, "--json"]) == 0
        scores[weights] = json.loads(capsys.readouterr().out)["bpb"]
    price = {weights: abs(score / scores["fp32"] - 1) for weights, score in scores.items()}
    assert 0 < price["bf16"] < price["int8"] < 0.02
    assert main(["eval", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bpb"] == scores["fp32"]


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_an_answer_is_that_of_the_rounded_model(file: str, weights, capsys, monkeypatch) -> None:
    """With the fused step on the packed weights, and token by token through the module."""
    limits = ["--max-new-tokens", "30", "--min-new-tokens", "30"]
    arguments = ["generate", file, "--prompt", "What comes after 5?", "--temperature", "0"]
    arguments += [*limits, "--weights", weights]
    assert main(arguments) == 0
    packed = capsys.readouterr().out
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")
    assert main(arguments) == 0
    assert capsys.readouterr().out == packed
    assert len(packed) > 20


def test_chat_takes_the_option(file: str, capsys, monkeypatch) -> None:
    lines = iter(["hello"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/quit"))
    assert main(["chat", file, "--weights", "int8", "--max-new-tokens", "5"]) == 0
    assert "Model: " in capsys.readouterr().out


def test_a_loaded_model_steps_with_its_weights(file: str) -> None:
    loaded = TrainedModel.load(file, "cpu", weights="int8")
    assert isinstance(loaded.model, RoundedLM)
    stream = Stream(loaded.decoder)
    stream.read([5])
    assert isinstance(stream._decoder, FusedDecoder)
    slots = stream._decoder._slots
    assert isinstance(slots, ContextSlots)
    assert slots._weights.matrices.dtype == "int8"
    assert loaded.chat(Sampling(temperature=0)).say("hi", 5) == loaded.chat(
        Sampling(temperature=0)
    ).say("hi", 5)


def test_where_they_are_not_to_be_had(tmp_path: Path, dolly_folder: Path, capsys) -> None:
    original = save(tmp_path / "original.pt", dolly_folder, "original")
    assert main(["generate", original, "--prompt", "x", "--weights", "int8"]) == 2
    complaint = capsys.readouterr().err
    assert "--weights int8: only for the context architecture on a CPU" in complaint
    assert "this is original on cpu" in complaint
    assert len(complaint.splitlines()) == 1
    assert TrainedModel.load(original, "cpu").parameters > 0


def test_not_on_a_gpu(file: str, monkeypatch) -> None:
    monkeypatch.setattr("newllm.trained.pick_device", lambda _: torch.device("cuda"))
    with pytest.raises(UserError, match=r"--weights bf16: only .* this is context on cuda"):
        TrainedModel.load(file, weights="bf16")


@pytest.mark.parametrize("verb", ["generate", "chat", "eval"])
def test_the_option_has_every_format(verb: str) -> None:
    (option,) = [p for p in cli.commands[verb].params if p.name == "weights"]
    assert tuple(getattr(option.type, "choices", ())) == get_args(WeightFormat)
