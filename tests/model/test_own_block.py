"""A block of one's own: what it can do, what is refused, and that no checkpoint runs it alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import newllm
from newllm.cli import main
from newllm.config import ARCHITECTURES
from newllm.errors import Stopped, UserError
from newllm.model import Block, build_model, check_block
from newllm.model.own_block import load_given
from newllm.model.spec import SPECS
from newllm.settings import resolve
from newllm.train import checkpoint
from newllm.train.run import train
from tests.train.test_run import TINY, stop_after, weights

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_block" / "min_gru.py"
NAME = "new_llm_dolly_layers1_plainmingru_bpe"


@pytest.fixture
def block(tmp_path: Path) -> str:
    """The example, in a file that leaves a mark whenever it is run."""
    file = tmp_path / "my_block.py"
    mark = f"with open({str(tmp_path / 'runs')!r}, 'a') as mark:\n    mark.write('x')\n"
    file.write_text(EXAMPLE.read_text(encoding="utf-8") + mark, encoding="utf-8")
    return f"{file}:PlainMinGru"


@pytest.fixture
def flags(dolly_folder: Path, tmp_path: Path, block: str) -> dict[str, Any]:
    places = {"data": str(dolly_folder), "out": str(tmp_path / "out")}
    return {**TINY, **places, "architecture": block}


def runs(tmp_path: Path) -> int:
    """How often the block's file was run."""
    mark = tmp_path / "runs"
    return len(mark.read_text()) if mark.exists() else 0


def said(capsys: pytest.CaptureFixture[str], words: list[str], code: int = 2) -> str:
    """What a command writes; one line where it is refused."""
    capsys.readouterr()
    assert main(words) == code
    output = capsys.readouterr()
    if code == 0:
        return output.out
    assert output.err.count("\n") == 1, output.err
    return output.err


def test_the_names_are_those_of_the_specs() -> None:
    assert tuple(SPECS) == ARCHITECTURES


def test_a_run_goes_on_to_the_bit(flags: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    best = train("dolly", flags)
    assert best.name == f"best_{NAME}.pt"
    stopped = {**flags, "out": str(tmp_path / "stopped")}
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(Stopped):
            train("dolly", stopped)
    moved = tmp_path / "elsewhere.py"  # the file may have another name by then
    shutil.move(stopped["architecture"].rpartition(":")[0], moved)
    again = train("dolly", {**stopped, "architecture": f"{moved}:PlainMinGru"}, resume=True)
    ours, theirs = weights(again), weights(best)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_is_scored_asked_and_trained_on_from_the_command_line(
    flags: dict[str, Any],
    block: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch,
) -> None:
    best, given = str(train("dolly", flags)), ["--architecture", block]
    facts = checkpoint.load(Path(best))["block"]
    assert (facts["file"], facts["class"]) == ("my_block.py", "PlainMinGru")
    once = runs(tmp_path)
    for words in (["eval", best], ["generate", best, "--prompt", "hi"], ["chat", best],
                  ["serve", best], ["train", "dolly", "--from", best], ["export", best, "-o", "x"],
                  ["grow", best, "-o", "x.pt", "--num-layers", "2"]):  # fmt: skip
        line = said(capsys, words)
        assert "never runs code by itself" in line or "only context can" in line
        assert "my_block.py:PlainMinGru" in line
    with pytest.raises(UserError, match="never runs code by itself"):
        newllm.load(best)
    info = json.loads(said(capsys, ["info", best, "--json"], 0))
    assert info["block"] == facts
    assert info["state_bytes"] == 4 * 16 + 4 * (4 * 1024 + 5)  # its own, and recall
    assert info["parameters"] == sum(
        part.numel() for name, part in weights(Path(best)).items() if name != checkpoint.COUNTS
    )
    assert "PlainMinGru of my_block.py" in said(capsys, ["info", best], 0)
    assert runs(tmp_path) == once, "no checkpoint ran it"

    scores = json.loads(said(capsys, ["eval", best, *given, "--json"], 0))
    assert scores["bpb"] == pytest.approx(checkpoint.load(Path(best))["metrics"]["bpb"], rel=1e-5)
    short = ["--max-new-tokens", "5", "--min-new-tokens", "5", "--seed", "1"]
    assert said(capsys, ["generate", best, "--prompt", "hi", *short, *given], 0).strip()
    typed = iter(["What comes after 4?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(typed))
    assert main(["chat", best, *given, *short]) == 0
    assert newllm.load(best, architecture=block).parameters == info["parameters"]
    onward = {**flags, "init_from": best, "name": "onward", "epochs": 1}
    assert train("dolly", onward).exists()


def test_another_file_or_class_is_refused(
    flags: dict[str, Any], block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, file = str(train("dolly", flags)), Path(block.rpartition(":")[0])
    mingru = str(train("dolly", {**flags, "architecture": "mingru"}))
    once = runs(tmp_path)
    changed = tmp_path / "changed.py"
    changed.write_text(file.read_text(encoding="utf-8") + "\n# another\n", encoding="utf-8")
    for given, line in (
        (f"{changed}:PlainMinGru", "another version of this file (its SHA-256 is "),
        (f"{file}:Other", "was trained with"),
        ("gru", "was trained with"),
        (f"{tmp_path}/none.py:PlainMinGru", f"no file {tmp_path}/none.py"),
    ):
        assert line in said(capsys, ["eval", best, "--architecture", given])
        words = ["train", "dolly", "--data", flags["data"], "--from", best, "--architecture", given]
        assert line in said(capsys, words)
    assert "is a model of architecture mingru" in said(
        capsys, ["eval", mingru, "--architecture", block]
    )
    words = ["train", "dolly", "--resume", "--name", NAME, "--out", flags["out"]]
    resumed = said(capsys, [*words, "--data", flags["data"]])
    assert "never runs code by itself" in resumed
    assert "--resume: the run began with other settings" in said(
        capsys, [*words, "--data", flags["data"], "--architecture", "gru"]
    )
    assert runs(tmp_path) == once
    assert "--architecture mingru" in said(
        capsys, ["train", "dolly", "--from", mingru, "--architecture", block]
    )


def test_a_settings_file_runs_nothing_by_itself(
    block: str, dolly_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"architecture: {block}\n", encoding="utf-8")
    line = said(capsys, ["train", "dolly", "--config", str(file)])
    assert "a settings file runs no code by itself" in line
    ordinary = train("dolly", {**TINY, "data": str(dolly_folder), "out": str(tmp_path)})
    file.write_text(f"architecture: {block}\nfrom: {ordinary}\ncounts: 0\n", encoding="utf-8")
    line = said(capsys, ["train", "dolly", "--config", str(file)])
    assert "a settings file runs no code by itself" in line
    assert runs(tmp_path) == 0
    with pytest.raises(UserError, match="runs only where it is given as"):
        build_model(resolve("dolly", {"architecture": block}).model_settings(), 400)


def test_it_is_compared_at_equal_size(
    flags: dict[str, Any],
    block: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["compare", "--architecture", "context", block, "--params", "200k", "dolly"]
    words += ["--data", flags["data"], "--out", flags["out"], "--vocab-size", "400"]
    words += ["--epochs", "1", "--device", "cpu", "--max-seq-length", "24", "--num-layers", "1"]
    monkeypatch.setattr(sys, "argv", ["newllm", *words])
    words.remove("dolly")
    assert main(["compare", "dolly", *words[1:]]) == 0
    report = json.loads((Path(flags["out"]) / "compare_dolly.json").read_text(encoding="utf-8"))
    ours, theirs = report["runs"]
    assert [run["architecture"] for run in (ours, theirs)] == ["context", block]
    assert all(180_000 < run["parameters"] <= 200_000 for run in (ours, theirs))
    assert theirs["run"] == NAME
    assert f"newllm chat {flags['out']}/best_{NAME}.pt --architecture {block}" in (
        capsys.readouterr().out
    )


def test_a_size_needs_no_feed_forward(tmp_path: Path) -> None:
    file = tmp_path / "bare.py"
    text = EXAMPLE.read_text(encoding="utf-8").replace(
        "(embed_dim, hidden_dim)", "(embed_dim, None)"
    )
    file.write_text(text, encoding="utf-8")
    architecture = f"{file}:PlainMinGru"
    settings = resolve("dolly", {"architecture": architecture}, params=10**6)
    block = load_given(architecture)
    model = build_model(settings.model_settings(), settings.vocab_size, block)
    assert 800_000 < sum(p.numel() for p in model.parameters()) <= 10**6


BROKEN = {
    "import nothing_of_the_name": "line 10: ModuleNotFoundError: No module named",
    "x = (": "line 10: SyntaxError",
    "raise SystemExit(3)": "line 10: SystemExit",
    "PlainMinGru = 3": "PlainMinGru is no subclass of newllm.model.Block",
    "PlainMinGru = Block": "PlainMinGru is no subclass of newllm.model.Block",
    "del PlainMinGru": "no class PlainMinGru in",
    "PlainMinGru.__init__ = lambda self, *w: None": "__init__ has to call super().__init__",
    "PlainMinGru.__init__ = lambda self: None": "TypeError",
    "PlainMinGru.__init__ = lambda self, *w: nn.Module.__init__(self)": "super().__init__",
    "PlainMinGru.carries = Block.carries": "NotImplementedError",
    "PlainMinGru.carries = lambda self: 3": "carries() has to return name -> shape",
    "PlainMinGru.mix = Block.mix": "NotImplementedError",
    "PlainMinGru.mix = lambda self, x, c, b: x": "what is added to the stream and a list",
    "PlainMinGru.mix = lambda self, x, c, b: (x[:, :1], c)": "has to add [2, 3, 16]",
    "PlainMinGru.mix = lambda self, x, c, b: (x, [])": "has to carry on 1 tensors",
    "PlainMinGru.mix = lambda self, x, c, b: (x, ['h'])": "gave a str",
    "PlainMinGru.mix = lambda self, x, c, b: (x, [c[0][:, :3]])": "carry on hidden as [2, 16]",
    "PlainMinGru.mix = lambda self, x, c, b: x + undefined": "NameError: name 'undefined'",
    "PlainMinGru.mixing_matrices = lambda self: [(self.gate_bias, 1)]": "shape [16] as 1 stacked",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_block_is_told_in_one_line(
    line: str, flags: dict[str, Any], block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(block.rpartition(":")[0])
    source = EXAMPLE.read_text(encoding="utf-8")
    module, rest = source.split("\n\n\nclass ", 1)
    early = line.startswith(("import", "x =", "raise"))
    parts = [module, line, f"\n\nclass {rest}"] if early else [module, f"\n\nclass {rest}", line]
    file.write_text("\n".join(parts) + "\n", encoding="utf-8")
    words = ["train", "dolly", "--architecture", block]
    for name in ("data", "out", "context_dim", "embed_dim", "hidden_dim", "vocab_size"):
        words += [f"--{name.replace('_', '-')}", str(flags[name])]
    assert BROKEN[line] in said(capsys, words)


@pytest.mark.parametrize(
    ("architecture", "line"),
    [
        ("gruu", "no such architecture (did you mean gru?); there are context, original, gru,"),
        ("MyBlock", "no such architecture; there are context"),
        ("my_block.txt:MyBlock", "no such architecture; there are context"),
        ("my_block.py:", "no such architecture; there are context"),
        ("none.py:MyBlock", "no file none.py"),
        ("MinGru.py:2", "no such architecture"),
    ],
)
def test_names_that_are_none(
    architecture: str, line: str, dolly_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "dolly", "--data", str(dolly_folder), "--architecture", architecture]
    assert line in said(capsys, words)


def test_it_has_no_table_of_pairs_and_no_own_size_rules(block: str) -> None:
    with pytest.raises(UserError, match=r"--pair-rows 8: .*PlainMinGru has no table of pairs"):
        resolve("dolly", {"architecture": block, "pair_rows": 8})
    ours = resolve("dolly", {"architecture": block})
    mingru = resolve("dolly", {"architecture": "mingru"})
    assert ours.model_dump(exclude={"architecture"}) == mingru.model_dump(exclude={"architecture"})


def test_the_example_reads_alike_in_every_way() -> None:
    own = load_given(f"{EXAMPLE}:PlainMinGru")
    assert own is not None
    check_block(own.kind)


def test_a_block_that_does_not_is_told() -> None:
    own = load_given(f"{EXAMPLE}:PlainMinGru")
    assert own is not None

    class Forgetful(own.kind):  # type: ignore[misc,name-defined]
        def mix(self, normed: torch.Tensor, carried: list[torch.Tensor], boundaries: Any) -> Any:
            added, _ = super().mix(normed, carried, boundaries)
            return added, carried

    class Leaking(own.kind):  # type: ignore[misc,name-defined]
        def mix(self, normed: torch.Tensor, carried: list[torch.Tensor], boundaries: Any) -> Any:
            return super().mix(normed, carried, type(boundaries)(None, None, boundaries.ids))

    with pytest.raises(AssertionError, match="token by token and the whole"):
        check_block(Forgetful)
    with pytest.raises(AssertionError, match="two documents packed into one row and apart"):
        check_block(Leaking)


def test_matrices_are_those_outside_the_feed_forward_unless_said() -> None:
    own = load_given(f"{EXAMPLE}:PlainMinGru")
    assert own is not None
    block = own.kind(24, 16, 40)  # type: ignore[call-arg,arg-type]
    by_default = [(matrix.shape, pieces) for matrix, pieces in Block.mixing_matrices(block)]
    assert by_default == [((32, 24), 1), ((24, 16), 1)]
