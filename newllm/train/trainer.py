"""The training loop: one model, one data set, any number of interruptions.

A run is a function of its settings and data alone. Everything that decides the next step (weights,
optimizers, schedule, random generators, position, carried states, history) is in `state_dict`, so a
run stopped anywhere and resumed ends with the same weights to the bit (same machine, same thread
count).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from newllm.config import ModelSettings, Settings
from newllm.data.loader import Batch, EpochLoader, Mixture
from newllm.data.prepare import Encoded
from newllm.data.shards import Documents
from newllm.device import (
    get_generators,
    keep_freed_memory,
    pick_device,
    pick_precision,
    set_generators,
)
from newllm.errors import UserError
from newllm.evaluate.metrics import EVALUATION_LANES, evaluate
from newllm.model import State, build_model
from newllm.model.kernels import Noise
from newllm.train.distributed import Processes
from newllm.train.freezing import Frozen
from newllm.train.log import EpochLog, validation_line
from newllm.train.memory import fit_rows, halve_until_it_fits, preset_rows, step_trial
from newllm.train.optimizers import decay_pairs, make_optimizers, step_all
from newllm.train.progress import Progress, clip_norm, describe_expectation, differences
from newllm.train.schedule import Schedule, set_dropout
from newllm.train.signals import MAX_NONFINITE_STEPS, StopRequest, all_finite


class Trainer:
    """Trains until the settings, the patience or a stop request say that it is enough.

    Args:
        settings: fully decided settings.
        data: encoded rows.
        log: where lines go.
        save: called with the trainer when the state should be made durable.
        finish_epoch: called with the trainer, and whether the epoch was the best so far.
        rehearsed: earlier training rows, of which every epoch has some.
        frozen: shape of the part of a grown model that does not train.
        processes: those that train together (default: this one alone).
    """

    def __init__(
        self,
        settings: Settings,
        data: Encoded,
        log: EpochLog,
        save: Callable[[Trainer], None],
        finish_epoch: Callable[[Trainer, bool], None],
        rehearsed: Sequence[Documents] = (),
        frozen: ModelSettings | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._rehearsed = rehearsed
        self.processes = processes or Processes()
        self.settings, self.data, self.log = settings, data, log
        self._save, self._finish_epoch = save, finish_epoch
        device = self.processes.device(pick_device(settings.device))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            keep_freed_memory()
        self.precision = pick_precision(settings.precision, device)
        # Accelerate keeps one state a process; several runs in one process may differ in precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if self.precision == "fp32" else self.precision,
        )
        self.device = self.accelerator.device
        torch.manual_seed(settings.seed)
        # Not wrapped by accelerate: validation calls the same model in fp32.
        self.model = build_model(settings.model_settings(), data.tokenizer.vocab_size)
        self.model.to(self.device)
        if not self.processes.main:  # the dropout of `original` draws from torch's generator
            torch.manual_seed(settings.seed + (self.processes.rank << 32))
        self._frozen = None if frozen is None else Frozen(self.model, frozen)
        self.optimizers = [
            self.accelerator.prepare_optimizer(optimizer)
            for optimizer in make_optimizers(self.model, settings)
        ]
        self.schedule = Schedule.planned(settings.warmup_share, settings.warmdown_share)
        self.progress = Progress()
        self._lanes = range(settings.batch_size)[self.processes.lanes(settings.batch_size)]
        self.state: State = self.model.initial_state(len(self._lanes))
        self._apart = settings.architecture == "original"
        """One document a row: the published recipe counts its batch in documents."""
        self.micro_batch = 0
        """Rows computed at once; found when training starts, and part of the run from then on."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fit(self, stop: StopRequest) -> bool:
        """Train on; True when finished, False when a stop request came (the state is saved)."""
        progress = self.progress
        self.processes.share_weights(self.model.state_dict().values())
        if self._frozen is not None:
            self._frozen.hold()
        if self.micro_batch == 0:
            self._find_micro_batch()
        self._last_save = time.monotonic()
        while not progress.finished:
            loader = self._loader(progress.epoch)
            set_dropout(self.model, progress.epoch)
            self.log.start_epoch(
                progress.epoch + 1, self.settings.epochs, progress.step / len(loader)
            )
            for batch in loader.batches(progress.step):
                if self.schedule.finished(self._done(len(loader))):
                    break
                self._timed_step(batch, len(loader))
                save_due = time.monotonic() - self._last_save > 60 * self.settings.save_minutes
                stopping, save_due = self.processes.settle(progress, stop, save_due)
                if stopping:
                    self._save(self)
                    return False
                if save_due:
                    self._save(self)
                    self._last_save = time.monotonic()
            self._end_epoch(len(loader))
            self._last_save = time.monotonic()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on; all processes call it together."""
        generators, *others = self.processes.gather(get_generators(self.device))
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": scaler.state_dict() if scaler is not None else None,
            "schedule": asdict(self.schedule),
            "progress": asdict(self.progress),
            "carried_state": self.processes.all_lanes(self.state),
            "processes": self.processes.world,
            "generators": generators,
            "other_generators": others,
            "threads": torch.get_num_threads(),
            "micro_batch": self.micro_batch,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Take up a run where `state_dict` was called."""
        self.model.load_state_dict(stored["model"])
        for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        if self.accelerator.scaler is not None and stored["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(stored["scaler"])
        self.schedule = Schedule(**stored["schedule"])
        self.progress = Progress(**stored["progress"])
        self.micro_batch = stored["micro_batch"]
        own = slice(self._lanes.start, self._lanes.stop)
        carried = stored["carried_state"]
        self.state = {name: part[:, own].to(self.device) for name, part in carried.items()}
        generators = [stored["generators"], *stored.get("other_generators", [])]
        if self.processes.rank < len(generators):
            set_generators(generators[self.processes.rank], self.device)
        for line in differences(stored, self.processes.world):
            self.log.note(line)

    def _loader(self, epoch: int) -> EpochLoader:
        documents: Documents = self.data.splits["train"]
        if self._rehearsed:
            seed = self.settings.seed, epoch
            documents = Mixture(documents, self._rehearsed, self.settings.rehearsal_share, seed)
        return EpochLoader(
            documents,
            self.settings.max_seq_length,
            self.settings.batch_size,
            (self.settings.seed, epoch),
            shared=not self._apart,
            part=slice(self._lanes.start, self._lanes.stop),
        )

    def _find_micro_batch(self) -> None:
        """Try a step's work before the first step: what fits, and how long a run will take."""
        settings = self.settings
        loader = self._loader(0)
        batch = loader.batch(0)
        try_rows = step_trial(self.model, batch, self.accelerator, self.device)
        rows = settings.micro_batch_size or preset_rows(self.device, settings.max_seq_length)
        wanted = min(rows, len(self._lanes))
        self.model.train()
        # Dropout draws from the CPU's generator or the GPU's: both stay as they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.micro_batch, seconds = fit_rows(
                try_rows, wanted, self.device, self.log.note, self.processes.local_world
            )
        self.micro_batch = self.processes.least(self.micro_batch)
        computed = sum(part.ids.numel() for _, part in batch.pieces(self.micro_batch, self._apart))
        seconds *= computed / (self.micro_batch * settings.max_seq_length)
        steps = len(loader) * settings.epochs
        seconds *= min(steps, settings.max_steps or steps)
        if settings.minutes is not None:
            seconds = min(seconds, 60 * settings.minutes)
        self.log.note(describe_expectation(seconds, settings.epochs))

    def _done(self, steps_in_epoch: int) -> float:
        """Share of the run done, by epochs, steps or minutes, whichever is furthest."""
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
        loss = self._step(batch, factor)
        seconds = time.perf_counter() - started
        progress = self.progress
        progress.step += 1
        progress.total_steps += 1
        progress.seconds += seconds
        progress.epoch_seconds += seconds
        self.log.step(progress.step / steps_in_epoch, loss)

    def _step(self, batch: Batch, rate_factor: float) -> float:
        """One optimizer step over all micro-batches; returns nats per token."""
        self.model.train()
        (nats, self.state), rows = halve_until_it_fits(
            lambda rows: self._gradients(batch, rows), self.micro_batch, self.device
        )
        if rows < self.micro_batch:
            self.micro_batch = rows
            self.log.note(f"\n  Out of memory: {rows} rows at once from here on; the same batch.")
        self.processes.add_gradients(self.model.parameters(), nats)
        self._update(nats, rate_factor)
        mean = nats.item() / max(1, batch.scored)
        if self.progress.skipped_in_a_row == 0:
            self.progress.epoch_nats += nats.item()
            self.progress.epoch_tokens += batch.scored
            self.progress.trained_tokens += batch.scored
        return mean

    def _gradients(self, batch: Batch, rows: int) -> tuple[Tensor, State]:
        """Accumulate the gradients of a batch, so many rows at once: (nats, states behind it)."""
        self.model.zero_grad()  # what a try without enough memory left
        nats = torch.zeros((), device=self.device)
        states: list[State] = []
        order: list[slice | Tensor] = []
        for lanes, part in batch.pieces(rows, self._apart):
            first_lane = self._lanes.start + rows * len(order)
            noise = Noise(self.settings.seed, self.progress.total_steps, first_lane)
            order.append(lanes)
            state = {name: tensor[:, lanes] for name, tensor in self.state.items()}
            with self.accelerator.autocast():
                hidden, state = self.model(
                    part.ids.to(self.device), state, part.reset.to(self.device), noise=noise
                )
                loss = self.model.loss(hidden, part.targets.to(self.device))
            # Normalised by the tokens of the whole batch, however it is split.
            self.accelerator.backward(loss / max(1, batch.scored))
            states.append({name: tensor.detach() for name, tensor in state.items()})
            nats += loss.detach()
        behind = {name: states[0][name].new_empty(old.shape) for name, old in self.state.items()}
        for lanes, state in zip(order, states, strict=True):
            for name, tensor in behind.items():
                tensor[:, lanes] = state[name]
        return nats, behind

    def _update(self, nats: Tensor, rate_factor: float) -> None:
        """Step the optimizers, unless a number is not finite."""
        progress = self.progress
        if self._frozen is not None:
            self._frozen.mask_gradients()
        norm: Tensor = self.accelerator.clip_grad_norm_(  # type: ignore[assignment]
            self.model.parameters(), clip_norm(self.settings, progress.epoch)
        )
        finite = all_finite(nats, norm)
        # With fp16 the scaler must see an overflow to lower its scale; it skips the step itself.
        if finite or self.accelerator.scaler is not None:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * rate_factor
            decay_pairs(self.model, self.settings, progress.epoch, rate_factor)
            step_all(self.optimizers, self.accelerator.scaler)
            if self._frozen is not None:
                self._frozen.restore()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if finite:
            progress.skipped_in_a_row = 0
            return
        # A state with a non-finite number would poison the lane for good.
        self.state = self.model.initial_state(len(self._lanes))
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if self.accelerator.scaler is None:
            self.log.note(
                f"\n  Step {progress.step + 1} of epoch {progress.epoch + 1} skipped: "
                "loss or gradient is not finite; the weights are unchanged."
            )
        if progress.skipped_in_a_row >= MAX_NONFINITE_STEPS:
            raise UserError(
                f"{MAX_NONFINITE_STEPS} steps in a row were not finite; the last save is intact. "
                "Train again with a lower --learning-rate or with --precision fp32"
            )

    def _end_epoch(self, steps_in_epoch: int) -> None:
        split, lanes = self.data.splits["validation"], max(EVALUATION_LANES, self.processes.world)
        metrics = evaluate(
            self.model, split, self.data.tokenizer, self.device, lanes, self.processes
        )
        done = self._done(steps_in_epoch)
        record = self.progress.end_epoch(self.settings.epochs, metrics)
        self.state = self.model.initial_state(len(self._lanes))
        self.log.end_training(record)
        self.log.note(validation_line(record))
        self._decide(done)
        self._finish_epoch(self, record["best"])
        self.log.note("  [Checkpoint saved]")

    def _decide(self, done: float) -> None:
        """End the run, or start its warm-down, when it is time."""
        progress = self.progress
        if self.schedule.finished(done) or progress.epoch >= self.settings.epochs:
            progress.finished = True
        elif progress.epochs_without_improvement >= self.settings.patience:
            if self.schedule.wind_down(done):
                progress.epochs_without_improvement = 0
                self.log.note(
                    f"  No improvement in {self.settings.patience} epochs: warming down to the end."
                )
            else:
                self.log.note(f"  No improvement in {self.settings.patience} epochs: stopping.")
                progress.finished = True
