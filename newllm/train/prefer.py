"""`newllm prefer`: a model learns which of two answers people preferred.

It is a training run like any other (:mod:`newllm.train.run`), of which a step is a batch of pairs:
same files, same log, resumed to the bit. Both dialogues of a pair are read whole, from an empty
state, through the model's own forward, with recall and counts; of a pair whose chosen dialogue was
counted, both are predicted from the table that did not count it, as in any training.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.config import parse
from newllm.data.loader import IGNORED
from newllm.data.located import Located, Malformed
from newllm.data.render import ChatRenderer
from newllm.data.shards import EncodedSplit
from newllm.data.sources import Rows, open_chosen, part_of
from newllm.data.tokenizers import BPE
from newllm.datasets.hh_rlhf import DATASET
from newllm.errors import UserError
from newllm.evaluate.preferences import (
    Pair,
    PairScores,
    Side,
    answer_nats,
    bootstrap_interval,
    pair_scores,
    pair_sides,
    preference_pair,
)
from newllm.evaluate.refusals import refusal_share
from newllm.model import LanguageModel, State
from newllm.model.kernels import Noise
from newllm.model.residual import placed
from newllm.model.sampled_softmax import SampledVocabulary
from newllm.results.records import Metrics
from newllm.results.stages import write_preferences
from newllm.train import checkpoint
from newllm.train.preference_loss import Preferring
from newllm.train.run import TrainingRun, train
from newllm.train.trainer import Trainer

RECIPE = {
    "epochs": 1,
    "learning_rate": 3e-5,  # ten times as much cost 3% of the ordinary loss, and gained nothing
    "batch_size": 32,
    "dropout": 0.0,
    "sampled_softmax": 0,
}
"""Settings that are not given; a batch is so many pairs (docs/LOG.md)."""

PAIRS_AT_ONCE = 8
"""Pairs computed at once, unless --micro-batch-size says otherwise."""

MOST_LOSS = 0.01
"""By how much of itself the ordinary loss may rise."""


def prefer(file: str, options: Preferring, flags: Mapping[str, Any], resume: bool = False) -> Path:
    """Teach the model of a checkpoint what people preferred, and print how it goes.

    Args:
        file: the checkpoint that training begins with.
        options: what is minimised.
        flags: settings of the run given by the user, by field name.
        resume: go on where the run of this name stopped.

    Returns:
        Path of the checkpoint.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal came; everything is saved.
    """
    before = parse(checkpoint.load_model(Path(file))["settings"])
    if before.tokenizer != "bpe":
        raise UserError(f"{file}: word1000 loses most words of an answer; train with BPE first")
    inherited: dict[str, Any] = {"closed_answers": before.closed_answers}
    if before.dataset == DATASET.name:  # the same rows are counted, so that the table stays
        kept = {"rehearse", "rehearsal_share", "rehearsal_last", "max_seq_length"}
        inherited |= before.model_dump(include=kept)
    name = f"{Path(file).stem.removeprefix('best_').removesuffix('_final')}_{options.method}"
    given = {"name": name, **inherited, **flags, "init_from": file}
    make = functools.partial(PreferenceRun, options)
    return train(DATASET.name, given, resume=resume, advise=False, make=make, defaults=RECIPE)


@dataclass(frozen=True)
class Pairs:
    """Pairs of a split, in tokens."""

    sides: list[tuple[Side, Side]]
    harmless: list[bool | None]
    """Whether each is of the harmless part; None where its row does not say it."""
    left_out: int
    """Rows that have no two answers."""
    first_left_out: str
    """Where the first malformed one stands, and what is wrong; empty for none."""

    def line(self, split: str) -> str:
        """How many there are, and what was left out, in words."""
        line = f"Pairs  {len(self.sides):,} {split}"
        if self.left_out:
            line += f"; {self.left_out} rows without two answers left out"
        if self.first_left_out:
            line += f", the first malformed one {self.first_left_out}"
        return line


def read_pairs(rows: Rows, renderer: ChatRenderer) -> Pairs:
    """The pairs of rows; rows without two answers are counted."""
    pairs: list[Pair] = []
    harmless: list[bool | None] = []
    left_out, first = 0, ""
    for item in rows():
        reason, pair = "", None
        if isinstance(item, Located):
            try:
                pair = preference_pair(item.row)
            except ValueError as error:
                reason = str(error)
        else:
            reason = item.reason if isinstance(item, Malformed) else ""
        if pair is None:
            left_out += 1
            first = first or (reason and f"{item.where}: {reason}")
            continue
        pairs.append(pair)
        harmless.append(part_of(item, DATASET.subsets["harmless"], DATASET))
    return Pairs(pair_sides(renderer, pairs), harmless, left_out, first)


MOST_PROMPTS = 100
"""Harmless validation prompts that are answered before and after."""


def harmless_prompts(pairs: Pairs, assistant: int) -> list[list[int]]:
    """What the last answers of harmless chosen dialogues answer, spread over all of them."""
    ids = [chosen.ids for (chosen, _), h in zip(pairs.sides, pairs.harmless, strict=True) if h]
    ids = ids[:: -(-len(ids) // MOST_PROMPTS) or 1]
    return [side[: len(side) - side[::-1].index(assistant)] for side in ids]


def tables_of(
    sides: Sequence[tuple[Side, Side]], split: EncodedSplit, table_of: np.ndarray
) -> np.ndarray:
    """Number of the table that did not count each pair's chosen dialogue; -1: not trained on."""
    tokens, offsets = split.all_tokens()
    known = {
        tokens[start:stop].tobytes(): number
        for (start, stop), number in zip(pairwise(offsets), table_of.tolist(), strict=True)
    }
    keys = (np.array(chosen.ids, tokens.dtype).tobytes() for chosen, _ in sides)
    return np.array([known.get(key, -1) for key in keys], np.int16)


@dataclass(frozen=True)
class PairBatch:
    """Some pairs of a step: rows 0..P are chosen, P..2P rejected. Tensors are [2P, T] but the last.

    It stands for a :class:`newllm.data.loader.Batch`.
    """

    ids: Tensor
    targets: Tensor
    """The next token, `IGNORED` where there is none."""
    compared: Tensor
    """True where the target is a token of the answers that are compared."""
    tables: Tensor | None
    reference: Tensor | None
    """Nats of the answers by the model before training, [P, 2]."""
    scored: int
    """Targets of the chosen dialogues of the step's batch, in all processes."""
    pairs: int
    """Pairs of the step's batch, in all processes."""


class PairLoader:
    """The batches of one epoch, in an order that is a function of (seed, epoch, step) alone.

    Where the last batch is not full, it is filled up with the first pairs of the epoch.
    """

    def __init__(
        self,
        sides: Sequence[tuple[Side, Side]],
        batch_size: int,
        shuffle_seed: tuple[int, int],
        part: slice,
        tables: np.ndarray | None,
        reference: np.ndarray | None,
    ) -> None:
        self.sides, self.batch_size, self.part = sides, batch_size, part
        self.tables, self.reference = tables, reference
        order = np.random.default_rng(shuffle_seed).permutation(len(sides))
        self.order = np.resize(order, (-(-len(order) // batch_size), batch_size))

    def __len__(self) -> int:
        """Steps in the epoch."""
        return len(self.order)

    def batches(self, first_step: int = 0) -> Iterator[PairBatch]:
        """Batches from `first_step` on."""
        return (self.batch(step) for step in range(first_step, len(self)))

    def batch(self, step: int) -> PairBatch:
        """This process's part of one step's pairs; the shortest first, with little padding."""
        chosen = [len(self.sides[pair][0].ids) - 1 for pair in self.order[step]]
        own = sorted(
            self.order[step][self.part],
            key=lambda pair: max(len(side.ids) for side in self.sides[pair]),
        )
        return self._batch(own, sum(chosen))

    def _batch(self, pairs: Sequence[int], scored: int) -> PairBatch:
        sides = [self.sides[pair][number] for number in (0, 1) for pair in pairs]
        longest = max(len(side.ids) for side in sides) - 1
        ids = torch.zeros(len(sides), longest, dtype=torch.long)
        targets, compared = torch.full_like(ids, IGNORED), torch.zeros_like(ids, dtype=torch.bool)
        for row, side in enumerate(sides):
            tokens, length = torch.tensor(side.ids), len(side.ids) - 1
            ids[row, :length], targets[row, :length] = tokens[:-1], tokens[1:]
            compared[row, :length] = torch.tensor(side.scored[1:])
        tables = reference = None
        if self.tables is not None:
            numbers = torch.from_numpy(self.tables[pairs].astype(np.uint8)).repeat(2)
            tables = numbers[:, None].expand(-1, longest).contiguous()
        if self.reference is not None:
            reference = torch.from_numpy(self.reference[pairs]).float()
        return PairBatch(ids, targets, compared, tables, reference, scored, self.batch_size)


def micro_batches(batch: PairBatch, pairs: int) -> Iterator[PairBatch]:
    """So many pairs of a batch at a time, no further than their longest dialogue."""
    count = len(batch.ids) // 2
    for start in range(0, count, pairs):
        which = torch.arange(start, min(start + pairs, count))
        rows = torch.cat([which, which + count])
        columns = int((batch.targets[rows] != IGNORED).sum(dim=1).max())
        yield PairBatch(
            batch.ids[rows, :columns],
            batch.targets[rows, :columns],
            batch.compared[rows, :columns],
            None if batch.tables is None else batch.tables[rows, :columns],
            None if batch.reference is None else batch.reference[which],
            batch.scored,
            batch.pairs,
        )


def compared_nats(
    model: LanguageModel, hidden: Any, targets: Tensor, compared: Tensor
) -> tuple[Tensor, Tensor]:
    """Nats and tokens of the compared answers of P pairs, differentiable: [P, 2] both."""
    logits = model.logits(hidden[compared]).float()
    nats = F.cross_entropy(logits, targets[compared], reduction="none")
    row = compared.nonzero()[:, 0]
    of_rows = nats.new_zeros(len(targets)).index_add(0, row, nats)
    return of_rows.view(2, -1).t(), compared.sum(dim=1).view(2, -1).t()


class PreferenceTrainer(Trainer):
    """The training loop, a step of which is a batch of pairs."""

    WHOLE_STEPS = False

    def __init__(
        self,
        *arguments: Any,
        options: Preferring,
        training: Pairs,
        validation: Pairs,
        tables: np.ndarray | None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        if self.sharded:
            raise UserError("--shard: not in newllm prefer, whose models fit one process; omit it")
        self.options, self.validation, self.tables = options, validation, tables
        self.sides = training.sides
        self.reference: np.ndarray | None = None
        """Nats of the training pairs by the model before training, [P, 2]."""
        self.before: PairScores | None = None
        """What the model before training said of the validation pairs; and when it was last asked,
        in `scores`."""
        self.loss_before = float("nan")
        assert isinstance(self.data.tokenizer, BPE)
        self._prompts = harmless_prompts(validation, self.data.tokenizer.roles["assistant"])
        self.refusals_before: float | None = None
        """Share of the harmless validation prompts that the model refused before training."""

    def refusals(self) -> float | None:
        """That share now; None without such prompts."""
        if not self._prompts:
            return None
        training = self.model.training
        share = refusal_share(self.model.eval(), self.data.tokenizer, self._prompts)
        self.model.train(training)
        return share

    def _find_micro_batch(self) -> None:
        """What the model says before the first step; a batch is computed a few pairs at a time."""
        self.micro_batch = self.settings.micro_batch_size or PAIRS_AT_ONCE
        metrics = self._evaluate()
        self.before, self.loss_before = self.scores, metrics["loss"]
        self.refusals_before = self.refusals()
        self.log.note(
            f"Before: loss {metrics['loss']:.4f}, prefers the chosen answer of "
            f"{self.before.prefers_chosen.mean():.1%} of {len(self.validation.sides)} validation "
            f"pairs; the longer one is chosen in {self.before.longer_chosen.mean():.1%}"
        )
        if self.options.needs_reference:
            sides = [side for pair in self.sides for side in pair]
            tables = None if self.tables is None else self.tables.repeat(2).tolist()
            self.model.eval()
            self.reference = answer_nats(self.model, sides, tables=tables).reshape(-1, 2)

    def _loader(self, epoch: int) -> Any:
        return PairLoader(
            self.sides,
            self.settings.batch_size,
            (self.settings.seed, epoch),
            slice(self._sequences.start, self._sequences.stop),
            self.tables,
            self.reference,
        )

    def _gradients(
        self, batch: Any, rows: int, sample: SampledVocabulary | None = None
    ) -> tuple[Tensor, State]:
        """Accumulate the gradients of a batch of pairs, so many at once.

        Returns:
            nats of its chosen dialogues; and the state, which no pair hands on.
        """
        self.model.zero_grad()
        total, first = torch.zeros((), device=self.device), 2 * self._sequences.start
        for part in micro_batches(batch, rows):
            noise = Noise(self.settings.seed, self.progress.total_steps, first)
            first += len(part.ids)
            nothing = torch.zeros_like(part.ids, dtype=torch.bool)
            targets, compared = part.targets.to(self.device), part.compared.to(self.device)
            state = placed(self.model, self.model.initial_state(len(part.ids)), self.device)
            count = len(part.ids) // 2
            with self._autocast:
                hidden, _ = self.model(
                    *self._inputs(part.ids, state, nothing),
                    noise=noise,
                    **({} if part.tables is None else {"tables": part.tables}),
                )
                ordinary = self.model.loss(hidden[:count], targets[:count])
                nats, tokens = compared_nats(self.model, hidden, targets, compared)
            reference = None if part.reference is None else part.reference.to(self.device)
            preferred = self.options.loss(nats, tokens, reference).sum()
            objective = self.options.anchor * ordinary / batch.scored + preferred / batch.pairs
            self.scaler.scale(objective).backward()
            total = total + ordinary.detach()
        return total, self.state

    def _evaluate(self) -> Metrics:
        """Of the chosen dialogues, as in any training, and of the pairs."""
        metrics = super()._evaluate()
        training = self.model.training
        self.model.eval()
        self.scores = pair_scores(self.model, self.validation.sides)
        self.model.train(training)
        metrics["prefers_chosen"] = float(self.scores.prefers_chosen.mean())
        metrics["longer_chosen"] = float(self.scores.longer_chosen.mean())
        # The last epoch is the result: to pick one by the pairs that judge it would flatter it.
        self.progress.best_loss = float("inf")
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """With what was measured before the first step."""
        assert self.before is not None
        reference = None if self.reference is None else torch.from_numpy(self.reference)
        return {
            **super().state_dict(),
            "preferring": asdict(self.options),
            "reference": reference,
            "before": torch.from_numpy(self.before.nats),
            "loss_before": self.loss_before,
            "refusals_before": self.refusals_before,
        }

    def load_state_dict(self, stored: dict[str, Any], parts: Path | None = None) -> None:
        """Take up a run; of one that was finished, the pairs are scored again."""
        if stored["preferring"] != asdict(self.options):
            was = ", ".join(f"{name} {value}" for name, value in stored["preferring"].items())
            raise UserError(
                f"--resume: the run began with {was}; leave them as they were, or give another "
                "--name"
            )
        super().load_state_dict(stored, parts)
        if stored["reference"] is not None:
            self.reference = stored["reference"].numpy()
        sizes = [[side.size for side in pair] for pair in self.validation.sides]
        self.before = PairScores(stored["before"].numpy(), np.array(sizes))
        self.loss_before = stored["loss_before"]
        self.refusals_before = stored.get("refusals_before")
        if self.progress.finished:
            self._evaluate()


class PreferenceRun(TrainingRun):
    """A run on pairs: what it reads besides the chosen dialogues, and its verdict."""

    def __init__(self, options: Preferring, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.options = options
        assert isinstance(self.data.tokenizer, BPE)
        renderer = ChatRenderer(self.data.tokenizer)
        splits = open_chosen(self.settings).training_splits()
        self.training, self.validation = (read_pairs(rows, renderer) for rows in splits)
        for name, pairs in (("training", self.training), ("validation", self.validation)):
            if not pairs.sides:
                raise UserError(f"{self.data.source}: no {name} row has two answers")
        split = self.data.splits["train"]
        counted = None if self.counts is None else self.counts.table_of[0]
        numbers = np.zeros(len(split), np.uint8) if counted is None else counted
        tables = tables_of(self.training.sides, split, numbers)
        trained = tables >= 0  # --max-samples takes some
        kept = [pair for pair, keep in zip(self.training.sides, trained, strict=True) if keep]
        harmless = [h for h, keep in zip(self.training.harmless, trained, strict=True) if keep]
        self.training = Pairs(kept, harmless, self.training.left_out, self.training.first_left_out)
        self.tables = None if counted is None else tables[trained]
        if not kept:
            most = self.settings.max_samples
            raise UserError(f"--max-samples {most}: no row of these has two answers; raise it")

    def prepare(self, stored: dict[str, Any] | None) -> Trainer:
        """The optimizers begin afresh: the gradients of pairs are others than those of texts."""
        if self.start.content is not None:
            content = {k: v for k, v in self.start.content.items() if k != "moments"}
            self.start = replace(self.start, content=content)
        return super().prepare(stored)

    def _trainer(self, kind: type[Trainer] = PreferenceTrainer, **more: Any) -> Trainer:
        more |= {"options": self.options, "training": self.training}
        more |= {"validation": self.validation, "tables": self.tables}
        return super()._trainer(PreferenceTrainer, **more)

    def _use_of_rehearsed(self) -> str:
        return "counted besides, as for the model before"

    def _introduce(self, trainer: Trainer, resumed: bool) -> None:
        super()._introduce(trainer, resumed)
        for name, pairs in (("training", self.training), ("validation", self.validation)):
            self.log.note(pairs.line(name))
        how = asdict(self.options)
        self.log.note("Loss   " + ", ".join(f"{name} {value}" for name, value in how.items()))

    def _conclude(self, trainer: Trainer) -> None:
        assert isinstance(trainer, PreferenceTrainer)
        super()._conclude(trainer)
        assert trainer.before is not None
        verdict = judge_preferences(
            trainer.before,
            trainer.scores,
            self.validation.harmless,
            (trainer.loss_before, trainer.progress.history[-1]["loss"]),
        )
        verdict |= {
            "refusals_before": trainer.refusals_before,
            "refusals_after": trainer.refusals(),
        }
        write_preferences(self.files.preferences, {**asdict(self.options), **verdict})
        for line in preference_lines(verdict):
            self.log.note(line)


def judge_preferences(
    before: PairScores,
    after: PairScores,
    harmless: Sequence[bool | None],
    losses: tuple[float, float],
) -> dict[str, Any]:
    """The verdict on P validation pairs.

    Returns:
        pairs; before, after, longer (shares of pairs: the model before and after prefer the chosen
        answer, the longer answer is the chosen one); after_interval, over_before_interval,
        over_longer_interval (95%, bootstrap over pairs); reward_accuracy (share of pairs whose
        chosen answer gained more likelihood than the rejected one, DPO's implicit reward) and its
        interval; loss_before, loss_after (ordinary, nats a token); rejected_likelier (share of the
        rejected answers that cost fewer nats than before, by harmless, helpful, all);
        better_than_before, better_than_longer (whether an interval is above 0), loss_kept.
    """
    was, now, longer = before.prefers_chosen, after.prefers_chosen, after.longer_chosen
    over_before = bootstrap_interval(now.astype(int) - was)
    over_longer = bootstrap_interval(now.astype(int) - longer)
    gained = before.nats - after.nats
    rewarded = gained[:, 0] > gained[:, 1]
    likelier = gained[:, 1] > 0
    parts = {"all": np.ones(len(now), bool)}
    for name, wanted in (("harmless", True), ("helpful", False)):
        parts[name] = np.array([part is wanted for part in harmless])
    return {
        "pairs": len(now),
        "before": float(was.mean()),
        "after": float(now.mean()),
        "after_interval": bootstrap_interval(now),
        "over_before_interval": over_before,
        "longer": float(longer.mean()),
        "over_longer_interval": over_longer,
        "reward_accuracy": float(rewarded.mean()),
        "reward_accuracy_interval": bootstrap_interval(rewarded),
        "better_than_before": over_before[0] > 0,
        "better_than_longer": over_longer[0] > 0,
        "loss_before": losses[0],
        "loss_after": losses[1],
        "loss_kept": losses[1] <= losses[0] * (1 + MOST_LOSS),
        "rejected_likelier": {
            name: float(likelier[part].mean()) for name, part in parts.items() if part.any()
        },
    }


def compared(what: str, share: float, other: float, interval: tuple[float, float]) -> str:
    """A share of pairs beside another one, with the 95% interval of the difference, in words."""
    low, high = (100 * end for end in interval)
    word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
    return (
        f"  {word} {what} ({other:.1%}): {100 * (share - other):+.1f} points "
        f"(95%: {low:+.1f} to {high:+.1f})"
    )


def preference_lines(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict in words."""
    low, high = verdict["after_interval"]
    share = f"{verdict['after']:.1%} of {verdict['pairs']} validation pairs"
    lines = [f"Prefers the chosen answer of {share} (95%: {low:.1%} to {high:.1%})"]
    for name, what in (("before", "the model before"), ("longer", "always the longer answer")):
        interval = verdict[f"over_{name}_interval"]
        lines.append(compared(what, verdict["after"], verdict[name], interval))
    if "reward_accuracy" in verdict:  # a record of an earlier version has none
        low, high = verdict["reward_accuracy_interval"]
        lines.append(
            f"  the chosen answer gained more likelihood than the rejected one in "
            f"{verdict['reward_accuracy']:.1%} (95%: {low:.1%} to {high:.1%}; 50% is chance)"
        )
    was, now = verdict["loss_before"], verdict["loss_after"]
    much = "" if verdict["loss_kept"] else f": more than the {MOST_LOSS:.0%} that it may cost"
    lines.append(f"  ordinary loss {was:.4f} -> {now:.4f} ({now / was - 1:+.1%}){much}")
    parts = verdict["rejected_likelier"]
    said = ", ".join(f"{share:.1%} ({name})" for name, share in parts.items())
    lines.append(f"  rejected answers that became likelier: {said}")
    was, now = verdict.get("refusals_before"), verdict.get("refusals_after")
    if was is not None and now is not None:
        lines.append(f"  refusals of harmless validation prompts: {was:.1%} -> {now:.1%}")
    return lines
