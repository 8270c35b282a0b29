"""UltraChat, level 3: `data`, texts of user and assistant in turn, or a list of `messages`."""

from __future__ import annotations

from newllm.datasets.base import EIGHT_LAYERS, FOUR_LAYERS, Advice, Dataset, HubRepository
from newllm.datasets.code_alpaca import TO_CODE
from newllm.datasets.conversations import (
    Conversation,
    Role,
    Row,
    flat_text,
    turns_conversation,
)


def _conversation(row: Row) -> Conversation:
    """The original repository has `data`, the filtered copy `messages`."""
    if row.get("messages") is not None:
        return turns_conversation(row["messages"], "messages")
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


TO_ULTRACHAT = Advice(
    "level 3, many topics (skipping level 2 is the practical way)",
    "レベル 3（多くの話題）へ進む。レベル 2 を飛ばすのが実際的です",
    level="ultrachat",
)

DATASET = Dataset(
    name="ultrachat",
    number=3,
    title="UltraChat: very many topics, very much data",
    title_ja="UltraChat: 非常に多くの話題、非常に多くのデータ",
    licence="MIT (the texts are written by GPT-3.5)",
    hub=(
        HubRepository("stingning/ultrachat"),
        HubRepository(
            "HuggingFaceH4/ultrachat_200k",
            splits={"train_sft": "train", "test_sft": "test"},
        ),
    ),
    fields=("messages", "data"),
    reading=2,
    conversation=_conversation,
    protocol_text=lambda row: flat_text(_conversation(row)),
    vocabulary_text=lambda row: flat_text(_conversation(row)),
    vocabulary_rows=10_000,
    protocol_prompt=lambda text: text,
    settings={"num_layers": 4, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 150, "context": 3},
    prompts=(
        "Tell me about the history of Rome.",
        "How does a plant make food?",
        "Write a short poem about the sea.",
        "What should I cook tonight?",
    ),
    pass_mark=26.0,
    excellent=20.0,
    advice={
        "excellent": (TO_CODE,),
        "cleared": (
            Advice("the full set", "全データで学習する", dropped=("max_samples",)),
            TO_CODE,
        ),
        "needs work": (
            Advice("more rows", "行を増やす", dropped=("max_samples",)),
            FOUR_LAYERS,
            EIGHT_LAYERS,
        ),
    },
)
