"""Conversations as chat services, trainers and viewers export them: of each, the same messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from newllm.data.encode import Accounting, usable_rows
from newllm.data.sources import open_source
from newllm.datasets import DATASETS
from newllm.datasets.conversations import LeftOut, tool_calls

CHAT = DATASETS["chat"]
Q, A = "What is a river?", "Water that flows."
SAID = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
TOLD = [{"role": "system", "content": "Be brief."}, *SAID]


def node(role: str, content: dict[str, Any], parent: str | None, **more: Any) -> dict[str, Any]:
    message = {"author": {"role": role}, "content": content, "weight": 1.0, **more}
    return {"message": message, "parent": parent, "children": []}


def text(said: str) -> dict[str, Any]:
    return {"content_type": "text", "parts": [said]}


CHATGPT = {
    "title": "Rivers", "create_time": 1.0, "conversation_id": "c", "current_node": "answer",
    "mapping": {
        "root": {"message": None, "parent": None, "children": ["system"]},
        "system": node("system", text(""), "root"),
        "question": node("user", text(Q), "system"),
        "discarded": node("assistant", text("Something else."), "question"),
        "thought": node("assistant", {"content_type": "thoughts", "thoughts": []}, "question"),
        "call": node("assistant", {"content_type": "code"}, "thought", recipient="python"),
        "result": node("tool", {"content_type": "execution_output", "text": "1"}, "call"),
        "answer": node("assistant", text(A), "result"),
    },
}  # fmt: skip

EXPORTS: dict[str, tuple[dict[str, Any], list[dict[str, str]], int]] = {
    "chatgpt": (CHATGPT, SAID, 3),
    "claude": ({"uuid": "c", "name": "Rivers", "chat_messages": [
        {"sender": "human", "text": Q, "content": [{"type": "text", "text": Q}]},
        {"sender": "assistant", "text": A, "content": [{"type": "text", "text": A}]}]}, SAID, 0),
    "anthropic": ({"system": "Be brief.", "messages": [
        {"role": "user", "content": Q},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "So."},
                                          {"type": "text", "text": A}]}]}, TOLD, 3),
    "gemini": ({"systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": [
        {"role": "user", "parts": [{"text": Q}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f"}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f"}}]},
        {"role": "model", "parts": [{"text": A}]}]}, TOLD, 2),
    "openai, older functions": ({"messages": [
        SAID[0], {"role": "assistant", "content": None, "function_call": {"name": "f"}},
        {"role": "function", "name": "f", "content": "1"}, SAID[1]]}, SAID, 2),
    "openai, refusal": ({"messages": [
        SAID[0], {"role": "assistant", "content": None, "refusal": A}]}, SAID, 0),
    "open webui": ({"id": "c", "chat": {"title": "Rivers", "models": [], "messages": SAID,
                                        "history": {}}}, SAID, 0),
    "langchain": ({"messages": [{"type": "human", "content": Q},
                                {"type": "ai", "data": {"content": A}}]}, SAID, 0),
    "orca": ({"system_prompt": "Be brief.", "question": Q, "response": A}, TOLD, 0),
    "hh-rlhf, cut": ({"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "response": f" {A}"}, SAID, 0),
}  # fmt: skip


@pytest.mark.parametrize("program", EXPORTS)
@pytest.mark.parametrize("several", [True, False])
def test_exports_of_other_programs(tmp_path: Path, program: str, several: bool) -> None:
    """In a list, and one alone, which is no list of rows itself."""
    row, said, calls = EXPORTS[program]
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([row, row] if several else row))
    counts = Accounting()
    rows = list(
        usable_rows(open_source(CHAT, str(file)).splits["all"](), CHAT.conversation, counts)
    )
    assert [CHAT.conversation(row) for row in rows] == [said] * (1 + several)
    assert not counts.malformed_examples
    assert [tool_calls(row) for row in rows] == [calls] * (1 + several)


def test_a_damaged_tree_ends() -> None:
    circle = {"a": node("user", text(Q), "b"), "b": node("assistant", text(A), "a")}
    assert CHAT.conversation({"mapping": circle, "current_node": "b"}) == SAID
    with pytest.raises(ValueError, match="no assistant message"):
        CHAT.conversation({"mapping": {"a": {"message": None}}, "current_node": 7})


def test_rows_of_the_hubs_viewer(tmp_path: Path) -> None:
    numbered = [
        {"row_idx": n, "row": {"question": Q, "answer": A}, "truncated_cells": []} for n in "01"
    ]
    (tmp_path / "rows.json").write_text(json.dumps({"features": [], "rows": numbered}))
    rows = open_source(CHAT, str(tmp_path / "rows.json")).splits["all"]()
    assert [CHAT.conversation(item.row) for item in rows] == [SAID, SAID]  # type: ignore[union-attr]


def test_answers_that_were_disliked_are_not_learnt() -> None:
    """TRL's unpaired preferences."""
    row = {"prompt": Q, "completion": A}
    assert CHAT.conversation({**row, "label": True}) == SAID
    with pytest.raises(LeftOut):
        CHAT.conversation({**row, "label": False})
