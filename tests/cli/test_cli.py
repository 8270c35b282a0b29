"""The command line as a user meets it: real processes, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm.cli import cli, main
from newllm.config import OPTION_NAMES, Settings

TINY_FLAGS = [
    "--context-dim",
    "16",
    "--embed-dim",
    "16",
    "--hidden-dim",
    "24",
    "--vocab-size",
    "400",
    "--max-seq-length",
    "24",
    "--batch-size",
    "4",
    "--device",
    "cpu",
]
NAME = "new_llm_dolly_layers1_bpe"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "newllm", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished tiny run."""
    out = tmp_path_factory.mktemp("run")
    rows = [
        {"instruction": f"q{i} {'long ' * 40}", "context": "", "response": f"a{i}"}
        for i in range(40)
    ]
    data = out / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*TINY_FLAGS, "--epochs", "1", "--out", str(out)]
    assert main(["train", "dolly", "--data", str(data), *flags]) == 0
    return out


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refused command; checks exit code, channel and form."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "dolly", "--num-layers", "0"], "--num-layers 0: input should be greater"),
        (["train", "dolly", "--num-layers", "two"], "'two' is not a valid integer"),
        (["train", "dolly", "--num-layer", "1"], "Did you mean '--num-layers'?"),
        (["train", "dollly"], "'dollly' is not"),
        (["trian", "dolly"], "No such command 'trian'"),
        (["train", "dolly", "--tokenizer", "bytes"], "'bytes' is not one of"),
        (["train", "dolly", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["train", "dolly", "--data", "sample", "--device", "tpu"], "--device tpu: expected"),
        (["train", "dolly", "--data", "sample", "--device", "cuda:7"], "use --device cpu"),
        (["train", "dolly", "--data", "sample", "--precision", "fp16", "--device", "cpu"], "fp16"),
        (["train", "dolly", "--warmup-share", "0.6", "--warmdown-share", "0.6"], "exceed 1"),
        (["train", "dolly", "--dropout", "0.99"], "--dropout 0.99: input should be less"),
        (["train", "dolly", "--data", "sample", "--name", "a/b"], "--name a/b: string should"),
        (["tokenizer", "train", "--vocab-size", "0", "-o", "t.json"], "--vocab-size 0: input"),
        (
            ["tokenizer", "train", "--data-dir", "sample", "--levels", "1", "-o", "."],
            "give another",
        ),
        (["eval", "x.pt", "--dataset", "hh"], "'hh' is not one of"),
        (["eval", "x.pt", "--dataset", "hh-rlhf"], "x.pt: no such checkpoint"),
        (["train", "dolly", "--config", "none.yaml"], "none.yaml: no such settings file"),
        (["train", "dolly", "--data", "sample", "--from", "x.pt"], "x.pt: no such checkpoint"),
        (["eval", "x.pt", "--data", "sample"], "x.pt: no such checkpoint"),
        (["generate", "x.pt"], "--prompt"),
        (["chat", "x.pt", "--repetition-penalty", "0.5"], "0.5 is not in the range x>=1"),
        (["serve", "x.pt"], "x.pt: no such checkpoint"),
        (["serve", "x.pt", "--port", "99999"], "99999 is not in the range"),
        (["data", "dolly", "--data", "hub"], "--data PATH"),
        (["generate", "x.pt", "--prompt", "x", "--temperature", "nan"], "nan: expected a number"),
        (["chat", "x.pt", "--top-p", "nan"], "nan: expected a number"),
        (["train", "dolly", "--minutes", "inf"], "inf: expected a number"),
        (["plan", "dolly", "--minutes", "nan"], "nan: expected a number"),
        (["compare", "dolly", "--learning-rate", "0.1", "nan"], "nan: expected a number"),
        (["climb", "--data-dir", "sample", "--minutes", "0"], "--minutes 0.0: input should be"),
        (["train", "dolly", "--data", ""], "'--data': empty; name a file or folder"),
        (["train", "dolly", "--data", "sample", "--out", ""], "'--out': empty"),
        (["serve", "x.pt", "--sessions-dir", ""], "'--sessions-dir': empty"),
        (["info", ""], "'FILE': empty"),
        (["export", "x.pt", "-o", ""], "empty; name a file or folder"),
        (["info", "."], ".: a folder; give a checkpoint in it"),
    ],
)
def test_mistakes_get_one_line(arguments, says, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in complaint(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_layer: 2", "unknown setting num_layer (did you mean num_layers?)"),
        ("num_layers: many", "setting num_layers many: input should be a valid integer"),
        ("architecture: [gru]", "setting architecture ['gru']: input should be"),
        ("epochs: [", "line 1: not valid YAML"),
        ("- a list", "expected `setting: value` lines"),
        ("dataset: math", "settings of math, not of dolly"),
    ],
)
def test_settings_file_mistakes(text, says, capsys, tmp_path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    arguments = ("train", "dolly", "--data", "sample", "--config", str(file))
    assert says in complaint(capsys, *arguments)


def test_damaged_checkpoints(trained: Path, capsys, tmp_path) -> None:
    archive = (trained / f"best_{NAME}.pt").read_bytes()
    path = tmp_path / "copy.pt"
    for damaged in (archive[:1000], archive[:-1], b"", archive[:5000] + b"x" + archive[5001:]):
        path.write_bytes(damaged)
        assert str(path) in complaint(capsys, "eval", str(path), "--data", "sample")
    resume = trained / f"{NAME}_resume.pt"
    assert "only resumes" in complaint(capsys, "chat", str(resume))


def test_read_only_and_full_places(trained: Path, capsys, tmp_path, monkeypatch) -> None:
    """A full disk in the middle of a run: one line, and the run goes on later."""
    from newllm import files

    out = tmp_path / "out"
    flags = ["train", "dolly", "--data", str(trained / "rows.jsonl"), *TINY_FLAGS,
             "--epochs", "3", "--out", str(out)]  # fmt: skip
    real, saves = os.replace, 0

    def full_after_some(*arguments: str) -> None:
        nonlocal saves
        saves += str(arguments[1]).startswith(str(out))  # not what is encoded before the run
        if saves > 8:
            raise OSError(28, "No space left on device", arguments[1])
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full_after_some)
        assert "No space left on device" in complaint(capsys, *flags)
    assert main([*flags, "--resume"]) == 0
    assert "Resumed at epoch" in capsys.readouterr().out


def test_out_is_a_file(trained: Path, capsys) -> None:
    flags = ["--data", "sample", "--out", str(trained / "rows.jsonl")]
    assert "rows.jsonl" in complaint(capsys, "train", "dolly", *flags)


def test_eval_json_has_the_promised_keys(trained: Path, capsys) -> None:
    capsys.readouterr()
    file, data = str(trained / f"best_{NAME}.pt"), str(trained / "rows.jsonl")
    results = []
    for size in ("1", "7", "40"):
        assert main(["eval", file, "--data", data, "--json", "--batch-size", size]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert set(results[0]) == {
        "dataset",
        "tokenizer",
        "protocol",
        "rows",
        "tokens",
        "nats",
        "loss_without_counts",
        "loss",
        "ppl",
        "accuracy",
        "unk_share",
        "bpb",
        "bpb_assistant",
        "ngram_ppl",
    }
    assert results[0]["rows"] == 40
    assert results[0]["unk_share"] is None
    assert results[0]["ngram_ppl"] > 1
    for result in results[1:]:
        assert result["nats"] == pytest.approx(results[0]["nats"], rel=1e-6)
        assert result["tokens"] == results[0]["tokens"]


def test_eval_on_another_level(trained: Path, capsys) -> None:
    capsys.readouterr()
    file = str(trained / f"best_{NAME}.pt")
    for dataset, subset in (("math", []), ("hh_rlhf", ["--subset", "harmless"])):
        arguments = ["eval", file, "--dataset", dataset, "--data", "sample", "--json", *subset]
        assert main(arguments) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["dataset"] == dataset
        assert result["bpb"] > 0
    assert result["rows"] == 150
    assert "'maths' is not one of" in complaint(
        capsys, "eval", file, "--dataset", "maths", "--data", "sample"
    )


def test_skills_beside_the_scores(trained: Path, capsys) -> None:
    capsys.readouterr()
    file = str(trained / f"best_{NAME}.pt")
    data = ["--data", "sample", "--device", "cpu"]
    rows = ["--skills", "--skill-rows", "3"]
    assert main(["eval", file, "--dataset", "hh_rlhf", *data, *rows, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bpb"] > 0
    assert result["skills"]["check"] == "preferences"
    assert result["skills"]["rows"] == 3
    assert main(["eval", file, *data, *rows]) == 0
    assert "none: there is no skill check for dolly" in capsys.readouterr().out
    assert "add --skills" in complaint(capsys, "eval", file, *data, "--run-code")


def test_info_generate_data_doctor(trained: Path, capsys) -> None:
    file = str(trained / f"best_{NAME}.pt")
    assert main(["info", file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["context_dim"] == 16
    assert facts["data"]["fingerprint"]
    assert main(["info", file]) == 0
    assert "parameters" in capsys.readouterr().out
    texts = []
    for _ in range(2):
        arguments = ["--prompt", "q1", "--seed", "3", "--max-new-tokens", "20"]
        assert main(["generate", file, *arguments, "--min-new-tokens", "20"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 5
    assert main(["data", "dolly", "--data", str(trained / "rows.jsonl")]) == 0
    assert "<|bos|><|user|>q" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recurrence kernel"] == "numba"


def test_a_folder_in_place_of_a_checkpoint_says_what_to_give(trained: Path, capsys) -> None:
    assert f"{trained / f'best_{NAME}.pt'}, say" in complaint(capsys, "chat", str(trained))
    (trained / "exported").mkdir()
    (trained / "exported" / "model.safetensors").touch()
    assert "newllm import" in complaint(capsys, "chat", str(trained / "exported"))


def test_home_where_the_shell_left_it(trained: Path, capsys, tmp_path, monkeypatch) -> None:
    """`--out=~/runs` reaches the program as it is; it made a folder named `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(trained)
    assert "no such checkpoint" in complaint(capsys, "info", "~/x.pt")
    (tmp_path / "x.pt").write_bytes((trained / f"best_{NAME}.pt").read_bytes())
    assert main(["info", "~/x.pt"]) == 0
    assert "home/x.pt" in complaint(capsys, "info", "~nobody-of-that-name/home/x.pt")
    assert main(["grow", "~/x.pt", "--num-layers", "2", "-o", "~/grown/y.pt"]) == 0
    assert (tmp_path / "grown" / "y.pt").exists()
    assert not (trained / "~").exists()


def test_no_memory_is_one_line(capsys, monkeypatch) -> None:
    def too_much(*_arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 TB")

    monkeypatch.setattr("newllm.report.doctor.check_machine", too_much)
    assert "out of memory; a smaller model" in complaint(capsys, "doctor")


def test_underscores_and_settings_file(trained: Path, tmp_path, capsys) -> None:
    """Flag > file > level, and a run's own YAML repeats it."""
    flags = ["--data", str(trained / "rows.jsonl"), "--out", str(tmp_path)]
    file = str(trained / f"{NAME}.yaml")
    assert main(["train", "dolly", "--config", file, "--num_layers", "2", *flags]) == 0
    capsys.readouterr()
    best = tmp_path / "best_new_llm_dolly_layers2_bpe.pt"
    assert main(["info", str(best), "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)["settings"]
    assert (stored["num_layers"], stored["context_dim"]) == (2, 16)


def test_every_setting_is_an_option_once() -> None:
    options = [o for p in cli.commands["train"].params for o in p.opts if o.startswith("--")]
    wanted = {"--" + OPTION_NAMES.get(f, f).replace("_", "-") for f in Settings.model_fields}
    assert set(options) == wanted - {"--dataset"} | {"--resume", "--config", "--params"}
    assert len(options) == len(set(options))


def test_help_is_quick_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")  # compiles the bytecode
    started = time.perf_counter()
    result = run("--help")
    # The promise is half a second; a busy test machine gets some slack.
    assert time.perf_counter() - started < 2.0
    assert result.returncode == 0
    for verb in cli.commands:
        assert verb in result.stdout
        assert main([verb, "--help"]) == 0
        assert f"newllm {verb}" in capsys.readouterr().out
    heavy = "import newllm.cli, sys; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    probe = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert probe.stdout.strip() == "[]"


def test_chat_through_a_pipe(trained: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "newllm", "chat", str(trained / f"best_{NAME}.pt"),
         "--max-new-tokens", "5", "--seed", "1"],
        input=b"q1 \xff\n\nq2\n/stats\n/help\n",  # one byte is no text
        capture_output=True, timeout=120, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(b"Model: ") == 2
    assert b"tokens read" in result.stdout


def test_chat_goes_on_with_a_saved_session(trained: Path, tmp_path, capsys, monkeypatch) -> None:
    file, session = str(trained / f"best_{NAME}.pt"), str(tmp_path / "a.session")

    def chat(*options: str, lines: list[str]) -> str:
        given = iter([*lines, "/quit"])
        monkeypatch.setattr("builtins.input", lambda _: next(given))
        capsys.readouterr()
        assert main(["chat", file, "--max-new-tokens", "9", *options]) == 0
        return capsys.readouterr().out

    whole = chat("--seed", "1", lines=["q1", f"/save {session}", "q2"])
    assert chat("--load", session, lines=["q2"]) == "Model: " + whole.rpartition("Model: ")[2]
    assert "--load goes on" in complaint(capsys, "chat", file, "--load", session, "--top-p", "0.5")
    assert "not a New-LLM session" in complaint(capsys, "chat", file, "--load", file)


def test_places_where_no_file_can_be(trained: Path, capsys) -> None:
    final = str(trained / f"{NAME}_final.pt")
    for place in (str(trained), f"{final}/grown.pt"):
        assert "give another path" in complaint(
            capsys, "grow", final, "--num-layers", "2", "-o", place
        )
    says = complaint(capsys, "grow", final, "--num-layers", "129", "-o", str(trained / "x.pt"))
    assert "--num-layers 129: input should be less" in says


def test_a_comparison_begins_with_the_shape_of_from(trained: Path, capsys, tmp_path) -> None:
    final, rows = str(trained / f"{NAME}_final.pt"), str(trained / "rows.jsonl")
    flags = ["--from", final, "--epochs", "1", "--max-seq-length", "24", "--batch-size", "4"]
    words = ["compare", "dolly", "--data", rows, *flags, "--out", str(tmp_path)]
    assert main([*words, "--learning-rate", "0.001", "0.002"]) == 0
