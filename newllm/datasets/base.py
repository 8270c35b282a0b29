"""What a data set is: all that the program knows of one, in one object.

Each data set has a file of its own in this folder, which ends in its `DATASET`; the package finds
these files by itself. Nothing here imports torch: the command line reads the list at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from newllm.datasets.conversations import Conversation, Row, question_and_answer, text_field
from newllm.errors import UserError

SkillCheck = Literal["code answers", "math answers", "preferences"]
"""The checks of `newllm.evaluate.skills`, by the names that reports show."""


@dataclass(frozen=True)
class HubRepository:
    """One place on the Hub where a data set can be had."""

    id: str
    configurations: tuple[str, ...] = ()
    """Configurations that together are the data set (none: the default one)."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The repository's names of splits -> ours, the others unread; none: by their names."""
    revision: str | None = None
    """Branch, tag or commit; None: the newest."""


@dataclass(frozen=True)
class Advice:
    """One thing to do next, as words and as a change of the command."""

    text: str
    text_ja: str
    level: str | None = None
    """Train this data set next."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Change these settings."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Multiply these settings."""
    dropped: tuple[str, ...] = ()
    """Leave these settings out."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: a level of the progression (with a number), or one beside the levels.

    The functions that read rows raise ValueError for a malformed row, and `LeftOut` for one that
    the data set does not use.
    """

    name: str
    """On the command line, in the names of runs, and of its file in `samples/`."""
    title: str
    """`NAME: what it is`; the second part may be missing."""
    title_ja: str
    """The same in Japanese, with the same `: ` between the parts."""
    licence: str
    """Licence of the rows as their publisher states it, for model cards."""
    hub: tuple[HubRepository, ...] = ()
    """Places of the data set, the first that answers is taken; none for one's own rows."""
    subsets: Mapping[str, str] = field(default_factory=dict)
    """Parts that --subset chooses -> their folders in the repository."""

    # -- from a row to text
    fields: tuple[str, ...]
    """Fields that rows are read from: what `--columns` may name."""
    forms: bool = False
    """Whether a row's form is recognised by its fields; a row then has the mapped columns alone."""
    reading: int = 1
    """Raised when the same rows are read otherwise than before: part of the cache's key."""
    conversation: Callable[[Row], Conversation]
    """The turns of a row: what BPE models learn. White space and case are kept."""
    documents: bool = False
    """Whether files of any text are read, a document each, beside those in formats of rows."""
    plain_text: bool = False
    """Whether rows are plain text, which a prompt begins, rather than questions and answers."""
    protocol_text: Callable[[Row], str]
    """The flat text of a row in the word-1000 protocol, which predates roles."""
    vocabulary_text: Callable[[Row], str]
    """What the protocol counts its vocabulary on (no labels, which so are unknown words)."""
    vocabulary_rows: int | None = None
    """The vocabulary is counted on so many training rows."""
    protocol_prompt: Callable[[str], str]
    """A user's question in the words after which the protocol's texts give the answer."""
    protocol_length: int = 128
    """Tokens a row is cut at, BOS and EOS included."""
    windows: bool = False
    """Longer rows are not cut but become whole windows, each half a length after the last."""
    word1000_refusal: str | None = None
    """Why the word-1000 vocabulary cannot hold these rows, where it cannot."""

    # -- training
    settings: Mapping[str, Any]
    """What is recommended for every architecture."""
    epochs: Mapping[str, int]
    """Recommended epochs by architecture."""
    rehearsal_share: float = 0.4
    """Fraction of the tokens from earlier levels when a climb trains this one (docs/LOG.md)."""

    # -- what came of it
    prompts: tuple[str, ...]
    """Asked after every epoch, so that a person sees what the numbers mean."""
    skill_check: SkillCheck | None = None
    """What is checked beside the loss."""
    number: int | None = None
    """Of the level; None beside the levels."""
    pass_mark: float | None = None
    """Cleared below this validation perplexity. As published, in the word-1000 protocol, and
    judged in that alone."""
    excellent: float | None = None
    """Excellent below this perplexity."""
    marks_guessed: bool = False
    """Whether the marks were published as guesses; a table of counts passes them."""
    advice: Mapping[str, tuple[Advice, ...]] = field(default_factory=dict)
    """Band (excellent, cleared, needs work) -> what to do next."""

    def band(self, ppl: float) -> str:
        """excellent, cleared or needs work."""
        assert self.excellent is not None
        assert self.pass_mark is not None
        if ppl < self.excellent:
            return "excellent"
        return "cleared" if ppl < self.pass_mark else "needs work"

    def refuse_unfit(self, tokenizer: str) -> None:
        """Check that a kind of tokenizer can hold these rows.

        Raises:
            UserError: it cannot, with the reason.
        """
        if tokenizer == "word1000" and self.word1000_refusal is not None:
            raise UserError(
                f"{self.name} with --tokenizer word1000: {self.word1000_refusal}; use "
                "--tokenizer bpe"
            )


def question_fields(question: str, answer: str, more: str | None = None) -> dict[str, Any]:
    """How a `Dataset` reads rows with a question and an answer, of the names of their fields.

    `more` is what goes with the question, and may be blank. The protocol's texts are the fields
    that are not, by their names: `Instruction: .. Input: .. Output: ..`.
    """
    names = [name for name in (question, more, answer) if name is not None]

    def texts(row: Row) -> dict[str, str]:
        return {name: text_field(row, name, optional=name == more) for name in names}

    def conversation(row: Row) -> Conversation:
        said = texts(row)
        return question_and_answer(said[question], said[more] if more else "", said[answer])

    def protocol_text(row: Row) -> str:
        said = texts(row).items()
        return " ".join(f"{name.capitalize()}: {text}" for name, text in said if text.strip())

    return {
        "conversation": conversation,
        "protocol_text": protocol_text,
        "vocabulary_text": lambda row: " ".join(texts(row).values()),
        "protocol_prompt": lambda text: f"{question.capitalize()}: {text} {answer.capitalize()}:",
    }


FOUR_LAYERS = Advice("4 layers", "4 層にする", settings={"num_layers": 4})
EIGHT_LAYERS = Advice("8 layers", "8 層にする", settings={"num_layers": 8})
TWELVE_LAYERS = Advice("12 layers", "12 層にする", settings={"num_layers": 12})
LARGER_CONTEXT = Advice(
    "a larger context", "コンテキストを大きくする", settings={"context_dim": 512}
)
LONGER_ROWS = Advice("longer rows", "行を長くする", settings={"max_seq_length": 256})
MORE_EPOCHS = Advice("more epochs", "エポックを増やす", factors={"epochs": 1.5})
SLOWER = Advice("half the learning rate", "学習率を半分にする", factors={"learning_rate": 0.5})
