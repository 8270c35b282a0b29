"""`--params auto` and `plan DATASET --minutes`: a size for the time there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.sizes import fit
from newllm.cli import main
from newllm.errors import UserError
from newllm.planning import size
from newllm.planning.size import (
    REPEATS,
    choose_size,
    expected_bpb,
    fitted,
    measured_steps,
    rate_of,
    worth,
)  # fmt: skip
from newllm.results.runs import RunFiles
from newllm.results.summary import load_summary


def machine(speed: float) -> Callable[[int], float]:
    """A step of a million parameters takes half a second, divided by the speed."""
    return lambda parameters: (0.05 + 0.45 * parameters / 1e6) / speed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is timed."""
    monkeypatch.setattr(size, "measured_steps", lambda dataset, given: machine(1))


def test_more_time_and_faster_machines_take_larger_models() -> None:
    sizes = [choose_size("dolly", minutes, machine(1)).parameters for minutes in (1, 5, 30, 600)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    slow, fast = (choose_size("dolly", 5, machine(speed)).parameters for speed in (0.3, 30))
    assert slow < fast
    assert choose_size("dolly", 0.001, machine(1)).parameters == size.SMALLEST


def test_the_choice_is_the_best_of_all_sizes() -> None:
    choice = choose_size("dolly", 10, machine(1))
    assert choice.expected is not None
    for factor in (0.25, 0.5, 2, 4):
        other = choice.parameters * factor
        tokens = 600 / machine(1)(round(other)) * 4096
        expected = expected_bpb("dolly", other, tokens)
        assert expected is not None
        assert expected >= choice.expected[1]


def test_more_parameters_and_more_tokens_are_never_expected_to_be_worse() -> None:
    for dataset in size.SCALES:
        small, wide, long = (
            expected_bpb(dataset, *what) for what in ((1e6, 1e6), (2e6, 1e6), (1e6, 2e6))
        )
        assert small is not None
        assert wide is not None
        assert long is not None
        assert small > max(wide, long)


def test_nothing_is_promised_of_rows_that_were_never_measured() -> None:
    assert choose_size("chat", 3, machine(1)).expected is None


def test_small_models_have_small_vocabularies_unless_told() -> None:
    assert choose_size("dolly", 0.5, machine(1)).vocab_size == size.SMALL_VOCABULARY
    assert choose_size("dolly", 6000, machine(1)).vocab_size == size.VOCABULARY
    assert choose_size("dolly", 6000, machine(1), vocab_size=999).vocab_size == 999
    rates = [rate_of(parameters) for parameters in (10**6, 10**7)]
    assert rates[0] > rates[1]


def test_steps_are_timed_at_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def timed_step(settings, rows, length):
        timed.append(settings.num_layers)
        seconds = float(len(timed))
        return lambda: (seconds, 0.5)

    monkeypatch.setattr(size, "timed_step", timed_step)
    steps = measured_steps("dolly", {})
    assert len(timed) == 2
    assert steps(1_000_000) == pytest.approx(1.5)
    assert steps(3_000_000) == pytest.approx(2.5)
    assert steps(5_000_000) == pytest.approx(3.5)


def test_tokens_read_again_are_worth_less_and_less() -> None:
    assert worth(5e6, None) == worth(5e6, 5e6) == worth(5e6, 9e6) == 5e6
    values = [worth(times * 1e6, 1e6) for times in (1, 2, 4, 16, 64, 1000)]
    assert values == sorted(values)
    # Muennighoff et al.: four times is nearly as good as new, and much more brings nothing.
    assert 3.7e6 < values[2] < 4e6
    assert values[-1] == pytest.approx(1e6 * (1 + REPEATS))


def test_less_is_expected_of_few_rows() -> None:
    few, many = (choose_size("dolly", 60, machine(1), different=n) for n in (2e5, None))
    assert few.expected is not None
    assert many.expected is not None
    assert few.expected[1] > many.expected[1]
    assert few.parameters == many.parameters


def test_epochs_take_the_size_whose_time_they_are_the_best_use_of() -> None:
    few, many = (choose_size("dolly", None, machine(1), most=epochs * 3e6) for epochs in (1, 20))
    assert few.tokens == 3e6
    assert few.parameters < many.parameters
    minutes = few.tokens / 4096 * machine(1)(few.parameters) / 60
    assert choose_size("dolly", minutes, machine(1)).parameters >= few.parameters
    # Of minutes and epochs it is what ends first.
    short = choose_size("dolly", 600, machine(1), most=1e5)
    assert short.tokens == 1e5


def test_without_minutes_and_epochs_there_is_nothing_to_fit() -> None:
    with pytest.raises(UserError, match=r"--params auto: say how long .* --minutes.*--epochs"):
        fitted("dolly", {}, {}, False, print)


@pytest.mark.parametrize("given", [{"context_dim": 64}, {"init_from": "best.pt"}])
def test_two_sizes_are_refused_before_any_step_is_timed(
    given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "measured_steps", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match="--params"):
        fitted("dolly", {"minutes": 1.0, **given}, {}, False, print)


def test_a_training_of_a_fitting_size(quick, dolly_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = ["train", "dolly", "--data", str(dolly_folder), "--params", "auto", "--minutes", "0.01"]
    words += ["--out", str(out), "--epochs", "1", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Size   " in said
    files = RunFiles(out, "new_llm_dolly_auto_bpe")
    summary = load_summary(files.summary)
    chosen = choose_size("dolly", 0.01, machine(1))
    assert summary.parameters <= chosen.parameters  # less: these few rows have few tokens
    assert summary.settings["learning_rate"] == rate_of(chosen.parameters)
    # The same words go on with the run, whatever would be measured now.
    assert main([*words, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "Size   " not in said
    assert load_summary(files.summary).parameters == summary.parameters


def test_what_was_given_stays(quick, dolly_folder: Path) -> None:
    flags = {
        "data": str(dolly_folder),
        "minutes": 1.0,
        "learning_rate": 0.001,
        "vocab_size": 3000,
        "name": "mine",
    }
    decided, _ = fitted("dolly", flags, {"dropout": 0.2}, False, lambda text: None)
    assert decided == {**flags, "dropout": 0.2}


def test_the_plan_says_which_size_and_why(quick, capsys) -> None:
    assert main(["plan", "dolly", "--minutes", "3"]) == 0
    said = capsys.readouterr().out
    assert "bits per byte" in said
    assert "parameters and up to 8.0 MB of counts: a step takes" in said
    assert "newllm train dolly --params auto --minutes 3" in said
    assert main(["plan", "dolly", "--minutes", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    least, likely, most = facts["expected"]
    assert least < likely < most
    assert facts["parameters"] == choose_size("dolly", 3, machine(1)).parameters
    assert facts["counts"] == 8_000_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dolly", "plan DATASET: give --minutes"),
        ("dolly --minutes 3 --tokens 1M", "plan DATASET: give --minutes and nothing else"),
        ("dolly --minutes 3 --device l4", "plan DATASET: give --minutes and nothing else"),
        ("--minutes 3", "plan: give --params and --tokens, or a DATASET and --minutes"),
        ("--params 1M", "plan: give --params and --tokens"),
        ("dolli --minutes 3", "dolli"),
    ],
)
def test_half_a_question(words: str, said: str, capsys) -> None:
    assert main(["plan", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_the_fit_finds_the_law_that_made_the_points() -> None:
    law = {
        (n, d): 1.1 + 0.2 * (n / 1e6) ** -size.EXPONENT + 0.3 * (d / 1e6) ** -size.EXPONENT
        for n in (1e6, 2e6, 5e6)
        for d in (1e6, 8e6)
    }
    found = fit([(*place, bpb) for place, bpb in law.items()])
    assert found["floor"] == pytest.approx(1.1)
    assert found["A"] == pytest.approx(0.2)
    assert found["B"] == pytest.approx(0.3)
    assert found["largest_error"] < 1e-9
