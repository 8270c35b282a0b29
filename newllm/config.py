"""Every setting of a run, defined once: type, bounds, unit and meaning.

The command line's options, the YAML files and the settings stored in a checkpoint are all made
from these classes; nothing else defines an option. What a level recommends stands in `datasets/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from newllm.errors import UserError, did_you_mean

_Kind = TypeVar("_Kind", bound=BaseModel)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Settings):
    """What is read and how it becomes tokens."""

    dataset: str = Field(description="name of the data set")
    data: str = Field(
        "hub",
        description="where the rows are: hub:ORG/NAME[:CONFIG][@REVISION], hub, sample, or a file "
        "or folder",
    )
    tokenizer: Literal["bpe", "word1000"] = Field(
        "bpe", description="lossless byte-level BPE, or the published 1,000 whitespace words"
    )
    vocab_size: int = Field(
        4096, ge=300, le=65536, description="entries of the BPE vocabulary (word1000 has 1,000)"
    )
    max_seq_length: int = Field(
        ge=2,
        le=65536,
        description="tokens a training row holds; longer documents go on in the next",
    )
    max_samples: int | None = Field(None, ge=1, description="use at most so many training rows")
    columns: list[str] = Field(
        [],
        description="what fields of the rows are called, as OURS=THEIRS: instruction=question "
        "response=output",
    )
    splits: list[str] = Field(
        [],
        description="what splits of the rows are called, as train=THEIRS validation=THEIRS; the "
        "others are not read",
    )
    documents: Literal["file", "block"] | None = Field(
        None,
        description="what one document of plain text is: a file, or what blank lines part; else a "
        "part of a .txt, and all of any other file",
    )
    decontaminate: bool = Field(
        False, description="leave validation rows out that stand in training too"
    )
    subset: str = Field("all", description="part of the rows: helpful, harmless (HH-RLHF) or all")
    tokenizer_file: str | None = Field(
        None, description="BPE to use instead of one trained on the rows (newllm tokenizer train)"
    )
    rehearse: list[str] = Field(
        [], description="earlier data set to rehearse, DATASET or DATASET=PATH; may be repeated"
    )
    rehearsal_share: float = Field(
        0.1, ge=0, le=0.9, description="share of the trained tokens that is rehearsal"
    )
    rehearsal_last: float | None = Field(
        None, ge=0, le=1,
        description="share of the rehearsal that is of the data set named last; else equal parts",
    )  # fmt: skip


ARCHITECTURES = ("context", "original", "gru", "lstm", "mingru", "transformer")
"""Those of the package; what each one is stands in `model/spec.py`."""


def is_own_block(architecture: str) -> bool:
    """Whether it is `FILE.py:CLASS`, a block of one's own (docs/OWN_BLOCK.md)."""
    return re.fullmatch(r"[^\n]+\.py:[^\W\d]\w*", architecture) is not None


def parse_size(text: str) -> int:
    """Bytes of `8MB`, `500kB`, `1.5 GB` or `4096`.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMG]?)B?", text.strip().upper())
    if found is None or (found[2] and not text.strip().upper().endswith("B")):
        raise ValueError(f"{text}: expected a size such as 8MB or 500kB, or 0")
    return round(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]])


class ModelSettings(_Settings):
    """The shape of the model."""

    architecture: str = Field(
        "context",
        description="our stack of context blocks, the first published architecture, or a peer",
    )
    num_layers: int = Field(ge=1, le=128, description="number of blocks")
    context_dim: int = Field(ge=8, le=16384, description="numbers in each context vector")
    embed_dim: int = Field(ge=8, le=16384, description="width of the stream between blocks")
    hidden_dim: int = Field(ge=8, le=65536, description="width of the feed-forward layers")
    pair_rows: int = Field(
        default=0,
        ge=0,
        le=2**24,
        description="rows of the table of token pairs (context, bpe); 0: no table",
    )
    recall_slots: int = Field(
        default=0,
        ge=0,
        le=2**20,
        multiple_of=4,
        description="slots of each of the four tables that say what followed the last tokens in "
        "this text; 0: no recall",
    )
    counts: int = Field(
        default=0,
        ge=0,
        le=2**30,
        description="size of the table of what followed what in the training rows, in bytes, or "
        "like 8MB; 0: no table",
    )
    dropout: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="share of activations dropped in training, from the third epoch on "
        "(original: from the first)",
    )

    @field_validator("architecture")
    @classmethod
    def known_architecture(cls, name: str) -> str:
        """The name, if it is an architecture's or that of a block of one's own."""
        if name not in ARCHITECTURES and not is_own_block(name):
            near = did_you_mean(name, ARCHITECTURES)
            raise PydanticCustomError(
                "architecture",
                "no such architecture{near}; there are {names}, and FILE.py:CLASS, a block of your "
                "own",
                {"near": near if "mean" in near else "", "names": ", ".join(ARCHITECTURES)},
            )
        return name

    @field_validator("counts", mode="before")
    @classmethod
    def size_of_counts(cls, size: object) -> object:
        """Bytes of a size as people write it; anything else is left for the type to refuse."""
        try:
            return parse_size(str(size))
        except ValueError:
            return size

    @property
    def architecture_label(self) -> str:
        """The architecture in names of files: a block of one's own by its class."""
        return self.architecture.rpartition(":")[2].lower()


class TrainingSettings(_Settings):
    """How the weights are found."""

    epochs: int = Field(ge=1, description="passes over the training rows")
    minutes: float | None = Field(
        None, gt=0, description="end within so many minutes of training, schedule included"
    )
    max_steps: int | None = Field(
        None, ge=1, description="end after so many optimizer steps, schedule included"
    )
    batch_size: int = Field(ge=1, description="rows in one optimizer step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows computed at once; only speed and memory depend on it"
    )
    learning_rate: float = Field(
        gt=0,
        le=1,
        description="peak rate of Adam(W); with Muon: vectors take 3 times it, matrices 10",
    )
    weight_decay: float = Field(ge=0, description="decoupled decay of the weight matrices")
    warmup_share: float = Field(ge=0, lt=1, description="share of training the rate rises linearly")
    warmdown_share: float = Field(
        ge=0, le=1, description="share of training, at its end, the rate falls linearly"
    )
    patience: int = Field(ge=1, description="epochs without improvement before training winds down")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of weights, order and dropout")
    closed_answers: bool = Field(
        False,
        description="let recall look nothing of an answer up while it is learnt, as while it is "
        "written",
    )
    sampled_softmax: int = Field(
        0,
        ge=0,
        description="on a CPU, train the softmax over the targets of a step and so many other "
        "tokens, drawn anew for each step; 0: over all",
    )
    freeze_old: bool = Field(
        False, description="train only what `grow` added to the model of --from"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> TrainingSettings:
        if self.warmup_share + self.warmdown_share > 1:
            raise ValueError("--warmup-share and --warmdown-share together exceed 1")
        return self


class RunSettings(_Settings):
    """Where the run happens and what it leaves behind."""

    device: str = Field("auto", description="where it is computed: auto, cpu, cuda or cuda:N")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads on a CPU (default: OMP_NUM_THREADS, else the cores that are free, "
        "followed as training goes on)",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the matrix products; auto: the fastest here"
    )
    out: str = Field("checkpoints", description="folder of all files of the run")
    name: str | None = Field(
        None,
        pattern=r"^\w[\w.-]*$",
        description="name of the run (default: made from the settings)",
    )
    init_from: str | None = Field(None, description="checkpoint whose model training starts from")
    shard: bool = Field(
        False,
        description="of several processes each holds a part of weights, gradients and optimizer "
        "state (FSDP2), instead of all",
    )
    cuda_graph: bool = Field(
        True,
        description="on a GPU, launch a step as a whole (a CUDA graph), not operation by operation",
    )
    save_minutes: float = Field(
        1.0, ge=0, description="save for --resume at least so often, besides after every epoch"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard curves (needs the extra)")
    track: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        None, description="also send every number of an epoch there (needs its package)"
    )


class Settings(RunSettings, TrainingSettings, ModelSettings, DataSettings):
    """All settings of one training run, flat, with every value decided.

    (Pydantic orders fields by the last base first: data, model, training, run.)
    """

    def model_settings(self) -> ModelSettings:
        """The part that shapes the model."""
        return ModelSettings(**self.model_dump(include=set(ModelSettings.model_fields)))

    @property
    def run_name(self) -> str:
        """--name, or `new_llm_{dataset}[_{subset}]_layers{N}[_{architecture}][_bpe]`.

        The architecture is named unless it is `context`.
        """
        if self.name is not None:
            return self.name
        subset = "" if self.subset == "all" else f"_{self.subset}"
        name = f"new_llm_{self.dataset}{subset}_layers{self.num_layers}"
        default = ModelSettings.model_fields["architecture"].default
        name += "" if default == self.architecture else f"_{self.architecture_label}"
        return name + ("_bpe" if self.tokenizer == "bpe" else "")


_LARGEST_FILE, _DEEPEST = 2**20, 4
"""Bytes and nesting of a settings file at most."""

OPTION_NAMES = {"init_from": "from"}
"""Settings whose public name (flag and YAML key) differs, being a word of Python's."""


def option_name(field: str) -> str:
    """The flag of a setting: `num_layers` -> `--num-layers`."""
    return "--" + OPTION_NAMES.get(field, field).replace("_", "-")


def no_option_name(field: str) -> str:
    """The flag that turns a setting off which is on by default: `--no-cuda-graph`."""
    return f"--no-{option_name(field)[2:]}"


DEFAULT_OUT: str = Settings.model_fields["out"].default

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    "out name save_minutes tensorboard track device threads data shard cuda_graph".split()
)
"""Settings that may differ when a run is resumed (moved rows are known by their fingerprint)."""


def parse(values: Mapping[str, Any], where: Mapping[str, str] | None = None) -> Settings:
    """Validate fully decided values.

    Args:
        values: setting -> value.
        where: setting -> where the value came from, for the message (default: the flag).

    Raises:
        UserError: naming every wrong setting and what it may be.
    """
    return _parse(Settings, values, where or {})


def parse_model(values: Mapping[str, Any]) -> ModelSettings:
    """Validate a shape.

    Raises:
        UserError: naming every wrong setting and what it may be.
    """
    return _parse(ModelSettings, values, {})


def _parse(kind: type[_Kind], values: Mapping[str, Any], where: Mapping[str, str]) -> _Kind:
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item, where) for item in error.errors())) from None


def _explain(item: Any, where: Mapping[str, str]) -> str:
    if not item["loc"]:
        return str(item["ctx"]["error"])
    field = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return f"unknown setting {field}{did_you_mean(field, Settings.model_fields)}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{where.get(field, option_name(field))} {item['input']}: {message}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Settings from a YAML file, as `NAME.yaml` of a run holds them.

    Raises:
        UserError: for a missing or malformed file and for unknown settings, with the nearest name.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise UserError(f"{path}: larger than any settings file")
        values = _plain_yaml(text.decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML") from None
    except (ValueError, LookupError, TypeError, AttributeError):  # of values like 2001-99-99
        raise UserError(f"{path}: a value that YAML does not know") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `setting: value` lines")
    public = {OPTION_NAMES.get(field, field): field for field in Settings.model_fields}
    result = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in public:
            raise UserError(f"{path}: unknown setting {key}{did_you_mean(name, public)}")
        result[public[name]] = value
    return result


def _plain_yaml(text: str) -> Any:
    """What YAML without references and deep nesting says; both can take forever to build.

    Raises:
        yaml.YAMLError: it is not YAML, or has references or deep nesting.
        ValueError: a value that its type forbids.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem_mark=event.start_mark)
    return yaml.safe_load(text)


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that `--config` reads back, each with its meaning as a comment."""
    lines = []
    for field, info in Settings.model_fields.items():
        value = getattr(settings, field)
        text = yaml.safe_dump({OPTION_NAMES.get(field, field): value}, allow_unicode=True).strip()
        lines.append(f"{text}  # {info.description}")
    return "\n".join(lines) + "\n"
