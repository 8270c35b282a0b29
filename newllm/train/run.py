"""One run from settings to verdict: data, model, training, files, resume."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

import newllm
from newllm.config import WITHOUT_EFFECT_ON_WEIGHTS, Settings, option_name, parse, to_yaml
from newllm.data.encode import Accounting
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.render import make_renderer
from newllm.data.sources import open_source
from newllm.datasets import find_dataset
from newllm.errors import Stopped, UserError
from newllm.files import write_text
from newllm.model.kernels import active_kernel
from newllm.recipes import resolve
from newllm.results.run_files import RunFiles, set_aside
from newllm.results.summary import save_summary, summary_lines
from newllm.sizes import shape_of_size
from newllm.train import checkpoint
from newllm.train.answers import answer_prompts
from newllm.train.conclude import summarize
from newllm.train.distributed import Processes, joined
from newllm.train.log import EpochLog, MetricsFile, SilentLog, make_log
from newllm.train.optimizers import get_moments
from newllm.train.signals import StopRequest, run_lock
from newllm.train.start import Start, prepare_rehearsal, shape_of
from newllm.train.trainer import Trainer


def train(
    dataset: str,
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    resume: bool = False,
    params: int | None = None,
    advise: bool = True,
) -> Path:
    """Train one model and print how it goes.

    Args:
        dataset: name of the data set.
        flags: settings given by the user, by field name.
        file: settings from a YAML file.
        resume: go on where the run of this name stopped; settings that are not given are taken
            from it.
        params: size of the model, which stands for its depth and widths.
        advise: say at the end what to do next.

    Returns:
        Path of the best checkpoint.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal came; everything is saved.
    """
    with joined() as processes, contextlib.ExitStack() as held:
        log = make_log() if processes.main else SilentLog()
        held.callback(log.close)
        stored = None
        with processes.main_first():
            if params is not None:
                flags = {**flags, **shape_of_size(params, flags, file)}
            given = {**(file or {}), **flags}
            if given.get("init_from") is not None:
                flags = {**shape_of(given["init_from"]), **given}
            settings = resolve(dataset, flags, file)
            files = RunFiles(Path(settings.out), settings.run_name)
            if processes.main:
                held.enter_context(run_lock(files.folder, files.name, log.note))
                stored = _find_resume(files, log) if resume else None
        stored = processes.agree(stored)
        with processes.main_first():
            if stored is not None:
                settings = _settings_of_resumed(stored, given, settings)
            elif processes.main:
                set_aside(files, log.note)
            run = _Run(settings, files, log, advise, processes)
            held.callback(run.metrics_file.close)
            trainer = run.prepare(stored)
        return run.train(trainer)


class _Run:
    """What `train` needs in several places."""

    def __init__(
        self,
        settings: Settings,
        files: RunFiles,
        log: EpochLog,
        advise: bool,
        processes: Processes,
    ) -> None:
        self.settings, self.files, self.log, self.advise = settings, files, log, advise
        self.processes = processes
        self.level = find_dataset(settings.dataset)
        self.start = Start.read(settings)
        self.data = self._encode()
        self.rehearsed = prepare_rehearsal(settings, self.data.tokenizer)
        self.metrics_file = MetricsFile(
            files.metrics,
            files.curves if settings.tensorboard and processes.main else None,
        )

    def prepare(self, stored: dict[str, Any] | None) -> Trainer:
        """A trainer that stands where the run does; process 0 has said and written so."""
        trainer = Trainer(
            self.settings,
            self.data,
            self.log,
            self._save,
            self._finish_epoch,
            rehearsed=[data.splits["train"] for data in self.rehearsed.values()],
            frozen=self.start.frozen,
            processes=self.processes,
        )
        if stored is not None:
            self._refuse_changed_data(stored)
            self._take_up(trainer, stored)
        else:
            self.start.apply(trainer)
        if self.processes.main:
            self._introduce(trainer, resumed=stored is not None)
            write_text(self.files.settings, to_yaml(self.settings))
            self.metrics_file.write(trainer.progress.history)
        return trainer

    def train(self, trainer: Trainer) -> Path:
        """Train to the end; returns the path of the best checkpoint."""
        trained = not trainer.progress.finished
        if trained:
            stop = StopRequest(launched=self.processes.world > 1)
            with stop.listening():
                if not trainer.fit(stop):
                    self._leave(stop)
        if self.processes.main:
            # Not there: also where a kill came between the last save and here.
            if trained or not self.files.final.exists():
                last = trainer.progress.history[-1]
                moments = get_moments(trainer.model, trainer.optimizers)
                self._write_model(self.files.final, trainer, last, {"moments": moments})
            self._conclude(trainer)
        return self.files.best

    def _leave(self, stop: StopRequest) -> NoReturn:
        """Everything is saved; one process says so."""
        if not self.processes.main:
            raise SystemExit(stop.exit_code)
        command = _resume_command()
        if self.processes.world > 1:
            command = f"start the {self.processes.world} processes again with: {command}"
        raise Stopped(stop.exit_code, f"Stopped; to go on: {command}")

    def _encode(self) -> Encoded:
        settings = self.settings
        encoding = Encoding.of(settings)
        source = open_source(self.level, settings.data, settings.subset, encoding.head)
        return prepare_training(source, encoding, self.start.tokenizer)

    def _introduce(self, trainer: Trainer, resumed: bool) -> None:
        settings, counts = self.settings, self.data.accounting
        self.log.note(f"Run {self.files.name}: {self.level.title}")
        self.log.note(f"Data   {self.data.source}: {describe_counts(counts['train'])}")
        self.log.note(f"       validation: {describe_counts(counts['validation'])}")
        for name, facts in counts.items():
            if facts.left_out:
                self.log.note(f"       {facts.left_out:,} {name} rows not used by the protocol")
            if facts.malformed:
                self.log.note(
                    f"       {facts.malformed} malformed {name} rows left out; "
                    f"first: {facts.malformed_examples[0]}"
                )
        if self.rehearsed:
            rows = ", ".join(
                f"{name} ({data.accounting['train'].documents:,} rows)"
                for name, data in self.rehearsed.items()
            )
            self.log.note(f"       rehearsed: {settings.rehearsal_share:.0%} of the tokens, {rows}")
        self.log.note(
            f"Model  {settings.architecture}, {settings.num_layers} layer(s), context "
            f"{settings.context_dim}, {trainer.parameters:,} parameters, {settings.tokenizer} "
            f"vocabulary of {self.data.tokenizer.vocab_size:,}"
        )
        together = f", {self.processes.world} processes" if self.processes.world > 1 else ""
        self.log.note(
            f"Device {trainer.device.type}, {trainer.precision}, recurrence kernel "
            f"{active_kernel(trainer.device)}, {torch.get_num_threads()} threads{together}"
        )
        if resumed:
            at = trainer.progress
            self.log.note(f"Resumed at epoch {at.epoch + 1}, step {at.step}")

    def _take_up(self, trainer: Trainer, stored: dict[str, Any]) -> None:
        try:
            trainer.load_state_dict(stored["trainer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{self.files.resume}: damaged or edited; train anew without --resume, which moves "
                "it away"
            ) from None

    def _refuse_changed_data(self, stored: dict[str, Any]) -> None:
        now = self._describe_data()
        if any(stored["data"][key] != now[key] for key in ("fingerprint", "rehearsed")):
            raise UserError(
                f"--resume: the data changed since the run began ({stored['data']['source']}); "
                "restore it, or train anew without --resume"
            )

    def _describe_data(self) -> dict[str, Any]:
        return {
            "fingerprint": self.data.fingerprint,
            "rows": self.data.rows,
            "source": self.data.source,
            "revision": self.data.revision,
            "accounting": {name: asdict(facts) for name, facts in self.data.accounting.items()},
            "rehearsed": {name: data.fingerprint for name, data in self.rehearsed.items()},
        }

    def _save(self, trainer: Trainer) -> None:
        content = {
            "kind": "resume",
            "settings": self.settings.model_dump(),
            "trainer": trainer.state_dict(),
            "data": self._describe_data(),
            "newllm_version": newllm.__version__,
        }
        if self.processes.main:
            checkpoint.save(self.files.resume, content, keep_previous=True)
            self.metrics_file.write(trainer.progress.history)
        self.processes.meet()

    def _finish_epoch(self, trainer: Trainer, best: bool) -> None:
        """The resume file last: should the run die before it, the epoch is simply done again."""
        if self.processes.main:
            if best:
                self._write_model(self.files.best, trainer, trainer.progress.history[-1])
            self._write_answers(trainer)
        self._save(trainer)

    def _write_answers(self, trainer: Trainer) -> None:
        """Fixed prompts, answered as the model stands after this epoch."""
        renderer = make_renderer(self.data.tokenizer, self.level)
        epoch = trainer.progress.history[-1]["epoch"]
        answered = answer_prompts(trainer.model, renderer, self.level.prompts)
        path = self.files.answers
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in before if json.loads(line)["epoch"] < epoch]
        line = json.dumps({"epoch": epoch, **answered}, ensure_ascii=False)
        write_text(path, "\n".join([*kept, line]) + "\n")

    def _write_model(
        self,
        path: Path,
        trainer: Trainer,
        record: dict[str, Any],
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """A self-contained checkpoint: enough to evaluate, chat and train on."""
        content = {
            "kind": "model",
            "model": trainer.model.state_dict(),
            "settings": self.settings.model_dump(),
            "tokenizer": self.data.tokenizer.to_dict(),
            "metrics": record,
            "data": self._describe_data(),
            "newllm_version": newllm.__version__,
            "torch_version": str(torch.__version__),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **(more or {}),
        }
        checkpoint.save(path, content)

    def _conclude(self, trainer: Trainer) -> None:
        files = self.files
        summary = summarize(files.name, self.settings, trainer, self._describe_data(), files.best)
        save_summary(files.summary, summary)
        for line in summary_lines(summary, self.advise):
            self.log.note(line)


def describe_counts(counts: Accounting) -> str:
    """`11,883 rows, 948,328 tokens (633,152 cut)`."""
    cut = f" ({counts.cut_tokens:,} cut)" if counts.cut_tokens else ""
    return f"{counts.documents:,} rows, {counts.tokens:,} tokens{cut}"


def _find_resume(files: RunFiles, log: EpochLog) -> dict[str, Any] | None:
    found = checkpoint.load_newest(files.resume)
    if found is None:
        log.note(f"Nothing to resume under {files.resume}; starting afresh.")
        return None
    content, warning = found
    if warning:
        log.note(warning)
    return content


def _settings_of_resumed(
    stored: dict[str, Any], given: Mapping[str, Any], resolved: Settings
) -> Settings:
    """The stored settings; a given one may differ only where it cannot change the weights."""
    before = parse(stored["settings"]).model_dump()  # with defaults for what is newer
    changed = [
        f"{option_name(name)} {before[name]} -> {getattr(resolved, name)}"
        for name in given
        if name not in WITHOUT_EFFECT_ON_WEIGHTS
        and name != "dataset"
        and getattr(resolved, name) != before[name]
    ]
    if changed:
        raise UserError(
            f"--resume: the run began with other settings ({'; '.join(changed)}); "
            "leave them as they were, or start another run with --name, --from its best file"
        )
    # `out` and `name` found the run, so they are right even where they are the defaults.
    free = {*(WITHOUT_EFFECT_ON_WEIGHTS & set(given)), "out", "name"}
    return parse({**before, **{name: getattr(resolved, name) for name in free}})


def _resume_command() -> str:
    """The command that was typed, with --resume."""
    script = sys.argv[0].endswith(".py") and not sys.argv[0].endswith("__main__.py")
    words = [*(["python", sys.argv[0]] if script else ["newllm"]), *sys.argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])
