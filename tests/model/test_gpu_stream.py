"""The Triton kernels of stream, loss and look-ups equal the reference, in Triton's interpreter.

As `test_gpu_kernels.py` does for `context_read`; both have an interpreter's process of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_gpu_kernels import GPUS, MOST_REGISTERS, Compiles, needs_triton
from test_gpu_kernels import compiled as compiled
from test_gpu_kernels import interpreter as interpreter
from test_kernels import assert_equal, outputs_and_gradients
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.model.kernels import HalfCopies, Noise, linear, make_lookup, reference

pytestmark = needs_triton

HALVES = [torch.float32, torch.bfloat16, torch.float16]


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 0.02


def _of_triton(operation: str, inputs: list[Any]) -> list[Tensor]:
    from newllm.model.kernels import gpu

    return [x.detach() for x in outputs_and_gradients(getattr(gpu, operation), inputs)]


def assert_equals_reference(
    interpreter: Callable[..., Any], operation: str, inputs: list[Any], tolerance: float = 1e-5
) -> None:
    fast = interpreter(_of_triton, operation, inputs)
    slow = outputs_and_gradients(getattr(reference, operation), inputs)
    assert_equal(fast, [x.detach() for x in slow], tolerance)


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("with_stream", [True, False], ids=["stream", "first"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_add_norm(interpreter, share: float, with_stream: bool, dtype: torch.dtype) -> None:
    """Rows of 24 numbers, which is no power of two; dropout keeps the same elements."""
    torch.manual_seed(0)
    stream = torch.randn(2, 7, 24) if with_stream else None
    noise = Noise(seed=3, step=5, first_sequence=2, sites=9)
    inputs = [stream, torch.randn(2, 7, 24).to(dtype), torch.randn(24), dtype, share, noise, 4]
    assert_equals_reference(interpreter, "add_norm", inputs, tolerance(dtype))


def test_more_rows_than_programs(interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program sums the gradients of several rows."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 521, 8), torch.randn(1, 521, 8), torch.randn(8), torch.float32]
    assert_equals_reference(interpreter, "add_norm", inputs, 1e-4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_squared_relu(interpreter, dtype: torch.dtype) -> None:
    inputs = [torch.randn(3, 5, 99, generator=torch.Generator().manual_seed(0)).to(dtype)]
    assert_equals_reference(interpreter, "squared_relu", inputs, tolerance(dtype))


def _nats_of(logits: Tensor, *given: Any) -> list[Tensor]:
    from newllm.model.kernels import gpu

    logits = logits.clone()
    said = gpu.nats_gradient_(logits, *given)
    parts = logits, said.nats, said.d_scores, said.d_counted, said.d_left
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("copies", [False, True], ids=["", "copying"])
@pytest.mark.parametrize("mixes", [False, True], ids=["", "counts"])
@pytest.mark.parametrize(("vocab", "dtype"), [(11, torch.float32), (4099, torch.bfloat16)])
def test_nats(interpreter, copies: bool, mixes: bool, vocab: int, dtype: torch.dtype) -> None:
    """Targets that are copied and not, scores of nothing, positions that are not scored."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(9, vocab, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (9,), generator=generator)
    entries = torch.randint(vocab, (9,), generator=generator)
    entries[:4] = targets[:4]
    scores = torch.randn(9, generator=generator)
    scores[[1, 5]] = -torch.inf
    entries[[1, 5]] = 0
    targets[7:] = IGNORED
    counted, left = (torch.rand(9, generator=generator) / 2 for _ in range(2))
    copying, mixing = (entries, scores) if copies else None, (counted, left) if mixes else None
    fast = interpreter(_nats_of, logits, targets, copying, mixing)
    slow = logits.clone()
    said = reference.nats_gradient_(slow, targets, copying, mixing)
    parts = slow, said.nats, said.d_scores, said.d_counted, said.d_left
    assert_equal(fast, [part for part in parts if part is not None], tolerance(dtype))
    assert bool((fast[0][7:] == 0).all())


def _embedded(table: Tensor, index: Tensor, base: Tensor | None) -> list[Tensor]:
    from newllm.model.kernels import gpu

    operation = partial(gpu.embedding, lookup=make_lookup(index))
    inputs = [table] if base is None else [table, None, base]
    return [
        x.detach()
        for x in outputs_and_gradients(
            lambda table, _=None, base=None: operation(table, base=base), inputs
        )
    ]


@pytest.mark.parametrize("width", [1, 16, 24])
@pytest.mark.parametrize("with_base", [False, True], ids=["", "base"])
def test_embedding(interpreter, width: int, with_base: bool) -> None:
    """Rows that are never, once and often looked up; -1 is zeros and no gradient."""
    generator = torch.Generator().manual_seed(0)
    table, index = torch.randn(7, width, generator=generator), torch.randint(-1, 5, (70,))
    base = torch.randn(70, width, generator=generator) if with_base else None
    fast = interpreter(_embedded, table, index, base)
    known = (index >= 0)[:, None]

    def slow(table: Tensor, base: Tensor | None = None) -> Tensor:
        rows = reference.embedding(table, index.clamp(min=0)) * known
        return rows if base is None else rows + base

    expected = outputs_and_gradients(slow, [table] if base is None else [table, base])
    assert_equal(fast, [x.detach() for x in expected])


def _judged(*given: Any) -> list[Tensor]:
    from newllm.model.kernels import gpu

    check = gpu.check_step(*given)
    return [check.outcome, check.found_inf, check.grad_scale]


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_verdict_on_a_step(interpreter, bad: float, scale: float | None) -> None:
    norms = torch.rand(200, generator=torch.Generator().manual_seed(0))
    scaled = None if scale is None else torch.tensor(scale)
    for nats, spoilt in ((5.0 + bad, norms), (5.0, norms + bad)):
        given = torch.tensor(nats), spoilt, scaled, 1.0
        said, found_inf, grad_scale = interpreter(_judged, *given)
        expected = reference.check_step(*given)
        assert_equal([said[1:], found_inf], [expected.outcome[1:], expected.found_inf])
        torch.testing.assert_close(said[0], torch.tensor(nats), equal_nan=True)
        assert float(found_inf) == float(bad != 0)
        if bad == 0:
            torch.testing.assert_close(grad_scale, expected.grad_scale)


PLACES = reference.Places(
    ((0, 40, 1, 36, 40), (1440, 1, 8, 8, 70), (2000, 9, 1, 8, 9), (2072, 1, 1, 1, 1))
)
"""Of several tiles, lying, standing, and one number; in a vector of 2,100."""


def _blended(gradients: Tensor, momenta: Tensor, *given: Any) -> list[Tensor]:
    from newllm.model.kernels import gpu

    return [gpu.blend(gradients, momenta, PLACES, *given), momenta]


@pytest.mark.parametrize("skipped", [False, True])
def test_momenta_become_a_stack(interpreter, skipped: bool) -> None:
    """What no place names stays as it is; of a step that is not taken, all."""
    gradients, momenta = torch.randn(2, 2100, generator=torch.Generator().manual_seed(0))
    gradients[7] = torch.nan if skipped else 1.0
    given = torch.tensor(float(skipped)), torch.tensor(8.0), 0.7
    before, expected = momenta.clone(), momenta.clone()
    stack = reference.blend(gradients, expected, PLACES, *given)
    fast = interpreter(_blended, gradients, momenta, *given)  # whose memory the process shares
    assert_equal(fast, [stack, expected])
    assert torch.equal(fast[1][2073:], before[2073:])
    assert not skipped or torch.equal(fast[1], before)
    assert int((stack != 0).sum()) == 36 * 40 + 8 * 70 + 8 * 9 + 1


def _moved(weights: Tensor, stack: Tensor, *given: Any) -> list[Tensor]:
    from newllm.model.kernels import gpu

    gpu.move_(weights, stack, PLACES, *given)
    return [weights]


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_stack_moves_weights(interpreter, skipped: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2100, generator=generator)
    stack = torch.randn(4, 36, 70, generator=generator).to(dtype)
    given = (
        torch.tensor([1.0, 2.0, 1.0, 1.5]),
        torch.tensor(float(skipped)),
        torch.tensor(0.02),
        0.1,
    )
    before, expected = weights.clone(), weights.clone()
    reference.move_(expected, stack, PLACES, *given)
    assert torch.equal(expected, before) == skipped
    assert_equal(interpreter(_moved, weights, stack, *given), [expected], 1e-6)


def _summed_together(rows: int, weights: list[Tensor], x: Tensor) -> list[Tensor]:
    from newllm.model.kernels import gpu

    def several(*leaves: Tensor) -> Tensor:
        y = leaves[-1]
        for weight in gpu.norms_together(leaves[:-1], rows):
            y = gpu.add_norm(None, y, weight, torch.float32)[1]
        return y

    return [x.detach() for x in outputs_and_gradients(several, [*weights, x])]


def test_norms_whose_gradients_are_summed_together(interpreter) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = list(torch.randn(3, 8, generator=generator))
    x = torch.randn(2, 3, 8, generator=generator)

    def several(*leaves: Tensor) -> Tensor:
        y = leaves[-1]
        for weight in leaves[:-1]:
            y = reference.norm(y, weight)
        return y

    fast = interpreter(_summed_together, 6, weights, x)
    assert_equal(fast, [x.detach() for x in outputs_and_gradients(several, [*weights, x])], 1e-4)


def test_a_lookup_says_where_each_row_is_used() -> None:
    index, order, row, times = make_lookup(torch.tensor([3, -1, 0, 3, 3, -1])).tolist()
    assert index == [3, -1, 0, 3, 3, -1]
    assert order == [1, 5, 2, 0, 3, 4]
    assert row == [-1, -1, 0, 3, 3, 3]
    assert times == [0, 0, 1, 3, 0, 0]


def test_copies_in_half_precision_are_what_autocast_makes() -> None:
    """Outputs and gradients to the bit, of products that are the same; and only while they live."""
    torch.manual_seed(0)
    weight, x = torch.randn(5, 8, requires_grad=True), torch.randn(2, 3, 8, requires_grad=True)
    results = []
    for copied in (False, True):
        copies = HalfCopies([weight], torch.bfloat16) if copied else None
        with torch.autocast("cpu", torch.bfloat16):
            y = linear(x, weight)
        assert ("Linear" in str(y.grad_fn)) == copied
        results.append([y, *torch.autograd.grad(y.float().square().sum(), [weight, x])])
        if copies is not None:
            with torch.no_grad():
                weight.mul_(2)
            copies.refresh()
            assert torch.equal(copies._made[0], weight.bfloat16())
            del copies
    for plain, fast in zip(*results, strict=True):
        assert plain.dtype == fast.dtype
        torch.testing.assert_close(plain, fast, rtol=0.01, atol=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert "Linear" not in str(linear(x, weight).grad_fn)


FLOATS, INTS = "*fp32", {"targets": "*i64", "entries": "*i64", "keys": "*i32"}
INTS |= dict.fromkeys(("index", "order", "row", "times"), "*i32")
SCALARS = dict.fromkeys(("site", "first", "rows", "size", "count"), "i32")
SCALARS |= {"decay": "fp32"}
KERNELS: list[tuple[str, int, set[str], dict[str, Any]]] = [
    ("_add_norm_forward", 2, {"branch", "normed"},
     {"EPSILON": 1e-5, "WIDTH": 384, "BLOCK": 512, "DROP_BELOW": 26, "SCALE": 1.1}),
    ("_add_norm_forward", 1, {"branch", "normed"},
     {"EPSILON": 1e-5, "WIDTH": 256, "BLOCK": 256, "DROP_BELOW": 0, "SCALE": 1.0, "stream": None,
      "keys": None}),
    ("_add_norm_backward", 2, {"d_branch", "d_normed"},
     {"WIDTH": 384, "BLOCK": 512, "DROP_BELOW": 26, "SCALE": 1.1}),
    ("_add_norm_backward", 1, {"d_branch", "d_normed"},
     {"WIDTH": 256, "BLOCK": 256, "DROP_BELOW": 0, "SCALE": 1.0, "d_total": None, "d_stream": None,
      "keys": None}),
    ("_squared_relu_forward", 4, {"x", "y"}, {"BLOCK": 1024}),
    ("_squared_relu_backward", 4, {"x", "d_y", "d_x"}, {"BLOCK": 1024}),
    ("_nats", 8, {"logits"}, {"IGNORED": IGNORED, "LEAST": 1e-37, "VOCAB": 4096, "BLOCK": 4096,
                           "GRADIENTS": True}),
    ("_nats", 4, {"logits"}, {"IGNORED": IGNORED, "LEAST": 1e-37, "VOCAB": 1000, "BLOCK": 1024,
                           "GRADIENTS": True, "entries": None, "scores": None, "counted": None,
                           "left": None, "d_scores": None, "d_counted": None, "d_left": None}),
    ("_gather", 1, set(), {"WIDTH": 256, "BLOCK": 256}),
    ("_gather_backward", 8, set(), {"WIDTH": 256, "BLOCK": 256, "ROWS": 16}),
    ("_judge", 1, set(), {"CLIP": 1.0, "BLOCK": 128}),
    ("_blend", 4, set(), {"KEEP": 0.7, "ROWS": 256, "COLUMNS": 768, "TILE": 32}),
    ("_move", 4, {"stack"}, {"ROWS": 250, "COLUMNS": 700, "TILE": 32}),
]  # fmt: skip
"""Name, warps, which arguments are in half precision, constants: as they are launched."""


@pytest.mark.parametrize(("capability", "half"), GPUS)
@pytest.mark.parametrize(("name", "warps", "halves", "constants"), KERNELS)
def test_compiles_for_gpus(
    compiled: Compiles, capability: int, half: str, name: str, warps: int, halves: set[str],
    constants: dict[str, Any],
) -> None:  # fmt: skip
    """The interpreter does not check types; the compiler, which needs no GPU, does."""
    from newllm.model.kernels import gpu

    kernel = getattr(gpu, name)
    named = (
        INTS | SCALARS | dict.fromkeys(halves, f"*{half}") | dict.fromkeys(constants, "constexpr")
    )
    types = {argument: named.get(argument, FLOATS) for argument in kernel.arg_names}
    used = compiled(capability, kernel, types, constants, num_warps=warps)
    assert used.registers <= MOST_REGISTERS
    assert used.spilled == 0
