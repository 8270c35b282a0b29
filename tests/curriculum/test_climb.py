"""Climbing: growth, rehearsal, the forgetting matrix, marks, and stopping anywhere."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from newllm.cli import main
from newllm.curriculum import climb as climbing
from newllm.curriculum.climb import MAX_ROUNDS, climb, named_levels
from newllm.errors import Stopped, UserError
from newllm.model.spec import COUNTS
from newllm.results.climb import NAME, ClimbConfig
from newllm.results.marks import Mark, add_marks
from newllm.results.records import score
from newllm.results.summary import load_summary
from newllm.train import checkpoint
from newllm.train.prefer import PreferenceTrainer
from tests.train.test_run import stop_after

TINY = {
    "context_dim": 64, "embed_dim": 16, "hidden_dim": 24, "vocab_size": 330, "batch_size": 4,
    "max_seq_length": 32, "epochs": 1, "device": "cpu",
}  # fmt: skip


def write(folder: Path, rows: Callable[[int], dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    for split, start, count in (("train", 0, 40), ("validation", 1000, 8)):
        lines = [json.dumps(rows(start + n)) + "\n" for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three levels of a few rows."""
    folder = tmp_path / "data"
    write(
        folder / "dolly",
        lambda n: {
            "instruction": f"What comes after {n}?", "context": "", "category": "open_qa",
            "response": f"After {n} comes {n + 1}.",
        },
    )  # fmt: skip
    write(
        folder / "hh_rlhf",
        lambda n: {
            "chosen": f"\n\nHuman: Say {n}.\n\nAssistant: Gladly, {n}.",
            "rejected": f"\n\nHuman: Say {n}.\n\nAssistant: No.",
        },
    )
    write(
        folder / "ultrachat",
        lambda n: {
            "messages": [
                {"role": "user", "content": f"Tell me of {n}"},
                {"role": "assistant", "content": f"{n} is a number between {n - 1} and {n + 1}."},
            ]
        },
    )
    return folder


@pytest.fixture
def route(data: Path, tmp_path: Path) -> Callable[..., ClimbConfig]:
    def make(*levels: str, **changes: Any) -> ClimbConfig:
        settings = {**TINY, **changes.pop("settings", {})}
        place = {"data_dir": str(data), "out": str(tmp_path / "out")}
        return ClimbConfig(list(levels), **{**place, **changes}, settings=settings)

    return make


def record(route: ClimbConfig) -> dict[str, Any]:
    return json.loads((Path(route.out) / NAME).read_text())


def test_one_model_grows_and_is_scored_on_all_levels(route, capsys) -> None:
    three = route("dolly", "hh_rlhf", "ultrachat")
    best = climb(three)
    said = capsys.readouterr().out
    results = record(three)["results"]
    assert [list(result["evaluations"]) for result in results] == [
        ["dolly"], ["dolly", "hh_rlhf"], ["dolly", "hh_rlhf", "ultrachat"]
    ]  # fmt: skip
    assert [result["grown"] for result in results] == [None, None, {"num_layers": [1, 4]}]
    assert "Grown without changing what it says: --num-layers 1 -> 4" in said
    assert "rehearsed: 40% of the tokens, dolly (40 rows), hh_rlhf (40 rows)" in said
    content = checkpoint.load(best)
    assert content["settings"]["num_layers"] == 4
    summaries = [
        load_summary(best.with_name(f"{result['run']}.summary.json")) for result in results
    ]
    counts = [summary.settings["counts"] for summary in summaries]
    assert counts == [COUNTS, 2 * COUNTS, 3 * COUNTS]
    assert set(content["data"]["rehearsed"]) == {"dolly", "hh_rlhf"}
    bpb = [{name: m["bpb"] for name, m in result["evaluations"].items()} for result in results]
    transfer = (bpb[0]["dolly"] - bpb[2]["dolly"] + bpb[1]["hh_rlhf"] - bpb[2]["hh_rlhf"]) / 2
    assert record(three)["backward_transfer"] == pytest.approx(transfer)
    assert load_summary(best.with_name(f"{results[2]['run']}.summary.json")).best[
        "bpb"
    ] == pytest.approx(bpb[2]["ultrachat"], rel=1e-6)


def test_plain_text_comes_before_the_levels(route, data: Path, tmp_path: Path, capsys) -> None:
    """It is read first, rehearsed and scored like a level; of an older record nothing is missed."""
    book = tmp_path / "book"
    book.mkdir()
    for number in range(30):
        (book / f"{number}.md").write_text(f"Chapter {number} is short.\n")
    words = ["climb", "--levels", "1", "--text", str(book), "--data-dir", str(data), "--keep-going"]
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()
             if name not in ("embed_dim", "hidden_dim", "max_seq_length")]  # fmt: skip
    assert main([*words, *sizes, "--out", str(tmp_path / "climb")]) == 0
    record = json.loads((tmp_path / "climb" / NAME).read_text())
    assert record["levels"] == ["text", "dolly"]
    assert record["text"] == str(book)
    assert set(record["results"][1]["evaluations"]) == {"text", "dolly"}
    assert record["results"][0]["status"] == "not judged"
    capsys.readouterr()
    assert main(["progress", "--out", str(tmp_path / "climb")]) == 0
    assert "text" in capsys.readouterr().out


def test_preferences_are_a_stage_behind_level_two(route, capsys, monkeypatch) -> None:
    """Stopped inside it, the climb goes on there; what it prefers is on record and on the page."""
    with pytest.raises(UserError, match="--prefer: the pairs are those of hh_rlhf"):
        climb(route("dolly", prefer=True, out=route("dolly").out + "_none"))
    levels = route("hh_rlhf", "ultrachat", prefer=True)
    steps = 0

    def stopping(self: PreferenceTrainer, *arguments: Any) -> None:
        nonlocal steps
        original(self, *arguments)
        steps += 1
        if steps == 1:
            signal.raise_signal(signal.SIGTERM)

    original = PreferenceTrainer._timed_step
    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "_timed_step", stopping)
        with pytest.raises(Stopped):
            climb(levels)
    capsys.readouterr()
    climb(levels, resume=True)
    said = capsys.readouterr().out
    assert said.count("Epoch 1/1") == 2  # that of the level itself was done
    first, second = record(levels)["results"]
    stage = first["preferred"]
    assert second["preferred"] is None
    assert stage["run"] == f"{first['run']}_preferred"
    assert stage["pairs"] == 8
    assert first["best"] == f"best_{stage['run']}.pt"
    assert first["start_next"] == f"{stage['run']}_final.pt"
    settings = load_summary(Path(levels.out) / f"{second['run']}.summary.json").settings
    assert first["start_next"] in settings["init_from"] or second["grown"]
    last = load_summary(Path(levels.out) / f"{stage['run']}.summary.json").best["bpb"]
    assert first["evaluations"]["hh_rlhf"]["bpb"] == pytest.approx(last)
    assert main(["progress", "--out", levels.out]) == 0
    assert "of pairs after hh_rlhf; the longer one is chosen in" in capsys.readouterr().out
    assert "--prefer" in levels.command()
    with pytest.raises(UserError, match="began with other --prefer"):
        climb(replace(levels, prefer=False), resume=True)


def test_a_climb_from_before_there_were_preferences_goes_on(route) -> None:
    one = route("dolly")
    climb(one)
    path = Path(one.out) / NAME
    content = json.loads(path.read_text())
    del content["prefer"], content["results"][0]["preferred"]
    path.write_text(json.dumps(content))
    climb(replace(one, levels=["dolly", "ultrachat"]), resume=True)
    assert len(record(one)["results"]) == 2


def test_each_level_begins_with_the_weights_of_the_one_before(route) -> None:
    two = route("dolly", "hh_rlhf", rehearsal_share=0.0)
    climb(two)
    result = record(two)["results"][0]
    settings = load_summary(Path(two.out) / f"{record(two)['results'][1]['run']}.summary.json")
    assert settings.settings["init_from"] == str(Path(two.out) / result["start_next"])
    assert settings.settings["rehearse"] == []
    assert result["start_next"].endswith("_final.pt")


def test_skills_are_checked_where_asked(route) -> None:
    two = route("dolly", "hh_rlhf", skills=True)
    climb(two)
    none, preferences = (result["skills"] for result in record(two)["results"])
    assert none["check"] is None
    assert preferences["check"] == "preferences"
    assert 0 <= preferences["prefers_chosen"] <= 1


@pytest.mark.parametrize("steps", [3, 7, 12])
def test_stopped_anywhere_it_resumes_exactly(route, steps: int, tmp_path, monkeypatch) -> None:
    calm = climb(route("dolly", "ultrachat", out=str(tmp_path / "calm")))
    stopped = route("dolly", "ultrachat")
    with monkeypatch.context() as patch:
        stop_after(steps, patch)
        with pytest.raises(Stopped):
            climb(stopped)
    resumed = climb(stopped, resume=True)
    first, second = (checkpoint.load(path)["model"] for path in (calm, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    scores = [r["evaluations"] for r in record(stopped)["results"]]
    assert scores == [
        r["evaluations"] for r in json.loads((tmp_path / "calm" / NAME).read_text())["results"]
    ]


def test_a_finished_climb_has_nothing_left_and_takes_another_level(route, monkeypatch) -> None:
    climb(route("dolly"))
    monkeypatch.setattr(climbing, "train", None)
    assert climb(route("dolly"), resume=True).name.startswith("best_")
    monkeypatch.undo()
    more = route("dolly", "hh_rlhf")
    climb(more, resume=True)
    assert [result["dataset"] for result in record(more)["results"]] == ["dolly", "hh_rlhf"]


def mark(route: ClimbConfig, dataset: str, bpb: float) -> None:
    """A mark for a level of a climb that was made."""
    (run,) = [r["run"] for r in record(route)["results"] if r["dataset"] == dataset]
    summary = load_summary(Path(route.out) / f"{run}.summary.json")
    add_marks([Mark(dataset, summary.data["rows"], bpb, 10**9, 1e9, {}, "here", "today", "")])


def test_a_level_that_is_not_cleared_ends_the_climb_unless_told_otherwise(
    route, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    first = route("dolly", out=str(tmp_path / "first"))
    climb(first)
    assert record(first)["results"][0]["status"] == "not judged"
    mark(first, "dolly", 0.001)
    strict = route("dolly", "hh_rlhf")
    with pytest.raises(UserError, match=r"level 1 \(dolly\) is not cleared; .*--keep-going"):
        climb(strict)
    assert record(strict)["results"] == []
    climb(route("dolly", "hh_rlhf", keep_going=True), resume=True)
    assert [r["status"] for r in record(strict)["results"]] == ["not cleared", "not judged"]
    mark(first, "dolly", 100.0)
    cleared = route("dolly", out=str(tmp_path / "cleared"))
    climb(cleared)
    assert record(cleared)["results"][0]["status"] == "cleared"


def test_until_cleared_trains_on_from_where_it_was(route, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    first = route("dolly", out=str(tmp_path / "first"))
    climb(first)
    mark(first, "dolly", 0.001)
    stubborn = route("dolly", until_cleared=True, keep_going=True)
    climb(stubborn)
    (result,) = record(stubborn)["results"]
    assert result["rounds"] == MAX_ROUNDS
    assert "Level 1 is not cleared: round 2 of 5" in capsys.readouterr().out
    scores = [
        score(load_summary(path).best, "bpb")
        for path in sorted(Path(stubborn.out).glob("*.summary.json"))
    ]
    assert len(scores) == MAX_ROUNDS
    assert max(scores) == scores[0] > scores[-1]
    first_run = result["run"].removesuffix("_round5")
    assert first_run.endswith("_bpe")


def test_rounds_go_on_under_the_names_they_began_with(route, tmp_path, monkeypatch) -> None:
    """The third round of a climb of version 0.1 was called X_round2_round3."""
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    first = route("dolly", out=str(tmp_path / "first"))
    climb(first)
    mark(first, "dolly", 0.001)
    old = route("dolly", until_cleared=True, keep_going=True)
    began = climbing.train

    def stopped(dataset: str, flags: dict[str, Any], **how: Any) -> Path:
        if str(flags.get("name", "")).endswith("_round3"):
            flags = {
                **flags,
                "name": f"{Path(str(flags['init_from'])).stem.removesuffix('_final')}_round3",
            }
            began(dataset, flags, **how)
            raise Stopped(130, "")
        return began(dataset, flags, **how)

    with monkeypatch.context() as patch:
        patch.setattr(climbing, "train", stopped)
        with pytest.raises(Stopped):
            climb(old)
    climb(old, resume=True)
    names = sorted(path.name for path in Path(old.out).glob("*_round*.summary.json"))
    run = names[0].partition("_round")[0]
    assert names == [f"{run}_round{rounds}.summary.json" for rounds in ("2", "2_round3", "4", "5")]


@pytest.mark.parametrize(
    ("names", "datasets"),
    [
        (["1", "3"], ["dolly", "ultrachat"]),
        (["math", "1", "hh-rlhf"], ["dolly", "hh_rlhf", "math"]),
    ],
)
def test_levels_by_number_or_name(names: list[str], datasets: list[str]) -> None:
    assert named_levels(names) == datasets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "1", "7"], "--levels 7: no such level"),
        (["--levels", "ultrachatt"], "did you mean ultrachat?"),
        (["--levels", "1", "dolly"], "--levels dolly: named twice"),
        (["--levels", "1", "4"], "level 4 (code_alpaca): "),
        (["--levels", "wikitext2"], "no such level"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_line(data: Path, tmp_path: Path, arguments, message, capsys) -> None:
    place = ["--data-dir", str(data), "--out", str(tmp_path / "out")]
    assert main(["climb", *place, *arguments]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_a_climb_that_never_began_can_be_begun(route, data: Path) -> None:
    rows = data / "ultrachat"
    rows.rename(data / "away")
    with pytest.raises(UserError, match=r"level 3 \(ultrachat\): "):
        climb(route("dolly", "ultrachat"))
    (data / "away").rename(rows)
    climb(route("dolly"))
    assert [result["dataset"] for result in record(route())["results"]] == ["dolly"]


def test_another_climb_in_the_folder_is_left_alone(route, capsys) -> None:
    climb(route("dolly"))
    with pytest.raises(UserError, match="a climb is here already; go on with --resume"):
        climb(route("dolly"))
    changed = route("dolly", settings={"epochs": 2})
    with pytest.raises(UserError, match="began with other --epochs"):
        climb(changed, resume=True)
    with pytest.raises(UserError, match="began with other levels"):
        climb(route("hh_rlhf"), resume=True)
    (Path(changed.out) / NAME).write_text("{")
    with pytest.raises(UserError, match=r"climb.json: damaged"):
        climb(route("dolly"), resume=True)


@pytest.mark.parametrize("text", ['{"results": [], "levels": []}', '{"results": [{}]}', "[]"])
def test_a_damaged_record_is_one_line(route, text: str) -> None:
    climb(route("dolly"))
    (Path(route().out) / NAME).write_text(text)
    with pytest.raises(UserError, match=r"climb.json: damaged"):
        climb(route("dolly"), resume=True)


def test_where_it_runs_may_change_on_the_way(route) -> None:
    climb(route("dolly", settings={"epochs": 1}))
    climb(route("dolly", settings={"epochs": 1, "save_minutes": 3.0}), resume=True)


def test_minutes_decide_one_size_for_all_levels(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(seconds: float) -> None:
        monkeypatch.setattr(
            "newllm.planning.size.measured_steps",
            lambda dataset, given: lambda n: seconds * n / 1e6,
        )

    out = tmp_path / "out"
    words = ["climb", "--data-dir", str(data), "--minutes", "0.004", "--out", str(out)]
    words += ["--device", "cpu", "--batch-size", "4"]
    measured(1)
    assert main([*words, "--levels", "1", "3"]) == 0
    said = capsys.readouterr().out
    assert "Size   " in said
    assert "expected on" not in said  # that is known of single levels
    content = json.loads((out / NAME).read_text())
    assert [result["grown"] for result in content["results"]] == [None, None]
    chosen = {name: content["settings"][name] for name in ("num_layers", "vocab_size")}
    measured(0.001)  # as if the machine were another now: the climb keeps its size
    assert main([*words, "--levels", "1", "3", "2", "--resume"]) == 2
    assert "began with other levels" in capsys.readouterr().err
    assert main([*words, "--levels", "1", "3", "4", "--resume"]) == 2  # level 4 has no rows here
    assert "code_alpaca: no such file or folder" in capsys.readouterr().err
    content = json.loads((out / NAME).read_text())
    assert {name: content["settings"][name] for name in chosen} == chosen
    assert main([*words, "--grow", "--num-layers", "2"]) == 2
    assert "--grow: the levels say how large" in capsys.readouterr().err
