"""Runs that begin with something: a model, its moments, a vocabulary, data sets to rehearse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from newllm.cli import main
from newllm.config import ModelSettings
from newllm.curriculum.grow import grow_file
from newllm.data.tokenizers import BPE, save_tokenizer
from newllm.errors import UserError
from newllm.model.growth import old_entries
from newllm.results.records import score
from newllm.train import checkpoint
from newllm.train.run import train
from newllm.train.schedule import Schedule
from newllm.trained import TrainedModel

TINY = {
    "num_layers": 1, "context_dim": 64, "embed_dim": 16, "hidden_dim": 24, "vocab_size": 400,
    "max_seq_length": 24, "batch_size": 4, "epochs": 1, "device": "cpu", "dropout": 0.1,
}  # fmt: skip


@pytest.fixture
def flags(dolly_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {**TINY, "data": str(dolly_folder), "out": str(tmp_path / "out")}


@pytest.fixture
def final(flags: dict[str, Any]) -> Path:
    """Last file of a finished run."""
    best = train("dolly", flags)
    return best.with_name(best.name.removeprefix("best_").replace(".pt", "_final.pt"))


def small(flags: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Settings of a second run that says nothing about its shape."""
    kept = ("data", "out", "max_seq_length", "batch_size", "epochs", "device")
    return {**{name: flags[name] for name in kept}, "name": "second", **changes}


def test_shape_and_vocabulary_come_with_the_file(flags: dict[str, Any], final: Path) -> None:
    best = train("dolly", small(flags, init_from=str(final)))
    before, after = TrainedModel.load(final).settings, TrainedModel.load(best).settings
    assert after.model_settings() == before.model_settings()
    assert after.vocab_size == before.vocab_size == 400


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"num_layers": 2}, "give --num-layers 1"), ({"vocab_size": 500}, "omit --vocab-size 500")],
)
def test_another_shape_or_vocabulary_is_refused(
    flags: dict[str, Any], final: Path, changed: dict[str, int], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train("dolly", small(flags, init_from=str(final), **changed))


def test_a_run_goes_on_with_the_optimizers_moments(
    flags: dict[str, Any], final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = checkpoint.load(final)["moments"]
    names = {name for name, _ in TrainedModel.load(final).model.named_parameters()}
    assert set(moments) == names
    seen: dict[str, Any] = {}
    from newllm.train import trainer

    def watched(model: Any, optimizers: Any, given: Any) -> None:
        original(model, optimizers, given)
        for optimizer in optimizers:
            for name, parameter in model.named_parameters():
                if parameter in optimizer.state:
                    seen[name] = optimizer.state[parameter]

    original = trainer.set_moments
    monkeypatch.setattr(trainer, "set_moments", watched)
    train("dolly", small(flags, init_from=str(final), epochs=1, minutes=1e-9))
    assert set(seen) == names
    assert seen["embedding.weight"]["step"] >= moments["embedding.weight"]["step"] > 0


def test_greedy_text_is_the_same_after_growing_and_better_after_training_on(
    flags: dict[str, Any], final: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown.pt"
    sizes = {"num_layers": 3, "context_dim": 128, "embed_dim": 32, "hidden_dim": 40}
    grow_file(final, grown, sizes)
    from newllm.inference.sampling import Sampling

    greedy = Sampling(temperature=0)
    prompt = "What comes after 3?"
    said = ["".join(TrainedModel.load(f).generate(prompt, greedy, 40, 40)) for f in (final, grown)]
    assert said[0] == said[1] != ""
    best = train("dolly", small(flags, init_from=str(grown), epochs=4))
    before, after = (score(TrainedModel.load(file).metrics, "bpb") for file in (final, best))
    assert after < before
    assert TrainedModel.load(best).settings.num_layers == 3


def test_frozen_numbers_stay_and_new_ones_learn(
    flags: dict[str, Any], final: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown.pt"
    grow_file(final, grown, {"num_layers": 2, "context_dim": 128, "hidden_dim": 40})
    best = train("dolly", small(flags, init_from=str(grown), freeze_old=True))
    before = ModelSettings.model_validate(checkpoint.load(grown)["grown_from"])
    start, end = checkpoint.load(grown)["model"], checkpoint.load(best)["model"]
    assert len(end.pop(checkpoint.COUNTS)) > 0  # of the new rows, nothing that is learnt
    learnt = 0
    for name, value in end.items():
        old = old_entries(name, value, before)
        assert torch.equal(value[old], start[name][old]), name
        learnt += int((value[~old] != start[name][~old]).sum())
    new = sum(int((~old_entries(name, value, before)).sum()) for name, value in end.items())
    assert learnt > 0.9 * new > 0


def test_a_frozen_run_resumes_exactly(
    flags: dict[str, Any], final: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from newllm.errors import Stopped
    from tests.train.test_run import stop_after

    grown = tmp_path / "grown.pt"
    grow_file(final, grown, {"num_layers": 2, "hidden_dim": 40})
    frozen = small(flags, init_from=str(grown), freeze_old=True, epochs=2)
    calm = train("dolly", frozen)
    stopped = {**frozen, "name": "third"}
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(Stopped):
            train("dolly", stopped)
    resumed = train("dolly", stopped, resume=True)
    both = checkpoint.load(calm)["model"], checkpoint.load(resumed)["model"]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 4}, "give --num-layers 1, or make it larger first with newllm grow"),
        ({"freeze_old": True}, "--freeze-old: give --from a file that newllm grow wrote"),
        ({"tokenizer": "word1000"}, "so give --tokenizer bpe"),
        ({"tokenizer_file": "none.json"}, "none.json: no such tokenizer file"),
    ],
)
def test_what_does_not_fit_the_file(
    flags: dict[str, Any], final: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train("dolly", small(flags, init_from=str(final), **changes))


def test_another_tokenizer_is_refused(flags: dict[str, Any], final: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    save_tokenizer(BPE.train(["quite another text"] * 9, 300), other)
    with pytest.raises(UserError, match=r"other\.json: not the tokenizer of --from .*; omit it"):
        train("dolly", small(flags, init_from=str(final), tokenizer_file=str(other)))


def test_a_widened_stream_leaves_nothing_to_freeze(
    flags: dict[str, Any], final: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown.pt"
    grow_file(final, grown, {"embed_dim": 32})
    with pytest.raises(UserError, match="--freeze-old: growing changed --embed-dim from 16 to 32"):
        train("dolly", small(flags, init_from=str(grown), freeze_old=True))


def rows(folder: Path, count: int) -> Path:
    """Rows of one's own, unlike those of `dolly_folder`."""
    folder.mkdir()
    for split, start in (("train", 0), ("validation", 1000)):
        texts = [
            {"text": f"The number {n} is {n % 7} modulo 7."} for n in range(start, start + count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    return folder


def test_rehearsal_keeps_what_was_learnt(
    flags: dict[str, Any], final: Path, tmp_path: Path, capsys
) -> None:
    own = {**small(flags, init_from=str(final), epochs=6), "data": str(rows(tmp_path / "own", 60))}
    forgot = train("chat", {**own, "name": "without"})
    capsys.readouterr()
    share = {"rehearse": [f"dolly={flags['data']}"], "rehearsal_share": 0.4}
    kept = train("chat", {**own, **share, "name": "with"})
    assert "rehearsed: 40% of the tokens, dolly (" in capsys.readouterr().out
    scores = [TrainedModel.load(f).evaluate(flags["data"], "dolly")["bpb"] for f in (forgot, kept)]
    assert scores[1] < scores[0]
    assert set(checkpoint.load(kept)["data"]["rehearsed"]) == {"dolly"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("dolly", "that is the data set of this run"),
        ("hh_rlhf", "say where its rows are: hh_rlhf=PATH"),
        ("doly=x", "did you mean dolly"),
        ("math=nowhere", "nowhere"),
    ],
)
def test_rehearsal_that_cannot_be(flags: dict[str, Any], entry: str, message: str, capsys) -> None:
    arguments = ["train", "dolly", "--data", flags["data"], "--out", flags["out"]]
    assert main([*arguments, "--rehearse", entry]) == 2
    assert message in capsys.readouterr().err


def test_a_run_ends_after_its_steps_and_its_schedule_with_it(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors: list[float] = []
    factor = Schedule.factor

    def watched(schedule: Schedule, done: float) -> float:
        factors.append(factor(schedule, done))
        return factors[-1]

    monkeypatch.setattr(Schedule, "factor", watched)
    train("dolly", {**flags, "name": "few", "epochs": 1000, "max_steps": 5})
    last = json.loads((tmp_path / "out" / "few.metrics.jsonl").read_text().splitlines()[-1])
    assert last["steps"] == 5
    assert factors == pytest.approx([0, 1, 1, 2 / 3, 1 / 3])
