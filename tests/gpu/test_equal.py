"""A GPU computes what a CPU does: kernels, steps, resumed runs, answers.

The comparisons are those of `newllm bench gpu` (benchmarks/gpu_checks.py). With a GPU they are made
on it; without one in small, in Triton's interpreter.
"""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import gpu_checks
from benchmarks.gpu_checks import Check
from newllm import cuda_graph
from tests.train.replay import replaying

WITH_GPU = torch.cuda.is_available()
TIMES, CHANNELS = ((1, 7, 77, 256), (64, 256)) if WITH_GPU else ((1, 3, 19), (24,))
DTYPES = tuple(gpu_checks.TOLERANCES)


def assert_equal(found: list[Check]) -> None:
    assert found
    assert [check for check in found if not check.equal] == []


def listed(function: Any, *given: Any) -> list[Check]:
    return list(function(*given))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_context_read_and_its_gradients(run, device, time, channels, dtype) -> None:
    found = run(listed, gpu_checks.context_checks, device, (time,), (channels,), (dtype,), 2)
    assert len(found) == 2  # plain, and with resets and lengths
    assert_equal(found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_loss_lookups_and_optimizer(run, device, dtype) -> None:
    sizes = (256, 256, 4096) if device.type == "cuda" else (3, 24, 37)
    assert_equal(run(listed, gpu_checks.stream_checks, device, *sizes, (dtype,)))


def test_training_steps(run, device) -> None:
    assert_equal([run(gpu_checks.step_check, device)])


@pytest.mark.parametrize("precision", ["fp32", "auto"] if WITH_GPU else ["fp32"])
def test_a_resumed_run_is_the_same_to_the_bit(run, device, precision) -> None:
    assert_equal([run(gpu_checks.resume_check, device, precision)])


@pytest.mark.parametrize("precision", ["fp32", "auto"] if WITH_GPU else ["fp32"])
def test_steps_by_a_graph_are_the_same_to_the_bit(run, device, precision) -> None:
    check = gpu_checks.graph_check if device.type == "cuda" else _graph_check_without_one
    assert_equal([run(check, device, precision)])


def _graph_check_without_one(device: torch.device, precision: str) -> Check:
    """With what stands in for a graph, soon: a step takes the interpreter a second."""
    with replaying(), mock.patch.object(cuda_graph, "WARM_UP", 1):
        return gpu_checks.graph_check(device, precision, steps=3)


@pytest.mark.usefixtures("on_gpu")
def test_an_evaluation(run, device) -> None:
    assert_equal([run(gpu_checks.evaluation_check, device)])


def test_a_step_of_the_server(run, device) -> None:
    assert_equal([run(gpu_checks.serving_check, device)])


def test_tokens_by_a_graph(run, device) -> None:
    check = gpu_checks.writing_check if device.type == "cuda" else _writing_check_without_one
    assert_equal([run(check, device)])


def _writing_check_without_one(device: torch.device) -> Check:
    with replaying():
        return gpu_checks.writing_check(device)


@pytest.mark.usefixtures("on_gpu")
def test_an_overflow_of_fp16_changes_nothing(run, device) -> None:
    assert_equal([run(gpu_checks.overflow_check, device)])


def test_more_numbers_than_32_bits_count(run, device) -> None:
    enough = device.type == "cuda" and torch.cuda.mem_get_info()[0] > 24e9
    assert_equal([run(gpu_checks.large_check, device, 2**31 if enough else 1000)])


def test_what_is_not_equal_is_told() -> None:
    """The comparison itself: other numbers, numbers that are not finite, other shapes."""
    x = torch.tensor([1.0, 2.0])
    assert gpu_checks.difference(x, x) == 0
    assert gpu_checks.difference(x, x + 1) == pytest.approx(1 / 3)
    broken = gpu_checks.difference(torch.tensor([1.0, math.nan]), x)
    assert not Check("", broken, 1e9).equal
    assert not Check("", gpu_checks.difference(x[:1], x), 1e9).equal
    assert not Check("", math.nan, 1.0).equal


def test_a_wrong_kernel_is_found(run, device) -> None:
    """The definition with another scale is not the kernel."""
    (found,) = run(_of_another_scale, device)
    assert not found.equal


def _of_another_scale(device: torch.device) -> list[Check]:
    from newllm.model.context import gpu, reference

    given, plain = gpu_checks.context_inputs(2, 3, 24), reference.context_read

    def other(*x: Any) -> Any:
        arguments: Any = (*x[:4], 1.01 * x[4], *x[5:])
        return plain(*arguments)

    return [gpu_checks._compared("", gpu.context_read, other, given, device, 1e-4)]
