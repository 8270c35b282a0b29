"""What a run begins with besides its own rows: a model, a vocabulary, data sets to rehearse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config import ModelSettings, Settings, option_name, parse
from newllm.data.prepare import Encoded, Encoding, prepare_training
from newllm.data.sources import open_source
from newllm.data.tokenizers import Tokenizer, fingerprint, from_dict, load_tokenizer
from newllm.datasets import find_dataset
from newllm.errors import UserError
from newllm.train import checkpoint
from newllm.train.optimizers import set_moments
from newllm.train.trainer import Trainer


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
        place = ""
        if settings.init_from is not None:
            place = f"--from {settings.init_from}"
            content = checkpoint.load_model(Path(settings.init_from))
            tokenizer = from_dict(content["tokenizer"])
            _refuse_other_shape(place, content, settings)
        if settings.tokenizer_file is not None:
            place = f"--tokenizer-file {settings.tokenizer_file}"
            given = load_tokenizer(Path(settings.tokenizer_file))
            if tokenizer is not None and fingerprint(tokenizer) != fingerprint(given):
                raise UserError(
                    f"{place}: not the tokenizer of --from {settings.init_from}; omit it"
                )
            tokenizer = given
        if tokenizer is not None and tokenizer.kind != settings.tokenizer:
            raise UserError(
                f"{place}: its tokenizer is {tokenizer.kind}, so give --tokenizer {tokenizer.kind}"
            )
        if settings.freeze_old and (content is None or content.get("grown_from") is None):
            raise UserError("--freeze-old: give --from a file that newllm grow wrote")
        return cls(settings, content, tokenizer)

    @property
    def frozen(self) -> ModelSettings | None:
        """Shape of the part that does not train, with --freeze-old.

        Raises:
            UserError: every old number has a new neighbour to be told apart from.
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

    def apply(self, trainer: Trainer) -> None:
        """Give a new run the weights, and the optimizer's moments if the file has them."""
        if self.content is not None:
            trainer.model.load_state_dict(self.content["model"])
            set_moments(trainer.model, trainer.optimizers, self.content.get("moments", {}))


def shape_of(path: str) -> dict[str, Any]:
    """Settings that a run inherits from the model of --from, unless they are given.

    Raises:
        UserError: the file is missing, damaged, or no model.
    """
    stored = parse(checkpoint.load_model(Path(path))["settings"])
    inherited = set(ModelSettings.model_fields) - {"dropout"} | {"tokenizer", "vocab_size"}
    return stored.model_dump(include=inherited)


def prepare_rehearsal(settings: Settings, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """The rows of the data sets in `rehearse`, in the vocabulary of the run.

    Raises:
        UserError: an unknown data set, the run's own, or unusable rows.
    """
    rehearsed = {}
    for entry in settings.rehearse:
        dataset, _, place = entry.partition("=")
        dataset = dataset.replace("-", "_")
        level = find_dataset(dataset)
        if dataset == settings.dataset:
            raise UserError(f"--rehearse {entry}: that is the data set of this run")
        if not place and settings.data not in ("hub", "sample"):
            raise UserError(f"--rehearse {entry}: say where its rows are: {dataset}=PATH")
        encoding = Encoding(dataset, tokenizer.kind, tokenizer.vocab_size, settings.max_seq_length)
        source = open_source(level, place or settings.data)
        rehearsed[dataset] = prepare_training(source, encoding, tokenizer)
    return rehearsed


def _refuse_other_shape(place: str, content: Mapping[str, Any], settings: Settings) -> None:
    stored = parse(content["settings"])
    differing = [
        f"{option_name(name)} {getattr(stored, name)}"
        for name, value in settings.model_settings().model_dump(exclude={"dropout"}).items()
        if getattr(stored, name) != value
    ]
    if differing:
        raise UserError(
            f"{place}: the model there has another shape; give {' '.join(differing)}, "
            "or make it larger first with newllm grow"
        )
    if settings.tokenizer == "bpe" and settings.vocab_size != stored.vocab_size:
        raise UserError(
            f"{place}: the model there keeps its vocabulary; omit --vocab-size "
            f"{settings.vocab_size}, or give {stored.vocab_size}"
        )
