"""What has to be equal on a GPU and on a CPU: for `newllm bench gpu` and `pytest -m gpu`.

Without a GPU the same comparisons run on the CPU, where the kernels go through Triton's interpreter
(`TRITON_INTERPRET=1`, set before Triton is imported) and the trainer by the loop that a GPU has.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.evaluate.metrics import evaluate
from newllm.inference.decoder import FusedDecoder, ModuleDecoder
from newllm.inference.graphed import GraphedSlots
from newllm.model import build_model, kernels
from newllm.model.context import reference as context_reference
from newllm.model.kernels import Noise, make_lookup, reference
from newllm.model.residual import ResidualLM
from newllm.settings import resolve
from newllm.train import trainer as training
from newllm.train.counting import prepare_counts
from newllm.train.log import EpochLog

TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Of a kernel against float64, by the type of its inputs."""

STEP_TOLERANCE = 0.01
"""Of what steps changed in the weights."""

TINY: dict[str, Any] = {
    "max_samples": 60, "vocab_size": 300, "num_layers": 1, "context_dim": 16, "embed_dim": 16,
    "hidden_dim": 24, "max_seq_length": 4, "batch_size": 2, "epochs": 1, "pair_rows": 64,
    "recall_slots": 64, "counts": 20_000, "warmup_share": 0.0,
}  # fmt: skip
"""Settings of the trainings that are compared in the interpreter."""

SMALL: dict[str, Any] = {
    **TINY, "max_samples": 400, "vocab_size": 600, "num_layers": 3, "context_dim": 128,
    "embed_dim": 64, "hidden_dim": 96, "max_seq_length": 64, "batch_size": 16,
}  # fmt: skip
"""And of those on a GPU."""


def compared(device: torch.device) -> dict[str, Any]:
    """Settings of the trainings that are compared on this device."""
    return SMALL if device.type == "cuda" else TINY


@dataclass(frozen=True)
class Check:
    """Two ways to compute the same, compared."""

    what: str
    error: float
    """Largest difference, as a share of the largest number (or of 1, where that is less)."""
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether they are equal; nothing is equal to what is not finite."""
        return self.error <= self.tolerance


def difference(fast: Tensor, exact: Tensor) -> float:
    """Largest difference, as a share of the largest number; infinite where one is not finite."""
    a, b = (x.detach().double().cpu() for x in (fast, exact))
    if a.numel() == 0 or a.shape != b.shape:
        return 0.0 if a.shape == b.shape else math.inf
    error = float((a - b).abs().max() / b.abs().max().clamp(min=1))
    return error if math.isfinite(error) else math.inf


# -- kernels -------------------------------------------------------------------------------------


def context_checks(
    device: torch.device,
    times: Sequence[int],
    channels: Sequence[int],
    dtypes: Sequence[torch.dtype] = tuple(TOLERANCES),
    batch: int = 4,
) -> Iterator[Check]:
    """`context_read` and its gradients, with and without resets and lengths, against float64."""
    from newllm.model.context import gpu

    for count in channels:
        for time in times:
            for resets, cut in ((False, False), (True, True)):
                drawn = context_inputs(batch, time, count, resets, cut)
                for dtype in dtypes:
                    given = [drawn[0].to(dtype), *drawn[1:]]
                    about = ", resets and lengths" if resets else ""
                    yield _compared(
                        f"context_read, {_name(dtype)}, T {time}, C {count}{about}",
                        gpu.context_read,
                        context_reference.context_read,
                        given,
                        device,
                        TOLERANCES[dtype],
                    )


def context_inputs(
    batch: int, time: int, channels: int, resets: bool = False, cut: bool = False
) -> list[Any]:
    """Random arguments of `context_read`; parameters and state are fp32."""
    generator = torch.Generator().manual_seed(time)
    shapes = ((batch, time, 3 * channels), (channels,), (channels,), (4, channels), (channels,),
              (batch, channels), (batch, 3, channels))  # fmt: skip
    drawn = [torch.randn(*shape, generator=generator) for shape in shapes]
    reset = torch.rand(batch, time, generator=generator) < 0.2 if resets else None
    lengths = torch.randint(0, time + 1, (batch,), generator=generator) if cut else None
    return [*drawn[:5], reset, lengths, *drawn[5:]]


def stream_checks(
    device: torch.device, rows: int, width: int, vocab: int, dtypes: Sequence[torch.dtype]
) -> Iterator[Check]:
    """The kernels of stream, loss, look-ups and optimizer, against float64."""
    from newllm.model.kernels import gpu

    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator)
    noise = Noise(seed=3, step=5, first_sequence=2, sites=9)
    fast: Any = gpu.add_norm
    exact: Any = reference.add_norm
    for dtype in dtypes:
        tolerance, name = TOLERANCES[dtype], _name(dtype)
        given = [randn(2, rows, width), randn(2, rows, width).to(dtype), randn(width)]
        for p in (0.0, 0.1):
            yield _compared(
                f"add_norm, {name}, dropout {p}",
                lambda *x, dtype=dtype, p=p: fast(*x, dtype, p, noise, 4),
                lambda *x, p=p: exact(*x, torch.float64, p, noise, 4),
                given, device, tolerance,
            )  # fmt: skip
        yield _compared(
            f"squared_relu, {name}", gpu.squared_relu, reference.squared_relu,
            [randn(2, rows, width).to(dtype)], device, tolerance,
        )  # fmt: skip
        yield _nats_check(device, rows, vocab, dtype)
    index = torch.randint(0, 7, (rows,), generator=generator)
    lookup = make_lookup(index)
    yield _compared(
        "embedding",
        lambda table, base: gpu.embedding(table, lookup.to(device), base),
        lambda table, base: reference.embedding(table, index, base),
        [randn(7, width), randn(rows, width)], device, TOLERANCES[torch.float32],
    )  # fmt: skip
    yield from _update_checks(device)


def _nats_check(device: torch.device, rows: int, vocab: int, dtype: torch.dtype) -> Check:
    """Loss and gradient of logits, with copying and counts."""
    from newllm.model.kernels import gpu

    generator = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(rows, vocab, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (rows,), generator=generator)
    targets[-1] = IGNORED
    entries = torch.randint(vocab, (rows,), generator=generator)
    entries[::2] = targets[::2].clamp(min=0)
    scores = torch.randn(rows, generator=generator)
    counted, left = (torch.rand(rows, generator=generator) / 2 for _ in range(2))
    found = []
    for run, where, wide in ((gpu, device, None), (reference, torch.device("cpu"), torch.float64)):
        x = logits.to(where, wide or dtype, copy=True)
        floats = (part.to(where, wide or torch.float32) for part in (scores, counted, left))
        s, c, rest = floats
        said = run.nats_gradient_(x, targets.to(where), (entries.to(where), s), (c, rest))
        parts = x, said.nats, said.d_scores, said.d_counted, said.d_left
        found.append([part for part in parts if part is not None])
    error = max(difference(a, b) for a, b in zip(*found, strict=True))
    return Check(f"nats_gradient_, {_name(dtype)}, V {vocab}", error, TOLERANCES[dtype])


def _update_checks(device: torch.device) -> Iterator[Check]:
    """A step that is judged, and momentum: of finite numbers, and of an overflow."""
    from newllm.model.kernels import gpu

    for value, about in ((2.0, "finite"), (math.inf, "an overflow")):
        norms = torch.tensor([1.0, value, 3.0])
        gradient, momentum, weight = torch.arange(5.0) * value, torch.ones(5), torch.zeros(5)
        found = []
        for run, where in ((gpu, device), (reference, torch.device("cpu"))):
            check = run.check_step(
                torch.tensor(5.0, device=where),
                norms.to(where),
                torch.tensor(4.0, device=where),
                1.0,
            )
            g, m, w = (x.to(where, copy=True) for x in (gradient, momentum, weight))
            places, rates = reference.Places(((1, 1, 2, 2, 2), (0, 1, 1, 1, 1))), m.new_ones(2)
            stack = run.blend(g, m, places, check.found_inf, check.grad_scale, 0.7)
            rate = torch.tensor(0.1, device=where)
            run.move_(w, stack, places, rates, check.found_inf, rate, 0.5)
            found.append([check.outcome, check.found_inf, stack, m, w])
        error = max(difference(a, b) for a, b in zip(*found, strict=True))
        yield Check(f"check_step, blend and move_, {about}", error, TOLERANCES[torch.float32])


def large_check(device: torch.device, numbers: int = 2**31) -> Check:
    """More numbers than 32 bits count: the last sequences as they are alone, to the bit."""
    from newllm.model.context import gpu

    time, channels = (256, 1024) if numbers > 2**20 else (2, 8)
    batch = numbers // (3 * time * channels) + 3
    given: list[Any] = [x if x is None else x.to(device) for x in context_inputs(2, time, channels)]
    given[0] = given[0].bfloat16()
    many = [
        x.repeat(-(-batch // 2), *[1] * (x.ndim - 1))[-batch:] if n in (0, 7, 8) else x
        for n, x in enumerate(given)
    ]  # fmt: skip
    results = []
    for inputs in (many, given):
        inputs[0] = inputs[0].detach().requires_grad_()
        read, context, _ = gpu.context_read(*inputs)
        read.backward(torch.ones_like(read))
        results.append([read[-2:].detach(), context[-2:].detach(), inputs[0].grad[-2:]])
        del read, context
    error = max(difference(a, b) for a, b in zip(*results, strict=True))
    return Check(f"context_read of {batch * 3 * time * channels:,} numbers", error, 0.0)


def _compared(
    what: str,
    fast: Callable[..., Any],
    exact: Callable[..., Any],
    given: Sequence[Any],
    device: torch.device,
    tolerance: float,
) -> Check:
    """Outputs and gradients of an operation on a device, and of its definition in float64."""
    found = []
    for run, where, wide in ((fast, device, None), (exact, torch.device("cpu"), torch.float64)):
        leaves = [_leaf(x, where, wide) for x in given]
        outputs = run(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(9)
        weights = [torch.randn(o.shape, generator=generator).to(o.device) for o in outputs]
        weighted = [
            (o.to(wide or torch.float32) * w).sum() for o, w in zip(outputs, weights, strict=True)
        ]
        torch.stack(weighted).sum().backward()
        found.append([*outputs, *(x.grad for x in leaves if getattr(x, "grad", None) is not None)])
    error = max(difference(a, b) for a, b in zip(*found, strict=True))
    return Check(what, error, tolerance)


def _leaf(x: Any, device: torch.device, wide: torch.dtype | None) -> Any:
    if not isinstance(x, Tensor):
        return x
    if not x.is_floating_point():
        return x.to(device)
    return x.detach().to(device, wide or x.dtype, copy=True).requires_grad_()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- steps ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def kernels_of(device: torch.device) -> Iterator[None]:
    """A block in which a model on `device` runs the Triton kernels: on a CPU, by interpreter."""
    if device.type == "cuda":
        yield
        return
    with mock.patch.object(kernels, "active_kernel", return_value="triton"):
        yield


def make_trainer(
    device: torch.device, flags: dict[str, Any], dataset: str = "dolly", dropout: float = 0.0
) -> training.Trainer:
    """A trainer of the built-in rows that is ready for `take_steps`.

    The model has as many entries as `vocab_size` says, though the rows make a smaller vocabulary.
    """
    settings = resolve(dataset, {"data": "sample", "device": device.type, **flags})
    encoding = Encoding.of(settings)
    source = open_source(find_dataset(dataset), "sample", settings.subset, encoding.head)
    data = prepare_training(source, encoding, None)
    counts = prepare_counts([data], settings.counts) if settings.counts else None

    def build(shape: Any, vocab_size: int, block: Any) -> Any:
        return build_model(
            shape, settings.vocab_size if settings.tokenizer == "bpe" else vocab_size, block
        )

    with mock.patch.object(training, "build_model", build):
        trainer = training.Trainer(
            settings, data, EpochLog(), lambda *_: None, lambda *_: None, device, counts=counts
        )
    set_counts(trainer)
    trainer.micro_batch = settings.micro_batch_size or settings.batch_size
    trainer._on_gpu = True  # on a CPU, too: nothing of a step is known before the next
    trainer._begin()
    set_dropout(trainer, dropout)
    return trainer


def set_counts(trainer: training.Trainer) -> None:
    """The tables of training, as `fit` gives them: loaded weights have another."""
    model: Any = trainer.model
    if trainer._counts is not None:
        model.counts.set_tables(trainer._counts.tables)


def set_dropout(trainer: training.Trainer, p: float) -> None:
    """Drop with this probability from now on."""
    trainer.model.set_dropout(p)  # type: ignore[operator, union-attr]


def take_steps(trainer: training.Trainer, count: int) -> None:
    """So many steps, from where the trainer stands."""
    loader = trainer._loader(0)
    for _ in range(count):
        trainer._timed_step(loader.batch(trainer.progress.step % len(loader)), len(loader))
    trainer._read_outcome()


def weights_of(trainer: training.Trainer) -> Tensor:
    """All weights, float64 on the CPU."""
    return torch.cat([p.detach().double().cpu().flatten() for p in trainer.model.parameters()])


def perturb(model: torch.nn.Module) -> None:
    """Weights that no longer are what they start as: some of those are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def step_check(device: torch.device) -> Check:
    """Steps of a GPU are those of the definitions on a CPU, in fp32 and with dropout.

    Muon's iteration is in fp32 on both: in half precision it only comes near.
    """
    flags = {**compared(device), "precision": "fp32"}
    steps = 3 if device.type == "cuda" else 1
    exactly = mock.patch("newllm.train.optimizers.muon_dtype", return_value=torch.float32)
    plain = mock.patch.object(kernels, "active_kernel", return_value="reference")
    with exactly:
        with plain:
            here = make_trainer(torch.device("cpu"), flags, dropout=0.1)
            here._on_gpu = False
            start = weights_of(here)
            take_steps(here, steps)
        with kernels_of(device):
            there = make_trainer(device, flags, dropout=0.1)
            take_steps(there, steps)
    changed = weights_of(here) - start
    error = float((weights_of(there) - weights_of(here)).norm() / changed.norm())
    return Check(f"{steps} training step(s), CPU and GPU", error, STEP_TOLERANCE)


def resume_check(device: torch.device, precision: str = "auto") -> Check:
    """A training that was stopped and resumed has the weights of one that was not, to the bit."""
    if precision == "auto" and device.type == "cpu":
        precision = "fp32"
    make = partial(make_trainer, device, {**compared(device), "precision": precision}, dropout=0.1)
    with kernels_of(device):
        whole, first, second = make(), make(), make()
        take_steps(whole, 2)
        take_steps(first, 1)
        stored = io.BytesIO()
        torch.save(first.state_dict(), stored)
        stored.seek(0)
        second.load_state_dict(torch.load(stored, map_location="cpu", weights_only=False))
        set_counts(second)
        take_steps(second, 1)
    return Check("stopped and resumed", difference(weights_of(second), weights_of(whole)), 0.0)


def graph_check(device: torch.device, precision: str = "auto", steps: int = 8) -> Check:
    """Steps that are replayed as one CUDA graph are those that were launched one by one, to the
    bit.

    On a GPU it is the graph itself; elsewhere somebody has to stand in for it.
    """
    if precision == "auto" and device.type == "cpu":
        precision = "fp32"
    flags = {**compared(device), "precision": precision}
    with kernels_of(device):
        usual, by_graph = (
            make_trainer(device, {**flags, "cuda_graph": wanted}, dropout=0.1)
            for wanted in (False, True)
        )
        for trainer in (usual, by_graph):
            take_steps(trainer, steps)
    error = difference(weights_of(by_graph), weights_of(usual))
    made = by_graph._graph is not None and len(by_graph._graph._graphs) == 1
    return Check(f"{steps} steps by a CUDA graph", error if made else math.inf, 0.0)


def overflow_check(device: torch.device) -> Check:
    """A step whose fp16 gradients overflow changes no weight; the scale is halved. GPUs only."""
    trainer = make_trainer(device, {**compared(device), "precision": "fp16"})
    take_steps(trainer, 1)
    before = weights_of(trainer)
    scale = trainer.scaler._scale
    assert scale is not None
    scale.fill_(2.0**60)
    take_steps(trainer, 1)
    kept = torch.equal(weights_of(trainer), before) and trainer.progress.skipped_in_a_row == 1
    kept = kept and float(trainer.scaler._scale) == 2.0**59  # type: ignore[arg-type]
    return Check("an fp16 step that overflows", 0.0 if kept else math.inf, 0.0)


def evaluation_check(device: torch.device) -> Check:
    """Nats of the validation rows, CPU and GPU, which may round the factors of its products.

    GPUs only: the interpreter takes too long for so many tokens.
    """
    here = torch.device("cpu")
    trainer = make_trainer(here, {**compared(device), "precision": "fp32"})
    split, tokenizer = trainer.data.splits["validation"], trainer.data.tokenizer
    torch.manual_seed(0)
    perturb(trainer.model)
    plain = mock.patch.object(kernels, "active_kernel", return_value="reference")
    found = []
    for where in (here, device):
        trainer.model.to(where)
        with kernels_of(device) if found else plain:
            found.append(evaluate(trainer.model, split, tokenizer, where)["nats"])
    return Check("an evaluation, CPU and GPU", abs(found[1] / found[0] - 1), 1e-3)


def serving_check(device: torch.device) -> Check:
    """A step of the server: scores of the next tokens of three texts, CPU and GPU."""
    settings = resolve("dolly", {**compared(device), "counts": 0, "device": "cpu"})
    found = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        model = build_model(settings.model_settings(), settings.vocab_size)
        perturb(model)
        model.eval().requires_grad_(False).to(where)
        plain = mock.patch.object(kernels, "active_kernel", return_value="reference")
        with kernels_of(device) if found else plain:
            decoder = ModuleDecoder(model, batched=True)
            slots = [decoder.add() for _ in range(3)]
            decoder.read(slots, [[5, 6, 7], [8, 9], [10, 11, 12, 13]])
            scores = [decoder.step(slots, [20 + n, 30 + n, 40]) for n in range(3)]
        found.append(torch.from_numpy(scores[-1]).clone())
    return Check("a step of three texts, CPU and GPU", difference(found[1], found[0]), 1e-3)


def writing_check(device: torch.device) -> Check:
    """Tokens of three texts by a CUDA graph, with recall and counts, and by definition on the CPU.

    On a GPU it is the graph itself; elsewhere somebody has to stand in for it.
    """
    here = torch.device("cpu")
    model = make_trainer(here, {**compared(device), "precision": "fp32"}).model.eval()
    assert isinstance(model, ResidualLM)
    torch.manual_seed(0)
    perturb(model)
    found, captured = [], False
    for where in (here, device):
        model.requires_grad_(False).to(where)
        plain = mock.patch.object(kernels, "active_kernel", return_value="reference")
        with kernels_of(device) if found else plain:
            slots = GraphedSlots(model, 4) if found else None
            decoder = ModuleDecoder(model) if slots is None else FusedDecoder(model, slots)
            texts = [decoder.add() for _ in range(3)]
            decoder.read(texts, [[5, 6, 7], [8, 9], [10, 11, 12, 13]])
            decoder.begin_answer(texts[1])
            said = [decoder.step(texts, [5 + n % 2, 8 + n % 2, 12]) for n in range(6)]
            said += [decoder.step(texts[1:], [8, 13])]
            captured = slots is not None and bool(slots._graph._graphs)
        found.append(torch.from_numpy(np.concatenate(said)))
    error = difference(found[1], found[0]) if captured else math.inf
    return Check("tokens of three texts by a CUDA graph, CPU and GPU", error, 1e-3)
