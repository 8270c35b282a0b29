"""What a conversation is, and how the fields of a row are read into one.

The functions raise ValueError for a malformed row, with what is wrong in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant", "text"]
"""Who speaks; `text` is plain text that nobody says, and has no role token."""

Row = Mapping[str, Any]


class Message(TypedDict):
    """One turn of a conversation, or one plain text."""

    role: Role
    content: str


Conversation = list[Message]


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


def flat_text(conversation: Conversation) -> str:
    """What is said, in one line without who says it."""
    return " ".join(" ".join(message["content"].split()) for message in conversation)
