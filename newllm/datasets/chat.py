"""Rows of one's own, beside the levels: conversations, questions with answers, or plain text.

A row's form is recognised by its fields (`FORMS`); nothing has to be renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from newllm.datasets.base import Dataset
from newllm.datasets.conversations import (
    TURN_FIELDS,
    Conversation,
    LeftOut,
    Row,
    content_text,
    flat_text,
    is_turns,
    question_and_answer,
    text_field,
    turns_conversation,
    turns_in,
)
from newllm.datasets.hh_rlhf import hh_rlhf_conversation

_QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "user", "input")
_MORE = ("input", "context")
_ANSWERS = ("output", "response", "completion", "solution", "answer", "assistant", "reply",
            "chosen", "target")  # fmt: skip
"""Fields of questions, of what goes with them, and of answers; the first that is there is taken."""

_SYSTEM = ("system", "system_prompt", "system_message", "systeminstruction", "system_instruction")

_MESSAGES = '{"messages": [{"role": "user", "content": ".."}, ..]}'

_HINT = "--columns question=THEIR_NAME answer=THEIR_NAME says which they are"


def _turns(row: Row) -> Conversation | None:
    found = turns_in(row)
    return None if found is None else turns_conversation(found[1], found[0])


def _pair(row: Row) -> Conversation | None:
    question = next((name for name in _QUESTIONS if name in row), None)
    answer = next((name for name in _ANSWERS if name in row and name != question), None)
    if question is None or answer is None:
        return None
    if row.get("label") is False and answer == "completion":  # TRL's unpaired preferences
        raise LeftOut("an answer that is not preferred (label false)")
    if is_turns(row[question]) or is_turns(row[answer]):  # as TRL has it
        return turns_conversation([*_as_turns(row[question], "user"),
                                   *_as_turns(row[answer], "assistant")], answer)  # fmt: skip
    more = next(
        (text_field(row, n, optional=True) for n in _MORE if n in row and n != question), ""
    )
    asked, answered = text_field(row, question), text_field(row, answer)
    if asked.endswith("\n\nAssistant:"):  # of the dialogues of HH-RLHF, cut before the last answer
        return hh_rlhf_conversation({answer: f"\n\n{asked.lstrip()}{answered}"}, answer)
    said = question_and_answer(asked, more, answered)
    return [*_history(row), *said]


def _as_turns(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _history(row: Row) -> Conversation:
    """Earlier turns of a question, as pairs in the field `history`."""
    earlier: Conversation = []
    history = row.get("history") or []
    if not isinstance(history, (list, tuple)):
        raise ValueError(f"field 'history' is {type(history).__name__}, expected a list")
    for pair in history:
        if not isinstance(pair, (list, tuple)) or not all(isinstance(t, str) for t in pair):
            raise ValueError("field 'history' is no list of questions with answers")
        earlier += question_and_answer(pair[0], "", pair[1]) if len(pair) == 2 else []
    return earlier


def _preferred(row: Row) -> Conversation | None:
    if "chosen" not in row:
        return None
    if isinstance(row["chosen"], list):
        return turns_conversation(row["chosen"], "chosen")
    return hh_rlhf_conversation(row)


def _text(row: Row) -> Conversation | None:
    if "text" not in row:
        return None
    if answer := next((name for name in _ANSWERS if isinstance(row.get(name), str)), None):
        raise ValueError(
            f"a text and {answer}, but no question; --columns question=text answer={answer} reads "
            "both, --columns text=text the text alone"
        )
    return [{"role": "text", "content": text_field(row, "text")}]


FORMS: Mapping[str, Callable[[Row], Conversation | None]] = {
    "a list of messages": _turns,
    "question and answer": _pair,
    "the preferred dialogue": _preferred,
    "plain text": _text,
}
"""The forms of rows, the first that fits is taken; each gives None for a row of another form."""


def _conversation(row: Row) -> Conversation:
    given = {str(name).strip().lower(): value for name, value in row.items() if value is not None}
    if isinstance(given.get("role"), str) and isinstance(
        given.get("content", given.get("text")), str
    ):
        raise ValueError(f"one message of a conversation, expected all of it in a row: {_MESSAGES}")
    for read in FORMS.values():
        if (conversation := read(given)) is not None:
            break
    else:
        has = ", ".join(map(str, row)) or "no field"
        raise ValueError(f"no messages, no question with an answer, no text: it has {has}; {_HINT}")
    system = next((given[name] for name in _SYSTEM if name in given), None)
    if isinstance(system, dict):  # Gemini's, with parts
        system = content_text(system.get("parts"))
    if isinstance(system, str) and system.strip() and conversation[0]["role"] == "user":
        return [{"role": "system", "content": system}, *conversation]
    return conversation


DATASET = Dataset(
    name="chat",
    title="your own rows",
    title_ja="自分の行",
    licence="unknown here: these are rows of your own",
    fields=(*TURN_FIELDS, *_QUESTIONS, *_MORE[1:], *_ANSWERS, "system", "history", "text"),
    forms=True,
    reading=3,
    conversation=_conversation,
    protocol_text=lambda row: flat_text(_conversation(row)),
    vocabulary_text=lambda row: flat_text(_conversation(row)),
    protocol_prompt=lambda text: text,
    settings={"num_layers": 4, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 100, "context": 10},
    prompts=("Hello!", "What can you do?"),
)
