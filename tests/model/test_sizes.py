"""The dial: `--params`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm.cli import main
from newllm.curriculum.compare import plan
from newllm.errors import UserError
from newllm.model import count_parameters
from newllm.results.summary import load_summary
from newllm.settings import SHAPE, resolve


def shape_of_size(
    parameters: int, given: dict[str, Any], file: dict[str, Any] | None = None
) -> dict[str, int]:
    """The shape that `--params` makes of a size."""
    given = {name: value for name, value in given.items() if value is not None}
    return resolve("ultrachat", given, file, parameters).model_dump(include=set(SHAPE))


TRAIN = ["train", "dolly", "--data", "sample", "--max-samples", "40", "--max-steps", "1"]


@settings(max_examples=25)
@given(
    parameters=st.integers(2 * 10**5, 10**8),
    vocab_size=st.sampled_from([1024, 4096, 32768]),
    num_layers=st.sampled_from([None, 1, 8]),
    architecture=st.sampled_from(["context", "gru", "mingru", "transformer"]),
)
def test_shapes_keep_to_the_budget(
    parameters: int, vocab_size: int, num_layers: int | None, architecture: str
) -> None:
    chosen = {"vocab_size": vocab_size, "num_layers": num_layers, "architecture": architecture}
    try:
        shape = shape_of_size(parameters, chosen)
    except UserError:
        smallest = {**chosen, "num_layers": num_layers or 1, "context_dim": 16}
        assert parameters < count(smallest)
        return
    assert num_layers in (None, shape["num_layers"])
    assert count({**chosen, **shape}) <= parameters
    wider = shape["context_dim"] + 16
    assert parameters < count({**chosen, "num_layers": shape["num_layers"], "context_dim": wider})


def count(chosen: dict[str, Any]) -> int:
    shape = resolve("dolly", chosen)
    return count_parameters(shape.model_settings(), shape.vocab_size)


@pytest.mark.parametrize("architecture", ["context", "gru", "lstm", "mingru", "transformer"])
@pytest.mark.parametrize("parameters", [1_000_000, 1_400_000, 5_000_000])
def test_models_of_one_size_compare(architecture: str, parameters: int) -> None:
    chosen = {"architecture": architecture}
    assert count({**chosen, **shape_of_size(parameters, chosen)}) > 0.9 * parameters


@pytest.mark.parametrize(("vocab_size", "parameters"), [(4096, 400_000), (32768, 2_000_000)])
def test_small_models_are_shallow(vocab_size: int, parameters: int) -> None:
    shape = shape_of_size(parameters, {"vocab_size": vocab_size})
    assert shape["num_layers"] == 1
    assert shape["embed_dim"] >= 48


def test_the_vocabulary_of_a_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    rows = ["--data-dir", "sample"]
    words = ["tokenizer", "train", "--levels", "1", *rows, "--vocab-size", "512", "-o", str(file)]
    assert main(words) == 0
    assert shape_of_size(10**6, {"tokenizer_file": str(file)}) == shape_of_size(
        10**6, {"vocab_size": 512}
    )


def test_models_that_are_compared_have_the_size_each(capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = {"architecture": ["context", "gru"]}
    variants = plan("dolly", sweeps, {"vocab_size": 512}, 400_000)
    assert [variant.settings.architecture for variant in variants] == ["context", "gru"]
    for variant in variants:
        shape = variant.settings.model_settings()
        assert 300_000 < count_parameters(shape, 512) <= 400_000
    with pytest.raises(UserError, match="--params 400,000 and --context-dim 64"):
        plan("dolly", sweeps, {"context_dim": 64}, 400_000)


def test_larger_models_are_wider_and_not_shallower() -> None:
    shapes = [shape_of_size(size * 10**6, {}) for size in (1, 5, 35, 350)]
    for smaller, larger in zip(shapes, shapes[1:], strict=False):
        assert larger["embed_dim"] > smaller["embed_dim"]
        assert larger["num_layers"] >= smaller["num_layers"]


def test_a_training_has_the_size_asked_for(tmp_path: Path) -> None:
    words = [*TRAIN, "--params", "400k", "--vocab-size", "512", "--out", str(tmp_path)]
    assert main(words) == 0
    (summary,) = tmp_path.glob("*.summary.json")
    assert 360_000 < load_summary(summary).parameters <= 400_000
    assert main([*words, "--resume"]) == 0


def test_the_size_replaces_the_shape_of_a_file() -> None:
    file = {"num_layers": 1, "context_dim": 64, "vocab_size": 512}
    assert shape_of_size(10**6, {}, file) == shape_of_size(10**6, {"vocab_size": 512})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"context_dim": 64}, "--params 1,000,000 and --context-dim 64: both decide how wide"),
        ({"init_from": "a.pt"}, "--params 1,000,000 and --from a.pt"),
        ({"architecture": "original"}, "original has its published widths"),
        ({"architecture": "gpt"}, "--architecture gpt"),
        ({"num_layers": 0}, "--num-layers 0"),
        ({"tokenizer_file": "no.json"}, "no.json"),
        ({"vocab_size": 65536}, "no model of 1 layer(s) with a vocabulary of 65,536 is so small"),
    ],
)
def test_what_has_no_shape(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        shape_of_size(10**6, given)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["vocab_size", "architecture", "tokenizer"])
@pytest.mark.parametrize("value", [[1], {"a": 1}, None])
def test_a_wrong_value_in_a_file_is_told(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"setting {name}"):
        shape_of_size(10**6, {}, {name: value})


def test_too_large() -> None:
    with pytest.raises(UserError, match="the largest model of at most 1 layer"):
        shape_of_size(10**11, {"num_layers": 1})
