"""One run from settings to verdict: what it begins with, data, training, files, resume, summary."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch

import newllm
from newllm.chat.session import ChatSession
from newllm.config import (
    WITHOUT_EFFECT_ON_WEIGHTS,
    ModelSettings,
    Settings,
    is_own_block,
    option_name,
    parse,
    to_yaml,
)
from newllm.data.encode import Accounting
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.render import Renderer, make_renderer
from newllm.data.sources import open_chosen, open_source
from newllm.data.tokenizers import Tokenizer, fingerprint, from_dict, load_tokenizer
from newllm.datasets import Dataset, find_dataset
from newllm.device import cpu_model, give_back_freed_memory, keep_freed_memory, pick_device
from newllm.errors import Stopped, UserError
from newllm.evaluate.ngram import ngram_baseline
from newllm.files import write_text
from newllm.inference.decoder import make_decoder
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel, OwnBlock
from newllm.model.kernels import active_kernel
from newllm.model.own_block import block_of_checkpoint, load_given
from newllm.results.marks import judge_bpb
from newllm.results.records import Answers, ComparedBaseline, PromptAnswer
from newllm.results.runs import RunFiles, read_answers, set_aside, write_lines
from newllm.results.summary import Summary, save_summary, summary_lines
from newllm.results.verdict import judge, next_steps
from newllm.settings import SHAPE, resolve
from newllm.train import checkpoint
from newllm.train.counting import describe, prepare_counts
from newllm.train.distributed import Processes, process_group
from newllm.train.log import EpochLog, MetricsFile, make_log
from newllm.train.sharding import (
    check_parts,
    parts_folder,
    refuse_what_is_not_sharded,
    remove_other_parts,
)
from newllm.train.signals import StopRequest, run_lock
from newllm.train.tracking import make_tracker
from newllm.train.trainer import Trainer

_ANSWER_TOKENS = 48
_REPEATED_WORDS = 3


def train(
    dataset: str,
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    resume: bool = False,
    params: int | None = None,
    advise: bool = True,
    make: Callable[..., TrainingRun] | None = None,
    defaults: Mapping[str, Any] | None = None,
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
        make: the kind of run (default: :class:`TrainingRun`).
        defaults: settings of that kind of run where none are given.

    Returns:
        Path of the best checkpoint.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal came; everything is saved.
    """
    with process_group() as processes, contextlib.ExitStack() as held:
        log = make_log() if processes.main else EpochLog()
        held.callback(log.close)
        stored = None
        with processes.main_first():
            given = {**(file or {}), **flags}
            own = flags.get("architecture")  # what may be run as a block of one's own
            if params is None and given.get("init_from") is not None:
                # Below the file: what that says is not taken for what was typed.
                file = {**shape_of(given["init_from"], own), **(file or {})}
            settings = resolve(dataset, {**(defaults or {}), **flags}, file, params)
            if params is not None:
                given |= settings.model_dump(include=set(SHAPE))
            files = RunFiles(Path(settings.out), settings.run_name)
            if processes.main:
                held.enter_context(run_lock(files.folder, files.name, log.note))
                stored = _find_resume(files, log) if resume else None
        stored = processes.broadcast(stored)
        with processes.main_first():
            if stored is not None:
                settings = _settings_of_resumed(stored, given, settings)
                block = block_of_checkpoint(files.resume, stored, own)
            else:
                block = load_given(settings.architecture)
            device = processes.take_device(pick_device(settings.device))
            run = (make or TrainingRun)(settings, files, log, advise, processes, device, block)
            if stored is None and processes.main:  # now: what it needs is there
                set_aside(files, log.note)
            held.callback(run.metrics_file.close)
            sharded = settings.shard and processes.world > 1
            if sharded:
                refuse_what_is_not_sharded(settings, processes)
            trainer = None if sharded else run.prepare(stored)
        if trainer is None:  # to shard it takes all of them
            with processes.main_reports():
                trainer = run.prepare(stored)
        return run.train(trainer)


class TrainingRun:
    """One run: its settings, files and data, and what its trainer calls back for."""

    def __init__(
        self,
        settings: Settings,
        files: RunFiles,
        log: EpochLog,
        advise: bool,
        processes: Processes,
        device: torch.device,
        block: OwnBlock | None,
    ) -> None:
        self.settings, self.files, self.log, self.advise = settings, files, log, advise
        self.processes, self.device, self.block = processes, device, block
        self.level = find_dataset(settings.dataset)
        self._kept_parts: str | None = None
        """Folder of parts that the newest resume file names, of a sharded run."""
        self.start = Start.read(settings)
        encoding = Encoding.of(settings)
        self.data = prepare_training(open_chosen(settings), encoding, self.start.tokenizer)
        self.rehearsed = prepare_rehearsal(settings, self.data.tokenizer)
        self.counts = None
        if settings.counts:
            self.counts = prepare_counts([self.data, *self.rehearsed.values()], settings.counts)
            give_back_freed_memory()  # a gigabyte, by now
        tracker = make_tracker(files, settings) if processes.main else None
        self.metrics_file = MetricsFile(files.metrics, tracker)

    def prepare(self, stored: dict[str, Any] | None) -> Trainer:
        """A trainer at the point the run has reached; process 0 has logged and written so."""
        trainer = self._trainer()
        if stored is not None:
            self._take_up(trainer, stored)
        elif self.start.content is not None:
            trainer.start_from(self.start.content["model"], self.start.content.get("moments", {}))
        if self.processes.main:
            self._introduce(trainer, resumed=stored is not None)
            write_text(self.files.settings, to_yaml(self.settings))
            self.metrics_file.write(trainer.progress.history)
        return trainer

    def _trainer(self, kind: type[Trainer] = Trainer, **more: Any) -> Trainer:
        return kind(
            self.settings,
            self.data,
            self.log,
            self._save,
            self._finish_epoch,
            self.device,
            rehearsed=[data.splits["train"] for data in self.rehearsed.values()],
            frozen=self.start.frozen,
            processes=self.processes,
            block=self.block,
            counts=self.counts,
            **more,
        )

    def train(self, trainer: Trainer) -> Path:
        """Train to the end; returns the path of the best checkpoint."""
        trained = not trainer.progress.finished
        if trained:
            stop = StopRequest(launched=self.processes.world > 1)
            if self.device.type == "cpu":
                keep_freed_memory()
            with stop.listening():
                finished = trainer.fit(stop)
            # The setting is the whole process's, and what the steps held the n-gram counts need.
            give_back_freed_memory()
            if not finished:
                self._leave(stop)
        files = self.files
        # It is missing, too, where a kill came between the last save and this line.
        if self.processes.broadcast(trained or not files.final.exists()):
            model, moments = trainer.whole_model(), trainer.whole_moments()
            if model is not None:
                self._write_model(files.final, trainer, model, moments=moments)
        if self.processes.main:
            self._conclude(trainer)
        return files.best

    def _use_of_rehearsed(self) -> str:
        """What the rows of other levels are for."""
        return f"rehearsed: {self.settings.rehearsal_share:.0%} of the tokens"

    def _conclude(self, trainer: Trainer) -> None:
        """Write and say what has come out."""
        data, files = self._describe_data(), self.files
        summary = summarize(files.name, self.settings, trainer, data, files.best)
        save_summary(files.summary, summary)
        for line in summary_lines(summary, self.advise):
            self.log.note(line)

    def _leave(self, stop: StopRequest) -> NoReturn:
        """Exit after a stop request, when everything is saved; process 0 says how to go on."""
        if not self.processes.main:
            raise SystemExit(stop.exit_code)
        command = _resume_command()
        if self.processes.world > 1:
            command = f"start the {self.processes.world} processes again with: {command}"
        raise Stopped(stop.exit_code, f"Stopped; to go on: {command}")

    def _introduce(self, trainer: Trainer, resumed: bool) -> None:
        settings, counts = self.settings, self.data.accounting
        self.log.note(f"Run {self.files.name}: {self.level.title}")
        self.log.note(f"Data   {self.data.source}: {describe_counts(counts['train'])}")
        self.log.note(f"       validation: {describe_counts(counts['validation'])}")
        for name, facts in counts.items():
            for what, count in facts.exceptions(name, settings.decontaminate).items():
                self.log.note(f"       {what}: {count}")
            if facts.malformed:
                self.log.note(
                    f"       {facts.malformed} malformed {name} rows left out; "
                    f"first: {facts.malformed_examples[0]}"
                )
        for note in self.data.notes:
            self.log.note(f"       {note}")
        if self.rehearsed:
            rows = ", ".join(
                f"{name} ({data.accounting['train'].documents:,} rows)"
                for name, data in self.rehearsed.items()
            )
            self.log.note(f"       {self._use_of_rehearsed()}, {rows}")
        self.log.note(
            f"Model  {settings.architecture}, {settings.num_layers} layer(s), context "
            f"{settings.context_dim}, {trainer.parameters:,} parameters, {settings.tokenizer} "
            f"vocabulary of {self.data.tokenizer.vocab_size:,}"
        )
        if self.counts is not None:
            self.log.note(f"Counts {describe(self.counts)}")
        together = f", {self.processes.world} processes" if self.processes.world > 1 else ""
        together += ", sharded" if trainer.sharded else ""
        self.log.note(
            f"Device {trainer.device.type}, {trainer.precision}, recurrence kernel "
            f"{active_kernel(trainer.device)}, {torch.get_num_threads()} threads{together}"
        )
        if resumed:
            at = trainer.progress
            self.log.note(f"Resumed at epoch {at.epoch + 1}, step {at.step}")

    def _take_up(self, trainer: Trainer, stored: dict[str, Any]) -> None:
        now = self._describe_data()
        if any(stored["data"][key] != now[key] for key in ("fingerprint", "rehearsed")):
            raise UserError(
                f"--resume: the data changed since the run began ({stored['data']['source']}); "
                "restore it, or train anew without --resume"
            )
        try:
            parts = stored.get("parts")
            folder = None if parts is None else parts_folder(self.files.resume, parts["folder"])
            trainer.load_state_dict(stored["trainer"], folder)
            self._kept_parts = None if parts is None else parts["folder"]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{self.files.resume}: damaged or edited; train anew without --resume, which moves "
                "it away"
            ) from None

    def _describe_data(self) -> dict[str, Any]:
        return {
            "fingerprint": self.data.fingerprint,
            "rows": self.data.rows,
            "source": self.data.source,
            "revision": self.data.revision,
            "accounting": {name: asdict(facts) for name, facts in self.data.accounting.items()},
            "rehearsed": {name: data.fingerprint for name, data in self.rehearsed.items()},
        }

    def _origin(self, trainer: Trainer) -> dict[str, Any]:
        """What every file of the run says of where it comes from."""
        return {
            "settings": self.settings.model_dump(),
            "data": self._describe_data(),
            "newllm_version": newllm.__version__,
            **({} if self.block is None else {"block": self.block.facts(trainer.model)}),
        }

    def _save(self, trainer: Trainer) -> None:
        content = {"kind": "resume", "trainer": trainer.state_dict(), **self._origin(trainer)}
        parts = trainer.save_parts(self.files.resume)
        if self.processes.main:
            content |= {} if parts is None else {"parts": parts}
            checkpoint.save(self.files.resume, content, keep_previous=True)
            before, self._kept_parts = self._kept_parts, (parts or {}).get("folder")
            remove_other_parts(self.files.resume, [before, self._kept_parts])
            self.metrics_file.write(trainer.progress.history)
        self.processes.barrier()

    def _finish_epoch(self, trainer: Trainer, best: bool) -> None:
        """The resume file last: should the run die before it, the epoch is simply done again."""
        model = trainer.whole_model()
        if model is not None:
            if best:
                self._write_model(self.files.best, trainer, model)
            self._write_answers(trainer, model)
        self._save(trainer)

    def _write_answers(self, trainer: Trainer, model: LanguageModel) -> None:
        """Fixed prompts, answered as the model stands after this epoch."""
        renderer = make_renderer(self.data.tokenizer, self.level)
        epoch = trainer.progress.history[-1]["epoch"]
        answered = answer_prompts(model, renderer, self.level.prompts)
        kept = [earlier for earlier in read_answers(self.files) if earlier["epoch"] < epoch]
        write_lines(self.files.answers, [*kept, {"epoch": epoch, **answered}])

    def _write_model(self, path: Path, trainer: Trainer, model: LanguageModel, **more: Any) -> None:
        """A self-contained checkpoint: enough to evaluate, chat and train on."""
        content = {
            "kind": "model",
            "model": model.state_dict(),
            "tokenizer": self.data.tokenizer.to_dict(),
            "metrics": trainer.progress.history[-1],
            "torch_version": str(torch.__version__),
            "created": _now(),
            **self._origin(trainer),
            **more,
        }
        checkpoint.save(path, content)


def describe_counts(counts: Accounting) -> str:
    """`11,883 rows, 948,328 tokens (633,152 cut)`."""
    cut = f" ({counts.cut_tokens:,} cut)" if counts.cut_tokens else ""
    return f"{counts.documents:,} rows, {counts.tokens:,} tokens{cut}"


def _find_resume(files: RunFiles, log: EpochLog) -> dict[str, Any] | None:
    found = checkpoint.load_newest(files.resume, also=check_parts)
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
    both_own = is_own_block(before["architecture"]) and is_own_block(resolved.architecture)
    changed = [
        f"{option_name(name)} {before[name]} -> {getattr(resolved, name)}"
        for name in given
        if name not in WITHOUT_EFFECT_ON_WEIGHTS
        and name != "dataset"
        and getattr(resolved, name) != before[name]
        # A block's file may have moved: what is in it is compared by its SHA-256.
        and not (name == "architecture" and both_own)
    ]
    if changed:
        raise UserError(
            f"--resume: the run began with other settings ({'; '.join(changed)}); "
            "leave them as they were, or start another run with --name, --from its best file"
        )
    # `out` and `name` found the run, so they are right even where they are the defaults.
    free = {*(WITHOUT_EFFECT_ON_WEIGHTS & set(given)), "out", "name"}
    free |= {"architecture"} if both_own else set()
    return parse({**before, **{name: getattr(resolved, name) for name in free}})


def _resume_command() -> str:
    """The command that was typed, with --resume."""
    script = sys.argv[0].endswith(".py") and not sys.argv[0].endswith("__main__.py")
    words = [*(["python", sys.argv[0]] if script else ["newllm"]), *sys.argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


@dataclass(frozen=True)
class Start:
    """The model of --from (None: fresh weights) and the vocabulary given (None: a new one)."""

    settings: Settings
    content: Mapping[str, Any] | None
    tokenizer: Tokenizer | None

    @classmethod
    def read(cls, settings: Settings) -> Start:
        """Read what the settings name.

        Raises:
            UserError: a file is missing, damaged, or does not fit the settings.
        """
        content = tokenizer = None
        option = ""
        if settings.init_from is not None:
            option = f"--from {settings.init_from}"
            content = checkpoint.load_model(Path(settings.init_from))
            tokenizer = from_dict(content["tokenizer"])
            _refuse_other_shape(option, content, settings)
        if settings.tokenizer_file is not None:
            option = f"--tokenizer-file {settings.tokenizer_file}"
            given = load_tokenizer(Path(settings.tokenizer_file))
            if tokenizer is not None and fingerprint(tokenizer) != fingerprint(given):
                raise UserError(
                    f"{option}: not the tokenizer of --from {settings.init_from}; omit it"
                )
            tokenizer = given
        if tokenizer is not None and tokenizer.kind != settings.tokenizer:
            raise UserError(
                f"{option}: its tokenizer is {tokenizer.kind}, so give --tokenizer {tokenizer.kind}"
            )
        if settings.freeze_old and (content is None or content.get("grown_from") is None):
            raise UserError("--freeze-old: give --from a file that newllm grow wrote")
        return cls(settings, content, tokenizer)

    @property
    def frozen(self) -> ModelSettings | None:
        """Shape of the part that does not train, with --freeze-old.

        Raises:
            UserError: the stream was widened, which changes every old matrix.
        """
        if not self.settings.freeze_old:
            return None
        assert self.content is not None
        before = ModelSettings.model_validate(self.content["grown_from"])
        if before.embed_dim != self.settings.embed_dim:
            raise UserError(
                f"--freeze-old: growing changed --embed-dim from {before.embed_dim} to "
                f"{self.settings.embed_dim}, which leaves no part as it was"
            )
        return before


def shape_of(path: str, architecture: str | None = None) -> dict[str, Any]:
    """Settings that a run inherits from the model of --from, unless they are given.

    `architecture` is the one that was given, which a block of one's own needs.

    Raises:
        UserError: the file is missing, damaged, or no model; its block was not given.
    """
    content = checkpoint.load_model(Path(path))
    stored = parse(content["settings"])
    if is_own_block(stored.architecture):
        block_of_checkpoint(path, content, architecture)
    inherited = set(ModelSettings.model_fields) - {"dropout"} | {"tokenizer", "vocab_size"}
    return stored.model_dump(include=inherited)


def named_rows(
    option: str, entry: str, anywhere: bool = False, own: str | None = None
) -> tuple[Dataset, str]:
    """The data set and the path of DATASET=PATH.

    Args:
        option: whose value it is.
        entry: the value.
        anywhere: whether the path may be missing.
        own: the data set that is trained on, which cannot be named.

    Raises:
        UserError: an unknown data set, the run's own, or no path.
    """
    dataset, _, path = entry.partition("=")
    level = find_dataset(dataset.replace("-", "_"))
    if level.name == own:
        raise UserError(f"{option} {entry}: that is the data set of this run")
    if not path and not anywhere:
        raise UserError(f"{option} {entry}: say where its rows are: {level.name}=PATH")
    return level, path


def prepare_rehearsal(settings: Settings, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """The rows of the data sets in `rehearse`, in the vocabulary of the run.

    Raises:
        UserError: an unknown data set, the run's own, or unusable rows.
    """
    rehearsed = {}
    for entry in settings.rehearse:
        anywhere = settings.data in ("hub", "sample")
        level, path = named_rows("--rehearse", entry, anywhere, own=settings.dataset)
        encoding = Encoding(
            level.name, tokenizer.kind, tokenizer.vocab_size, settings.max_seq_length
        )
        source = open_source(level, path or settings.data)
        rehearsed[level.name] = prepare_training(source, encoding, tokenizer)
    return rehearsed


def _refuse_other_shape(option: str, content: Mapping[str, Any], settings: Settings) -> None:
    stored = parse(content["settings"])
    # The file of a block may have moved: its SHA-256 was compared (`shape_of`).
    both_own = is_own_block(stored.architecture) and is_own_block(settings.architecture)
    differing = [
        f"{option_name(name)} {getattr(stored, name)}"
        for name, value in settings.model_settings().model_dump(exclude={"dropout"}).items()
        if getattr(stored, name) != value
        and not (name == "architecture" and both_own)
        and not (name == "counts" and value and stored.counts)  # a table is made anew
    ]
    if differing:
        raise UserError(
            f"{option}: the model there has another shape; give {' '.join(differing)}, "
            "or make it larger first with newllm grow"
        )
    if settings.tokenizer == "bpe" and settings.vocab_size != stored.vocab_size:
        raise UserError(
            f"{option}: the model there keeps its vocabulary; omit --vocab-size "
            f"{settings.vocab_size}, or give {stored.vocab_size}"
        )


def answer_prompts(model: LanguageModel, renderer: Renderer, prompts: Sequence[str]) -> Answers:
    """Greedy answers (no random number is drawn) and how repetitive they are."""
    was_training = model.training
    model.eval()
    decoder = make_decoder(model)  # the weights as they are now
    answers: list[PromptAnswer] = []
    repeated = total = 0
    for prompt in prompts:
        session = ChatSession(decoder, renderer, Sampling(temperature=0))
        answer = session.say(prompt, max_new_tokens=_ANSWER_TOKENS)
        answers.append({"prompt": prompt, "answer": answer})
        again, runs = count_repetitions(answer)
        repeated, total = repeated + again, total + runs
    model.train(was_training)
    return {"answers": answers, "repetition_rate": repeated / total if total else 0.0}


def count_repetitions(text: str) -> tuple[int, int]:
    """(three-word runs that occurred before in the text, all three-word runs)."""
    words = text.split()
    runs = [tuple(words[i : i + _REPEATED_WORDS]) for i in range(len(words) - _REPEATED_WORDS + 1)]
    return len(runs) - len(set(runs)), len(runs)


def summarize(
    run: str, settings: Settings, trainer: Trainer, data: Mapping[str, Any], checkpoint: Path
) -> Summary:
    """Everything there is to say about a finished run; counts the n-grams of its training rows."""
    device = trainer.device
    level, progress = find_dataset(settings.dataset), trainer.progress
    best = progress.history[progress.best_epoch - 1]
    baseline = ngram_baseline(trainer.data)
    bpb_mark = judge_bpb(
        settings.dataset, data["rows"], best["bpb"], trainer.parameters, progress.seconds / 60
    )
    return Summary(
        run=run,
        dataset=settings.dataset,
        level=level.number,
        settings=settings.model_dump(),
        parameters=trainer.parameters,
        data={**data, "vocab_size": trainer.data.tokenizer.vocab_size},
        best=best,
        epochs=len(progress.history),
        minutes=progress.seconds / 60,
        trained_tokens=progress.trained_tokens,
        ngram_baseline=ComparedBaseline(**asdict(baseline), beaten=baseline.beaten_by(best)),
        verdict=replace(judge(level, settings, best), bpb_mark=bpb_mark),
        advice=tuple(next_steps(level, settings, best, baseline)),
        checkpoint=str(checkpoint),
        versions={
            "newllm": newllm.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        machine={
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "memory": psutil.virtual_memory().total,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "kernel": active_kernel(device),
            "precision": trainer.precision,
            "threads": torch.get_num_threads(),
        },
        created=_now(),
        counts_bytes=trainer.counts_bytes,
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
