"""One pure function a data set: a row becomes a conversation, and a text of the published protocol.

Conversations feed the BPE road; there code keeps its white space and case, LaTeX its symbols. The
word-1000 protocol predates roles: it sees one flat text a row (see `tokenizers.Word1000`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant", "text"]
"""Who speaks; `text` is plain text that nobody says, and has no role token."""

Row = Mapping[str, Any]


class Message(TypedDict):
    """One turn of a conversation, or one plain text."""

    role: Role
    content: str


Conversation = list[Message]


@dataclass(frozen=True)
class RowFormat:
    """How one data set's rows are read. The functions raise ValueError for a malformed row."""

    conversation: Callable[[Row], Conversation]
    protocol_text: Callable[[Row], str]
    vocabulary_text: Callable[[Row], str]
    """What the protocol counts its vocabulary on (no labels, which so are unknown words)."""
    protocol_prompt: Callable[[str], str]
    """A user's question in the words after which the protocol's texts give the answer."""
    protocol_length: int = 128
    """Tokens a row is cut at, BOS and EOS included."""
    windows: bool = False
    """Longer rows are not cut but become whole windows, each half a length after the last."""
    vocabulary_rows: int | None = None
    """The vocabulary is counted on so many training rows."""
    plain_text: bool = False
    """Whether rows are plain text, which a prompt begins, rather than questions and answers."""


class LeftOut(ValueError):
    """A row that the data set's protocol does not use, though nothing is wrong with it."""


def text_field(row: Row, name: str, optional: bool = False) -> str:
    """The string in field `name`, which must not be blank unless `optional`.

    Raises:
        ValueError: the field is missing, no string, or blank.
    """
    value = row.get(name)
    if optional and value is None:
        return ""
    if name not in row:
        raise ValueError(f"field {name!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {type(value).__name__}, expected text")
    if not optional and not value.strip():
        raise ValueError(f"field {name!r} is empty")
    return value


def question_and_answer(question: str, more: str, answer: str) -> Conversation:
    """One turn each; what goes with the question follows it after a blank line."""
    question = f"{question}\n\n{more}" if more.strip() else question
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def labelled(*parts: tuple[str, str]) -> str:
    """`Label: text Label: text ..`, parts with blank text left out."""
    return " ".join(f"{label}: {text}" for label, text in parts if text.strip())


# -- Dolly, CodeAlpaca, MATH: single questions ---------------------------------------------------


def _dolly(row: Row) -> tuple[str, str, str]:
    context = text_field(row, "context", optional=True)
    return text_field(row, "instruction"), context, text_field(row, "response")


def _code_alpaca(row: Row) -> tuple[str, str, str]:
    given = text_field(row, "input", optional=True)
    return text_field(row, "instruction"), given, text_field(row, "output")


def _math(row: Row) -> tuple[str, str]:
    return text_field(row, "problem"), text_field(row, "solution")


def _dolly_protocol(row: Row) -> str:
    instruction, context, response = _dolly(row)
    return labelled(("Instruction", instruction), ("Context", context), ("Response", response))


def _code_alpaca_protocol(row: Row) -> str:
    instruction, given, output = _code_alpaca(row)
    return labelled(("Instruction", instruction), ("Input", given), ("Output", output))


def _math_protocol(row: Row) -> str:
    problem, solution = _math(row)
    return labelled(("Problem", problem), ("Solution", solution))


# -- HH-RLHF: preferred dialogues ----------------------------------------------------------------

_TURN = re.compile(r"\n\n(Human|Assistant):")


def hh_rlhf_conversation(row: Row, field: str = "chosen") -> Conversation:
    """The turns of one of a row's two dialogues, white space around each removed.

    Raises:
        ValueError: no human turn first, no answer last, or an empty turn.
    """
    before, *parts = _TURN.split(text_field(row, field))
    if before.strip() or not parts or parts[0] != "Human":
        raise ValueError(f"field {field!r} does not begin with a Human turn")
    conversation: Conversation = []
    for number, (name, content) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        if not content.strip():
            raise ValueError(f"field {field!r}: turn {number} is empty")
        role: Role = "user" if name == "Human" else "assistant"
        conversation.append({"role": role, "content": content.strip()})
    if conversation[-1]["role"] != "assistant":
        raise ValueError(f"field {field!r} does not end with an Assistant turn")
    return conversation


def _hh_rlhf_protocol(row: Row) -> str:
    hh_rlhf_conversation(row)  # the same rows on both roads
    return " ".join(row["chosen"].split())


# -- UltraChat and one's own rows: lists of messages ---------------------------------------------


def _checked_message(message: Any, number: int) -> Message:
    if not isinstance(message, dict) or not message.keys() >= {"role", "content"}:
        raise ValueError(f"message {number} is no object with 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"message {number}: role {role!r}, expected system, user or assistant")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"message {number} has no text")
    return {"role": role, "content": content}


def messages_conversation(row: Row) -> Conversation:
    """Field `messages`: a list of {role, content} with at least one answer."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise ValueError("field 'messages' is no list")
    conversation = [_checked_message(m, number) for number, m in enumerate(messages, start=1)]
    if not any(message["role"] == "assistant" for message in conversation):
        raise ValueError("no assistant message")
    return conversation


def ultrachat_conversation(row: Row) -> Conversation:
    """`messages`, or the original's `data`: texts of user and assistant in turn."""
    if "messages" in row:
        return messages_conversation(row)
    turns = row.get("data")
    if not isinstance(turns, list):
        raise ValueError("neither field 'messages' nor field 'data' is a list")
    if len(turns) < 2:
        raise ValueError("field 'data' has no answer")
    roles: tuple[Role, Role] = ("user", "assistant")
    conversation: Conversation = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"field 'data': turn {number} has no text")
        conversation.append({"role": roles[(number - 1) % 2], "content": turn})
    return conversation


def own_conversation(row: Row) -> Conversation:
    """One's own rows: `messages`, or a plain `text`."""
    if "messages" in row:
        return messages_conversation(row)
    if "text" not in row:
        raise ValueError("neither field 'messages' nor field 'text' is there")
    return [{"role": "text", "content": text_field(row, "text")}]


def _joined(conversation: Conversation) -> str:
    return " ".join(" ".join(message["content"].split()) for message in conversation)


# -- WikiText-2: plain text ----------------------------------------------------------------------

_WIKITEXT_WORDS = 5


def _wikitext_line(row: Row) -> str:
    if row.get("text") is not None and not str(row["text"]).strip():
        raise LeftOut("blank line")
    return text_field(row, "text").strip()


def _wikitext_protocol(row: Row) -> str:
    text = _wikitext_line(row)
    if len(text.split()) < _WIKITEXT_WORDS:
        raise LeftOut(f"fewer than {_WIKITEXT_WORDS} words")
    return text


ROW_FORMATS: dict[str, RowFormat] = {
    "dolly": RowFormat(
        conversation=lambda row: question_and_answer(*_dolly(row)),
        protocol_text=_dolly_protocol,
        vocabulary_text=lambda row: " ".join(_dolly(row)),
        protocol_prompt=lambda text: f"Instruction: {text} Response:",
    ),
    "hh_rlhf": RowFormat(
        conversation=hh_rlhf_conversation,
        protocol_text=_hh_rlhf_protocol,
        vocabulary_text=_hh_rlhf_protocol,
        protocol_prompt=lambda text: f"Human: {text} Assistant:",
    ),
    "ultrachat": RowFormat(
        conversation=ultrachat_conversation,
        protocol_text=lambda row: _joined(ultrachat_conversation(row)),
        vocabulary_text=lambda row: _joined(ultrachat_conversation(row)),
        protocol_prompt=lambda text: text,
        vocabulary_rows=10_000,
    ),
    "code_alpaca": RowFormat(
        conversation=lambda row: question_and_answer(*_code_alpaca(row)),
        protocol_text=_code_alpaca_protocol,
        vocabulary_text=lambda row: " ".join(_code_alpaca(row)),
        protocol_prompt=lambda text: f"Instruction: {text} Output:",
        protocol_length=256,
    ),
    "math": RowFormat(
        conversation=lambda row: question_and_answer(_math(row)[0], "", _math(row)[1]),
        protocol_text=_math_protocol,
        vocabulary_text=lambda row: " ".join(_math(row)),
        protocol_prompt=lambda text: f"Problem: {text} Solution:",
        protocol_length=256,
    ),
    "wikitext2": RowFormat(
        conversation=lambda row: [{"role": "text", "content": _wikitext_line(row)}],
        protocol_text=_wikitext_protocol,
        vocabulary_text=_wikitext_line,
        protocol_prompt=lambda text: text,
        protocol_length=64,
        windows=True,
        plain_text=True,
    ),
    "chat": RowFormat(
        conversation=own_conversation,
        protocol_text=lambda row: _joined(own_conversation(row)),
        vocabulary_text=lambda row: _joined(own_conversation(row)),
        protocol_prompt=lambda text: text,
    ),
}
