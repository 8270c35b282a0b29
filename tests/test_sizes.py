"""The dial: `--params`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.cli import main
from newllm.errors import UserError
from newllm.model import count_parameters
from newllm.recipes import resolve
from newllm.sizes import shape_of_size
from newllm.summary import load_summary

TRAIN = ["train", "dolly", "--data", "sample", "--max-samples", "40", "--max-steps", "1"]


@given(
    parameters=st.integers(10**6, 4 * 10**9),
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
        smallest = {**chosen, "num_layers": num_layers or 1, "context_dim": 32}
        least = count_parameters(resolve("dolly", smallest).model_settings(), vocab_size)
        assert parameters < 1.5 * least or num_layers is not None
        return
    settings = resolve("dolly", {**chosen, **shape})
    assert 0.7 * parameters < count_parameters(settings.model_settings(), vocab_size) <= parameters
    assert num_layers in (None, settings.num_layers)


def test_larger_models_are_wider_and_not_shallower() -> None:
    shapes = [shape_of_size(size * 10**6, {}) for size in (1, 5, 35, 350)]
    for smaller, larger in zip(shapes, shapes[1:], strict=False):
        assert larger["embed_dim"] > smaller["embed_dim"]
        assert larger["num_layers"] >= smaller["num_layers"]


def test_a_training_has_the_size_asked_for(tmp_path: Path) -> None:
    words = [*TRAIN, "--params", "400k", "--vocab-size", "512", "--out", str(tmp_path)]
    assert main(words) == 0
    (summary,) = tmp_path.glob("*.summary.json")
    assert 280_000 < load_summary(summary).parameters <= 400_000
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
        ({"num_layers": 128}, "no model of 128 layer(s) with a vocabulary of 4,096 is so small"),
    ],
)
def test_what_has_no_shape(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        shape_of_size(10**6, given)
    assert said in str(error.value)
