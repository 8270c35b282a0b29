"""Seven stages on a GPU, in at most nine minutes: are the kernels right, and how fast is a step?

Facts of the machine, equality with the CPU, kernels, training steps, other architectures' layers,
the published commands and writing. Each stage has a deadline and a process that can be ended;
what it found is in the file results.jsonl of --out at once, and printed beside what was estimated
without a GPU. Only numbers that are not equal make it fail (exit code 1).

    newllm bench gpu

    newllm bench gpu --dry-run

--dry-run goes through the same stages in small on the CPU, in Triton's interpreter: its equalities
count, its times mean nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import gpu_checks
from benchmarks.gpu_checks import Check, make_trainer, set_dropout
from benchmarks.measure import Report, Row, markdown_table
from benchmarks.trials import ROOT
from newllm.cuda_graph import WARM_UP
from newllm.device import fast_bf16, product_speed
from newllm.errors import UserError
from newllm.inference.decoder import Decoder, FusedDecoder, ModuleDecoder, make_decoder
from newllm.inference.graphed import GraphedSlots
from newllm.model import build_model
from newllm.model.kernels import Noise, make_lookup, triton_is_installed
from newllm.model.residual import ResidualLM
from newllm.planning.speed import DEVICES
from newllm.planning.work import work_of
from newllm.results.runs import RunFiles, read_lines
from newllm.settings import resolve
from newllm.train import checkpoint

LIMIT = 540.0
"""Seconds of all stages together."""

DRY = 6.0
"""Times the limits, in a dry run: its times mean nothing, and the machine may be busy."""

_START = 25.0
"""Seconds more for the first stage of a process, which imports torch and wakes the GPU."""

WORKER = "benchmarks.gpu"
"""Module whose process does the stages."""

_GPUS = ("t4", "l4", "a100", "h200")

BARE = {"recall_slots": 0, "counts": 0}
BPE = {"tokenizer": "bpe", "num_layers": 4, "vocab_size": 4096, **BARE}
SHAPES: dict[str, dict[str, Any]] = {
    "1 x 256, word1000": {"tokenizer": "word1000", "num_layers": 1, **BARE},
    "4 x 256, word1000": {"tokenizer": "word1000", "num_layers": 4, **BARE},
    "4 x 256": BPE,
    "12 x 1024": {**BPE, "num_layers": 12, "context_dim": 1024},
    "4 x 256, recall and counts": {"tokenizer": "bpe", "num_layers": 4, "vocab_size": 4096},
}

STEP_MS = {
    "1 x 256, word1000": (7.8, 5.8, 3.8, 3.8),
    "4 x 256, word1000": (11.2, 8.0, 3.8, 3.8),
    "4 x 256": (14.6, 11.2, 5.6, 5.6),
    "12 x 1024": (168.0, 72.0, 18.7, 8.7),
}
"""What a step of 4,096 tokens was estimated to take before its launches were made fewer, without
dropout, by GPU as in `_GPUS`."""

BEST_MS = {"4 x 256": (6.0, 4.8, 1.2, 0.5)}
"""The same once the step is one graph and its scan goes by tiles of time."""

LAUNCHES = {
    "1 x 256, word1000": 78,
    "4 x 256, word1000": 141,
    "4 x 256": 147,
    "12 x 1024": 384,
    "4 x 256, recall and counts": 256,
}
"""Counted without a GPU (`python -m tools.gpu_dry_run`)."""

REPLAYED = 3
"""Launches of a step that is a graph: what the host has made, the graph, what the step was."""


@dataclass
class Bench:
    """What a stage works with."""

    device: torch.device
    out: Path
    dry: bool
    ends: float = 0.0
    """When the stage has to be done, by `time.monotonic`."""

    @property
    def left(self) -> float:
        """Seconds that are left of the stage."""
        return self.ends - time.monotonic()

    def estimated(self, by_gpu: Sequence[float] | None) -> float | None:
        """Of estimates for `_GPUS`, that for this one."""
        kind = self.kind
        return None if by_gpu is None or kind not in _GPUS else by_gpu[_GPUS.index(kind)]

    @property
    def kind(self) -> str:
        """`a100` for "NVIDIA A100-SXM4-40GB"; "" where nothing was estimated."""
        if self.dry:
            return ""
        words = re.split(r"\W", torch.cuda.get_device_name(self.device).lower())
        return next((word for word in words if word in DEVICES), "")

    def seconds(self, run: Callable[[], object], budget: float = 1.0) -> float:
        """Seconds of a call, median of calls in about so many seconds, after two that compile."""
        if self.dry:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        for _ in range(2):
            run()
        torch.cuda.synchronize(self.device)
        taken: list[float] = []
        until = time.monotonic() + min(budget, max(0.0, self.left - 2))
        while len(taken) < 5 or (time.monotonic() < until and len(taken) < 200):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1000)
        return statistics.median(taken)


def row(
    what: str, measured: Any, unit: str = "", estimated: Any = None, equal: bool | None = None
) -> Row:
    """One line of a stage; `equal` for what has to be."""
    return {"what": what, "measured": measured, "unit": unit, "estimated": estimated,
            "equal": equal}  # fmt: skip


def checked(make: Callable[[], Check]) -> Row:
    """The line of a comparison; one that could not be made is not equal."""
    try:
        found = make()
    except Exception as error:
        traceback.print_exc()
        return row(f"could not be compared: {_short(error)}", None, "", None, False)
    return row(found.what, found.error, "largest difference", f"at most {found.tolerance:g}",
               found.equal)  # fmt: skip


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


# -- the stages ----------------------------------------------------------------------------------


def facts(bench: Bench) -> Iterator[Row]:
    """What the machine is, and what it does at best."""
    device, known = bench.device, DEVICES.get(bench.kind)
    yield row("torch", torch.__version__)
    yield row("triton", metadata.version("triton"))
    yield row("python", platform.python_version())
    if not bench.dry:
        properties = torch.cuda.get_device_properties(device)
        yield row("device", properties.name)
        yield row("CUDA", torch.version.cuda)
        yield row(
            "compute capability", ".".join(map(str, torch.cuda.get_device_capability(device)))
        )
        yield row("memory", properties.total_memory / 1e9, "GB", known and known.memory / 1e9)
    numbers = 2**12 if bench.dry else 2**27
    x, y = torch.empty(numbers, device=device).zero_(), torch.empty(numbers, device=device)
    speed = 2 * 4 * numbers / bench.seconds(lambda: y.copy_(x))
    yield row("copy on the device", speed / 1e9, "GB/s", known and known.bandwidth / 1e9)
    if not bench.dry:
        host = torch.empty(numbers).pin_memory()
        speed = 4 * numbers / bench.seconds(lambda: y.copy_(host, non_blocking=True))
        yield row("copy from pinned memory", speed / 1e9, "GB/s")
        dtype = torch.bfloat16 if fast_bf16(device) else torch.float16
        speed = product_speed(device, dtype)
        yield row("products of 4096 x 4096", speed / 1e12, "TFLOP/s", known and known.flops / 2e12)
        for n, k in ((768, 256), (4096, 256), (3072, 1024)):
            a, b = (torch.randn(4096, size, device=device, dtype=dtype) for size in (k, n))
            speed = 2 * 4096 * n * k / bench.seconds(lambda a=a, b=b: a.t() @ b)
            yield row(f"product of {k} x 4096 and 4096 x {n}", speed / 1e12, "TFLOP/s")
        tiny = torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(1000):
            tiny.add_(1)
        yield row("a launch", 1000 * (time.perf_counter() - started), "us", 5)
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(100):
            tiny.add_(1)
            torch.cuda.synchronize(device)
        yield row("a launch and a wait", 1e4 * (time.perf_counter() - started), "us", 20)


def equality(bench: Bench) -> Iterator[Row]:
    """Kernels against float64, steps of the GPU against those of the CPU."""
    device, dry = bench.device, bench.dry
    dtypes = tuple(gpu_checks.TOLERANCES)
    for make in (gpu_checks.step_check, gpu_checks.resume_check, gpu_checks.serving_check):
        yield checked(partial(make, device))
    if not dry:
        yield checked(partial(gpu_checks.evaluation_check, device))
        yield checked(partial(gpu_checks.graph_check, device))
        yield checked(partial(gpu_checks.writing_check, device))
        yield checked(partial(gpu_checks.overflow_check, device))
    rows, width, vocab = (3, 24, 37) if dry else (256, 256, 4096)
    times, channels = ((3, 19), (24,)) if dry else ((1, 7, 77, 256), (64, 256, 1024))
    kernels = [
        gpu_checks.stream_checks(device, rows, width, vocab, dtypes),
        gpu_checks.context_checks(device, times, channels, dtypes, batch=2 if dry else 4),
    ]
    for found in kernels:
        yield from _each(found)
    enough = dry or torch.cuda.mem_get_info(device)[0] > 24e9
    if enough:
        yield checked(partial(gpu_checks.large_check, device, 1000 if dry else 2**31))
    else:
        yield row("more than 2^31 numbers: not tried, needs 24 GB", None)


def _each(checks: Iterator[Check]) -> Iterator[Row]:
    """A line for each; after one that could not be made there are no more."""
    ended = object()
    while True:
        made: list[Any] = []

        def make() -> Check:
            made.append(next(checks, ended))  # noqa: B023
            return made[0] if made[0] is not ended else Check("", 0, 0)  # noqa: B023

        line = checked(make)
        if made and made[0] is ended:
            return
        yield line
        if not made:
            return


def kernels(bench: Bench) -> Iterator[Row]:
    """Each kernel alone, forward and backward."""
    from newllm.model.context import gpu as context_gpu
    from newllm.model.kernels import gpu as stream_gpu

    add_norm: Any = stream_gpu.add_norm
    device, dry = bench.device, bench.dry
    dtype = torch.bfloat16 if dry or fast_bf16(device) else torch.float16
    sizes = (
        [(2, 4, 24)] if dry else [(32, 128, 256), (32, 128, 1024), (256, 128, 256), (32, 256, 256)]
    )
    for batch, length, channels in sizes:
        drawn = gpu_checks.context_inputs(batch, length, channels, resets=True)
        given: list[Any] = [x if x is None else x.to(device) for x in drawn]
        given[0] = given[0].to(dtype)
        small = (batch, length, channels) == (32, 128, 256)
        yield from _both_ways(
            bench, f"context_read, {batch} x {length} x {channels}",
            lambda *x: context_gpu.context_read(*x)[0], given,
            ("34 to 76", "43 to 92") if small else (None, None),
        )  # fmt: skip
    positions, width, vocab = (8, 24, 37) if dry else (4096, 256, 4096)
    randn = partial(torch.randn, device=device)
    noise = Noise(0, 0, 0, 9)
    stream, branch = randn(1, positions, width), randn(1, positions, width).to(dtype)
    known = DEVICES.get(bench.kind)

    def by_memory(*sizes: int) -> float | None:
        """Microseconds in which the memory moves so many bytes a number of a stream."""
        return known and 1e6 * positions * width * sum(sizes) / known.bandwidth

    for p in (0.0, 0.1):
        yield from _both_ways(
            bench, f"add_norm, {positions} x {width}, dropout {p}",
            lambda *x, p=p: add_norm(*x, dtype, p, noise, 4)[1],
            [stream, branch, randn(width)], (by_memory(4, 2, 4, 2), by_memory(4, 2, 4, 2)),
        )  # fmt: skip
    yield from _both_ways(
        bench, f"squared_relu, {positions} x {width}", stream_gpu.squared_relu, [branch],
        (by_memory(2, 2), by_memory(2, 2, 2)),
    )  # fmt: skip
    logits = randn(positions, vocab).to(dtype)
    targets = torch.randint(vocab, (positions,), device=device)
    taken = bench.seconds(lambda: stream_gpu.nats_gradient_(logits, targets))
    floor = known and 1e6 * positions * vocab * 6 / known.bandwidth
    yield row(f"nats_gradient_, {positions} x {vocab}", 1e6 * taken, "us", floor)
    lookup = make_lookup(torch.randint(vocab, (positions,))).to(device)
    yield from _both_ways(
        bench, f"embedding, {positions} of {vocab} x {width}",
        lambda table: stream_gpu.embedding(table, lookup), [randn(vocab, width)], (None, None),
    )  # fmt: skip


def _both_ways(
    bench: Bench, what: str, run: Callable[..., Tensor], given: Sequence[Any], estimated: Any
) -> Iterator[Row]:
    """Microseconds of a forward, and of a backward."""
    leaves = [
        x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in given
    ]
    yield row(
        f"{what}, forward", 1e6 * bench.seconds(lambda: run(*leaves), 0.5), "us", estimated[0]
    )
    out = run(*leaves)
    grad = torch.ones_like(out)
    wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]

    def backward() -> None:
        torch.autograd.grad(out, wanted, grad, retain_graph=True, allow_unused=True)

    yield row(f"{what}, backward", 1e6 * bench.seconds(backward, 0.5), "us", estimated[1])


def steps(bench: Bench) -> Iterator[Row]:
    """Whole training steps: time, launches, waits, the loader, memory, share of products."""
    shapes = {"1 x 16": gpu_checks.TINY} if bench.dry else SHAPES
    for rows in (2,) if bench.dry else (32, 256):
        for name, flags in shapes.items():
            if bench.left < 12 and not bench.dry:
                yield row(f"{name}, {rows} rows: no time left", None)
                continue
            yield from _step_rows(bench, name, {**flags, "batch_size": rows})


def _step_rows(bench: Bench, name: str, flags: dict[str, Any]) -> Iterator[Row]:
    device, rows = bench.device, flags["batch_size"]
    with gpu_checks.kernels_of(device):
        trainer = make_trainer(device, flags, "dolly" if bench.dry else "hh_rlhf")
        about, usual = f"{name}, {rows} rows", rows == 32
        loader = trainer._loader(0)
        batch = loader.batch(0)
        step = partial(trainer._step, batch, 1.0)
        for _ in range(1 if bench.dry else WARM_UP + 1):
            step()
        taken = bench.seconds(step, 1.5)
        best = bench.estimated(BEST_MS.get(name) if usual else None)
        then = bench.estimated(STEP_MS.get(name) if usual else None)
        text = (
            None if then is None else f"{then:g} before" + (f", {best:g} at best" if best else "")
        )
        yield row(f"{about}: a step", 1000 * taken, "ms", text)
        tokens = trainer.settings.batch_size * trainer.settings.max_seq_length
        yield row(f"{about}: trained", tokens / taken, "tokens/s",
                  None if then is None else tokens / then * 1000)  # fmt: skip
        started = time.perf_counter()
        loader.batch(1 % len(loader))
        yield row(f"{about}: a batch from the loader", 1000 * (time.perf_counter() - started), "ms")
        set_dropout(trainer, 0.1)
        for _ in range(0 if bench.dry else WARM_UP + 1):
            step()
        yield row(f"{about}: with dropout", 1000 * bench.seconds(step, 1.0), "ms")
        if bench.dry:
            return
        yield row(f"{about}: launches of a replay", _launches(step, device), "", REPLAYED)
        trainer = make_trainer(device, {**flags, "cuda_graph": False}, "hh_rlhf")
        step = partial(trainer._step, batch, 1.0)
        step()
        yield row(f"{about}: a step, launch by launch", 1000 * bench.seconds(step, 1.0), "ms")
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(20):
            step()
        torch.cuda.synchronize(device)
        yield row(f"{about}: on the clock", 50 * (time.perf_counter() - started), "ms")
        counted = LAUNCHES.get(name) if usual else None
        yield row(f"{about}: launches", _launches(step, device), "", counted)
        yield row(f"{about}: waits", _waits(step), "", 0)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        yield row(f"{about}: memory", torch.cuda.max_memory_allocated(device) / 1e9, "GB")
        flops = tokens * work_of(trainer.settings).flops_per_token / taken
        dtype = torch.bfloat16 if fast_bf16(device) else torch.float16
        yield row(
            f"{about}: of the speed of products", 100 * flops / product_speed(device, dtype), "%"
        )


def _launches(step: Callable[[], object], device: torch.device) -> int:
    """Kernels and copies that a step asks for."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize(device)
    asked = (
        "cudaLaunchKernel",
        "cuLaunchKernel",
        "cudaMemcpyAsync",
        "cudaMemsetAsync",
        "cudaGraphL",
    )
    return sum(str(event.name).startswith(asked) for event in profiler.events() or ())


def _waits(step: Callable[[], object]) -> int:
    """How often a step makes the host wait, as torch sees it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in said)


def peers(bench: Bench) -> Iterator[Row]:
    """Layers of other architectures of the same width, forward and backward."""
    from newllm.model.block import Boundaries
    from newllm.model.context.lm import ContextBlock

    device, dry = bench.device, bench.dry
    dtype = torch.bfloat16 if dry or fast_bf16(device) else torch.float16
    batch, length, width = (2, 4, 32) if dry else (32, 128, 256)
    x = torch.randn(batch, length, width, device=device).to(dtype).requires_grad_()

    def timed(what: str, run: Callable[[], Tensor]) -> Row:
        def both() -> None:
            run().float().sum().backward()

        return row(what, 1e6 * bench.seconds(both, 1.5), "us")

    with gpu_checks.kernels_of(device):
        block = ContextBlock(width, width, width).to(device)
        boundaries = Boundaries(None, None, torch.zeros(batch, length, device=device))
        carried = [torch.zeros(batch, *shape, device=device) for shape in block.carries().values()]

        def ours() -> Tensor:
            with torch.autocast(device.type, dtype):
                return block.mix(x, carried, boundaries)[0]

        yield timed("context (ours)", ours)
    gru = nn.GRU(width, width, batch_first=True).to(device, dtype)
    yield timed("GRU of cuDNN", lambda: gru(x)[0])
    mixed, back = (nn.Linear(width, n, bias=False).to(device, dtype) for n in (3 * width, width))

    def attention() -> Tensor:
        heads = mixed(x).view(batch, length, 3, -1, 32).transpose(1, 3).unbind(2)
        read = F.scaled_dot_product_attention(*heads, is_causal=True)
        return back(read.transpose(1, 2).flatten(2))

    yield timed("attention, torch's own", attention)
    for name in ("HGRNAttention", "GatedDeltaNet"):
        try:
            import fla.layers  # type: ignore[import-not-found]

            layer = getattr(fla.layers, name)(hidden_size=width).to(device, dtype)
            yield timed(f"{name} of flash-linear-attention", lambda layer=layer: layer(x)[0])
        except Exception as error:
            yield row(f"{name} of flash-linear-attention: {_short(error)}", None)


def commands(bench: Bench) -> Iterator[Row]:
    """The published commands on the built-in rows: the loss falls, a run that was stopped ends with
    the same weights, and the model is scored and answers."""
    runs = bench.out / "runs"
    device = "cpu" if bench.dry else "cuda"
    epochs = 6 if bench.dry else 4
    train = ["train", "dolly", "--data", "sample", "--device", device, "--out", str(runs),
             "--epochs", str(epochs)]  # fmt: skip
    if bench.dry:
        train += "--max-samples 40 --vocab-size 300 --context-dim 16 --batch-size 4".split()
    whole, stopped = (RunFiles(runs, name) for name in ("gpu", "gpu_stopped"))

    started = time.perf_counter()
    _newllm(*train, "--name", whole.name)
    yield row("newllm train dolly --data sample", time.perf_counter() - started, "s")
    losses = [line["train_loss"] for line in read_lines(whole.metrics, {"train_loss"})]
    yield row("loss of the first epoch", losses[0], "nats")
    falls = "below the first" if losses[-1] < losses[0] else "NOT BELOW THE FIRST"
    yield row("loss of the last epoch", losses[-1], "nats", falls)

    process = subprocess.Popen(_words(*train, "--name", stopped.name), env=_env())
    while process.poll() is None and not stopped.best.exists():
        time.sleep(0.01)
    process.terminate()
    process.wait()
    before = len(read_lines(stopped.metrics, {"train_loss"}))
    _newllm(*train, "--name", stopped.name, "--resume")
    one, other = (checkpoint.load(files.final)["model"] for files in (whole, stopped))
    error = max(gpu_checks.difference(x, other[name]) for name, x in one.items())
    what = f"stopped after {before} of {epochs} epochs and resumed"
    yield row(what, error, "largest difference", "at most 0", error == 0)

    started = time.perf_counter()
    _newllm("eval", str(whole.best), "--data", "sample", "--device", device)
    yield row("newllm eval", time.perf_counter() - started, "s")
    started = time.perf_counter()
    _newllm("generate", str(whole.best), "--prompt", "What is the capital of France?")
    yield row("newllm generate", time.perf_counter() - started, "s")


def _newllm(*words: str) -> None:
    """Give a command; raises where it fails."""
    subprocess.run(_words(*words), check=True, env=_env())


def _words(*words: str) -> list[str]:
    return [sys.executable, "-m", "newllm", *words]


def _env() -> dict[str, str]:
    """Without what makes the kernels run in the interpreter."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def writing(bench: Bench) -> Iterator[Row]:
    """Tokens a second of texts side by side: launched one by one and as a CUDA graph, on a CPU."""
    flags = dict(gpu_checks.TINY) if bench.dry else {**BPE, "recall_slots": 1024}
    settings = resolve("dolly", {**flags, "counts": 0})
    model = build_model(settings.model_settings(), settings.vocab_size).eval().requires_grad_(False)
    assert isinstance(model, ResidualLM)
    cpu = torch.device("cpu")
    ways: tuple[tuple[torch.device, str, Callable[[], Decoder]], ...] = (
        (bench.device, "launched", lambda: ModuleDecoder(model, batched=True)),
        (bench.device, "by a graph", lambda: FusedDecoder(model, GraphedSlots(model))),
        (cpu, "fused", lambda: make_decoder(model)),
    )
    for device, way, make in ways:
        model.to(device)
        with contextlib.nullcontext() if way == "fused" else gpu_checks.kernels_of(device):
            for texts in (1, 2) if bench.dry else (1, 8, 64):
                decoder = make()
                slots = [decoder.add() for _ in range(texts)]
                for _ in range(WARM_UP + 1):
                    decoder.step(slots, [7] * texts)
                count, started = 0, time.perf_counter()
                while count < 2 or (not bench.dry and time.perf_counter() - started < 2):
                    decoder.step(slots, [8 + count % 100] * texts)
                    count += 1
                speed = texts * count / (time.perf_counter() - started)
                guess = None if bench.dry or way == "by a graph" else 1200 * texts
                if way == "fused":
                    guess = 22_000 if texts == 1 and not bench.dry else None
                yield row(f"{device.type}, {way}, {texts} text(s)", speed, "tokens/s", guess)


@dataclass(frozen=True)
class Stage:
    """One part of the benchmark."""

    run: Callable[[Bench], Iterator[Row]]
    seconds: float
    """Until it is ended."""

    @property
    def name(self) -> str:
        """As it is printed."""
        return self.run.__name__


STAGES = (
    Stage(facts, 20),
    Stage(equality, 90),
    Stage(kernels, 45),
    Stage(steps, 120),
    Stage(peers, 90),
    Stage(commands, 120),
    Stage(writing, 30),
)


# -- running them --------------------------------------------------------------------------------


def work(out: Path, first: int, dry: bool) -> None:
    """In a process of its own: the stages from the first on, each line written as it is found.

    A stage that fails ends the process: after an error of CUDA nothing works in it.
    """
    device = torch.device("cpu" if dry else "cuda")
    if dry:
        torch.set_num_threads(1)
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

        for stage in STAGES[first:]:
            started = time.monotonic()
            write(stage=stage.name, begins=True)
            bench = Bench(device, out, dry, started + stage.seconds * (DRY if dry else 1))
            try:
                for line in stage.run(bench):
                    write(stage=stage.name, **line)
            except Exception as error:
                traceback.print_exc()
                write(stage=stage.name, ended=_short(error))
                raise SystemExit(1) from error
            write(stage=stage.name, ended="", seconds=round(time.monotonic() - started, 1))


def run_stages(
    out: Path, dry: bool, said: Callable[[str, list[Row]], None], limit: float = LIMIT
) -> dict[str, list[Row]]:
    """Every stage, in processes that are ended when a deadline has passed.

    Args:
        out: folder of results.jsonl and of what the processes print (gpu.log).
        dry: see the module's docstring.
        said: is called after each stage with its name and its lines.
        limit: seconds of all of them.
    """
    slower = DRY if dry else 1.0
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    results.write_text("", encoding="utf-8")
    found: dict[str, list[Row]] = {stage.name: [] for stage in STAGES}
    ends, first, read = time.monotonic() + limit * slower, 0, 0

    def end(reason: str) -> None:
        lines = found[STAGES[first].name]
        if reason:
            lines.append(row(f"ended by {reason}", None))
        said(STAGES[first].name, lines)

    while first < len(STAGES):
        with (out / "gpu.log").open("a", encoding="utf-8") as log:
            words = [sys.executable, "-m", WORKER, str(out), str(first), str(int(dry))]
            path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            env = {**os.environ, "PYTHONPATH": path}
            env |= {"TRITON_INTERPRET": "1"} if dry else {}
            worker = subprocess.Popen(words, stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + (STAGES[first].seconds + _START) * slower
        alone, told = True, False
        while first < len(STAGES) and not told:
            alive = worker.poll() is None
            text = results.read_text(encoding="utf-8")
            for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()[read:]):
                read += 1
                name = line.pop("stage")
                if "begins" in line:
                    if not alone:
                        deadline = time.monotonic() + STAGES[first].seconds * slower
                    alone = False
                elif "ended" in line:
                    told = bool(line["ended"])
                    end(line["ended"])
                    first += 1
                else:
                    found[name].append(line)
            late = time.monotonic() > min(deadline, ends)
            if first == len(STAGES) or told:
                break
            if late or not alive:
                told = True
                _end(worker)
                died = f"its process, with exit code {worker.poll()} (see {out / 'gpu.log'})"
                end("its deadline" if alive else died)
                first += 1
            time.sleep(0.05)
        worker.wait()
        if time.monotonic() > ends:
            break
    return found


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a process and those it started."""
    try:
        processes = [*psutil.Process(worker.pid).children(recursive=True), worker]
    except psutil.Error:
        processes = [worker]
    for process in processes:
        try:
            process.kill()
        except (psutil.Error, OSError):
            continue


def shown_equal(found: dict[str, list[Row]]) -> bool:
    """Whether every comparison was made, and equal."""
    lines = found["equality"]
    every = [line["equal"] for rows in found.values() for line in rows if line["equal"] is not None]
    complete = bool(lines) and not any(line["what"].startswith("ended by") for line in lines)
    return complete and bool(every) and all(every)


@click.command()
@click.option("--dry-run", is_flag=True, help="In small, on the CPU, in Triton's interpreter.")
@click.option("--out", default="benchmark_runs/gpu", show_default=True, type=Path,
              help="Folder of results.jsonl and gpu.log.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, at the end.")
@click.pass_context
def command(context: click.Context, dry_run: bool, out: Path, as_json: bool) -> None:
    if not dry_run and not torch.cuda.is_available():
        raise UserError(
            "bench gpu: torch sees no CUDA GPU; --dry-run goes through the same stages in small, "
            "on the CPU"
        )
    if not triton_is_installed():
        raise UserError('bench gpu: needs Triton: pip install -e ".[gpu]"')

    def said(name: str, lines: list[Row]) -> None:
        table = markdown_table([_printed(line) for line in lines])
        click.echo(f"**{name}**\n\n{table}\n", err=as_json)

    found = run_stages(out, dry_run, said)
    equal = shown_equal(found)
    tables = {name: lines for name, lines in found.items() if lines}
    if as_json:
        told = {"dry_run": dry_run, "equal": equal, "results": str(out / "results.jsonl")}
        click.echo(json.dumps(Report(tables, told).to_dict()))
    else:
        click.echo("All that has to be equal is." if equal else "NOT EQUAL, or not shown to be.")
    if not equal:
        context.exit(1)


def _printed(line: Row) -> Row:
    """A line of a table, equality in words."""
    words = {None: "", True: "equal", False: "NOT EQUAL"}
    return {**line, "equal": words[line["equal"]]}


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
