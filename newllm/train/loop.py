"""The training loop: one model, one data set, any number of interruptions.

A run is a function of its settings and data alone. Everything that decides the next step (weights,
optimizers, schedule, random generators, position, carried states, history) is in `state_dict`, so a
run stopped anywhere and resumed ends with the same weights to the bit (same machine, same thread
count).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from newllm.config import ModelSettings, Settings
from newllm.data.loader import Batch, EpochLoader
from newllm.data.mixing import Mixture
from newllm.data.prepare import Encoded
from newllm.data.shards import Documents
from newllm.device import keep_freed_memory, pick_device, pick_precision
from newllm.errors import UserError
from newllm.evaluate.metrics import evaluate
from newllm.model import State, build_model
from newllm.model.kernels import Noise
from newllm.train.epoch_log import EpochLog, validation_line
from newllm.train.freezing import Frozen
from newllm.train.guards import MAX_NONFINITE_STEPS, StopRequest, all_finite
from newllm.train.memory import fit_rows, halve_until_it_fits, preset_rows, resident_bytes
from newllm.train.optimizers import make_optimizers
from newllm.train.progress import Progress, clip_norm, describe_expectation
from newllm.train.schedule import Schedule

MIN_IMPROVEMENT = 0.001
"""Nats per token below which a lower validation loss is no improvement."""


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
    ) -> None:
        self._rehearsed = rehearsed
        self.settings, self.data, self.log = settings, data, log
        self._save, self._finish_epoch = save, finish_epoch
        device = pick_device(settings.device)
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
        if self.accelerator.num_processes > 1:
            raise UserError("training in several processes is not supported yet; start one process")
        self.device = self.accelerator.device
        torch.manual_seed(settings.seed)
        # Not wrapped by accelerate: validation calls the same model in fp32.
        self.model = build_model(settings.model_settings(), data.tokenizer.vocab_size)
        self.model.to(self.device)
        self._frozen = None if frozen is None else Frozen(self.model, frozen)
        self.optimizers = [
            self.accelerator.prepare_optimizer(optimizer)
            for optimizer in make_optimizers(self.model, settings)
        ]
        self.schedule = Schedule.planned(settings.warmup_share, settings.warmdown_share)
        self.progress = Progress()
        self.state: State = self.model.initial_state(settings.batch_size)
        self.micro_batch = 0
        """Rows computed at once; found when training starts, and part of the run from then on."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fit(self, stop: StopRequest) -> bool:
        """Train on; True when finished, False when a stop request came (the state is saved)."""
        progress = self.progress
        if self._frozen is not None:
            self._frozen.hold()
        if self.micro_batch == 0:
            self._find_micro_batch()
        self._last_save = time.monotonic()
        while not progress.finished:
            loader = self._loader(progress.epoch)
            self.log.start_epoch(
                progress.epoch + 1, self.settings.epochs, progress.step / len(loader)
            )
            for batch in loader.batches(progress.step):
                if self.schedule.finished(self._done(len(loader))):
                    break
                self._timed_step(batch, len(loader))
                if stop.signal is not None:
                    self._save(self)
                    return False
                if time.monotonic() - self._last_save > 60 * self.settings.save_minutes:
                    self._save(self)
                    self._last_save = time.monotonic()
            self._end_epoch(len(loader))
            self._last_save = time.monotonic()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": scaler.state_dict() if scaler is not None else None,
            "schedule": asdict(self.schedule),
            "progress": asdict(self.progress),
            "carried_state": self.state,
            "generators": generators,
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
        self.state = {name: part.to(self.device) for name, part in stored["carried_state"].items()}
        torch.set_rng_state(stored["generators"]["cpu"])
        if self.device.type == "cuda" and "cuda" in stored["generators"]:
            torch.cuda.set_rng_state(stored["generators"]["cuda"], self.device)
        if stored["threads"] != torch.get_num_threads():
            self.log.note(
                f"Resumed with {torch.get_num_threads()} threads instead of {stored['threads']}: "
                "the run goes on, but not bit for bit as it would have."
            )

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
            # The published recipe counts its batch in documents: one a row.
            shared=self.settings.architecture != "original",
        )

    def _find_micro_batch(self) -> None:
        """Try a step's work before the first step: what fits, and how long a run will take."""
        settings = self.settings
        loader = self._loader(0)
        batch = loader.batch(0)

        def try_rows(rows: int) -> int:
            part = batch.lanes(0, rows)
            with self.accelerator.autocast():
                hidden, _ = self.model(part.ids.to(self.device), None, part.reset.to(self.device))
                loss = self.model.loss(hidden, part.targets.to(self.device))
            held = resident_bytes()
            loss.backward()
            self.model.zero_grad()
            return held

        rows = settings.micro_batch_size or preset_rows(self.device, settings.max_seq_length)
        self.model.train()
        # Dropout draws from the CPU's generator or the GPU's: both stay as they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.micro_batch, seconds = fit_rows(
                try_rows, min(rows, settings.batch_size), self.device, self.log.note
            )
        seconds *= math.ceil(settings.batch_size / self.micro_batch) * len(loader) * settings.epochs
        if settings.minutes is not None:
            seconds = min(seconds, 60 * settings.minutes)
        self.log.note(describe_expectation(seconds, settings.epochs))

    def _done(self, steps_in_epoch: int) -> float:
        """Share of the run done, by epochs or by minutes, whichever is further."""
        epochs = (self.progress.epoch + self.progress.step / steps_in_epoch) / self.settings.epochs
        if self.settings.minutes is None:
            return epochs
        return max(epochs, self.progress.seconds / (60 * self.settings.minutes))

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
        for start in range(0, self.settings.batch_size, rows):
            noise = Noise(self.settings.seed, self.progress.total_steps, first_lane=start)
            stop = start + rows
            part = batch if rows >= len(batch.ids) else batch.lanes(start, stop)
            state = {name: tensor[:, start:stop] for name, tensor in self.state.items()}
            with self.accelerator.autocast():
                hidden, state = self.model(
                    part.ids.to(self.device), state, part.reset.to(self.device), noise=noise
                )
                loss = self.model.loss(hidden, part.targets.to(self.device))
            # Normalised by the tokens of the whole batch, however it is split.
            self.accelerator.backward(loss / max(1, batch.scored))
            states.append({name: tensor.detach() for name, tensor in state.items()})
            nats += loss.detach()
        return nats, {name: torch.cat([s[name] for s in states], dim=1) for name in self.state}

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
                optimizer.step()
            if self._frozen is not None:
                self._frozen.restore()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if finite:
            progress.skipped_in_a_row = 0
            return
        # A state with a non-finite number would poison the lane for good.
        self.state = self.model.initial_state(self.settings.batch_size)
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
        progress = self.progress
        metrics = evaluate(
            self.model, self.data.splits["validation"], self.data.tokenizer, self.device
        )
        best = metrics.loss < progress.best_loss
        improved = metrics.loss < progress.best_loss - MIN_IMPROVEMENT
        progress.epochs_without_improvement = (
            0 if improved else progress.epochs_without_improvement + 1
        )
        if best:
            progress.best_loss, progress.best_epoch = metrics.loss, progress.epoch + 1
        record = progress.record(self.settings.epochs, metrics, best)
        progress.history.append(record)
        done = self._done(steps_in_epoch)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.epoch_nats, progress.epoch_tokens, progress.epoch_seconds = 0.0, 0, 0.0
        self.state = self.model.initial_state(self.settings.batch_size)
        self.log.end_training(record)
        self.log.note(validation_line(record))
        self._decide(done)
        self._finish_epoch(self, best)
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
