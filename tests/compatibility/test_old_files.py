"""What the version of commit e769d6e wrote is read as it was: files, answers, texts, exit codes.

The folder of that name holds a small file of every kind, and under `said` what that version said
about it; `make.py` made both. Only the command line and `newllm.load` are used here, so that
everything behind them may change. What is new may be said besides: of what was said, nothing may
be missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import newllm
from newllm.cli import main
from newllm.model.spec import _RECIPE

FOLDER = Path(__file__).parent / "e769d6e"

PROMPT = [
    "--prompt",
    "What comes after 3?",
    "--repetition-penalty",
    "1",
    "--max-new-tokens",
    "20",
    "--min-new-tokens",
    "9",
]
TURNS = ["What comes after 3?", "And after 7?"]
IDS = torch.arange(6, 30)[None]
"""What every model is given to read; its logits after the last two are kept."""


def said(name: str) -> Any:
    """What that version said."""
    return json.loads((FOLDER / "said" / f"{name}.json").read_text(encoding="utf-8"))


MODELS: dict[str, Any] = said("models")
ONWARD: dict[str, Any] = said("onward")


@pytest.fixture
def without_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall, counts and a sampled softmax came later: what is trained anew has none, as then."""
    monkeypatch.setattr("newllm.model.spec.RECALL_SLOTS", 0)
    monkeypatch.setattr("newllm.model.spec.COUNTS", 0)
    monkeypatch.setitem(_RECIPE, "sampled_softmax", 0)


def known_then(text: str) -> str:
    """Without the settings that came later."""
    later = re.compile(
        r" *(recall_slots|counts|threads|columns|splits|documents|decontaminate|track|"
        r"rehearsal_last|closed_answers|shard|cuda_graph|sampled_softmax)\b"
    )
    text = text.replace(" hub:ORG/NAME[:CONFIG][@REVISION],", "")
    return "".join(line for line in text.splitlines(True) if not later.match(line))


def without_refusal(template: str) -> str:
    """Without what refuses tools, which were ignored before."""
    return re.sub(r"\{%- if tools -%\}.*?\{%- endif -%\}", "", template)


@pytest.fixture(autouse=True)
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a copy of the folder, where paths are as they were."""
    copied = tmp_path / "e769d6e"
    shutil.copytree(FOLDER, copied)
    monkeypatch.chdir(copied)
    variables = {"NEWLLM_CACHE": "cache", "COLUMNS": "80", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # Vocabularies with room left have more letters that begin words now.
    monkeypatch.setattr("newllm.data.tokenizers._with_beginnings", lambda before, size: before)
    torch.set_num_threads(1)
    return copied


class Said(NamedTuple):
    """What a command wrote, and how it ended."""

    code: int
    out: str
    err: str


def run(command: str, *words: str, typed: str = "") -> Said:
    """Give a command in this process."""
    arguments = [*shlex.split(command), *words]
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]):
        patch.setattr(sys, "argv", ["newllm", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(typed))
        with redirect_stderr(streams[1]):
            code = main(arguments)
    texts = []
    for stream in streams:
        stream.seek(0)
        texts.append(stream.read())
    return Said(code, *texts)


def done(command: str, *words: str, typed: str = "") -> str:
    """The output of a command that succeeds."""
    result = run(command, *words, typed=typed)
    assert result.code == 0, result.err
    return result.out


def unpack(*names: str) -> None:
    """Large folders, mostly zeros, lie in archives."""
    for name in names:
        shutil.unpack_archive(f"{name}.tar.xz", ".")


def assert_holds(now: Any, then: Any, tolerance: float = 1e-4, where: str = "") -> None:
    """What was said then is said now, numbers up to rounding; there may be more besides."""
    if isinstance(then, dict):
        assert isinstance(now, dict), where
        for name, value in then.items():
            assert name in now, f"{where}/{name} is gone"
            assert_holds(now[name], value, tolerance, f"{where}/{name}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for number, (a, b) in enumerate(zip(now, then, strict=True)):
            assert_holds(a, b, tolerance, f"{where}[{number}]")
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=tolerance, abs=tolerance), where
    else:
        assert now == then, where


def assert_same_text(now: str, then: str, tolerance: float = 0.02) -> None:
    """The same words, and numbers up to rounding; times and speeds may differ."""
    number = r"\d+(?:,\d{3})*(?:\.\d+)?"
    clocks = rf"({number} ?(min\b|minutes?\b|seconds?\b|tokens/s)|about {number} \w+)"
    now, then = (re.sub(clocks, "SOME TIME", text) for text in (now, then))
    words = [re.sub(number, "N", text).splitlines() for text in (now, then)]
    assert words[0] == words[1]
    values = [[float(n.replace(",", "")) for n in re.findall(number, t)] for t in (now, then)]
    assert values[0] == pytest.approx(values[1], rel=tolerance, abs=tolerance)


# -- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_what_it_said(name: str) -> None:
    """Every architecture, both vocabularies: facts, scores, greedy and drawn answers."""
    then, file = MODELS[name], f"models/{name}.pt"
    assert_holds(json.loads(done(f"info {file} --json")), then["info"])
    scores = json.loads(done(f"eval {file} --data rows/dolly --json --device cpu"))
    assert_holds(scores, then["eval"])
    assert done(f"generate {file} --temperature 0 --device cpu", *PROMPT) == then["generate"]
    assert done(f"generate {file} --seed 3 --device cpu", *PROMPT) == then["drawn"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_thinks_what_it_thought(name: str) -> None:
    """The logits after fixed tokens, from Python."""
    torch.testing.assert_close(logits(f"models/{name}.pt"), old_logits(name), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounded_weights_say_what_they_said(weights: str) -> None:
    then = MODELS["context"][weights]
    options = f"models/context.pt --weights {weights} --device cpu"
    scores = json.loads(done(f"eval {options} --data rows/dolly --json"))
    assert_holds(scores, then["eval"], tolerance=1e-3)
    assert done(f"generate {options} --temperature 0", *PROMPT) == then["generate"]


def test_tables_are_as_they_were() -> None:
    for name in ("gru", "context_word1000"):
        now = known_then(done(f"info models/{name}.pt"))
        assert_same_text(now, said(f"info_{name}"), tolerance=1e-4)
    now = done("eval models/context.pt --data rows/dolly --device cpu")
    assert_same_text(now, said("eval_context"), tolerance=1e-3)


def test_a_grown_model_is_known_and_growing_again_gives_the_same() -> None:
    facts = said("grown")
    assert_holds(json.loads(done("info models/grown.pt --json")), facts)
    done("grow models/small_final.pt --num-layers 2 -o models/again.pt")
    torch.testing.assert_close(logits("models/again.pt"), logits("models/grown.pt"))
    torch.testing.assert_close(logits("models/again.pt"), logits("models/small_final.pt"))


def logits(file: str) -> torch.Tensor:
    """After the last two of the fixed tokens."""
    model = newllm.load(file, "cpu").model
    with torch.inference_mode():
        hidden, _ = model(IDS)
        return model.logits(hidden)[0, -2:]


def old_logits(name: str) -> torch.Tensor:
    """The same, as they were."""
    with np.load(FOLDER / "said" / "logits.npz") as arrays:
        return torch.from_numpy(arrays[name])


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["numba", "reference"])
@pytest.mark.parametrize("name", ["context", "original"])
def test_a_stopped_run_goes_on_as_it_would_have(
    name: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers; with the same processor and libraries the same weights, bit for bit."""
    then = said("stopped")
    monkeypatch.setattr("newllm.model.kernels.FORCED", kernel)
    assert "Resumed at epoch 3" in done(then[name]["command"])
    (final,) = Path("stopped", name).glob("*_final.pt")
    now = records(f"stopped/{name}")
    assert_holds(now, then[name]["records"][kernel], tolerance=5e-3)
    if machine() == then["machine"]:
        assert_holds(now, then[name]["records"][kernel], tolerance=0)
        assert weights_sha256(final) == then[name]["sha256"][kernel]


@pytest.mark.parametrize("name", ONWARD)
@pytest.mark.usefixtures("without_memories")
def test_a_new_run_begins_with_an_old_file(name: str) -> None:
    """--from with the optimizer's moments, --freeze-old, --tokenizer-file and --config."""
    done(ONWARD[name]["command"])
    now, then = records(f"onward/{name}"), ONWARD[name]["records"]
    assert_holds(now, then, tolerance=5e-3)


@pytest.mark.usefixtures("without_memories")
def test_the_log_of_a_run_is_as_it_was() -> None:
    """Line by line; and the run leaves the same kinds of files, with the same facts in them.

    Of so few rows at so high a rate, what a CPU rounds another way decides by the second epoch what
    is learnt, and when it is enough: from there on lines are held to their words alone.
    """
    log = said("log")
    now, then = done(log["command"]), log["out"]
    assert_same_text(now.partition("Epoch 2/")[0], then.partition("Epoch 2/")[0])
    assert shapes(now) == shapes(then)
    for path in Path("finished").iterdir():
        here = Path("runs", path.name)
        assert here.exists()
        if path.suffix == ".yaml":
            assert known_then(here.read_text("utf-8")) == path.read_text("utf-8")
    (first, *others), (first_then, *others_then) = records("runs"), records("finished")
    assert_holds(first, first_then, tolerance=5e-3)
    assert {name for record in others for name in record} >= set(others_then[0])
    summary, told = (
        json.loads(next(Path(folder).glob("*.summary.json")).read_text(encoding="utf-8"))
        for folder in ("runs", "finished")
    )
    for name in ("best", "versions", "machine"):
        assert set(told.pop(name)) <= set(summary[name])
    for name in ("minutes", "created", "epochs", "trained_tokens", "advice"):
        assert told.pop(name)
        assert summary[name]
    assert_holds(summary, told, tolerance=5e-3)


def shapes(text: str) -> set[str]:
    """The kinds of lines there are, whatever their numbers; advice differs by what was reached."""
    text = re.sub(r"\d+(?:,\d{3})*(?:\.\d+)?", "N", text.replace(" ✓", ""))
    lines = {
        re.sub(r"N ?(min\b|minutes?\b|seconds?\b)", "TIME", line) for line in text.splitlines()
    }
    later = re.compile(r"Next|  newllm train |  No improvement")
    return {line for line in lines if not later.match(line)}


def records(folder: str) -> list[dict[str, Any]]:
    """Of the epochs of a folder's runs, without the seconds they took."""
    found = []
    for path in sorted(Path(folder).glob("*.metrics.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found.append({k: v for k, v in record.items() if not k.endswith("seconds")})
    return found


def weights_sha256(path: Path) -> str:
    """Of all weights of a checkpoint, whatever their names."""
    tensors = newllm.load(str(path), "cpu").model.state_dict().values()
    digests = sorted(
        hashlib.sha256(str(list(t.shape)).encode() + t.numpy().tobytes()).hexdigest()
        for t in tensors
    )
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def machine() -> str:
    """Bits are promised on the same processor with the same libraries only."""
    import numba

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu}, {capability}, torch {torch.__version__}, numba {numba.__version__}"


# -- climbs and comparisons ----------------------------------------------------------------------


def test_a_finished_climb_shows_where_it_stands_and_has_nothing_left() -> None:
    then = said("climbs")
    unpack("climb")
    assert_holds(json.loads(done("progress --out climb --json")), then["progress"])
    assert_same_text(done("progress --out climb"), then["table"], tolerance=1e-3)
    before = {path: path.read_bytes() for path in Path("climb").iterdir()}
    assert "Epoch" not in done(f"{then['command']} --resume")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_climb_that_stopped_in_its_second_level_goes_on() -> None:
    then = said("climbs")
    unpack("climb_stopped")
    place = "--out climb_stopped"
    assert_holds(json.loads(done(f"progress {place} --json")), then["stopped_progress"])
    done(then["stopped"].split("to go on: newllm ")[1])
    content = json.loads(Path("climb_stopped/climb.json").read_text(encoding="utf-8"))
    scores = [result["evaluations"] for result in content["results"]]
    assert_holds(scores, then["evaluations"], tolerance=5e-3)
    assert content["backward_transfer"] == pytest.approx(then["backward_transfer"], abs=5e-3)
    if machine() == then["machine"]:
        (final,) = Path("climb_stopped").glob("*code_alpaca*_final.pt")
        assert weights_sha256(final) == then["sha256"] == then["calm_sha256"]


@pytest.mark.usefixtures("without_memories")
def test_a_comparison_is_not_run_again() -> None:
    then = said("compare")
    report = Path("compare/compare_dolly.json").read_text(encoding="utf-8")
    page = Path("compare/compare_dolly.md").read_text(encoding="utf-8")
    now = done(then["command"])
    assert now.count("Finished before.") == 2
    assert_same_text(now, then["again"], tolerance=1e-3)
    again = json.loads(Path("compare/compare_dolly.json").read_text(encoding="utf-8"))
    assert_holds(again, json.loads(report))
    assert Path("compare/compare_dolly.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("folder", ["finished", "compare", "stopped/context"])
def test_progress_shows_old_runs(folder: str) -> None:
    now = json.loads(done(f"progress --out {folder} --json --html page.html"))
    assert_holds(now, said(f"progress_{Path(folder).name}"))
    assert "<html" in Path("page.html").read_text(encoding="utf-8")


# -- conversations -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["greedy", "drawn"])
def test_a_saved_conversation_goes_on(name: str) -> None:
    """A third turn, undone and said again, greedily and with the random numbers of then."""
    then = said("chats")[name]
    talk = "chat models/context.pt --device cpu --max-new-tokens 12 --min-new-tokens 5"
    now = done(f"{talk} --load chat/{name}.session", typed=then["typed"])
    assert_same_text(now, then["resumed"], tolerance=0)
    session = newllm.load("models/context.pt", "cpu").resume_chat(f"chat/{name}.session")
    assert [m["content"] for m in session.transcript if m["role"] == "user"] == TURNS
    answer = session.say("And after 20?", 12, 5)
    assert now.startswith(f"Model: {answer}\n")
    session.save("again.session")
    assert done(f"{talk} --load again.session", typed="/undo\nAnd after 20?\n") != ""


def test_a_conversation_begun_now_is_saved_as_it_was() -> None:
    """The same turns give the same file, but for its version and digest."""
    talk = "chat models/context.pt --device cpu --max-new-tokens 12 --min-new-tokens 5"
    typed = "\n".join([*TURNS, "/save now.session"])
    drawn = "--temperature 1 --seed 5 --repetition-penalty 1.2"
    out = done(f"{talk} {drawn} --system Count.", typed=typed)
    begun = said("chats")["drawn"]["begun"].replace("chat/drawn.session", "now.session")
    assert_same_text(re.sub(r"[\d,]+ bytes", "", out), re.sub(r"[\d,]+ bytes", "", begun), 0)
    now, then = (Path(file).read_bytes() for file in ("now.session", "chat/drawn.session"))
    magic = then.index(b"\n") + 1
    assert now[:magic] == then[:magic]
    headers, states = zip(*(_parts(content, magic) for content in (now, then)), strict=True)
    headers[1].pop("newllm_version")
    assert_holds(headers[0], headers[1])
    assert np.allclose(states[0][:128], states[1][:128], atol=1e-5)


def _parts(content: bytes, magic: int) -> tuple[dict[str, Any], np.ndarray]:
    """Header and first state of a session file."""
    size = int.from_bytes(content[magic : magic + 4], "little")
    start = magic + 4
    header = json.loads(content[start : start + size])
    return header, np.frombuffer(content[start + size : -32], "<f4", 128)


@pytest.mark.slow
def test_a_server_goes_on_with_the_conversations_of_its_folder() -> None:
    then = said("server")
    with serving() as ask:
        facts = ask(f"sessions/{then['session']}")
        assert_holds(facts, then["facts"])
        body = {"content": "And after 20?", "max_tokens": 12}
        answer = ask(f"sessions/{then['session']}/turns", body)
        assert answer["choices"][0]["message"]["content"] == then["answers"][-1]
        undone = [ask(f"sessions/{then['session']}/undo", {})["messages"] for _ in range(3)]
        assert undone == then["undone"]


@contextmanager
def serving() -> Iterator[Callable[..., Any]]:
    """A server in a process of its own; gives a function that asks it."""
    command = [sys.executable, "-m", "newllm", "serve", "models/context.pt", "--port", "0"]
    command += ["--sessions-dir", "sessions", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split(" at ")[1].split()[0]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

            def ask(path: str, body: Any = None) -> Any:
                data = None if body is None else json.dumps(body).encode()
                headers = {"content-type": "application/json"}
                request = urllib.request.Request(f"{address}/v1/{path}", data, headers)
                with opener.open(request, timeout=60) as answer:
                    return json.load(answer)

            _wait_for(ask)
            yield ask
        finally:
            process.terminate()
        assert process.wait(30) == 143


def _wait_for(ask: Callable[..., Any]) -> None:
    """The address is told a moment before anybody listens there."""
    deadline = time.monotonic() + 30
    while True:
        try:
            ask("sessions")
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -- models taken elsewhere ----------------------------------------------------------------------


def test_an_exported_folder_comes_back() -> None:
    done("import exported/hf -o back.pt")
    torch.testing.assert_close(logits("back.pt"), old_logits("context"), atol=2e-5, rtol=1e-4)
    facts = json.loads(done("info back.pt --json"))
    assert_holds(facts, {**MODELS["context"]["info"], "file": "back.pt"})


def test_an_export_for_transformers_is_as_it_was(copy: Path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(copy / "modules"))
    done("export models/context.pt -o again")
    then, now = Path("exported/hf"), Path("again")
    assert {path.name for path in then.iterdir()} <= {path.name for path in now.iterdir()}
    for name in ("model.safetensors", "tokenizer.json"):
        assert (now / name).read_bytes() == (then / name).read_bytes(), name
    template = without_refusal((now / "chat_template.jinja").read_text("utf-8"))
    assert template == (then / "chat_template.jinja").read_text("utf-8")
    configs = [json.loads((folder / "config.json").read_text("utf-8")) for folder in (now, then)]
    configs[1].pop("transformers_version", None)
    assert_holds(*configs)


def test_an_export_for_onnxruntime_is_as_it_was() -> None:
    """Old graphs and new ones give the model's logits; what programs read about them is the same.

    So is the fingerprint, by which saved conversations know their model.
    """
    pytest.importorskip("onnxruntime")
    done("export models/context.pt --format onnx -o again")
    for folder in ("exported/onnx", "again"):
        state, found = _zeros(folder), []
        *most, before, last = np.split(IDS.numpy(), IDS.shape[1], axis=1)
        _, state = _read(f"{folder}/prefill.onnx", np.concatenate(most, axis=1), state)
        for ids in (before, last):
            said_now, state = _read(f"{folder}/step.onnx", ids[:, 0], state)
            found.append(said_now[0])
        torch.testing.assert_close(
            torch.from_numpy(np.stack(found)), old_logits("context"), atol=1e-4, rtol=1e-4
        )
    facts = [json.loads(Path(f, "new_llm.json").read_text("utf-8"))
             for f in ("again", "exported/onnx")]  # fmt: skip
    facts[1].pop("newllm_version")
    facts[0]["chat_template"] = without_refusal(facts[0]["chat_template"])
    assert_holds(*facts)
    names = ["again/tokenizer.json", "exported/onnx/tokenizer.json"]
    assert len({Path(name).read_bytes() for name in names}) == 1


def _zeros(folder: str) -> dict[str, np.ndarray]:
    """The state before the first token."""
    import onnxruntime

    graph = onnxruntime.InferenceSession(f"{folder}/step.onnx", providers=["CPUExecutionProvider"])
    shapes = json.loads(Path(folder, "new_llm.json").read_text("utf-8"))["state"]
    kinds = {each.name: each.type for each in graph.get_inputs()}
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    return {name: np.zeros(shape, types[kinds[name]]) for name, shape in shapes.items()}


def _read(
    file: str, ids: np.ndarray, state: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits after the last token, and the state."""
    import onnxruntime

    graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found, *after = graph.run(None, {"ids": ids, **state})
    return np.asarray(found), dict(zip(state, (np.asarray(part) for part in after), strict=True))


# -- rows, vocabularies, marks -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "word1000"])
def test_encoded_rows_are_found_and_would_be_the_same(kind: str, copy: Path, monkeypatch) -> None:
    then = said("data")[kind]
    folder = Path(then["facts"]["folder"])
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert_holds(json.loads(done(then["command"])), then["facts"])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    monkeypatch.setenv("NEWLLM_CACHE", "anew")
    done(then["command"])
    assert_same_files(Path("anew") / folder.relative_to("cache"), folder)


def test_an_interrupted_preparation_goes_on(monkeypatch) -> None:
    then = said("data")["bpe"]
    folder = Path(then["facts"]["folder"])
    monkeypatch.setenv("NEWLLM_CACHE", "cache_partial")
    result = run(then["command"])
    assert result.code == 0
    assert "Going on with an interrupted preparation: 60 rows" in result.err
    assert_same_files(Path("cache_partial") / folder.relative_to("cache"), folder)


def assert_same_files(now: Path, then: Path) -> None:
    """All but the table of n-grams, which comes with the first evaluation."""
    names = {path.name for path in then.iterdir()} - {"ngram.json"}
    assert {path.name for path in now.iterdir()} == names
    for name in names - {"manifest.json"}:
        assert (now / name).read_bytes() == (then / name).read_bytes(), name
    manifests = [json.loads((f / "manifest.json").read_text("utf-8")) for f in (now, then)]
    for counts in manifests[0]["accounting"].values():
        assert not any(counts.pop(name) for name in ("masked_tokens", "tool_calls", "repeated"))
    assert manifests[0] == manifests[1]


def test_a_vocabulary_is_trained_as_it_was() -> None:
    done("tokenizer train --data-dir rows --levels 1 4 --vocab-size 300 -o again.json")
    assert Path("again.json").read_bytes() == Path("tokenizer.json").read_bytes()


def test_own_marks_judge_a_run() -> None:
    """The cache holds a mark for these rows, which the old run met, too."""
    out = done("train dolly --config stopped/context/new_llm_dolly_layers1_bpe.yaml --max-steps 6")
    line = next(
        line for line in said("log")["out"].splitlines() if "bits per byte: CLEARED" in line
    )
    assert line in out


# -- texts ---------------------------------------------------------------------------------------


def test_help_pages_are_as_they_were() -> None:
    """All that they said is still there, in the same order; options and choices may join it."""
    for name, page in said("help").items():
        now = re.findall(r"[\w.-]+", done(f"{name} --help"))
        page = page.replace("last by it.  [default: 1.0;", "last by it.  [default: 1.1;")
        if name == "plan":  # a data set's name may stand for them; GPUs take the same batch
            page = page.replace("[required]", "")
            page = re.sub(r"4,096 here, 32,768\s+a device elsewhere", "", page)
        then = re.findall(r"[\w.-]+", page)
        if name == "serve":  # its options have become so many that they are in groups
            assert not Counter(then) - Counter(now) - Counter(["FILE"])  # FILE... now
            continue
        left = iter(now)
        assert all(word in left for word in then), name


def test_mistakes_get_the_same_line_and_exit_code() -> None:
    unpack("climb")
    for then in said("mistakes"):
        result = run(then["command"])
        err = result.err.replace("'dolly-ja', ", "").replace("'text', ", "")  # came later
        err = err.replace("valid: 0, 1,", "valid: 1,").replace("5, text, dolly", "5, dolly")
        assert (result.code, err) == (then["code"], then["err"]), then["command"]


@pytest.mark.usefixtures("without_memories")
def test_a_plan_is_as_it_was() -> None:
    """A plan for GPUs took 32,768 tokens a step of each; training never did, and now none does."""
    then = said("plan")
    command = f"plan --params 35M --tokens 100M --device l4x8 --batch-tokens {8 * 32_768} --json"
    assert_holds(json.loads(done(command)), then, tolerance=1e-9)
    now = json.loads(done(command.replace(f"--batch-tokens {8 * 32_768} ", "")))
    assert (then["batch_tokens"], now["batch_tokens"]) == (8 * 32_768, 32 * 128)


@pytest.mark.slow
def test_a_stopped_run_said_how_to_go_on() -> None:
    """A signal ends a run with its exit code, and the command that goes on, as then."""
    then = said("stopped")["context"]["stopped"]
    command = then.split("to go on: newllm ")[1].replace(" --resume", "").strip()
    command = command.replace("--out stopped/context", "--out anew --epochs 100000")
    words = [sys.executable, "-m", "newllm", *shlex.split(command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:  # fmt: skip
        assert process.stdout is not None
        while b"Epoch 2" not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.decode() == f"Stopped; to go on: newllm {command} --resume\n"
