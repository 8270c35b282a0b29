"""The guides say what the tool does: their commands parse, and those that can run here, do.

Commands are collected from the bash blocks of the READMEs and of `docs/`; a notebook's `!` before
one, `nohup`, redirections and comments are no part of it. Each English guide has a Japanese twin.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

from newllm.cli import CONTEXT, cli, main
from newllm.config import Settings
from newllm.curriculum.climb import named_levels
from newllm.datasets import find_dataset
from newllm.settings import resolve

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (
    "TRAINING_PROGRESSION", "HH_RLHF_TRAINING", "ULTRACHAT_TRAINING", "CODE_MATH_TRAINING",
    "CLIMBING", "PRACTICE", "DISTRIBUTED", "SERVING", "CLIENTS", "EXPORT", "REFERENCE",
)  # fmt: skip
TWINS = {"README.md": "README.ja.md"} | {f"docs/{g}.md": f"docs/ja/{g}.md" for g in GUIDES}
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")]
)

_BASH = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"&&", "||", "|", ";", "&"}
_RUN_FILE = re.compile(r"[\w./-]*new_llm_\w+\.(?:pt|yaml|(?:metrics|answers)\.jsonl|summary\.json)")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:scripts|docs|newllm|tests|benchmarks|deploy)/[\w./-]*\.\w+)`")

QUICK = {
    "train": "--minutes 0.02 --epochs 2 --max-samples 64 --device cpu "
    "--context-dim 16 --embed-dim 16 --hidden-dim 16",
    "data": "--max-samples 64",
    "climb": "--minutes 0.01 --max-samples 64 --device cpu --context-dim 16 --batch-size 4",
    "prefer": "--max-steps 2 --max-samples 64 --batch-size 4 --device cpu",
    "practise": "--shown 8 --rounds 1 --problems 12 --device cpu",
    "prefer reward": "--max-samples 64 --device cpu",
    "plan --minutes": "--minutes 0.2",
    "eval": "--device cpu",
    "generate": "--device cpu --max-new-tokens 8",
    "chat": "--device cpu --max-new-tokens 8",
}
"""Appended to a verb, or to one with this word, so that it takes seconds: of an option given twice,
the last value holds."""


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    where: str
    words: tuple[str, ...]

    @property
    def arguments(self) -> list[str] | None:
        """What `newllm` is given, were it typed instead; None for other commands."""
        words = list(self.words)
        while words and (words[0] == "nohup" or re.match(r"\w+=", words[0])):
            del words[0]
        if words[:1] == ["newllm"]:
            return words[1:]
        if words[:3] == ["python", "-m", "newllm"]:
            return words[3:]
        if words[:1] in (["torchrun"], ["accelerate"]) and "newllm" in words:  # as one process
            return words[words.index("newllm") + 1 :]
        script = re.fullmatch(r"scripts/train_(\w+)\.py", words[1]) if len(words) > 1 else None
        if words[:1] == ["python"] and script:
            return ["train", script[1], "--tokenizer", "word1000", *words[2:]]
        return None


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands_in(text: str, page: str = "") -> Iterator[Command]:
    """The commands of all bash blocks of a page, in order."""
    for block in _BASH.finditer(text):
        first = text.count("\n", 0, block.start(1)) + 1
        for number, line in enumerate(_joined_lines(block[1]), start=first):
            for words in _split(line.removeprefix("!")):
                yield Command(f"{page}:{number}", words)


def _joined_lines(block: str) -> list[str]:
    """Lines, a continued one in the place of its first part (and empty lines for the others)."""
    lines: list[str] = []
    parts = 0
    for line in block.splitlines():
        if parts:
            lines[-parts] += " " + line
        lines += [""] if parts else [line]
        parts = parts + 1 if line.endswith("\\") else 0
    return [re.sub(r"\\(?= |$)", "", line) for line in lines]


def _split(line: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a line, redirections left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if token not in _SEPARATORS:
            words.append(token)
            continue
        cut = next((i for i, word in enumerate(words) if set(word) <= set("<>&")), len(words))
        if words[:cut]:
            yield tuple(words[:cut])
        words = []


def parse(arguments: list[str]) -> click.Context | None:
    """Parse without running; None where there is only a question for help or version.

    Raises:
        click.UsageError: an unknown verb, flag or value.
    """
    if arguments[0] in ("--help", "-h", "--version"):
        return None
    if arguments[0] not in cli.commands:
        raise click.UsageError(f"no verb {arguments[0]}")
    parent = click.Context(cli, info_name="newllm", **CONTEXT)
    try:
        command, rest = cli.commands[arguments[0]], arguments[1:]
        if isinstance(command, click.Group):
            _, command, rest = command.resolve_command(parent, rest)
            assert command is not None
        return command.make_context(arguments[0], rest, parent=parent)
    except click.exceptions.Exit:  # --help
        return None


def training(arguments: list[str]) -> Settings | None:
    """The settings of a training command."""
    context = parse(arguments)
    if context is None or arguments[0] != "train":
        return None
    given = {name: value for name, value in context.params.items() if value is not None}
    flags = {name: value for name, value in given.items() if name in Settings.model_fields}
    dataset = flags.pop("dataset")
    settings = resolve(dataset, flags)
    assert settings.subset in ("all", *find_dataset(dataset).subsets)
    return settings


def trainings(arguments: list[str]) -> list[Settings]:
    """The settings of all trainings that a command makes."""
    if arguments[0] == "climb":
        context = parse(arguments)
        assert context is not None
        datasets = named_levels(context.params["levels"])
        return [resolve(dataset, {"out": context.params["out"]}) for dataset in datasets]
    settings = training(arguments)
    return [] if settings is None else [settings]


def files_of_runs(page: str) -> set[str]:
    """Every file that the training commands of a page leave, with and without its folder."""
    from newllm.results.runs import RunFiles

    names: set[str] = set()
    for command in commands_in(read(page)):
        arguments = command.arguments or ["--help"]
        runs = [RunFiles(Path(s.out), s.run_name) for s in trainings(arguments)]
        if arguments[0] == "prefer" and (context := parse(arguments)) is not None:
            name = Path(context.params["file"]).stem.removeprefix("best_")
            runs.append(RunFiles(Path("checkpoints"), f"{name}_{context.params['method']}"))
        for files in runs:
            for path in (files.best, files.final, files.resume, files.metrics, files.answers,
                         files.settings, files.summary):  # fmt: skip
                names |= {path.name, str(path)}
    return names


def runs_here(arguments: list[str]) -> bool:
    """Whether a command ends, and needs neither the Hub nor files that only its reader has."""
    context = parse(arguments)
    if context is None:
        return False
    given = context.params
    if arguments[0] == "compare":
        return False  # several trainings; tests/test_compare.py has them
    if arguments[0] == "progress":
        return Path(given["out"] or "checkpoints").is_dir()
    if arguments[0] == "serve" or given.get("load"):  # runs until stopped; a file of the reader's
        return False
    if "file" in given and not Path(given["file"]).is_file():
        return False
    if arguments[0] in ("train", "data"):
        return given["data"] == "sample"
    if arguments[0] == "bench" and given["name"]:
        return False
    if "data_dir" in given:
        return given["data_dir"] == "sample"
    return given.get("data") in (None, "sample")


def test_commands_are_collected() -> None:
    text = (
        "# Title\n```bash\n!nohup python scripts/train_math.py --num_layers 2 \\\n"
        "    --out /x > run.log 2>&1 &\n%cd new-llm\n"
        "newllm generate a.pt --prompt 'cost: $3; # no comment'  # a comment\n```\n"
        "```python\nnewllm train dolly\n```\n```bash\ncd x && newllm doctor | head\n"
        "torchrun --standalone -m newllm train dolly\n```\n"
    )
    found = list(commands_in(text, "page"))
    assert [(c.where, c.arguments) for c in found if c.arguments] == [
        ("page:3", "train math --tokenizer word1000 --num_layers 2 --out /x".split()),
        ("page:6", ["generate", "a.pt", "--prompt", "cost: $3; # no comment"]),
        ("page:12", ["doctor"]),
        ("page:13", ["train", "dolly"]),
    ]
    assert [c.words for c in found if not c.arguments] == [
        ("%cd", "new-llm"),
        ("cd", "x"),
        ("head",),
    ]


@pytest.mark.parametrize("wrong", ["trian dolly", "train dollly", "train dolly --layers 2"])
def test_wrong_commands_are_noticed(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parse(wrong.split())


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    wrong = []
    for command in commands_in(read(page), page):
        arguments = command.arguments
        try:
            if arguments is not None:
                parse(arguments)
                training(arguments)
        except Exception as error:
            wrong.append(f"{command.where}: {shlex.join(command.words)}: {error}")
        scripts = [word for word in command.words if re.fullmatch(r"[a-z]\w*/\w+\.py", word)]
        wrong += [f"{command.where}: no {s}" for s in scripts if not (ROOT / s).is_file()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_named_files_are_left_by_commands_of_the_page(page: str) -> None:
    named = set(_RUN_FILE.findall(read(page)))
    assert named <= files_of_runs(page)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page: str) -> None:
    text = read(page)
    links = [target for target in _LINK.findall(text) if "://" not in target]
    missing = [target for target in links if not ((ROOT / page).parent / target).exists()]
    missing += [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize(("english", "japanese"), TWINS.items(), ids=TWINS)
def test_twins_have_the_same_commands(english: str, japanese: str) -> None:
    first, second = (list(commands_in(read(page))) for page in (english, japanese))
    assert [command.words for command in first] == [command.words for command in second]
    cells = [
        re.findall(r"^```python\n(.*?)^```", read(p), re.M | re.S) for p in (english, japanese)
    ]
    assert cells[0] == cells[1]
    if english != "README.md":  # the Japanese README is shorter
        headings = [re.findall(r"^#+ ", read(page), re.MULTILINE) for page in (english, japanese)]
        assert headings[0] == headings[1]


@pytest.mark.parametrize("file", ["slurm.sbatch", "pytorchjob.yaml"])
def test_ready_files_give_commands_that_parse(file: str) -> None:
    """No cluster is here to run them; what they would run is a command of ours."""
    text = read(f"deploy/{file}")
    if file.endswith(".yaml"):
        replicas = yaml.safe_load(text)["spec"]["pytorchReplicaSpecs"]
        containers = [r["template"]["spec"]["containers"][0] for r in replicas.values()]
        commands = [container["command"] for container in containers]
        assert [replicas[kind]["replicas"] for kind in ("Master", "Worker")] == [1, 2]
    else:
        lines = _joined_lines(text)
        commands = [line.split() for line in lines if " newllm " in line and line[0] != "#"]
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert commands
    for words in commands:
        assert training(words[words.index("newllm") + 1 :]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("page", TWINS)
def test_commands_run(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order of the page: training on built-in rows, then whatever uses its checkpoints."""
    monkeypatch.chdir(tmp_path)
    done = []
    for command in commands_in(read(page), page):
        arguments = command.arguments
        if arguments is None or not runs_here(arguments):
            continue
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        kinds = [f"{arguments[0]} {word}" for word in arguments[1:]]
        kind = next((kind for kind in kinds if kind in QUICK), arguments[0])
        quick = QUICK.get(kind, "")
        code = main([*arguments, *quick.split()])
        assert code == 0, f"{command.where}: {shlex.join(command.words)}\n{capsys.readouterr().err}"
        done.append(arguments[0])
    assert {"eval", "generate", "chat", "grow", "export"} & set(done[1:]), done
    assert done[0] in ("train", "climb")
