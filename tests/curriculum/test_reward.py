"""The reward head: its fit by hand, the file, what it chooses, what is refused."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import newllm
from newllm.cli import cli
from newllm.curriculum.reward import bradley_terry, fit_head, train_reward
from newllm.errors import UserError
from newllm.inference.reward import end_states, reward_file
from newllm.inference.sampling import Sampling
from newllm.train import checkpoint
from newllm.train.run import train

TINY = {"context_dim": 16, "embed_dim": 16, "hidden_dim": 24, "vocab_size": 320,
        "max_seq_length": 24, "batch_size": 4, "epochs": 1, "device": "cpu"}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.model.kernels.FORCED", "reference")  # no compiling for a few steps


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of pairs whose chosen answer says yes, and where its rows are."""
    folder = tmp_path_factory.mktemp("reward")
    part = folder / "rows" / "helpful-base"
    part.mkdir(parents=True)
    for split, first, count in (("train", 0, 40), ("validation", 90, 20)):
        rows = [
            {kind: f"\n\nHuman: is {n} a number?\n\nAssistant: {answer} {n % 7}"
             for kind, answer in (("chosen", "yes it is"), ("rejected", "no it is not"))}
            for n in range(first, first + count)
        ]  # fmt: skip
        if split == "train":
            rows[3] = {"chosen": "Assistant: nobody asked", "rejected": "\n\nHuman: hm"}
        (part / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    flags = {**TINY, "data": str(folder / "rows"), "out": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("newllm.model.kernels.FORCED", "reference")
        file = train("hh_rlhf", flags)
    return {"file": str(file), "data": flags["data"]}


def test_the_fit_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    weight = bradley_terry(rows, 0.05).requires_grad_()
    loss = -F.logsigmoid(rows @ weight).mean() + 0.05 * weight.square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-9


def test_what_tells_pairs_apart_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([3.0, -2.0, 0, 0], dtype=torch.float64)
    rows = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    rows *= torch.where(torch.rand(400, generator=generator) < torch.sigmoid(rows @ truth), 1, -1)[
        :, None
    ]
    weight, _ = fit_head(rows, seed=0)
    assert float(F.cosine_similarity(weight.double(), truth, dim=0)) > 0.97
    assert torch.equal(fit_head(rows, seed=0)[0], weight)


def test_the_state_is_that_at_the_end(made) -> None:
    model = newllm.load(made["file"], "cpu")
    texts = [[1, 4, 9, 2], [1, 4, 9, 30, 31, 5, 40, 2], [7]]
    together = end_states(model.model, texts)
    with torch.inference_mode():
        for text, state in zip(texts, together, strict=True):
            hidden, _ = model.model(torch.tensor([text]))
            torch.testing.assert_close(hidden[0, -1].hidden, state)
        _, start = model.model(torch.tensor([texts[1][:5]]))
    after = end_states(model.model, [texts[1][5:], [9]], start)
    torch.testing.assert_close(after[0], together[1])


def test_a_head_lies_beside_its_model_and_chooses(made, tmp_path, capsys) -> None:
    file = tmp_path / "best_m.pt"
    shutil.copy(made["file"], file)
    with pytest.raises(UserError, match=r"no reward head lies beside it; make one with newllm"):
        newllm.load(file, "cpu").chat(best_of=2)
    path = train_reward(str(file), {"data": made["data"], "device": "cpu"})
    assert path == reward_file(file) == tmp_path / "best_m.reward.pt"
    said = capsys.readouterr().out
    assert "Pairs  39 training; 1 rows without two answers left out, the first malformed" in said
    assert "Reward head: right about 100.0% of 20 validation pairs" in said
    content = checkpoint.load(path)
    assert content["kind"] == "reward"
    assert content["right"] == 1.0

    model = newllm.load(file, "cpu")
    sampling = Sampling(temperature=1.5, seed=3)
    session = model.chat(sampling, best_of=5)
    answer = session.say("is 4 a number?", 12)
    plain, answers = model.chat(sampling), []
    rng_state = None
    for _ in range(5):  # by hand: the same turn again and again, the random numbers going on
        one = plain.fork()
        object.__setattr__(one.dialogue.next_turn, "rng_state", rng_state)
        answers.append(one.say("is 4 a number?", 12))
        rng_state = one.dialogue.next_turn.rng_state
    prompt = model.renderer.prompt([{"role": "user", "content": "is 4 a number?"}])
    texts = [[*prompt, *ids, 2] for ids in model.tokenizer.encode_batch(answers)]
    assert answer == answers[int(np.argmax(model.rewards(texts)))]
    assert len(set(answers)) > 1
    assert session.say("and 5?", 4) is not None
    assert [m["role"] for m in session.transcript] == ["user", "assistant"] * 2
    session.undo()
    session.undo()
    assert session.say("is 4 a number?", 12) == answer

    content["model"] = "0" * 64
    checkpoint.save(path, content)
    with pytest.raises(UserError, match="the head of other weights"):
        newllm.load(file, "cpu").chat(best_of=2)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"best_m.reward.pt: "):
        newllm.load(file, "cpu").chat(best_of=2)


def test_the_command(made, tmp_path) -> None:
    from click.testing import CliRunner

    file = tmp_path / "best_m.pt"
    shutil.copy(made["file"], file)
    command = ["prefer", str(file), "--data", made["data"], "--method", "reward"]
    wrong = CliRunner().invoke(cli, [*command, "--beta", "1"])
    assert isinstance(wrong.exception, UserError) or wrong.exit_code == 2
    done = CliRunner().invoke(cli, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with pytest.raises(UserError, match="a reward head; give the checkpoint that it lies beside"):
        checkpoint.load_model(reward_file(file))
    told = CliRunner().invoke(
        cli, ["generate", str(file), "--prompt", "is 1 a number?", "--best-of", "3", "--seed", "1",
              "--max-new-tokens", "5"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
