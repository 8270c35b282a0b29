"""Rows of one's own, beside the levels: a list of `messages`, or a plain `text`."""

from __future__ import annotations

from newllm.datasets.base import Dataset
from newllm.datasets.conversations import (
    Conversation,
    Row,
    flat_text,
    messages_conversation,
    text_field,
)


def _conversation(row: Row) -> Conversation:
    if "messages" in row:
        return messages_conversation(row)
    if "text" not in row:
        raise ValueError("neither field 'messages' nor field 'text' is there")
    return [{"role": "text", "content": text_field(row, "text")}]


DATASET = Dataset(
    name="chat",
    title="your own rows",
    title_ja="自分の行",
    licence="unknown here: these are rows of your own",
    conversation=_conversation,
    protocol_text=lambda row: flat_text(_conversation(row)),
    vocabulary_text=lambda row: flat_text(_conversation(row)),
    protocol_prompt=lambda text: text,
    settings={"num_layers": 4, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 100, "context": 10},
    prompts=("Hello!", "What can you do?"),
)
