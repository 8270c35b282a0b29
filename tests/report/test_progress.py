"""`newllm progress`: which run stands for a level, where each level stands, what comes next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from newllm.cli import cli, main
from newllm.errors import UserError
from newllm.report.page import progress_page
from newllm.report.progress import Row, leads_to, progress_table, read_progress
from newllm.report.text import aligned
from newllm.results.marks import BpbVerdict
from newllm.settings import resolve
from tests.report.conftest import AddRun, write_climb


def rows_of(folder: Path) -> dict[tuple[str, str | None], Row]:
    found = read_progress(folder)
    return {(row.level.name, row.tokenizer): row for row in (*found.rows, *found.beside)}


def test_status_of_every_level(add_run: AddRun, tmp_path: Path) -> None:
    add_run("dolly", 16.0, tokenizer="word1000")
    add_run("dolly", 1.5)
    add_run("hh_rlhf", 30.0, tokenizer="word1000")
    add_run("ultrachat", 1.4, finished=False)
    add_run("wikitext2", 1.4)
    rows = rows_of(tmp_path / "runs")
    status = {key: row.status for key, row in rows.items()}
    assert status == {
        ("dolly", "word1000"): "cleared",
        ("dolly", "bpe"): "trained, not judged",
        ("hh_rlhf", "word1000"): "trained, not cleared",
        ("ultrachat", "bpe"): "training",
        ("code_alpaca", None): "planned",
        ("math", None): "planned",
        ("wikitext2", "bpe"): "trained, not judged",
    }
    dolly = rows["dolly", "word1000"]
    assert (dolly.mark, dolly.margin) == (17.0, 1.0)
    assert rows["dolly", "bpe"].mark is None


def test_a_level_is_ready_when_one_that_leads_there_is_trained(add_run: AddRun, tmp_path) -> None:
    assert leads_to("ultrachat") == ["dolly", "hh_rlhf"]
    add_run("dolly", 16.0, tokenizer="word1000")
    rows = rows_of(tmp_path / "runs")
    assert [rows[name, None].status for name in ("hh_rlhf", "ultrachat", "code_alpaca")] == [
        "ready", "ready", "planned"
    ]  # fmt: skip
    command = rows["ultrachat", None].next_command
    assert command == f"newllm train ultrachat --tokenizer word1000 --out {tmp_path / 'runs'}"


def test_the_best_run_stands_for_its_protocol(add_run: AddRun, tmp_path: Path) -> None:
    """Lower is better; but rows of the data set before built-in ones, whole sets before parts."""
    worse = add_run("hh_rlhf", 1.6, name="worse")
    best = add_run("hh_rlhf", 1.5, name="best")
    add_run("hh_rlhf", 0.5, data="sample", name="sample")
    add_run("hh_rlhf", 1.0, subset="harmless", name="part")
    add_run("hh_rlhf", 0.9, finished=False, name="unfinished")
    row = rows_of(tmp_path / "runs")["hh_rlhf", "bpe"]
    assert row.run is not None
    assert row.run.name == best.name
    assert set(row.others) == {worse.name, "sample", "part", "unfinished"}


@pytest.mark.parametrize(
    ("cleared", "status"), [(True, "cleared"), (False, "trained, not cleared")]
)
def test_a_mark_in_bits_per_byte_judges(cleared, status, add_run: AddRun, tmp_path, capsys) -> None:
    mark = BpbVerdict(1.6, 10, 3.0, cleared, "a GRU")
    add_run("dolly", 1.5, bpb_mark=mark)
    row = rows_of(tmp_path / "runs")["dolly", "bpe"]
    assert row.status == status
    assert row.mark == 1.6
    assert row.margin == pytest.approx(0.1)
    assert main(["progress", "--out", str(tmp_path / "runs")]) == 0
    assert "against 1.6000 (a GRU, 10 parameters" in capsys.readouterr().out


def test_every_next_command_can_be_pasted(add_run: AddRun, tmp_path: Path) -> None:
    """An unfinished run's goes on with its own settings."""
    import shlex

    from newllm.config import read_yaml

    columns = ["instruction=Frage", "response=Antwort"]
    add_run("dolly", 16.0, tokenizer="word1000", columns=columns, decontaminate=True)
    files = add_run("ultrachat", 1.4, finished=False, num_layers=2, epochs=7)
    for row in rows_of(tmp_path / "runs").values():
        if row.next_command is None:
            continue
        verb, *arguments = shlex.split(row.next_command)[1:]
        context = cli.commands[verb].make_context(verb, arguments)
        if row.level.name == "dolly":
            assert context.params["columns"] == tuple(columns)
            assert context.params["decontaminate"]
        if row.status == "training":
            assert context.params["resume"]
            file = read_yaml(context.params["config"])
            settings = resolve("ultrachat", {"out": context.params["out"]}, file)
            assert (settings.num_layers, settings.epochs) == (2, 7)
            assert settings.run_name == files.name


def test_advice_to_train_what_is_trained_is_left_out(add_run: AddRun, tmp_path: Path) -> None:
    add_run("dolly", 14.0, tokenizer="word1000")
    before = rows_of(tmp_path / "runs")["dolly", "word1000"].advice
    add_run("ultrachat", 22.0, tokenizer="word1000")
    after = rows_of(tmp_path / "runs")["dolly", "word1000"].advice
    assert [step for step in before if step.dataset != "ultrachat"] == list(after) != list(before)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "no such folder; train first (newllm train dolly)"),
        (lambda folder: folder.mkdir(), "no run there; train first: newllm train dolly --out"),
        (lambda folder: folder.write_text(""), "no such folder"),
    ],
)
def test_nothing_to_show_is_one_line(prepare, says, tmp_path, capsys) -> None:
    folder = tmp_path / "empty"
    prepare(folder)
    assert main(["progress", "--out", str(folder)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_what_cannot_be_read_is_told(add_run: AddRun, tmp_path: Path, capsys) -> None:
    add_run("dolly", 1.5)
    broken = add_run("math", 1.5)
    broken.summary.write_text("{")
    (tmp_path / "runs" / "climb.json").write_text("[]")
    (tmp_path / "runs" / "mine.yaml").write_text("epochs: 3\n")  # no run, and no complaint
    assert main(["progress", "--out", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert output.count("left out: ") == 2
    assert str(broken.summary) in output
    assert "mine.yaml" not in output


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not JSON lines"), ("[]\n", "line 1: expected accuracy, best, bpb")]
)
def test_only_broken_runs_is_an_error_that_names_them(
    text, says, add_run: AddRun, tmp_path
) -> None:
    add_run("dolly", 1.5).metrics.write_text(text)
    with pytest.raises(UserError, match=says):
        read_progress(tmp_path / "runs")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"results": [{"dataset": "dolly"}]},
        {"results": [{"dataset": "dolly", "run": "x", "evaluations": {}, "grown": {"n": 4}}]},
        {"results": 3},
    ],
)
def test_a_damaged_climb_is_told(change, add_run: AddRun, tmp_path: Path) -> None:
    add_run("dolly", 1.5)
    path = tmp_path / "runs" / "climb.json"
    write_climb(tmp_path / "runs", [{"dolly": 1.5}])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = read_progress(tmp_path / "runs")
    assert found.climb is None
    assert "not a climb that can be read" in found.notes[0]


def test_json_has_everything(add_run: AddRun, tmp_path: Path, capsys) -> None:
    add_run("dolly", 1.5)
    write_climb(tmp_path / "runs", [{"dolly": 1.5}, {"dolly": 1.7, "hh_rlhf": 1.4}])
    capsys.readouterr()
    assert main(["progress", "--out", str(tmp_path / "runs"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    first = facts["levels"][0]
    assert (first["dataset"], first["bpb"], first["status"]) == (
        "dolly",
        1.5,
        "trained, not judged",
    )
    assert first["summary"]["data"]["accounting"]["train"]["malformed"] == 10
    assert [r["epoch"] for r in first["history"]] == [1, 2, 3]
    assert facts["climb"]["matrix"] == [[1.5, None], [1.7, 1.4]]
    assert facts["climb"]["backward_transfer"] == pytest.approx(-0.2)


def test_the_climb_is_in_the_table(add_run: AddRun, tmp_path: Path, capsys) -> None:
    add_run("dolly", 1.5)
    write_climb(tmp_path / "runs", [{"dolly": 1.5}, {"dolly": 1.4, "hh_rlhf": 1.4}])
    assert main(["progress", "--out", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "Backward transfer +0.1000 bits per byte: earlier levels are better" in output
    assert "after hh_rlhf" in output


def test_preferences_are_a_column_where_a_climb_has_them(add_run: AddRun, tmp_path: Path) -> None:
    add_run("dolly", 1.5)
    scores = [{"dolly": 1.5}, {"dolly": 1.4, "hh_rlhf": 1.4}]
    write_climb(tmp_path / "runs", scores)
    without = read_progress(tmp_path / "runs")
    stage = {"run": "new_llm_hh_rlhf_layers1_bpe_preferred", "after": 0.571, "longer": 0.51}
    write_climb(tmp_path / "runs", scores, stage)
    with_them = read_progress(tmp_path / "runs")
    assert with_them.climb is not None
    assert stage["run"] in with_them.climb.runs
    for progress, found in ((without, False), (with_them, True)):
        page = progress_page(progress)
        for text in ("57.1% of pairs; the longer answer 51.0%", "ペアの 57.1%（長い方なら 51.0%）",
                     ">preferred<", ">好み<"):  # fmt: skip
            assert (text in page) is found
        assert ("Prefers the chosen answer of 57.1%" in progress_table(progress)) is found
    write_climb(tmp_path / "runs", scores, {"run": "x"})
    assert "not a climb that can be read" in read_progress(tmp_path / "runs").notes[0]


def test_columns_of_numbers_stand_right() -> None:
    table = aligned([("name", "PPL"), ("a", "9.50"), ("longer", "16.00")])
    assert table.splitlines() == [
        "name      PPL",
        "------  -----",
        "a        9.50",
        "longer  16.00",
    ]


def test_progress_needs_no_torch(add_run: AddRun, tmp_path: Path) -> None:
    add_run("dolly", 1.5)
    code = (
        "import sys; from newllm.cli import main\n"
        f"assert main(['progress', '--out', {str(tmp_path / 'runs')!r}, '--html', "
        f"{str(tmp_path / 'page.html')!r}]) == 0\n"
        "assert not {'torch', 'datasets', 'numba'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_climb_says_what_comes_next(add_run: AddRun, tmp_path: Path, capsys) -> None:
    """Its levels' runs give no advice of their own: each alone would begin from nothing."""
    folder = tmp_path / "runs"
    add_run("dolly", tokenizer="bpe")
    add_run("hh_rlhf", tokenizer="bpe")
    write_climb(folder, [{"dolly": 1.5}, {"dolly": 1.7, "hh_rlhf": 1.4}])
    content = json.loads((folder / "climb.json").read_text())
    content |= {"data_dir": "rows", "settings": {"minutes": 3.0}, "keep_going": True}

    def told(status: str, levels: list[str]) -> list[str]:
        for result in content["results"]:
            result["status"] = status
        (folder / "climb.json").write_text(json.dumps({**content, "levels": levels}))
        assert [row.advice for row in read_progress(folder).rows if row.run] == [(), ()]
        assert main(["progress", "--out", str(folder)]) == 0
        return capsys.readouterr().out.partition("Backward transfer")[2].split("\n")[1:-1]

    two, three = ["dolly", "hh_rlhf"], ["dolly", "hh_rlhf", "math"]
    assert told("not cleared", two) == [
        "Next, the climb again, twice as long:",
        (
            f"  newllm climb --levels dolly hh_rlhf --data-dir rows --out {folder}_longer "
            "--minutes 6 --rehearsal-share 0.2 --keep-going"
        ),
    ]
    assert told("cleared", three) == [
        "Next, go on with the climb:",
        (
            f"  newllm climb --levels dolly hh_rlhf math --data-dir rows --out {folder} "
            "--minutes 3 --rehearsal-share 0.2 --keep-going --resume"
        ),
    ]
    assert told("cleared", two) == []
