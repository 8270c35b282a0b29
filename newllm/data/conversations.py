"""One pure function a data set: a row becomes a conversation, and a text of the published protocol.

Conversations feed the BPE road. The word-1000 protocol predates roles: it sees one flat text a row,
with labels, and counts its vocabulary without them (see `tokenizers.Word1000`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = list[Message]


@dataclass(frozen=True)
class RowFormat:
    """How one data set's rows are read. The functions raise ValueError for a malformed row."""

    conversation: Callable[[Mapping[str, Any]], Conversation]
    protocol_text: Callable[[Mapping[str, Any]], str]
    vocabulary_text: Callable[[Mapping[str, Any]], str]
    protocol_prompt: Callable[[str], str]
    """A user's question in the words after which the protocol's texts give the answer."""
    protocol_length: int
    """Tokens a row is cut at, BOS and EOS included."""


def text_field(row: Mapping[str, Any], name: str, optional: bool = False) -> str:
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


def _dolly_fields(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        text_field(row, "instruction"),
        text_field(row, "context", optional=True),
        text_field(row, "response"),
    )


def dolly_conversation(row: Mapping[str, Any]) -> Conversation:
    """Instruction, a blank line and the context (where there is one) -> response."""
    instruction, context, response = _dolly_fields(row)
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": response},
    ]


def dolly_protocol_text(row: Mapping[str, Any]) -> str:
    """`Instruction: .. Context: .. Response: ..`, the context only if it is not blank."""
    instruction, context, response = _dolly_fields(row)
    middle = f" Context: {context}" if context.strip() else ""
    return f"Instruction: {instruction}{middle} Response: {response}"


def dolly_vocabulary_text(row: Mapping[str, Any]) -> str:
    """The same words without the labels, which therefore are unknown words to the protocol."""
    return " ".join(_dolly_fields(row))


ROW_FORMATS: dict[str, RowFormat] = {
    "dolly": RowFormat(
        conversation=dolly_conversation,
        protocol_text=dolly_protocol_text,
        vocabulary_text=dolly_vocabulary_text,
        protocol_prompt=lambda text: f"Instruction: {text} Response:",
        protocol_length=128,
    ),
}
