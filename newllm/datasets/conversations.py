"""What a conversation is, and how the fields of a row are read into one.

The functions raise ValueError for a malformed row, with what is wrong in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from typing_extensions import NotRequired

Role = Literal["system", "user", "assistant", "text"]
"""The speaker; `text` is plain text without a speaker, and has no role token."""

Row = Mapping[str, Any]


class Message(TypedDict):
    """One turn of a conversation, or one plain text."""

    role: Role
    content: str
    weight: NotRequired[int]
    """0: an answer that is read but not learnt (as OpenAI's format for fine-tuning has it)."""


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
    if value is None:
        has = ", ".join(str(field) for field in row if row[field] is not None)
        raise ValueError(f"field {name!r} is missing; the row has {has or 'none'}")
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {type(value).__name__}, expected text")
    if not optional and not value.strip():
        raise ValueError(f"field {name!r} is empty")
    return value


def question_and_answer(question: str, more: str, answer: str) -> Conversation:
    """One turn each; what goes with the question follows it after a blank line."""
    question = f"{question}\n\n{more}" if more.strip() else question
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TURN_FIELDS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "chat",
               "chat_messages", "contents")  # fmt: skip
"""Names under which rows have a list of turns."""

_ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "bard": "assistant", "bing": "assistant", "ai": "assistant",
}  # fmt: skip
_TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
_CONTENTS = ("content", "value", "text", "parts", "refusal")
"""Fields that what is said may stand in."""

_UNSAID_PARTS = {"tool_use", "tool_result", "server_tool_use", "thinking", "redacted_thinking",
                 "reasoning", "functionCall", "functionResponse"}  # fmt: skip
"""Types of a content's parts, or their fields, that are not said: calls of tools, thoughts."""


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns: {role, content}, or ShareGPT's {from, value}, say."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn or known_speaker(turn))
        for turn in value
    )  # fmt: skip


def known_speaker(turn: Mapping[str, Any]) -> Any:
    """The speaker of a turn, or None; of `sender` and `type`, which may mean other things, known
    names alone."""
    given = turn.get("role") or turn.get("from") or turn.get("speaker")
    known = (turn[n] for n in ("sender", "type") if turn.get(n) in (*_ROLES, *_TOOL_ROLES))
    return given or next(known, None)


def turns_in(row: Row) -> tuple[str, Any] | None:
    """The field of a row that holds its turns, and they; None where it has none.

    They may stand one level deeper (Open WebUI: `{"chat": {"messages": [..]}}`), or as a tree, of
    which the branch that was read last is taken (ChatGPT's export).
    """
    field = next((name for name in TURN_FIELDS if row.get(name) is not None), None)
    if field is None:
        tree = row.get("mapping")
        if not isinstance(tree, dict) or not _is_tree(tree):
            return None
        return "mapping", _branch(tree, row.get("current_node"))
    turns = row[field]
    if isinstance(turns, dict) and (inside := next((n for n in TURN_FIELDS if n in turns), None)):
        return f"{field}.{inside}", turns[inside]
    return field, turns


def _is_tree(value: Mapping[str, Any]) -> bool:
    nodes = value.values()
    return bool(nodes) and all(isinstance(node, dict) and "message" in node for node in nodes)


def _branch(tree: Mapping[str, Any], last: Any) -> list[dict[str, Any]]:
    """The messages from a tree's root to the node `last`; without one, to the last in the file."""
    place = last if isinstance(last, str) and last in tree else list(tree)[-1]
    turns: list[dict[str, Any]] = []
    for _ in tree:  # no longer than it has nodes, also where damage made a circle of it
        node = tree[place]
        if isinstance(message := node["message"], dict):
            turns.append(_turn_of_node(message))
        place = node.get("parent")
        if not isinstance(place, str) or place not in tree:
            break
    return [turn for turn in reversed(turns) if turn["content"] not in ([], [""])]


def _turn_of_node(message: Mapping[str, Any]) -> dict[str, Any]:
    author, content = message.get("author"), message.get("content")
    content = content if isinstance(content, dict) else {"parts": [content]}
    role = author.get("role") if isinstance(author, dict) else author
    kind, to = content.get("content_type", "text"), message.get("recipient") or "all"
    if to != "all" or kind not in ("text", "multimodal_text"):  # to a program, or a thought
        return {"role": "tool", "content": kind}
    return {"role": role, "content": content.get("parts") or [], "weight": message.get("weight")}


def content_text(content: Any) -> str:
    """A message's text: a string, or the texts of its parts one after the other, without calls of
    tools, what tools say, and thoughts.

    Raises:
        ValueError: a part is no text, an image, say.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"its content is {type(content).__name__}, expected text")
    texts = []
    for part in content:
        if _is_unsaid(part):
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "no text") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"a part of it is {kind}; only text can be learnt")
        texts.append(text)
    return "".join(texts)


def _is_unsaid(part: Any) -> bool:
    return isinstance(part, dict) and not _UNSAID_PARTS.isdisjoint((part.get("type"), *part))


def turns_conversation(turns: Any, field: str) -> Conversation:
    """The messages of a list of turns, with at least one answer that is learnt.

    Calls of tools and what tools say are left out (`tool_calls` counts them), and so are empty
    system messages. An answer with `weight` 0 is read, not learnt.

    Raises:
        ValueError: what is wrong, and in which turn.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # of a table's cell
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            python = "'" in turns.split(":", 1)[0]
            why = " but written by Python; write it with json.dumps" if python else ""
            raise ValueError(f"field {field!r} is no valid JSON{why}") from None
    if not isinstance(turns, list):
        raise ValueError(f"field {field!r} is {type(turns).__name__}, expected a list of messages")
    conversation: Conversation = []
    for number, turn in enumerate(turns, start=1):
        try:
            message = _message(turn)
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
        if message is not None:
            conversation.append(message)
    if not any(m["role"] == "assistant" and m.get("weight") != 0 for m in conversation):
        weights = any(m["role"] == "assistant" for m in conversation)
        raise ValueError("no answer has a weight above 0" if weights else "no assistant message")
    return conversation


def _message(turn: Any) -> Message | None:
    """One turn; None for one that says nothing that is learnt."""
    if not isinstance(turn, dict):
        raise ValueError(f"a {type(turn).__name__}, expected an object with role and content")
    said_by = known_speaker(turn)
    if isinstance(turn.get("data"), dict):  # LangChain's {type, data: {content}}
        turn = {**turn, **turn["data"]}
    content = next((turn[n] for n in _CONTENTS if turn.get(n) is not None), None)
    if said_by is None or not turn.keys() & {*_CONTENTS, "tool_calls", "function_call"}:
        raise ValueError(f"no 'role' and 'content' among {', '.join(map(str, turn))}")
    if said_by in _TOOL_ROLES:
        return None
    role = _ROLES.get(said_by.lower()) if isinstance(said_by, str) else None
    if role is None:
        raise ValueError(f"role {said_by!r}, expected system, user or assistant")
    text = content_text(content)
    if not text.strip():
        if role == "system" or _calls_a_tool(turn):
            return None
        raise ValueError("has no text")
    weight = turn.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise ValueError(f"weight {weight!r}, expected 0 or 1")
    if weight == 0 and role == "assistant":
        return {"role": role, "content": text, "weight": 0}
    return {"role": role, "content": text}


def _calls_a_tool(turn: Mapping[str, Any]) -> bool:
    content = turn.get("content") or turn.get("parts")
    unsaid = isinstance(content, list) and any(map(_is_unsaid, content))
    return unsaid or bool(turn.get("tool_calls") or turn.get("function_call"))


def tool_calls(row: Row) -> int:
    """Turns of a row that call a tool, are what a tool says, or think: no conversation has that."""
    found = turns_in({str(name).strip().lower(): value for name, value in row.items()})
    turns = found[1] if found and isinstance(found[1], list) else []
    return sum(
        isinstance(turn, dict) and (_calls_a_tool(turn) or known_speaker(turn) in _TOOL_ROLES)
        for turn in turns
    )


def flat_text(conversation: Conversation) -> str:
    """The contents in one line, without roles, and without what is not to be learnt."""
    learnt = [message["content"] for message in conversation if message.get("weight") != 0]
    return " ".join(" ".join(content.split()) for content in learnt)
