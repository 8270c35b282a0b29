"""What a step of training, of writing many texts, or an evaluation asks of a GPU, counted without
one.

    python -m tools.gpu_dry_run [NAME ...] [--operations]

The real step of a trainer or decoder runs on tensors without content (torch's meta device) that say
they are on a GPU: nothing is computed there, and every operation is seen. Tensors on the CPU are
real. It needs neither a GPU nor a CUDA build of torch; its limits hold with one, too. Counted are

- launches: operations that write something, most of them one kernel; `KERNELS` says which take
  more. A Triton kernel is one, a copy too, and a whole GRU or LSTM of cuDNN, however many it takes.
  Autocast does not see tensors without content: casts by it are not counted.
- waits: where the host needs a number from the GPU, or a copy for which it waits.
- bytes that operations other than matrix products read and write.

The step after is captured as a CUDA graph would be, and the next one is its replay: how many
launches are left is counted, too, and what the captured step asked for in which order.

Times need a GPU. What --estimates prints is arithmetic, by the rules that the version before the
Triton kernels was estimated by: half of a GPU's speed of products, its memory's bandwidth for the
bytes, 0.12 ms a layer for the recurrence of 128 tokens, 5 us of the host a launch, 15 us a wait.
"""

from __future__ import annotations

import collections
import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from benchmarks.measure import markdown_table
from newllm.config import Settings
from newllm.data.loader import Batch
from newllm.data.prepare import Encoded
from newllm.data.tokenizers import Word1000
from newllm.planning.speed import DEVICES
from newllm.planning.work import work_of
from newllm.settings import resolve

KERNELS = {
    "aten.logsumexp.default": 9,
    "aten.embedding_dense_backward.default": 20,
    "aten.native_layer_norm_backward.default": 2,
    "aten.nonzero.default": 4,
    "aten._index_put_impl_.default": 12,
    "aten.index_put_.default": 12,
    "aten.sort.stable": 6,
}
"""Kernels of operations that are not one (as counted in torch 2.13's sources)."""

_NO_KERNEL = {
    "aten.detach.default", "aten.alias.default", "aten._unsafe_view.default",
    "aten.empty_like.default", "aten.new_empty.default", "aten.empty.memory_format",
    "aten.lift_fresh.default", "aten.new_empty_strided.default", "aten.empty_strided.default",
    "aten._local_scalar_dense.default", "aten.split.Tensor", "aten.chunk.default",
    "aten.is_pinned.default", "aten.split_with_sizes.default", "aten.unbind.int",
}  # fmt: skip

_ASKED = ("aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.equal.default")

_PRODUCTS = ("aten.linear", "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled")


@dataclass
class Counts:
    """What one step asks of the GPU."""

    operations: collections.Counter[str] = field(default_factory=collections.Counter)
    """Operations and Triton kernels, by name."""
    waits: collections.Counter[str] = field(default_factory=collections.Counter)
    """Where the host waits: kind and line."""
    bytes: int = 0
    """Read and written outside of matrix products."""
    of_replay: int = 0
    """Launches of a step that is the replay of a graph; 0 where none was captured."""
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    """Every launch in order: its name, the shapes of its tensors, and its numbers."""

    @property
    def launches(self) -> int:
        """Kernels and copies."""
        return sum(times * KERNELS.get(name, 1) for name, times in self.operations.items())

    @property
    def products(self) -> int:
        """Launches that are matrix products."""
        return sum(n for name, n in self.operations.items() if name.startswith(_PRODUCTS))

    def facts(self) -> dict[str, Any]:
        """As numbers for a table or JSON."""
        return {
            "launches": self.launches,
            "products": self.products,
            "waits": sum(self.waits.values()),
            "elementwise_mb": round(self.bytes / 1e6),
            "launches of a replay": self.of_replay,
            "where it waits": dict(self.waits),
        }


class _Counting(TorchDispatchMode):
    """Runs what touches the GPU on tensors without content, the rest for real, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.pinned = WeakTensorKeyDictionary()
        self.inside = False
        """Whether torch itself asks where a tensor is, and has to be told."""
        self.captured: Counts | None = None
        """What a step asked for that was captured."""
        self.capturing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = any(x.is_meta for x in given)
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type in ("cuda", "meta")
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        if on_gpu and name in _ASKED:
            self.wait("number for the host")
            return _usual(given[0])
        if on_gpu and name in ("aten.nonzero.default", "aten._unique2.default"):
            self.wait(name)
        if name == "aten.index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            self.wait("boolean index")
            self.counts.operations.update(["aten.nonzero.default", name])
            mask = args[1][0]
            return args[0].new_empty((mask.numel() // 2, *args[0].shape[mask.dim() :]))
        if name == "aten.copy_.default" and not given[1].is_meta:
            if given[1] not in self.pinned or not (
                kwargs.get("non_blocking") or args[2:] == (True,)
            ):
                self.wait("copy to the GPU")
            self.note("copy to the GPU", given, kwargs)
            return args[0]
        if name == "aten.copy_.default" and not given[0].is_meta:
            if not kwargs.get("non_blocking") and not (len(args) > 2 and args[2]):
                self.wait("copy to the host")
            self.note("copy to the host", given, kwargs)
            return args[0].zero_()
        if name == "aten._to_copy.default" and not (to_gpu or device is None):
            self.wait("copy to the host")
            self.note("copy to the host", given, kwargs)
            return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if name == "aten._to_copy.default" and not on_gpu:
            if not (kwargs.get("non_blocking") and given[0] in self.pinned):
                self.wait("copy to the GPU")
            self.note("copy to the GPU", given, kwargs)
            return torch.empty_like(
                given[0], dtype=kwargs.get("dtype") or given[0].dtype, device="meta"
            )
        if to_gpu:
            kwargs["device"] = torch.device("meta")
        self.inside = True
        try:
            # Adam with a rate that is a tensor knows no tensors without content; it gives nothing.
            out = None if name.endswith(".tensor_lr") else func(*args, **kwargs)
        finally:
            self.inside = False
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if not func.is_view and name not in _NO_KERNEL:
            self.note(name, args, kwargs)
            if not name.startswith(_PRODUCTS):
                self.add_bytes([*given, *made])
        return out

    def note(self, name: str, args: Any, kwargs: Any) -> None:
        """Count a launch."""
        self.counts.operations[name] += 1
        leaves = tree_leaves((args, kwargs))
        given = (tuple(x.shape) if isinstance(x, torch.Tensor) else repr(x) for x in leaves)
        self.counts.asked.append((name, *given))

    def capture(self, step: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """In place of :meth:`newllm.cuda_graph.Surroundings.capture`."""
        self.counts, before, self.capturing = Counts(), self.counts, True
        try:
            said = step()
        finally:
            self.captured, self.counts, self.capturing = self.counts, before, False
        return said, lambda: self.note("graph", (), {})

    def add_bytes(self, tensors: Sequence[torch.Tensor | None]) -> None:
        for x in tensors:
            if x is not None and x.is_meta:
                self.counts.bytes += x.numel() * x.element_size()

    def wait(self, kind: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/newllm/" in f.filename]
        where = frames[-1] if frames else traceback.extract_stack()[0]
        place = where.filename.rpartition("newllm/")[2]
        self.counts.waits[f"{kind} in {place}:{where.lineno}"] += 1

    def launched(self, kernel: Any, tensors: tuple[Any, ...]) -> None:
        """In place of a Triton launch."""
        given = [x for x in tensors if isinstance(x, torch.Tensor)]
        assert all(x.is_meta for x in given), f"{kernel} of tensors on the CPU"
        self.note(f"triton.{kernel.fn.__name__}", tensors, {})
        self.add_bytes(given)


def _usual(x: torch.Tensor) -> Any:
    """A number that a step may well be: finite, and true."""
    return True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1


class _FakeRnn(torch.autograd.Function):
    """A GRU or LSTM of cuDNN: a launch each way, in the type that autocast wants."""

    @staticmethod
    def forward(
        ctx: Any, note: Callable[[str], None], rows: torch.Tensor, *given: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`given` are the states [1, S, C], as many as there are, and four weights."""
        *states, _, weight_h, _, _ = given
        dtype = rows.dtype
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        ctx.note, ctx.like = note, (rows, *given)
        note("cudnn.rnn")
        out = rows.new_empty(len(rows), weight_h.shape[1], dtype=dtype)
        return out, *(torch.empty_like(state, dtype=dtype) for state in states)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.note("cudnn.rnn.backward")
        return None, *(torch.empty_like(x) for x in ctx.like)


class _Event:
    """Of a stream that does nothing."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class _Stream:
    def __init__(self, counting: _Counting) -> None:
        self._counting = counting

    def synchronize(self) -> None:
        self._counting.wait("wait for the stream")


@contextlib.contextmanager
def fake_gpu(capability: tuple[int, int]) -> Iterator[_Counting]:
    """A block in which torch believes in a GPU of this compute capability."""
    import torch._dynamo  # it looks at all functions, before some are replaced
    import torch.cuda.amp.common as amp

    from newllm import cuda_graph, device
    from newllm.model.context import gpu as context_gpu
    from newllm.model.kernels import gpu as stream_gpu

    counting = _Counting()
    empty, true_device = torch.empty, torch._C.TensorBase.device

    def pin(x: torch.Tensor, *_: Any) -> torch.Tensor:
        counting.pinned[x] = True
        return x

    def made(*sizes: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        tensor = empty(*sizes, **named)
        return pin(tensor) if pin_memory else tensor

    def said_device(x: torch.Tensor) -> torch.device:
        claimed = x.is_meta and not counting.inside
        return torch.device("cuda", 0) if claimed else true_device.__get__(x)

    def launch(kernel: Any, programs: int, tensors: Any, warps: int, **constants: Any) -> None:
        counting.launched(kernel, tensors)

    def launch_context(kernel: Any, channels: int, tensors: Any, time: int) -> None:
        counting.launched(kernel, tensors)

    def rnn(rows: Any, _: Any, states: Any, weights: Any, *options: Any) -> tuple[Any, ...]:
        states = states if isinstance(states, tuple) else (states,)
        return _FakeRnn.apply(lambda name: counting.note(name, (), {}), rows, *states, *weights)

    nothing: Any = lambda *_, **__: None  # noqa: E731
    replaced = [
        (torch.cuda, "_lazy_init", nothing), (torch.cuda, "set_device", nothing),
        (torch.cuda, "current_device", lambda: 0), (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "is_available", lambda: True), (torch.cuda, "is_initialized", lambda: True),
        (torch.cuda, "get_device_name", lambda *_: "NVIDIA H200"),
        (torch.cuda, "get_device_capability", lambda *_: capability),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.cuda, "manual_seed_all", nothing), (torch.cuda, "manual_seed", nothing),
        (torch.cuda, "Event", _Event), (torch.cuda, "synchronize", nothing),
        (torch.cuda, "current_stream", lambda *_: _Stream(counting)),
        (torch.Tensor, "pin_memory", pin), (torch, "empty", made),
        (amp, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_current_stream_capturing", lambda: counting.capturing),
        (cuda_graph.Surroundings, "warm_up", lambda _, step: step()),
        (cuda_graph.Surroundings, "capture", lambda _, step: counting.capture(step)),
        (torch._VF, "gru", rnn), (torch._VF, "lstm", rnn),
        (context_gpu, "_launch", launch_context), (stream_gpu, "launch", launch),
    ]  # fmt: skip
    device.fast_bf16.cache_clear()
    torch.Tensor.device = property(said_device)  # type: ignore[assignment, misc]
    with contextlib.ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        try:
            yield counting
        finally:
            del torch.Tensor.device
            device.fast_bf16.cache_clear()


def count_step(
    dataset: str, flags: dict[str, Any], capability: tuple[int, int] = (9, 0), dropout: float = 0.0
) -> Counts:
    """Of the third step of a training on the built-in rows."""
    return third(count_steps(dataset, flags, capability, dropout))


def third(found: list[Counts]) -> Counts:
    """The third of five steps, and what is left of the last one."""
    *_, counts, _, replayed = found
    if "graph" in replayed.operations:
        counts.of_replay = replayed.launches
    return counts


def count_steps(
    dataset: str, flags: dict[str, Any], capability: tuple[int, int] = (9, 0), dropout: float = 0.0
) -> list[Counts]:
    """Of three steps, of one that is captured, if it can be, and of the one after that."""
    from newllm.train import trainer as training
    from newllm.train.log import EpochLog

    settings = resolve(dataset, {"data": "sample", "device": "cuda", **flags})
    data, counts = _prepared(settings)
    build = training.build_model

    def build_on_gpu(shape: Any, vocab_size: int, block: Any) -> Any:
        # The sample's rows make a small vocabulary; the model has the one that was asked for.
        size = settings.vocab_size if settings.tokenizer == "bpe" else vocab_size
        model = build(shape, size, block)
        if counts is not None and (model_counts := getattr(model, "counts", None)):
            model_counts.set_tables(counts.tables)  # a table is read by the CPU, and stays there
        return model

    built = mock.patch.object(training, "build_model", build_on_gpu)
    with fake_gpu(capability) as counting, built, counting:
        trainer = training.Trainer(
            settings, data, EpochLog(), lambda *_: None, lambda *_: None,
            torch.device("cuda", 0), counts=counts,
        )  # fmt: skip
        trainer.micro_batch = flags.get("micro_batch_size") or settings.batch_size
        if hasattr(trainer, "_begin"):
            trainer._begin()
        if hasattr(trainer.model, "set_dropout"):
            trainer.model.set_dropout(dropout)
        loader = trainer._loader(0)

        def take(step: int) -> None:
            batch: Batch = loader.batch(min(step, len(loader) - 1))
            trainer.progress.total_steps = step
            trainer._step(batch, 1 / (1 + step))

        return _five(counting, take)


def count_writing(flags: dict[str, Any], texts: int) -> list[Counts]:
    """The same of steps that write a token of so many texts side by side."""
    from newllm.inference.decoder import make_decoder
    from newllm.model import build_model
    from newllm.model.residual import ResidualLM

    settings = resolve("hh_rlhf", {"data": "sample", "device": "cuda", **flags})
    _, counts = _prepared(settings)
    model = build_model(settings.model_settings(), settings.vocab_size).eval()
    assert isinstance(model, ResidualLM)
    if counts is not None and model.counts is not None:
        model.counts.set_tables(counts.tables[:1])
    with fake_gpu((9, 0)) as counting, counting:
        model.requires_grad_(False).to(torch.device("cuda", 0))
        decoder = make_decoder(model)
        slots = [decoder.add() for _ in range(texts)]
        return _five(counting, lambda step: decoder.step(slots, [step] * texts))


def count_evaluation(flags: dict[str, Any], dataset: str = "hh_rlhf") -> Counts:
    """Of the built-in validation rows, scored from the first batch to the last."""
    from newllm.evaluate.metrics import evaluate
    from newllm.model import build_model

    settings = resolve(dataset, {"data": "sample", "device": "cuda", **flags})
    data, counts = _prepared(settings)
    model = build_model(settings.model_settings(), settings.vocab_size)
    if counts is not None and (model_counts := getattr(model, "counts", None)):
        model_counts.set_tables(counts.tables[:1])
    # In inference mode operations that are made of others are not taken apart before they are seen.
    seen = mock.patch.object(torch, "inference_mode", torch.no_grad)
    with fake_gpu((9, 0)) as counting, seen, counting:
        device = torch.device("cuda", 0)
        model.to(device)
        counting.counts = Counts()
        evaluate(model, data.splits["validation"], data.tokenizer, device)
        return counting.counts


def _writing(flags: dict[str, Any]) -> Counts:
    return third(count_writing(flags, 64))


def _prepared(settings: Settings) -> tuple[Encoded, Any]:
    """The built-in rows, and their counts where the settings want some."""
    from newllm.data.prepare import Encoding, prepare_training
    from newllm.data.sources import open_source
    from newllm.datasets import find_dataset
    from newllm.train.counting import prepare_counts

    encoding = Encoding.of(settings)
    dataset = find_dataset(settings.dataset)
    source = open_source(dataset, "sample", settings.subset, encoding.head)
    data = prepare_training(source, encoding, None)
    return data, prepare_counts([data], settings.counts) if settings.counts else None


def _five(counting: _Counting, take: Callable[[int], object]) -> list[Counts]:
    """What each of the first five steps asks for."""
    found = []
    for step in range(5):
        counting.counts, counting.captured = Counts(), None
        take(step)
        found.append(counting.captured or counting.counts)
    return found


ONE = {"tokenizer": "word1000", "num_layers": 1}
FOUR = {"tokenizer": "word1000", "num_layers": 4}
BPE = {"tokenizer": "bpe", "num_layers": 4, "vocab_size": 4096}
TWELVE = {"tokenizer": "bpe", "num_layers": 12, "context_dim": 1024, "vocab_size": 4096}
BARE = {"recall_slots": 0, "counts": 0}
CASES: dict[str, tuple[dict[str, Any], tuple[int, int], float]] = {
    "1 x 256, word1000": ({**ONE, **BARE}, (9, 0), 0.0),
    "4 x 256, word1000": ({**FOUR, **BARE}, (9, 0), 0.0),
    "4 x 256": ({**BPE, **BARE}, (9, 0), 0.0),
    "4 x 256, dropout": ({**BPE, **BARE}, (9, 0), 0.1),
    "4 x 256, fp16": ({**BPE, **BARE}, (7, 5), 0.0),
    "4 x 256, fp32": ({**BPE, **BARE, "precision": "fp32"}, (9, 0), 0.0),
    "4 x 256, 512 rows": ({**BPE, **BARE, "batch_size": 512}, (9, 0), 0.0),
    "4 x 256, recall": ({**BPE, "counts": 0}, (9, 0), 0.0),
    "4 x 256, recall and counts": (BPE, (9, 0), 0.0),
    "12 x 1024": ({**TWELVE, **BARE}, (9, 0), 0.0),
    **{
        f"{architecture}, {precision}": (
            {**BPE, **BARE, "architecture": architecture, "precision": precision},
            (7, 5) if precision == "fp16" else (9, 0),
            0.0,
        )
        for architecture in ("context", "mingru", "gru", "lstm", "transformer", "original")
        for precision in ("bf16", "fp16", "fp32")
    },
}
"""Flags, compute capability and dropout of each case; 32 rows of 128 tokens unless said."""
WRITING: dict[str, dict[str, Any]] = {
    "writing, 4 x 256": {**BPE, **BARE},
    "writing, 4 x 256, recall": {**BPE, "counts": 0},
    "writing, 4 x 256, recall and counts": BPE,
}
"""Flags of models that write a token of 64 texts."""
EVALUATIONS: dict[str, dict[str, Any]] = {
    "evaluation, 4 x 256": {**BPE, **BARE},
    "evaluation, 4 x 256, recall and counts": BPE,
}
"""Flags of models that score the built-in validation rows, in three batches."""


GPUS = {"T4": "t4", "L4": "l4", "A100": "a100", "H200": "h200"}
ESTIMATED = ("1 x 256, word1000", "4 x 256, word1000", "4 x 256", "12 x 1024")


def estimates(case: str) -> dict[str, str]:
    """A row of a table: a step launched one by one and, after the arrow, as a graph."""
    flags, _, _ = CASES[case]
    counts, dropped = (count_step("hh_rlhf", flags, dropout=p) for p in (0.0, 0.1))
    settings = resolve("hh_rlhf", {"data": "sample", **flags})
    if settings.tokenizer == "word1000":
        settings = settings.model_copy(update={"vocab_size": Word1000.size})
    tokens = settings.batch_size * settings.max_seq_length
    work = work_of(settings)
    flops = tokens * work.flops_per_token + work.update_flops
    told = {
        "": case,
        "launches (dropout)": f"{counts.launches} ({dropped.launches}) -> {counts.of_replay}",
        "MB elementwise (dropout)": f"{counts.bytes / 1e6:,.0f} ({dropped.bytes / 1e6:,.0f})",
    }
    for name, gpu in GPUS.items():
        known = DEVICES[gpu]
        device = counts.bytes / known.bandwidth + flops / (known.flops / 2)
        device += 0.12e-3 * settings.num_layers
        host = 5e-6 * counts.launches + 15e-6 * sum(counts.waits.values())
        launched, replayed = max(device, host), max(device, 5e-6 * counts.of_replay)
        share = 100 * flops / replayed / known.flops
        told[name] = (
            f"{1e3 * launched:.1f} -> {1e3 * replayed:.1f}, {tokens / replayed / 1e3:,.0f}k, "
            f"{share:.0f}%"
        )
    return told


@click.command()
@click.argument("names", nargs=-1)
@click.option("--operations", is_flag=True, help="Also every operation, most launched first.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--estimates", "estimated", is_flag=True, help="A table of what GPUs may take.")
def command(names: tuple[str, ...], operations: bool, as_json: bool, estimated: bool) -> None:
    """Count a step of the cases whose names begin like NAMES (default: all)."""
    if estimated:
        click.echo(markdown_table([estimates(case) for case in ESTIMATED]))
        return
    found = {}
    runs: dict[str, Callable[[], Counts]] = {
        **{name: partial(count_step, "hh_rlhf", *case) for name, case in CASES.items()},
        **{name: partial(_writing, flags) for name, flags in WRITING.items()},
        **{name: partial(count_evaluation, flags) for name, flags in EVALUATIONS.items()},
    }
    for name, count in runs.items():
        if names and not name.startswith(names):
            continue
        counts = count()
        found[name] = counts.facts()
        if not as_json:
            click.echo(f"{name:30s} {json.dumps(found[name])}")
            if operations:
                for operation, times in counts.operations.most_common():
                    click.echo(f"{times * KERNELS.get(operation, 1):6d}  {operation}")
    if as_json:
        click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(command())
