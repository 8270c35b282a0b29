"""A trained model as people use it: loaded from one file, asked, chatted with, evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from newllm.chat.dialogue import knows_system
from newllm.chat.session import BestOf, ChatSession
from newllm.chat.session_file import model_fingerprint
from newllm.config import Settings, parse
from newllm.data.prepare import Encoded, Encoding, find_encoded, prepare_evaluation
from newllm.data.render import Renderer, make_renderer
from newllm.data.shards import EncodedSplit
from newllm.data.sources import Source, open_source
from newllm.data.tokenizers import Tokenizer, answer_marks, fingerprint, from_dict
from newllm.datasets import find_dataset
from newllm.device import pick_device
from newllm.errors import UserError
from newllm.evaluate.metrics import EVALUATION_BATCH_SIZE, evaluate
from newllm.evaluate.ngram import ngram_baseline
from newllm.evaluate.skills import SKILL_ROWS, skill_check
from newllm.inference.decoder import Decoder, make_decoder
from newllm.inference.reward import reward_file, rewards
from newllm.inference.sampling import MAX_NEW_TOKENS, Sampling
from newllm.model import LanguageModel, State, build_model
from newllm.model.own_block import block_of_checkpoint
from newllm.model.quantize import WeightFormat, with_weights
from newllm.model.residual import ResidualLM
from newllm.results.records import EpochRecord, size_text
from newllm.train import checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """What a `best_*.pt` or `*_final.pt` file holds, ready for use."""

    model: LanguageModel
    tokenizer: Tokenizer
    settings: Settings
    metrics: EpochRecord
    """The record of the epoch the weights are from."""
    data: dict[str, Any]
    """Fingerprint, source, revision and accounting of the rows it was trained on."""
    versions: dict[str, str]
    path: Path
    device: torch.device

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        weights: WeightFormat = "fp32",
        architecture: str | None = None,
    ) -> TrainedModel:
        """Read a checkpoint.

        Args:
            path: the file.
            device: auto, cpu, cuda or cuda:N.
            weights: round the matrices to a smaller format; see :mod:`newllm.model.quantize`.
            architecture: `FILE.py:CLASS` of a model with a block of one's own, whose file is run.

        Raises:
            UserError: missing, damaged, or a resume file; smaller weights where nothing uses them;
                a block of one's own that was not given, or another one.
        """
        content = checkpoint.load_model(Path(path))
        where = pick_device(device)
        settings = parse(content["settings"])
        tokenizer = from_dict(content["tokenizer"])
        block = block_of_checkpoint(path, content, architecture)
        model = build_model(settings.model_settings(), tokenizer.vocab_size, block)
        try:
            model.load_state_dict(content["model"])
        except RuntimeError:  # only the file of a block of one's own says which weights it has
            raise UserError(f"{path}: damaged or edited; its weights are not its block's") from None
        model = with_weights(model, weights, where)
        return cls(
            model=model.to(where).eval().requires_grad_(False),
            tokenizer=tokenizer,
            settings=settings,
            metrics=content["metrics"],
            data=content["data"],
            versions={
                "newllm": content["newllm_version"],
                "torch": content["torch_version"],
                "created": content["created"],
            },
            path=Path(path),
            device=where,
        )

    @property
    def as_trained(self) -> LanguageModel:
        """The model, reading answers as in its training: closed to recall if they were."""
        if not (self.settings.closed_answers and isinstance(self.model, ResidualLM)):
            return self.model
        return self.model.reading_closed(answer_marks(self.tokenizer))

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def counts_bytes(self) -> int:
        """Size of its table of counts, which is beside the parameters; 0 without one."""
        counts = self.model.counts if isinstance(self.model, ResidualLM) else None
        return 0 if counts is None else len(counts.packed)

    @property
    def size(self) -> str:
        """Parameters and counts in words."""
        return size_text(self.parameters, self.counts_bytes)

    @property
    def renderer(self) -> Renderer:
        """Turns messages into the tokens this model was trained on."""
        return make_renderer(self.tokenizer, find_dataset(self.settings.dataset))

    @cached_property
    def fingerprint(self) -> str:
        """What a saved conversation knows its model by."""
        return model_fingerprint(self.model, self.renderer)

    @cached_property
    def decoder(self) -> Decoder:
        """Reads and writes texts with the weights, packed when this is first asked for."""
        return make_decoder(self.model)

    @cached_property
    def reward(self) -> torch.Tensor:
        """Weights of the reward head that lies beside the file, [D].

        Raises:
            UserError: there is none, or it is damaged or another model's.
        """
        file = reward_file(self.path)
        if not file.exists():
            raise UserError(
                f"{self.path}: no reward head lies beside it; make one with newllm prefer "
                f"{self.path} --method reward"
            )
        content = checkpoint.load(file)
        weight = content.get("weight")
        width = (self.settings.embed_dim,)
        if not isinstance(weight, torch.Tensor) or weight.shape != width:
            raise UserError(f"{file}: no reward head of this model; make it anew")
        if content.get("model") != checkpoint.digest(self.path):
            raise UserError(
                f"{file}: the head of other weights than {self.path} has now; make it anew with "
                f"newllm prefer {self.path} --method reward"
            )
        return weight.float()

    def rewards(self, texts: Sequence[Sequence[int]], start: State | None = None) -> list[float]:
        """What the reward head gives for texts that end with an answer, in tokens.

        `start` is the state from which all of them go on.

        Raises:
            UserError: see :attr:`reward`.
        """
        return rewards(self.as_trained, self.reward, texts, start)

    def chat(
        self,
        sampling: Sampling | None = None,
        system: str | None = None,
        best_of: int = 1,
    ) -> ChatSession:
        """Begin a conversation; see :class:`newllm.chat.session.ChatSession`.

        Of `best_of` answers to each turn the one that the reward head likes best is given.

        Raises:
            UserError: a system message for a model that knows none; no reward head where one is
                needed.
        """
        if system is not None and not knows_system(self.renderer):
            raise UserError(
                "--system: models of the word-1000 protocol or of plain text know no system message"
            )
        session = ChatSession(self.decoder, self.renderer, sampling or Sampling(), system)
        return self._choosing(session, best_of)

    def resume_chat(self, path: str | Path, best_of: int = 1) -> ChatSession:
        """Go on with a saved conversation; see :meth:`ChatSession.load` and :meth:`chat`."""
        return self._choosing(ChatSession.load(path, self.decoder, self.renderer), best_of)

    def _choosing(self, session: ChatSession, best_of: int) -> ChatSession:
        if best_of > 1:
            assert self.reward is not None  # refused now, not at the first answer
            session.best_of = BestOf(best_of, self.rewards)
        return session

    def generate(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        min_new_tokens: int = 0,
        best_of: int = 1,
    ) -> Iterator[str]:
        """Answer one prompt, in pieces as they are written; of several answers the best, whole."""
        return self.chat(sampling, best_of=best_of).stream(prompt, max_new_tokens, min_new_tokens)

    def evaluate(
        self,
        data: str,
        dataset: str | None = None,
        subset: str | None = None,
        batch_size: int = EVALUATION_BATCH_SIZE,
        columns: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Score the validation rows found at `data` (all rows, if it is one file).

        `columns` and `splits` are what fields and splits are called there (OURS=THEIRS); None: as
        in the training, where the data set is the same.

        Returns:
            dataset, tokenizer, protocol, rows, tokens, nats, loss, ppl, accuracy, unk_share, bpb,
            bpb_assistant, ngram_ppl; None where a number would mean nothing.

        Raises:
            UserError: unknown data set or unusable rows.
        """
        dataset = dataset or self.settings.dataset
        split = self.validation_rows(data, dataset, subset, columns, splits)
        metrics = evaluate(self.as_trained, split, self.tokenizer, self.device, batch_size)
        trained_on = self._training_rows()
        baseline = ngram_baseline(trained_on, split) if trained_on else None
        word1000 = self.tokenizer.kind == "word1000"
        length = find_dataset(dataset).protocol_length
        return {
            "dataset": dataset,
            "tokenizer": self.tokenizer.kind,
            "protocol": f"word1000, rows cut at {length}" if word1000 else "whole documents",
            **metrics,
            "ngram_ppl": baseline.ppl if baseline else None,
        }

    def validation_rows(
        self,
        data: str,
        dataset: str | None = None,
        subset: str | None = None,
        columns: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
    ) -> EncodedSplit:
        """The validation rows found at `data` (all, if it is one file), in this model's tokens.

        Raises:
            UserError: unknown data set or unusable rows.
        """
        dataset = dataset or self.settings.dataset
        source = self._open(data, dataset, subset, columns, splits)
        length = find_dataset(dataset).protocol_length
        encoding = Encoding(dataset, self.tokenizer.kind, self.tokenizer.vocab_size, length)
        return prepare_evaluation(source, encoding, self.tokenizer).splits["validation"]

    def skills(
        self,
        data: str,
        dataset: str | None = None,
        subset: str | None = None,
        rows: int = SKILL_ROWS,
        run_code: bool = False,
        columns: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """What the model can do on the validation rows at `data`: code, results, preferences.

        Returns:
            as :func:`newllm.evaluate.skills.skill_check`.

        Raises:
            UserError: unknown data set or unusable rows; a package or a protection is missing.
        """
        dataset = dataset or self.settings.dataset
        source = self._open(data, dataset, subset, columns, splits)
        return skill_check(self.as_trained, self.tokenizer, dataset, source, rows, run_code)

    def _open(
        self,
        data: str,
        dataset: str,
        subset: str | None,
        columns: Sequence[str] | None,
        splits: Sequence[str] | None,
    ) -> Source:
        same = dataset == self.settings.dataset
        if subset is None:
            subset = self.settings.subset if same else "all"
        if columns is None:
            columns = self.settings.columns if same else ()
        if splits is None:
            splits = self.settings.splits if same else ()
        documents = self.settings.documents if same else None
        return open_source(
            find_dataset(dataset), data, subset, columns=columns, splits=splits,
            documents=documents,
        )  # fmt: skip

    def _training_rows(self) -> Encoded | None:
        """The encoded training rows, if they are still in the cache (the n-gram counts them)."""
        encoded = find_encoded(self.data["fingerprint"])
        if encoded is None or fingerprint(encoded.tokenizer) != fingerprint(self.tokenizer):
            return None
        return encoded
