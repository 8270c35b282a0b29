"""The training loop: one model, one data set, any number of interruptions.

A run is a function of its settings and data alone. Everything that decides the next step (weights,
optimizers, schedule, random generators, position, carried states, history) is in `state_dict`, so a
run stopped anywhere and resumed ends with the same weights to the bit (same machine, same thread
count).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from newllm.config import ModelSettings, Settings
from newllm.cuda_graph import GraphedStep, Sent
from newllm.data.loader import Batch, EpochLoader, Mixture, read_ahead
from newllm.data.prepare import Encoded
from newllm.data.shards import Documents
from newllm.data.tokenizers import answer_marks
from newllm.device import TYPES, autocast, get_generators, pick_precision, send, set_generators
from newllm.errors import UserError
from newllm.evaluate.metrics import EVALUATION_BATCH_SIZE, evaluate
from newllm.model import LanguageModel, OwnBlock, State, build_model
from newllm.model.kernels import HalfCopies, Noise, ready
from newllm.model.recall.reference import in_sets
from newllm.model.residual import ResidualLM, placed
from newllm.model.sampled_softmax import SampledVocabulary, mark_targets
from newllm.model.spec import find_spec
from newllm.results.records import EpochRecord, Metrics
from newllm.threads import TrainingThreads
from newllm.train import sharding
from newllm.train.counting import Counts
from newllm.train.distributed import GradientSums, Processes, StepFlags
from newllm.train.log import EpochLog, describe_expectation, validation_line
from newllm.train.memory import fit_rows, halve_until_it_fits, preset_rows, step_trial
from newllm.train.optimizers import (
    Frozen,
    Muon,
    get_moments,
    load_optimizer,
    make_optimizers,
    rates_at,
    set_moments,
    step_if_finite,
    update_scale,
)
from newllm.train.schedule import (
    Schedule,
    decay_pairs,
    decays_pairs,
    pair_decay_amount,
    set_dropout,
)
from newllm.train.signals import StopRequest

_torch: Any = torch
"""Its functions on many tensors at once, which are named as private."""

MAX_NONFINITE_STEPS = 20
"""Steps in a row with a non-finite loss or gradient after which a run ends."""

Pass = Callable[[], tuple[Tensor, State]]
"""Computes the nats of a micro-batch, differentiable, and states behind it."""

Sequences = slice | Tensor
"""Which ones of the batch a micro-batch has."""

_DRAW = 2**32 - 1
"""The draw of a sampled softmax among what draws in a step; operations are counted from 0."""

MIN_IMPROVEMENT = 0.001
"""Nats per token below which a lower validation loss is no improvement."""


@dataclass
class Progress:
    """Where a run stands, in plain values that are stored as they are."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    total_steps: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    """Time spent in training steps, over all sessions."""
    epoch_nats: float = 0.0
    epoch_tokens: int = 0
    epoch_seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_loss: float = float("inf")
    best_epoch: int = 0
    epochs_without_improvement: int = 0
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)

    def end_epoch(self, epochs: int, metrics: Metrics) -> EpochRecord:
        """Close an epoch of so many with the metrics of the validation rows; its record."""
        best = metrics["loss"] < self.best_loss
        improved = metrics["loss"] < self.best_loss - MIN_IMPROVEMENT
        self.epochs_without_improvement = 0 if improved else self.epochs_without_improvement + 1
        if best:
            self.best_loss, self.best_epoch = metrics["loss"], self.epoch + 1
        record: EpochRecord = {
            "epoch": self.epoch + 1,
            "epochs": epochs,
            "steps": self.total_steps,
            "trained_tokens": self.trained_tokens,
            "train_loss": self.epoch_nats / max(1, self.epoch_tokens),
            **metrics,
            "best": best,
            "skipped_steps": self.skipped_steps,
            "seconds": self.epoch_seconds,
            "total_seconds": self.seconds,
        }
        self.history.append(record)
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_nats, self.epoch_tokens, self.epoch_seconds = 0.0, 0, 0.0
        return record


class Trainer:
    """Trains until the settings are fulfilled, the patience is exhausted or a stop is requested.

    There are two kinds of steps. In one (:meth:`_gradients`) the model is called as usual, on any
    device. In the other (:meth:`_take_whole_step`), on a GPU, the host first makes all that is made
    of tokens alone, and then launches the step as a whole, which a CUDA graph can repeat.

    Args:
        save: called with the trainer when the state should be made durable.
        finish_epoch: called with the trainer, and whether the epoch was the best so far.
        rehearsed: earlier training rows, of which every epoch has some.
        frozen: shape of the part of a grown model that does not train.
        counts: of the rows that are trained on, for a model that has counts.
        processes: those that train together (default: this one alone).
        block: the loaded block, where the architecture is a block of one's own.
    """

    WHOLE_STEPS: ClassVar[bool] = True
    """Whether a step can be prepared by the host before it begins."""

    def __init__(
        self,
        settings: Settings,
        data: Encoded,
        log: EpochLog,
        save: Callable[[Trainer], None],
        finish_epoch: Callable[[Trainer, bool], None],
        device: torch.device,
        rehearsed: Sequence[Documents] = (),
        frozen: ModelSettings | None = None,
        processes: Processes | None = None,
        block: OwnBlock | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.settings, self.data, self.log, self.device = settings, data, log, device
        self._on_gpu = device.type == "cuda"
        self._spec = find_spec(settings.architecture)
        self._save, self._finish_epoch = save, finish_epoch
        self._rehearsed = rehearsed
        self.processes = processes or Processes()
        self.precision = pick_precision(settings.precision, device)
        self._autocast = autocast(device, self.precision)
        self._threads = TrainingThreads(
            settings.threads, device.type == "cpu" and self.processes.world == 1, log.note
        )
        # Small gradients are zero in fp16, unless the loss is scaled up. Else it does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        # torch's own generator draws the initial weights, alike in all processes, and then the
        # dropout of `original`, which differs between them.
        torch.manual_seed(settings.seed)
        self._block = block
        self.model = build_model(settings.model_settings(), data.tokenizer.vocab_size, block)
        self.model.to(device)
        if settings.closed_answers and isinstance(self.model, ResidualLM):
            self.model.closing = answer_marks(data.tokenizer)
        self.sharded = settings.shard and self.processes.world > 1
        """Whether each process has a part of every weight; else each has all of them."""
        if self.sharded:
            sharding.shard(self.model, device, self.processes)
        self._counts = counts
        if not self.processes.main:
            torch.manual_seed(settings.seed + (self.processes.rank << 32))
        self._frozen = None if frozen is None else Frozen(self.model, frozen)
        muon = sharding.ShardedMuon if self.sharded else Muon
        self.optimizers = make_optimizers(self.model, settings, muon)
        self.schedule = Schedule.planned(settings.warmup_share, settings.warmdown_share)
        self.progress = Progress()
        sequences = self.processes.sequences(settings.batch_size)
        self._sequences = range(settings.batch_size)[sequences]
        self.state = self._fresh_state()
        self._halves: HalfCopies | None = None
        self._sums: GradientSums | None = None
        self._unread: _Outcome | None = None
        self._graph: GraphedStep | None = None
        self._carried: State = {}
        """What `_graph` carries from step to step, where it stays."""
        self._one_document_per_row = self._spec.one_document_per_row
        """The published recipe of `original` counts its batch in documents."""
        self.micro_batch = 0
        """Rows computed at once; found when training starts, and part of the run from then on."""

    def _fresh_state(self) -> State:
        return placed(self.model, self.model.initial_state(len(self._sequences)), self.device)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def counts_bytes(self) -> int:
        """Size of the model's table of counts, 0 without one."""
        return 0 if self._counts is None else len(self._counts.tables[0].pack())

    def fit(self, stop: StopRequest) -> bool:
        """Train on; True when finished, False when a stop request came (the state is saved)."""
        progress = self.progress
        self._set_counts()  # now: weights that were loaded came with a table of their own
        weights = self.model.buffers() if self.sharded else self.model.state_dict().values()
        self.processes.broadcast_weights(weights)
        if self._frozen is not None:
            self._frozen.hold()
        if self.micro_batch == 0:
            self._find_micro_batch()
        self._begin()
        self._last_save = time.monotonic()
        while not progress.finished:
            loader = self._loader(progress.epoch)
            set_dropout(self.model, progress.epoch)
            self.log.start_epoch(
                progress.epoch + 1, self.settings.epochs, progress.step / len(loader)
            )
            batches = loader.batches(progress.step)
            for batch in read_ahead(batches) if self._on_gpu else batches:
                if self.schedule.finished(self._done(len(loader))):
                    break
                self._timed_step(batch, len(loader))
                flags = self._sync_flags(stop)
                if flags.signal:
                    stop.signal = flags.signal
                    self._read_outcome()
                    self._save(self)
                    return False
                if flags.save_due:
                    self._read_outcome()
                    self._save(self)
                    self._last_save = time.monotonic()
            self._read_outcome()
            self._end_epoch(len(loader))
            self._last_save = time.monotonic()
        return True

    def _begin(self) -> None:
        """What the steps of this session need besides the trainer's state."""
        if self.processes.world > 1 and not self.sharded and self._sums is None:
            self._sums = GradientSums(self.model.parameters(), self.processes)
        halves = self._on_gpu and self.precision != "fp32" and not self.sharded
        if halves and isinstance(self.model, ResidualLM):
            matrices = [matrix for matrix, _ in self.model.matrices()]
            dtype = TYPES[self.precision]
            self._halves = HalfCopies([*matrices, self.model.embedding.weight], dtype)
        why_not = self._cannot_be_whole()
        if not self._on_gpu:
            return
        if why_not is None:
            self._graph = GraphedStep(self.device, self.settings.cuda_graph, self.log.note)
            of_tokens = ResidualLM.OF_TOKENS
            self._carried = {n: x.clone() for n, x in self.state.items() if n not in of_tokens}
        elif self.settings.cuda_graph:
            self.log.note(
                f"Steps are not captured as a CUDA graph, but launched one by one: {why_not}"
            )

    def _cannot_be_whole(self) -> str | None:
        """Why the host cannot prepare a step before it begins; None if it can."""
        if not self.WHOLE_STEPS:
            return "pairs of answers differ in shape from step to step"
        if self.processes.world > 1:
            return f"{self.processes.world} processes exchange gradients in each"
        if not isinstance(self.model, ResidualLM) or not self.model.STEADY:
            return f"not with --architecture {self.settings.architecture}"
        return None

    def _find_micro_batch(self) -> None:
        """Try a step's work before the first step: what fits, and how long a run will take."""
        settings = self.settings
        loader = self._loader(0)
        batch = loader.batch(0)
        sample = self._sampled_vocabulary(batch)
        try_rows = step_trial(
            self.model, self.optimizers, batch, self._autocast, self.device, sample
        )
        rows = settings.micro_batch_size or preset_rows(self.device, settings.max_seq_length)
        wanted = min(rows, len(self._sequences))
        self.model.train()
        # Dropout draws from the CPU's generator or the GPU's: both stay as they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.micro_batch, seconds = fit_rows(
                try_rows, wanted, self.device, self.log.note, self.processes.local_world,
                self.processes.all_reduce_min if self.sharded else None,
            )  # fmt: skip
        self.micro_batch = self.processes.all_reduce_min(self.micro_batch)
        computed = sum(
            part.ids.numel()
            for _, part in batch.micro_batches(self.micro_batch, self._one_document_per_row)
        )
        seconds *= computed / (self.micro_batch * settings.max_seq_length)
        steps = len(loader) * settings.epochs
        seconds *= min(steps, settings.max_steps or steps)
        if settings.minutes is not None:
            seconds = min(seconds, 60 * settings.minutes)
        self.log.note(describe_expectation(seconds, settings.epochs))

    def _loader(self, epoch: int) -> EpochLoader:
        documents: Documents = self.data.splits["train"]
        tables = None if self._counts is None else self._counts.table_of[0]
        if self._rehearsed:
            seed = self.settings.seed, epoch
            share, last = self.settings.rehearsal_share, self.settings.rehearsal_last
            documents = Mixture(documents, self._rehearsed, share, seed, last)
            if self._counts is not None:
                tables = documents.select(self._counts.table_of)
        return EpochLoader(
            documents,
            self.settings.max_seq_length,
            self.settings.batch_size,
            (self.settings.seed, epoch),
            one_document_per_row=self._one_document_per_row,
            part=slice(self._sequences.start, self._sequences.stop),
            tables=tables,
        )

    def _done(self, steps_in_epoch: int) -> float:
        """Fraction of the run done, by epochs, steps or minutes, whichever is furthest."""
        progress, settings = self.progress, self.settings
        done = (progress.epoch + progress.step / steps_in_epoch) / settings.epochs
        if settings.max_steps is not None:
            done = max(done, progress.total_steps / settings.max_steps)
        if settings.minutes is not None:
            done = max(done, progress.seconds / (60 * settings.minutes))
        return done

    def _timed_step(self, batch: Batch, steps_in_epoch: int) -> None:
        started = time.perf_counter()
        factor = self.schedule.factor(self._done(steps_in_epoch))
        with self.processes.explain_exchanges() if self.sharded else contextlib.nullcontext():
            loss = self._step(batch, factor)
        seconds = time.perf_counter() - started
        progress = self.progress
        progress.step += 1
        progress.total_steps += 1
        progress.seconds += seconds
        progress.epoch_seconds += seconds
        self.log.step(progress.step / steps_in_epoch, loss)
        self._threads.after_step(seconds, batch.ids.numel())

    def _step(self, batch: Batch, rate_factor: float) -> float:
        """One optimizer step over all micro-batches; returns nats per token.

        On a GPU those of the step before, so that the host does not wait for this one.
        """
        self.model.train()
        if self._on_gpu:
            self._set_rates(rate_factor)  # as files hold them: the step itself has tensors
        if self._graph is not None:
            graph = self._graph
            outcome, self.state = self._fitting(
                lambda rows: self._take_whole_step(graph, batch, rate_factor, rows)
            )
        else:
            outcome = self._update_of(batch, rate_factor)
        at = self.progress
        before, self._unread = self._unread, _Outcome(outcome, batch.scored, at.epoch, at.step)
        if not self._on_gpu:
            return self._read_outcome()
        return 0.0 if before is None else self._account(before)

    def _fitting(self, attempt: Callable[[int], tuple[Tensor, State]]) -> tuple[Tensor, State]:
        """What an attempt gives on as many rows at once as fit, from here on."""
        found, rows = halve_until_it_fits(
            attempt,
            self.micro_batch,
            self.device,
            may_halve=lambda: not self.sharded and (self._sums is None or not self._sums.begun),
        )
        if rows < self.micro_batch:
            self.micro_batch = rows
            self.log.note(f"\n  Out of memory: {rows} rows at once from here on; the same batch.")
        return found

    def _update_of(self, batch: Batch, rate_factor: float) -> Tensor:
        """A step by :meth:`_gradients`; its nats, and whether it was taken, [2]."""
        if self._halves is not None:
            self._halves.refresh()
        sample = self._sampled_vocabulary(batch)
        nats, self.state = self._fitting(lambda rows: self._gradients(batch, rows, sample))
        if self.sharded:
            return self._update_parts(nats, rate_factor)
        if self._sums is not None:
            self._sums.finish(nats)
        if not self._on_gpu:
            return self._update(nats, rate_factor)
        return self._update_on_gpu(nats, send(self._numbers(batch, rate_factor), self.device))

    def _sampled_vocabulary(self, batch: Batch) -> SampledVocabulary | None:
        """The entries over which this step's softmax is summed; None for all of them."""
        others = self.settings.sampled_softmax
        if others == 0 or self._on_gpu:
            return None
        here = mark_targets(batch.targets, self.model.vocab_size)
        targets = self.processes.sum_on_device(here.int()) > 0
        return SampledVocabulary.drawn(targets, others, self._noise(0).keys(_DRAW)[0])

    def _gradients(
        self, batch: Batch, rows: int, sample: SampledVocabulary | None
    ) -> tuple[Tensor, State]:
        """Accumulate the gradients of a batch, so many rows at once: (nats, states behind it)."""
        share = torch.full((), _share(batch), device=self.device)
        passes: list[tuple[Sequences, Pass]] = []
        for which, part in batch.micro_batches(rows, self._one_document_per_row):
            passes.append((which, partial(self._pass, which, part, rows * len(passes), sample)))
        return self._accumulate(passes, share)

    def _noise(self, sequence: int) -> Noise:
        """Of a micro-batch of this step that begins with this one of the process's sequences."""
        first = self._sequences.start + sequence
        return Noise(self.settings.seed, self.progress.total_steps, first)

    def _pass(
        self, which: Sequences, part: Batch, sequence: int, sample: SampledVocabulary | None
    ) -> tuple[Tensor, State]:
        """One micro-batch, by the model's own `forward` and `loss`."""
        state = {name: tensor[:, which] for name, tensor in self.state.items()}
        hidden, state = self.model(
            *self._inputs(part.ids, state, part.reset),
            noise=self._noise(sequence),
            **({} if part.tables is None else {"tables": part.tables}),
        )
        return self.model.loss(hidden, part.targets, sample), state

    def _accumulate(
        self, passes: Sequence[tuple[Sequences, Pass]], share: Tensor
    ) -> tuple[Tensor, State]:
        """Accumulate the gradients of passes: their nats, and the states that they give.

        `share` normalises by the tokens of the whole batch, however it is split.
        """
        self.model.zero_grad()  # what a try without enough memory left
        if self._sums is not None:
            self._sums.reset()
        total: Tensor | None = None
        states: list[State] = []
        d_loss = self.scaler.scale(share)
        for _, compute in passes:
            if self._sums is not None and len(states) == len(passes) - 1:
                self._sums.expect_last()
            with self._autocast:
                loss, state = compute()
            loss.backward(d_loss)
            states.append({name: tensor.detach() for name, tensor in state.items()})
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total, self._together([which for which, _ in passes], states)

    def _together(self, order: Sequence[Sequences], states: Sequence[State]) -> State:
        """States of the whole batch, of those of its micro-batches."""
        if len(states) == 1 and not self._one_document_per_row:
            return states[0]
        whole = {name: part.new_empty(self.state[name].shape) for name, part in states[0].items()}
        for which, state in zip(order, states, strict=True):
            for name, tensor in whole.items():
                tensor[:, which] = state[name]
        return whole

    def _take_whole_step(
        self, graph: GraphedStep, batch: Batch, rate_factor: float, rows: int
    ) -> tuple[Tensor, State]:
        """A step that the host prepares, and then asks for at once.

        Returns:
            its nats, and whether it was taken, [2], on the GPU; and the states behind it.
        """
        model, epoch = self.model, self.progress.epoch
        assert isinstance(model, ResidualLM)
        tensors: dict[tuple[int | None, str], Tensor] = {}
        tensors[None, "numbers"] = self._numbers(batch, rate_factor)
        if model.dropout:
            tensors[None, "noise"] = replace(self._noise(0), sites=model.noise_sites).table()
        order: list[slice] = []
        behind: list[State] = []
        for which, part in batch.micro_batches(rows):
            assert isinstance(which, slice)
            state = {name: x[:, which] for name, x in self.state.items() if name in model.OF_TOKENS}
            facts, after = model.look_up(part.ids, state, part.reset, tables=part.tables)
            matches, contexts = (
                None if name not in facts else facts[name].flatten(0, 1)
                for name in ("matches", "contexts")
            )
            for_loss = model.facts_for_loss(part.targets.flatten(), matches, contexts)
            for name, fact in ready({**model.for_gpu(facts), **for_loss}).items():
                tensors[len(order), name] = fact
            order.append(which)
            behind.append(after)
        for name, part in self._carried.items():
            if self.state[name] is not part:  # a run or an epoch begins, or a number was not finite
                part.copy_(self.state[name])
        kind = model.dropout, self._spec.clip_norm(epoch), decays_pairs(epoch)
        outcome = graph.take(tensors, kind, partial(self._whole_step, order))
        return outcome, {**self._carried, **self._together(order, behind)}

    def _whole_step(self, order: Sequence[slice], sent: Sent) -> Tensor:
        """All of a step that is asked of a GPU, which is a function of tensors that stay in place.

        Args:
            order: the sequences of each micro-batch.
            sent: what the host has made.

        Returns:
            nats, and whether the step was taken, [2].
        """
        model = self.model
        assert isinstance(model, ResidualLM)
        if self._halves is not None:
            self._halves.refresh()

        def compute(number: int, which: slice) -> tuple[Tensor, State]:
            facts = {name: x for (part, name), x in sent.items() if part == number}
            noise = replace(self._noise(which.start), sent=sent.get((None, "noise")))
            state = {name: part[:, which] for name, part in self._carried.items()}
            hidden, state = model.read(facts, state, noise)
            return model.nats(hidden.flatten(0, 1), facts), state

        passes = [(which, partial(compute, n, which)) for n, which in enumerate(order)]
        numbers = sent[None, "numbers"]
        nats, behind = self._accumulate(passes, numbers[0])
        try:
            outcome = self._update_on_gpu(nats, numbers)
        except torch.cuda.OutOfMemoryError:  # fewer rows at once would take a part of it twice
            raise UserError("out of memory in the optimizers' step; use a smaller model") from None
        for name, part in self._carried.items():
            part.copy_(behind[name])
        return outcome

    def _inputs(self, ids: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State, Tensor]:
        """Sent to the device, unless the model wants its tokens on the CPU."""
        if self.model.TOKENS_ON_CPU:
            return ids, state, reset
        return send(ids, self.device), state, send(reset, self.device)

    def _update(self, nats: Tensor, rate_factor: float) -> Tensor:
        """Clip the gradients and step the optimizers, unless a number is not finite.

        Returns:
            the step's nats, and whether it was taken, [2].
        """
        if self._frozen is not None:
            self._frozen.mask_gradients()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self._spec.clip_norm(self.progress.epoch)
        )
        finite = all_finite(nats, norm)
        if finite:
            self._set_rates(rate_factor)
            self._decay_pairs(rate_factor)
            for optimizer in self.optimizers:
                optimizer.step()
            if self._frozen is not None:
                self._frozen.restore()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return torch.tensor([float(nats), float(finite)], dtype=torch.float64)

    def _decay_pairs(self, rate_factor: float) -> None:
        if decays_pairs(self.progress.epoch):
            decay_pairs(self.model, pair_decay_amount(self.settings, rate_factor))

    def _numbers(self, batch: Batch, rate_factor: float) -> Tensor:
        """What changes from step to step, besides tokens: on a GPU tensors, in fp32.

        The share of a token in the loss, that by which the table of pairs decays, and rates.
        """
        rates = rates_at(self.optimizers, rate_factor)
        return torch.tensor([_share(batch), pair_decay_amount(self.settings, rate_factor), *rates])

    def _update_on_gpu(self, nats: Tensor, numbers: Tensor) -> Tensor:
        """The same where only the GPU knows whether the numbers are finite, and is not asked.

        `numbers` are `_numbers`, there.
        """
        if self._frozen is not None:
            self._frozen.mask_gradients()
        epoch = self.progress.epoch

        def decay(taken: Tensor) -> None:
            if decays_pairs(epoch):
                decay_pairs(self.model, numbers[1] * taken)

        outcome = step_if_finite(
            self.optimizers, self.model.parameters(), nats, self._spec.clip_norm(epoch),
            self.scaler, numbers[2:], decay,
        )  # fmt: skip
        if self._frozen is not None:
            self._frozen.restore()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return outcome

    def _update_parts(self, nats: Tensor, rate_factor: float) -> Tensor:
        """The same of a sharded model, on any device; the gradients are sums already."""
        total, norm, gradients = sharding.sum_and_norm(self.model, nats, self.processes)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        norm, epoch = norm / scale, self.progress.epoch
        finite = math.isfinite(total) and math.isfinite(norm)
        if finite:
            factor = min(1.0, self._spec.clip_norm(epoch) / (norm + 1e-6)) / scale
            if factor != 1.0:
                _torch._foreach_mul_(gradients, factor)
            self._set_rates(rate_factor)
            self._decay_pairs(rate_factor)
            for optimizer in self.optimizers:
                optimizer.step()
        update_scale(self.scaler, torch.tensor(float(not finite), device=self.device))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return torch.tensor([total, float(finite)], dtype=torch.float64)

    def _set_rates(self, rate_factor: float) -> None:
        rates = iter(rates_at(self.optimizers, rate_factor))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = next(rates)

    def _read_outcome(self) -> float:
        """Count in the step that has not been yet, if there is one; returns its nats per token."""
        unread, self._unread = self._unread, None
        return 0.0 if unread is None else self._account(unread)

    def _account(self, outcome: _Outcome) -> float:
        nats, taken = outcome.read()
        if taken:
            self.progress.skipped_in_a_row = 0
            self.progress.epoch_nats += nats
            self.progress.epoch_tokens += outcome.scored
            self.progress.trained_tokens += outcome.scored
        else:
            self._count_skipped(outcome, nats)
        return nats / max(1, outcome.scored)

    def _count_skipped(self, outcome: _Outcome, nats: float) -> None:
        """A step was not finite: count it, and end the run after too many.

        Raises:
            UserError: so many in a row that the run has diverged.
        """
        progress = self.progress
        if not math.isfinite(nats):
            # A non-finite number in a carried state would stay in its sequence for good. (Where the
            # gradients alone overflow, as fp16's do until their scale is found, the states are
            # good.)
            self.state = self._fresh_state()
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if not self.scaler.is_enabled():
            self.log.note(
                f"\n  Step {outcome.step + 1} of epoch {outcome.epoch + 1} skipped: "
                "loss or gradient is not finite; the weights are unchanged."
            )
        if progress.skipped_in_a_row >= MAX_NONFINITE_STEPS:
            raise UserError(
                f"{MAX_NONFINITE_STEPS} steps in a row were not finite; the last save is intact. "
                "Train again with a lower --learning-rate or with --precision fp32"
            )

    def _sync_flags(self, stop: StopRequest) -> StepFlags:
        """What all processes do after this step; their clocks become that of the main one."""
        progress = self.progress
        save_due = time.monotonic() - self._last_save > 60 * self.settings.save_minutes
        flags = self.processes.sync_flags(
            StepFlags(stop.signal or 0, save_due, progress.seconds, progress.epoch_seconds)
        )
        progress.seconds, progress.epoch_seconds = flags.seconds, flags.epoch_seconds
        return flags

    def _evaluate(self) -> Metrics:
        split = self.data.splits["validation"]
        sequences = max(EVALUATION_BATCH_SIZE, self.processes.world)
        metrics = evaluate(
            self.model, split, self.data.tokenizer, self.device, sequences, self.processes
        )
        if self.sharded:
            sharding.free_gathered(self.model)
        return metrics

    def whole_model(self) -> LanguageModel | None:
        """The model as one process can use it, in process 0; all processes call it together."""
        if self.sharded:
            return sharding.whole_model(self.model, self.settings, self._block, self.processes)
        return self.model if self.processes.main else None

    def whole_moments(self) -> dict[str, dict[str, Any]]:
        """What the optimizers remember, by name, in process 0; all processes call it together."""
        if self.sharded:
            return sharding.whole_moments(self.model, self.optimizers, self.processes)
        return get_moments(self.model, self.optimizers)

    def start_from(
        self, weights: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Begin with the weights of another run, and with what its optimizers remembered."""
        if self.sharded:
            sharding.load_whole(self.model, weights)
            moments = sharding.divided_moments(self.model, moments)
        else:
            self.model.load_state_dict(weights)
        set_moments(self.model, self.optimizers, moments)
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """Moments are other tensors from now on."""
        if self._graph is not None:
            self._graph.forget()

    def _end_epoch(self, steps_in_epoch: int) -> None:
        metrics = self._evaluate()
        done = self._done(steps_in_epoch)
        record = self.progress.end_epoch(self.settings.epochs, metrics)
        self.state = self._fresh_state()
        self.log.end_training(record)
        self.log.note(validation_line(record))
        self._decide(done)
        self._finish_epoch(self, record["best"])
        self.log.note("  [Checkpoint saved]")

    def _decide(self, done: float) -> None:
        """End the run, or start its warmdown, when it is time."""
        progress = self.progress
        if self.schedule.finished(done) or progress.epoch >= self.settings.epochs:
            progress.finished = True
        elif progress.epochs_without_improvement >= self.settings.patience:
            if self.schedule.start_warmdown(done):
                progress.epochs_without_improvement = 0
                self.log.note(
                    f"  No improvement in {self.settings.patience} epochs: warming down to the end."
                )
            else:
                self.log.note(f"  No improvement in {self.settings.patience} epochs: stopping.")
                progress.finished = True

    def save_parts(self, resume: Path) -> dict[str, Any] | None:
        """Write what `state_dict` leaves out of a sharded run; see :mod:`newllm.train.sharding`."""
        if not self.sharded:
            return None
        steps = self.progress.total_steps
        return sharding.save_parts(resume, self.model, self.optimizers, steps, self.processes)

    def _set_counts(self) -> None:
        if self._counts is not None:
            assert isinstance(self.model, ResidualLM)
            assert self.model.counts is not None
            self.model.counts.set_tables(self._counts.tables)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on; all processes call it together.

        Weights and moments of a sharded run are not in it: `save_parts` writes them.
        """
        generators, *others = self.processes.gather(get_generators(self.device))
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {
            "model": None if self.sharded else self.model.state_dict(),
            "optimizers": None if self.sharded else optimizers,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "schedule": asdict(self.schedule),
            "progress": asdict(self.progress),
            "carried_state": self.processes.gather_state(self.state),
            "processes": self.processes.world,
            "generators": generators,
            "other_generators": others,
            "threads": torch.get_num_threads(),
            "micro_batch": self.micro_batch,
        }

    def load_state_dict(self, stored: dict[str, Any], parts: Path | None = None) -> None:
        """Take up a run where `state_dict` was called; notes what makes it another run.

        `parts` is the folder that `save_parts` wrote, of a run that was sharded.
        """
        if parts is not None:
            sharding.load_parts(parts, self.model, self.optimizers)
        elif self.sharded:
            sharding.load_whole(self.model, stored["model"])
            for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
                sharding.load_optimizer(optimizer, state)
        else:
            self.model.load_state_dict(stored["model"])
            for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
                load_optimizer(optimizer, state)
        self._forget_graphs()
        self._set_counts()  # parts have none, and of a finished run no step is left to set them
        if self.scaler.is_enabled() and stored["scaler"] is not None:
            self.scaler.load_state_dict(stored["scaler"])
        self.schedule = Schedule(**stored["schedule"])
        self.progress = Progress(**stored["progress"])
        self.micro_batch = stored["micro_batch"]
        own = slice(self._sequences.start, self._sequences.stop)
        carried = stored["carried_state"]
        if "recall" in carried:
            carried = {**carried, "recall": in_sets(carried["recall"])}
        carried = {name: part[:, own] for name, part in carried.items()}
        self.state = placed(self.model, carried, self.device)
        generators = [stored["generators"], *stored.get("other_generators", [])]
        if self.processes.rank < len(generators):
            set_generators(generators[self.processes.rank], self.device)
        self._threads.resume(stored["threads"])
        for what, now in (
            ("threads", torch.get_num_threads()), ("processes", self.processes.world)
        ):  # fmt: skip
            before = stored.get(what, 1)
            if before != now:
                self.log.note(
                    f"Resumed with {now} {what} instead of {before}: the run goes on, but not bit "
                    "for bit as it would have."
                )


class _Outcome:
    """What a step was, read when it is asked for: on a GPU the copy comes on its own time."""

    def __init__(self, outcome: Tensor, scored: int, epoch: int, step: int) -> None:
        """`outcome` is its nats and whether it was taken, [2]; `scored` its targets that count."""
        self.scored, self.epoch, self.step = scored, epoch, step
        self._event = None
        on_gpu = outcome.device.type == "cuda"
        # A copy: the next step may write its own into the same memory.
        self._outcome = torch.empty(2, dtype=outcome.dtype, pin_memory=on_gpu)
        self._outcome.copy_(outcome, non_blocking=on_gpu)
        if on_gpu:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> tuple[float, bool]:
        """Nats, and whether the step was taken."""
        if self._event is not None:
            self._event.synchronize()
        nats, taken = self._outcome.tolist()
        return nats, taken > 0


def _share(batch: Batch) -> float:
    """Of a token in the loss of a step."""
    return 1 / max(1, batch.scored)


def all_finite(loss: Tensor, gradient_norm: Tensor) -> bool:
    """Whether a step may be taken."""
    return bool(torch.isfinite(loss) & torch.isfinite(gradient_norm))
