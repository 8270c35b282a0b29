"""The Triton kernel equals the reference: run on the CPU, in Triton's interpreter, and compiled.

The interpreter has to be chosen before Triton is imported and cannot be left again, so it has a
process of its own.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kernels import assert_equal, context_inputs, outputs_and_gradients
from torch import Tensor

from newllm.config import ModelSettings
from newllm.errors import UserError
from newllm.model import context, kernels
from newllm.model.context import reference
from newllm.model.context.lm import ContextLM
from newllm.report.doctor import how_to_get_triton
from tools import kernel_cycles

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no wheels for this system"
)


def _enter_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # memory that was never written is NaN


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Callable[..., Any]]:
    """Calls a function in the interpreter's process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_enter_interpreter) as pool:
        yield lambda *call: pool.submit(*call).result(timeout=300)


def _of_triton(inputs: list[Any]) -> list[Tensor]:
    from newllm.model.context import gpu as gpu_context

    return [x.detach() for x in outputs_and_gradients(gpu_context.context_read, inputs)]


def assert_equals_reference(
    interpreter: Callable[..., Any], inputs: list[Any], tolerance: float = 1e-5
) -> None:
    fast = interpreter(_of_triton, inputs)
    slow = outputs_and_gradients(reference.context_read, inputs)
    assert len(fast) == 10
    assert_equal(fast, [x.detach() for x in slow], tolerance)


@needs_triton
@pytest.mark.parametrize("time", [1, 2, 3, 4])
@pytest.mark.parametrize("resets", [False, True], ids=["plain", "resets"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "lengths"])
def test_short_texts(interpreter, time: int, resets: bool, cut: bool) -> None:
    """Around the filter's width, where the tail given and the tail returned overlap."""
    for seed in range(2):
        assert_equals_reference(interpreter, context_inputs(3, time, 8, resets, cut, seed))


@needs_triton
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "resets and lengths"])
def test_texts_of_some_tiles(interpreter, mixed: bool) -> None:
    for time in (15, 16, 17, 63, 80):  # around a tile, and some of them
        assert_equals_reference(interpreter, context_inputs(2, time, 16, mixed, mixed, seed=time))


@needs_triton
@pytest.mark.parametrize("time", [5, 37])
def test_an_empty_a_short_and_a_whole_sequence(interpreter, time: int) -> None:
    inputs = context_inputs(3, time, 8, resets=True, cut=False, seed=0)
    inputs[6] = torch.tensor([0, 2, time])
    assert_equals_reference(interpreter, inputs)


@needs_triton
@pytest.mark.parametrize("channels", [24, 128], ids=["3 groups of 8", "2 groups of 64"])
@pytest.mark.parametrize("time", [5, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_groups_and_types(interpreter, channels: int, time: int, dtype: torch.dtype) -> None:
    inputs = context_inputs(2, time, channels, resets=True, cut=True, seed=0)
    inputs[0] = inputs[0].to(dtype)
    assert_equals_reference(interpreter, inputs, 1e-5 if dtype == torch.float32 else 0.02)


@needs_triton
def test_strided_inputs(interpreter) -> None:
    inputs = context_inputs(4, 3, 8, resets=True, cut=False, seed=0)
    inputs[0], inputs[5] = inputs[0].mT.contiguous().mT, inputs[5].t().contiguous().t()
    inputs[7] = inputs[7].t().contiguous().t()
    assert not any(inputs[place].is_contiguous() for place in (0, 5, 7))
    assert_equals_reference(interpreter, inputs)


def _kept_contexts(inputs: list[Any]) -> tuple[list[bool], list[list[Tensor]]]:
    """Whether contexts were kept with no gradients allowed, none wanted, and one wanted; and what
    was returned.
    """
    from newllm.model.context import gpu as gpu_context

    launch, kept, returned = gpu_context._launch, [], []

    def watch(kernel: Any, channels: int, tensors: tuple[Tensor | None, ...], time: int) -> None:
        launch(kernel, channels, tensors, time)
        kept.append(tensors[10] is not None)

    gpu_context._launch = watch
    wanted = [*inputs[:7], inputs[7].clone().requires_grad_(), inputs[8]]
    for grad_mode, arguments in [(False, wanted), (True, inputs), (True, wanted)]:
        with torch.set_grad_enabled(grad_mode):
            outputs = gpu_context.context_read(*arguments)
        assert all(x.requires_grad == (grad_mode and arguments is wanted) for x in outputs)
        returned.append([x.detach() for x in outputs])
    gpu_context._launch = launch
    return kept, returned


@needs_triton
def test_contexts_are_kept_for_gradients_only(interpreter) -> None:
    inputs = context_inputs(2, 4, 8, resets=True, cut=True, seed=0)
    kept, returned = interpreter(_kept_contexts, inputs)
    assert kept == [False, False, True]
    for outputs in returned:
        assert_equal(outputs, list(reference.context_read(*inputs)))


def _loss_and_gradients(settings: ModelSettings, kernel: str) -> list[Tensor]:
    """Of a small model on packed, padded rows, with a kernel taken for the CPU's."""
    chosen = kernels.active_kernel
    kernels.active_kernel = lambda device="cpu": kernel
    try:
        torch.manual_seed(0)
        model = ContextLM(settings, vocab_size=11)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        ids = torch.randint(0, 11, (2, 6))
        reset = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]).bool()
        valid = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
        hidden, state = model(ids[:, :5], reset=reset[:, :5], valid=valid[:, :5])
        more, _ = model(ids[:, 5:], state)
        loss = model.loss(torch.cat([hidden, more], dim=1), ids.roll(-1, dims=1))
        loss.backward()
        assert str(state["context"].grad_fn).startswith("<StackBackward")
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters()))
        return [loss.detach(), state["context"].detach(), *gradients]
    finally:
        kernels.active_kernel = chosen


@needs_triton
def test_model(interpreter, tiny_model_settings) -> None:
    fast = interpreter(_loss_and_gradients, tiny_model_settings(), "triton")
    assert_equal(fast, _loss_and_gradients(tiny_model_settings(), "reference"), 1e-5)


MOST_REGISTERS = 128
"""Of a thread: with more, fewer than 512 threads of an SM's 65,536 registers run at once."""

Compiles = Callable[..., kernel_cycles.Compiled]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiles:
    """Compiles a kernel for a GPU, which takes none; says what it takes."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return kernel_cycles.compile_for


GPUS = list(kernel_cycles.GPUS.values())


@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype", "all_given"),
    [*((*gpu, True) for gpu in GPUS), (75, "fp16", False), (90, "fp32", False)],
)
@pytest.mark.parametrize(
    ("name", "tile", "warps", "most_cycles"),
    [("_forward", 16, 4, 400), ("_forward", 1, 1, 1100), ("_backward", 1, 1, 750)],
    ids=["forward in tiles", "forward", "backward"],
)
def test_compiles_for_gpus(
    compiled: Compiles, capability: int, dtype: str, all_given: bool, name: str, tile: int,
    warps: int, most_cycles: int,
) -> None:  # fmt: skip
    """The interpreter does not check types; the compiler, which needs no GPU, does."""
    from newllm.model.context import gpu as gpu_context

    kernel = getattr(gpu_context, name)
    constants = kernel_cycles.constants_of(kernel, tile)
    if not all_given:
        constants |= {"reset": None, "lengths": None}
        unused = {"contexts"} if name == "_forward" else {"d_last_context", "d_last_tail"}
        constants |= dict.fromkeys(unused)
    types = kernel_cycles.types_of(kernel, dtype, constants)
    used = compiled(capability, kernel, types, constants, num_warps=warps)
    assert used.registers <= MOST_REGISTERS
    assert used.spilled == 0
    # A single warp exchanges everything in registers; several by what every GPU has.
    assert used.shared <= (0 if warps == 1 else 16 * 1024)
    assert kernel_cycles.cycles(used.loop()) / tile <= most_cycles


@needs_triton
def test_a_spill_is_seen(compiled: Compiles) -> None:
    """What the limits are for: a kernel that is given too few registers."""
    from newllm.model.context import gpu as gpu_context

    kernel = gpu_context._backward
    constants = kernel_cycles.constants_of(kernel, 1)
    types = kernel_cycles.types_of(kernel, "bf16", constants)
    used = compiled(80, kernel, types, constants, num_warps=1, maxnreg=40)
    assert used.registers <= 40
    assert used.spilled > 0


def test_cycles_are_those_of_the_longest_chain() -> None:
    """One load a cycle after the other, 250 cycles until it is there, 5 until the sum is, and two
    more instructions."""
    code = """
.L_x_1:
        /*0010*/                   LDG.E R2, [R8.64] ;
        /*0020*/                   LDG.E R3, [R8.64+0x4] ;
        /*0030*/                   FADD R8, R2, R3 ;
        /*0040*/                   FADD R9, R8, 1 ;
        /*0050*/              @P0  BRA `(.L_x_1) ;
"""
    made = kernel_cycles.Compiled(32, 0, 0, code)
    assert len(made.loop()) == 5
    assert kernel_cycles.cycles(made.loop()) == 1 + 250 + 5 + 2


@pytest.mark.parametrize("installed", [True, False])
def test_kernel_on_a_gpu(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "triton_is_installed", lambda: installed)
    assert kernels.active_kernel("cuda") == ("triton" if installed else "reference")
    monkeypatch.setattr(kernels, "FORCED", "reference")
    assert kernels.active_kernel("cuda:1") == "reference"
    monkeypatch.setattr(kernels, "FORCED", "numba")
    with pytest.raises(UserError, match="on this cuda device use reference"):
        kernels.active_kernel("cuda")
    monkeypatch.setattr(kernels, "FORCED", "triton")
    if installed:
        assert kernels.active_kernel("cuda") == "triton"
    else:
        with pytest.raises(UserError, match="on this cuda device use reference"):
            kernels.active_kernel("cuda")
    with pytest.raises(UserError, match="on this cpu device use reference or numba"):
        kernels.active_kernel("cpu")


def test_what_the_kernel_does_not_read_goes_to_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "active_kernel", lambda device: "triton")
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    assert kernels.choose(x, reference, triton=context._gpu) is reference
    assert kernels.choose(x[:0].float(), reference, triton=context._gpu) is reference
    assert kernels.choose(x.float(), reference, numba=context._cpu) is reference
    if kernels.triton_is_installed():
        chosen = kernels.choose(x.half(), reference, numba=context._cpu, triton=context._gpu)
        assert chosen.__name__ == "newllm.model.context.gpu"


def test_doctor_says_how_to_get_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.report.doctor.triton_is_installed", lambda: False)
    assert 'pip install -e ".[gpu]"' in how_to_get_triton()
    monkeypatch.setattr("newllm.report.doctor.triton_is_installed", lambda: True)
    assert "unset NEWLLM_KERNEL" in how_to_get_triton()
