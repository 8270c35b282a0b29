"""HH-RLHF, level 2: dialogues written as one text in `chosen` (preferred) and `rejected`."""

from __future__ import annotations

import re

from newllm.datasets.base import (
    FOUR_LAYERS,
    LARGER_CONTEXT,
    MORE_EPOCHS,
    SLOWER,
    Advice,
    Dataset,
    HubRepository,
)
from newllm.datasets.conversations import Conversation, Role, Row, text_field
from newllm.datasets.ultrachat import TO_ULTRACHAT

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


def _protocol_text(row: Row) -> str:
    hh_rlhf_conversation(row)  # refuses the rows that the conversations are made without
    return " ".join(row["chosen"].split())


TO_HH_RLHF = Advice("level 2, dialogues", "レベル 2（対話）へ進む", level="hh_rlhf")

DATASET = Dataset(
    name="hh_rlhf",
    number=2,
    title="HH-RLHF: dialogues of several turns, the answers people preferred",
    title_ja="HH-RLHF: 複数ターンの対話、人に好まれた答え",
    licence="MIT",
    hub=(HubRepository("Anthropic/hh-rlhf"),),
    subsets={"helpful": "helpful-base", "harmless": "harmless-base"},
    fields=("chosen", "rejected"),
    conversation=hh_rlhf_conversation,
    protocol_text=_protocol_text,
    vocabulary_text=_protocol_text,
    protocol_prompt=lambda text: f"Human: {text} Assistant:",
    settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 100, "context": 4},
    prompts=(
        "My name is Anna. What is my name?",
        "How do I make a cup of tea?",
        "Can you help me with my homework?",
        "How can I scare my neighbour?",
    ),
    skill_check="preferences",
    pass_mark=21.0,
    excellent=18.0,
    advice={
        "excellent": (TO_ULTRACHAT,),
        "cleared": (TO_ULTRACHAT, FOUR_LAYERS, LARGER_CONTEXT),
        "needs work": (MORE_EPOCHS, SLOWER, FOUR_LAYERS),
    },
)
