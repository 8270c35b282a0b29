"""Made the folder `e769d6e`: a small file of every kind, and what that version said about them.

Run with that version's code and packages, in one process, on one core::

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python make.py FOLDER

It reaches into that version's insides to stop runs half-way, so no other version can run it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

SHAPE = "--num-layers 2 --context-dim 16 --embed-dim 16 --hidden-dim 24 --device cpu"
DATA = "--data rows/dolly --max-seq-length 24 --vocab-size 300 --precision fp32"
CONTEXT = f"{SHAPE} {DATA} --pair-rows 64 --batch-size 4"
PEER = f"--num-layers 1 --context-dim 16 --hidden-dim 24 --device cpu {DATA} --batch-size 4"
SMALL = "--num-layers 1 --context-dim 8 --embed-dim 8 --hidden-dim 16 --device cpu"
ORIGINAL = f"{SMALL} {DATA} --architecture original --learning-rate 0.01"
WORDS = "--tokenizer word1000 --epochs 2"
ONE_LAYER = f"{CONTEXT} --num-layers 1"
MODELS = {
    "context": f"{CONTEXT} --epochs 8 --learning-rate 0.01",
    "original": f"{ORIGINAL} --batch-size 16 --epochs 2",
    "gru": f"{PEER} --architecture gru --epochs 4 --learning-rate 0.01",
    "lstm": f"{PEER} --architecture lstm --epochs 4 --learning-rate 0.01",
    "mingru": f"{PEER} --architecture mingru --embed-dim 16 --epochs 4 --learning-rate 0.01",
    "transformer": f"{PEER} --architecture transformer --epochs 4 --learning-rate 0.01",
    "context_word1000": f"{SMALL} {DATA} {WORDS} --batch-size 4",
    "original_word1000": f"{ORIGINAL} {WORDS} --batch-size 16",
}
STOPPED = {
    "context": f"{ONE_LAYER} --epochs 4",
    "original": f"{ORIGINAL} --batch-size 4 --epochs 4",
}
CLIMB = (
    "climb --data-dir rows --levels 1 4 --context-dim 8 --vocab-size 300 --batch-size 1 "
    "--epochs 2 --device cpu --precision fp32"
)
COMPARE = f"compare dolly --num-layers 1 2 {DATA} --context-dim 16 --embed-dim 16 --hidden-dim 24"
COMPARE += " --pair-rows 64 --batch-size 4 --epochs 1 --device cpu --out compare"
FURTHER = f"{SMALL} {DATA} --pair-rows 64 --batch-size 4"
ONWARD = {
    "from": f"{FURTHER} --max-steps 6 --from models/small_final.pt",
    "grown": f"{FURTHER} --num-layers 2 --max-steps 6 --from models/grown.pt --freeze-old",
    "vocabulary": f"{FURTHER} --max-steps 6 --tokenizer-file tokenizer.json",
    "settings": "--config stopped/context/new_llm_dolly_layers1_bpe.yaml --max-steps 6",
}
PROMPT = ["--prompt", "What comes after 3?", "--max-new-tokens", "20", "--min-new-tokens", "9"]
TURNS = ["What comes after 3?", "And after 7?"]
BRIEF = ["--max-new-tokens", "12", "--min-new-tokens", "5"]
MISTAKES = [
    "train dolly --num-layers 0",
    "train dolly --num-layer 1",
    "train dollly",
    "trian dolly",
    "train dolly --data nowhere",
    "train dolly --data rows/dolly --warmup-share 0.6 --warmdown-share 0.6",
    "train dolly --data rows/dolly --architecture transformer --context-dim 24",
    f"train dolly {STOPPED['context']} --out stopped/context --learning-rate 0.5 --resume",
    "generate models/none.pt --prompt x",
    "generate models/context.pt",
    "chat stopped/context/new_llm_dolly_layers1_bpe_resume.pt",
    "chat models/gru.pt --load chat/greedy.session",
    "chat models/context.pt --load rows/dolly/train.jsonl",
    "chat models/context.pt --load chat/greedy.session --top-p 0.5",
    "chat models/gru.pt --weights int8",
    "eval models/context.pt --dataset hh",
    "eval models/context.pt --run-code",
    "info damaged.pt",
    "grow models/context.pt --num-layers 1 -o smaller.pt",
    "export models/gru.pt -o x",
    "import rows -o x.pt",
    "climb --data-dir rows --levels 1 7 --out x",
    f"{CLIMB} --out climb",
    "compare dolly --num-layers 1 1 --data rows/dolly",
    "tokenizer train --vocab-size 0 -o t.json",
    "plan --params many --tokens 1B",
]


def newllm(*words: str, typed: str = "") -> dict[str, Any]:
    """Run a command in this process: its exit code and what it wrote."""
    from newllm.cli import main

    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        with mock.patch("sys.stdin", io.StringIO(typed)), mock.patch("sys.argv", ["", *words]):
            code = main(list(words))
        texts = []
        for stream in streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return {"code": code, "out": texts[0], "err": texts[1]}


def done(command: str, *words: str, typed: str = "") -> str:
    """The output of a command that succeeds."""
    said = newllm(*shlex.split(command), *words, typed=typed)
    assert said["code"] == 0, said
    return said["out"]


def note(name: str, facts: Any) -> None:
    path = Path("said", f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_rows() -> None:
    def write(dataset: str, row: Callable[[int], dict[str, str]], *counts: int) -> None:
        Path("rows", dataset).mkdir(parents=True)
        for split, start, count in zip(("train", "validation"), (0, 1000), counts, strict=True):
            text = "".join(json.dumps(row(start + n)) + "\n" for n in range(count))
            Path("rows", dataset, f"{split}.jsonl").write_text(text, encoding="utf-8")

    def dolly(n: int) -> dict[str, str]:
        return {
            "instruction": f"What comes after {n}?",
            "context": "Counting goes up by one." if n % 3 == 0 else "",
            "response": f"After {n} comes {n + 1}.",
            "category": "open_qa",
        }

    write("dolly", dolly, 60, 12)
    write(
        "code_alpaca",
        lambda n: {"instruction": f"Print {n}.", "input": "", "output": f"print({n})"},
        40,
        8,
    )


def write_marks() -> None:
    """A mark of these rows, as `newllm bench marks` leaves it, that every run meets."""
    from newllm.levels import LEVELS
    from newllm.marks import Mark, add_marks

    from newllm.data.sources import open_source

    rows = open_source(LEVELS["dolly"], "rows/dolly").fingerprint
    add_marks([Mark("dolly", rows, 9.0, 10**9, 1e9, {"0.003": 9.0}, "here", "today", "none")])


def keep(folder: str, *patterns: str) -> None:
    """Delete what is neither text nor named by one of the patterns."""
    for path in Path(folder).iterdir():
        wanted = any(path.match(pattern) for pattern in (*patterns, "*.json*", "*.yaml", "*.md"))
        if path.name.startswith(".") or not (wanted or path.suffix == ".svg"):
            path.unlink()


@contextmanager
def stopping(steps: int, dataset: str) -> Iterator[None]:
    """Send this process a SIGTERM after so many training steps on a data set."""
    from newllm.train.loop import Trainer

    original, count = Trainer._timed_step, 0

    def counting(self: Any, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += self.settings.dataset == dataset
        if count == steps:
            count += 1
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(Trainer, "_timed_step", counting):
        yield


def make_models() -> None:
    import numpy as np
    import torch

    import newllm as package

    Path("models").mkdir()
    said, logits = {}, {}
    for name, flags in MODELS.items():
        log = done(f"train dolly {flags} --out runs")
        if name == "context":
            note("log", {"command": f"train dolly {flags} --out runs", "out": log})
            shutil.copytree("runs", "finished")
            keep("finished")
        (best,) = Path("runs").glob("best_*.pt")
        path = best.rename(f"models/{name}.pt")
        shutil.rmtree("runs")
        said[name] = {
            "info": json.loads(done(f"info {path} --json")),
            "eval": json.loads(done(f"eval {path} --data rows/dolly --json --device cpu")),
            "generate": done(f"generate {path} --temperature 0 --device cpu", *PROMPT),
            "drawn": done(f"generate {path} --seed 3 --device cpu", *PROMPT),
        }
        for weights in ("bf16", "int8") if name == "context" else ():
            options = f"{path} --weights {weights} --device cpu"
            said[name][weights] = {
                "eval": json.loads(done(f"eval {options} --data rows/dolly --json")),
                "generate": done(f"generate {options} --temperature 0", *PROMPT),
            }
        model = package.load(str(path), "cpu").model
        with torch.inference_mode():
            hidden, _ = model(torch.arange(6, 30)[None])
            logits[name] = model.logits(hidden)[0, -2:].numpy()
    note("models", said)
    np.savez_compressed("said/logits.npz", **logits)
    done(f"train dolly {FURTHER} --epochs 2 --out runs")
    (final,) = Path("runs").glob("*_final.pt")  # which has the optimizer's moments
    final.rename("models/small_final.pt")
    shutil.rmtree("runs")
    done("grow models/small_final.pt --num-layers 2 -o models/grown.pt")
    note("grown", json.loads(done("info models/grown.pt --json")))
    Path("damaged.pt").write_bytes(Path("models/context.pt").read_bytes()[:2000])
    for word in ("gru", "context_word1000"):
        note(f"info_{word}", done(f"info models/{word}.pt"))
    note("eval_context", done("eval models/context.pt --data rows/dolly --device cpu"))


def make_chats() -> None:
    Path("chat").mkdir()
    said = {}
    for name, options in {
        "greedy": "--temperature 0",
        "drawn": "--temperature 1 --seed 5 --repetition-penalty 1.2",
    }.items():
        file = f"chat/{name}.session"
        lines = [*TURNS, f"/save {file}"]
        talk = f"chat models/context.pt --device cpu {shlex.join(BRIEF)}"
        begun = done(f"{talk} {options} --system Count.", typed="\n".join(lines))
        further = "And after 20?\n/stats\n/undo\n/stats\nAnd after 20?\n"
        resumed = done(f"{talk} --load {file}", typed=further)
        said[name] = {"begun": begun, "typed": further, "resumed": resumed}
    note("chats", said)


@contextmanager
def serving(folder: str) -> Iterator[Callable[..., Any]]:
    """A server of the context model; gives a function that asks it."""
    command = [sys.executable, "-m", "newllm", "serve", "models/context.pt", "--port", "0"]
    command += ["--sessions-dir", folder, "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split()[0]
        time.sleep(2)  # it is told before anybody listens

        def ask(path: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"{address}/v1/{path}", data, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        try:
            yield ask
        finally:
            process.terminate()
        assert process.wait(30) == 143


def turn(ask: Callable[..., Any], session: str, text: str) -> str:
    body = {"content": text, "max_tokens": 12}
    answer = ask(f"sessions/{session}/turns", body)
    return answer["choices"][0]["message"]["content"]


def make_server_session() -> None:
    drawn = {"temperature": 1.0, "top_p": 0.9, "seed": 11, "system": "Count."}
    with serving("sessions") as ask:
        session = ask("sessions", drawn)["id"]
        answers = [turn(ask, session, text) for text in TURNS]
    shutil.copytree("sessions", "later")
    with serving("later") as ask:
        facts = ask(f"sessions/{session}")
        answers.append(turn(ask, session, "And after 20?"))
        undone = [ask(f"sessions/{session}/undo", {})["messages"] for _ in range(3)]
    shutil.rmtree("later")
    for name in ("created", "last_used"):
        facts.pop(name, None)
    note("server", {"session": session, "answers": answers, "facts": facts, "undone": undone})


def weights_sha256(path: Path) -> str:
    """Of all weights of a checkpoint, whatever their names."""
    import newllm as package

    tensors = package.load(str(path), "cpu").model.state_dict().values()
    digests = sorted(
        hashlib.sha256(str(list(t.shape)).encode() + t.numpy().tobytes()).hexdigest()
        for t in tensors
    )
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def records(folder: str) -> list[dict[str, Any]]:
    """Of the epochs of a folder's runs, without the seconds they took."""
    found = []
    for path in sorted(Path(folder).glob("*.metrics.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found.append({k: v for k, v in record.items() if not k.endswith("seconds")})
    return found


def machine() -> str:
    """Bits are promised on the same processor with the same libraries only."""
    import numba
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu}, {capability}, torch {torch.__version__}, numba {numba.__version__}"


def make_stopped_runs() -> None:
    said: dict[str, Any] = {"machine": machine()}
    for name, flags in STOPPED.items():
        out = f"stopped/{name}"
        with stopping(40, "dolly"):
            stop = newllm(*shlex.split(f"train dolly {flags} --out {out}"))
        assert stop["code"] == 143, stop
        command = stop["err"].strip().split("to go on: newllm ")[1]
        keep(out, "best_*_layers1_bpe.pt", "*_resume.pt")  # of `original` none: it is large
        said[name] = {"stopped": stop["err"], "command": command, "sha256": {}, "records": {}}
        for kernel in ("numba", "reference"):
            with tempfile.TemporaryDirectory() as away:
                shutil.move(out, f"{away}/kept")
                shutil.copytree(f"{away}/kept", out)
                with mock.patch.dict(os.environ, NEWLLM_KERNEL=kernel):
                    done(command)
                (final,) = Path(out).glob("*_final.pt")
                said[name]["sha256"][kernel] = weights_sha256(final)
                said[name]["records"][kernel] = records(out)
                shutil.rmtree(out)
                shutil.move(f"{away}/kept", out)
    note("stopped", said)


def make_climbs() -> None:
    done(f"{CLIMB} --out climb")
    said: dict[str, Any] = {"command": f"{CLIMB} --out climb", "machine": machine()}
    said["progress"] = json.loads(done("progress --out climb --json"))
    said["table"] = done("progress --out climb")
    keep("climb", "best_*code_alpaca*.pt", "*code_alpaca*_final.pt")
    with stopping(4, "code_alpaca"):
        stop = newllm(*shlex.split(f"{CLIMB} --out climb_stopped"))
    assert stop["code"] == 143, stop
    said["stopped"] = stop["err"]
    said["stopped_progress"] = json.loads(done("progress --out climb_stopped --json"))
    keep("climb_stopped", "climb_start*.pt", "*dolly*_final.pt", "*code_alpaca*_resume.pt")
    shutil.copytree("climb_stopped", "kept")
    done(f"{CLIMB} --out climb_stopped --resume")
    (final,) = Path("climb_stopped").glob("*code_alpaca*_final.pt")
    said["sha256"] = weights_sha256(final)
    said["calm_sha256"] = weights_sha256(Path("climb", final.name))
    content = json.loads(Path("climb_stopped/climb.json").read_text(encoding="utf-8"))
    said["evaluations"] = [result["evaluations"] for result in content["results"]]
    said["backward_transfer"] = content["backward_transfer"]
    shutil.rmtree("climb_stopped")
    Path("kept").rename("climb_stopped")
    (Path("climb") / final.name).unlink()
    note("climbs", said)
    for name in ("climb", "climb_stopped"):  # mostly zeros: a tenth of the size
        with tarfile.open(f"{name}.tar.xz", "w:xz", preset=9) as archive:
            archive.add(name, filter=_nobody)
        shutil.rmtree(name)


def _nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def make_rest() -> None:
    done(COMPARE)
    keep("compare")
    note("compare", {"command": COMPARE, "again": done(COMPARE)})
    done("tokenizer train --data-dir rows --levels 1 4 --vocab-size 300 -o tokenizer.json")
    said = {}
    for name, flags in ONWARD.items():
        command = f"train dolly {flags} --out onward/{name}"
        done(command)
        said[name] = {"command": command, "records": records(f"onward/{name}")}
    shutil.rmtree("onward")
    note("onward", said)
    for name in ("finished", "compare", "stopped/context"):
        said = json.loads(done(f"progress --out {name} --json"))
        note(f"progress_{Path(name).name}", said)
    note("plan", json.loads(done("plan --params 35M --tokens 100M --device l4x8 --json")))
    done("export models/context.pt -o exported/hf")
    done("export models/context.pt --format onnx -o exported/onnx")
    Path("exported/hf/model.safetensors").chmod(0o644)


def make_cache() -> None:
    """Rows encoded once, in both vocabularies; and an encoding that was interrupted."""
    from newllm.data.partial import Partial

    said = {}
    shutil.rmtree("cache/encoded")
    for kind in ("bpe", "word1000"):
        command = f"data dolly --data rows/dolly --vocab-size 300 --tokenizer {kind} --json"
        command += " --max-seq-length 24"
        said[kind] = {"command": command, "facts": json.loads(done(command))}
    save = Partial.save_shard

    def dying(self: Partial, writer: Any) -> None:
        save(self, writer)
        raise KeyboardInterrupt

    with mock.patch.object(Partial, "save_shard", dying):
        os.environ["NEWLLM_CACHE"] = "cache_partial"
        assert newllm(*shlex.split(said["bpe"]["command"]))["code"] == 130
        os.environ["NEWLLM_CACHE"] = "cache"
    note("data", said)
    for path in Path("models").glob("*.pt"):  # the tables of n-grams beside the rows
        if path.stem in MODELS:
            done(f"eval {path} --data rows/dolly --device cpu")
    kept = {Path(facts["facts"]["folder"]).name for facts in said.values()}
    for path in Path("cache/encoded").iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in Path("cache_partial/encoded").glob(".*"):
        path.unlink()


def make_texts() -> None:
    import click

    from newllm.cli import cli

    pages = {"": done("--help")}

    def walk(group: click.Group, path: str) -> None:
        for name, command in sorted(group.commands.items()):
            pages[f"{path}{name}"] = done(f"{path}{name} --help")
            if isinstance(command, click.Group):
                walk(command, f"{path}{name} ")

    walk(cli, "")
    note("help", pages)
    said = [{"command": command, **newllm(*shlex.split(command))} for command in MISTAKES]
    assert all(facts["code"] == 2 for facts in said), said
    note("mistakes", [{k: v for k, v in facts.items() if k != "out"} for facts in said])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir()
    os.chdir(folder)
    os.environ |= {"NEWLLM_CACHE": "cache", "COLUMNS": "80", "NO_COLOR": "1"}
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()
    import torch

    torch.set_num_threads(1)
    write_rows()
    write_marks()
    make_models()
    make_chats()
    make_server_session()
    make_stopped_runs()
    make_rest()
    make_climbs()
    with tarfile.open("climb.tar.xz") as archive:  # one mistake is about this folder
        archive.extractall(filter="data")
    make_texts()
    for name in ("climb", "checkpoints"):
        shutil.rmtree(name)
    make_cache()
