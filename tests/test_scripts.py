"""The published commands: from a bare clone, in the background, under the published names."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm.train import checkpoint

SCRIPTS = Path(__file__).parent.parent / "scripts"
TINY = (
    "--context_dim 16 --embed_dim 16 --hidden_dim 24 --max_seq_length 32 --batch_size 8 "
    "--device cpu --data sample --max_samples 64 --epochs 1"
).split()
PUBLISHED = [
    ("dolly", ["--num_layers", "1"], "new_llm_dolly_layers1"),
    ("hh_rlhf", ["--num_layers", "4", "--subset", "harmless"], "new_llm_hh_rlhf_harmless_layers4"),
    ("ultrachat", ["--num_layers", "4"], "new_llm_ultrachat_layers4"),
    ("code_alpaca", ["--num_layers", "8"], "new_llm_code_alpaca_layers8"),
    ("math", ["--num_layers", "12"], "new_llm_math_layers12"),
]
EPOCH = re.compile(
    r"Epoch 1/1\n"
    r"  Training\.\.\. 20% 40% 60% 80% 100% \| \d+\.\dmin \| Loss: \d+\.\d\d\n"
    r"  Val: Loss=\d+\.\d\d PPL=\d+\.\d Acc=\d+\.\d% UNK=\d+\.\d% ✓\n"
    r"  \[Checkpoint saved\]\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "flags", "name"), PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_published_commands(
    dataset: str,
    flags: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first one as published; the others, which begin alike, where all is imported already."""
    script = SCRIPTS / f"train_{dataset}.py"
    if dataset == PUBLISHED[0][0]:
        log = tmp_path / "run.log"
        with log.open("w") as output:
            subprocess.run(
                ["nohup", sys.executable, str(script), *flags, *TINY],
                cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                check=True, timeout=300,
            )  # fmt: skip
        said = log.read_text(encoding="utf-8")
    else:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(SCRIPTS))  # as of a script that is run
        monkeypatch.setattr("sys.argv", [str(script), *flags, *TINY])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        said = capsys.readouterr().out
        assert end.value.code == 0, said
    assert EPOCH.search(said), said
    folder = tmp_path / "checkpoints"
    for file in (f"best_{name}.pt", f"{name}_final.pt"):
        assert checkpoint.load(folder / file)["settings"]["tokenizer"] == "word1000"
    assert (folder / f"{name}.answers.jsonl").read_text().count("\n") == 1


@pytest.mark.slow
def test_terminated_in_the_background_and_resumed(tmp_path: Path) -> None:
    flags = [*TINY, "--epochs", "200", "--save_minutes", "0"]
    command = [sys.executable, str(SCRIPTS / "train_hh_rlhf.py"), *flags]
    log = tmp_path / "run.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        deadline = time.monotonic() + 120
        while "Epoch 3/" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert "to go on: python" in log.read_text()
    assert "train_hh_rlhf.py" in log.read_text().splitlines()[-1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--resume"], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output
        )
        while "Val:" not in log.read_text() and process.poll() is None:
            time.sleep(0.1)
        process.kill()
        process.wait()
    assert re.search(r"Resumed at epoch \d+", log.read_text())


def test_bare_clone_prints_the_install_line() -> None:
    result = subprocess.run(
        [sys.executable, "-S", str(SCRIPTS / "train_dolly.py"), "--num_layers", "1"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert result.returncode == 2
    assert re.fullmatch(r"\w+ is not installed; install New-LLM first:  pip install -e .+\n",
                        result.stderr)  # fmt: skip
