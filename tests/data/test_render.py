"""Rendering: masks, byte counts, the chat prompt as the training prefix, the word-1000 protocol."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm.data.render import ChatRenderer, ProtocolRenderer, render_rows
from newllm.data.tokenizers import BPE, Word1000
from newllm.datasets import DATASETS
from newllm.datasets.conversations import Conversation

texts = st.text(max_size=40)
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=4).map(
    lambda pairs: [
        message
        for question, answer in pairs
        for message in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        )
    ]
)


@pytest.fixture(scope="module")
def chat() -> ChatRenderer:
    return ChatRenderer(BPE.train(["some words to learn merges from, words and words"], 300))


@given(conversations)
def test_mask_is_exactly_what_the_assistant_says(
    chat: ChatRenderer, conversation: Conversation
) -> None:
    document = chat.documents([conversation])[0]
    tokenizer = chat.tokenizer
    said = [t for t, m in zip(document.ids, document.assistant, strict=True) if m]
    answers = [m["content"] for m in conversation if m["role"] == "assistant"]
    expected = [[*ids, tokenizer.end] for ids in tokenizer.encode_batch(answers)]
    assert said == [token for answer in expected for token in answer]


@given(conversations)
def test_bytes_are_those_of_the_content(chat: ChatRenderer, conversation: Conversation) -> None:
    document = chat.documents([conversation])[0]
    contents = [tuple(m.values()) for m in conversation]
    assert document.content_bytes == sum(len(str(c).encode()) for _, c in contents)
    assert document.assistant_bytes == sum(
        len(str(c).encode()) for role, c in contents if role == "assistant"
    )


@given(conversations)
def test_chat_prompt_is_the_training_prefix(chat: ChatRenderer, conversation: Conversation) -> None:
    """Turn by turn with the answers in between, the ids are those of the whole conversation."""
    whole = chat.documents([conversation])[0].ids
    ids: list[int] = []
    for turn in range(0, len(conversation), 2):
        ids += chat.prompt(conversation[turn : turn + 1], start=turn == 0)
        assert whole[: len(ids)] == ids
        ids += chat.tokenizer.encode_batch([conversation[turn + 1]["content"]])[0]
        ids.append(chat.tokenizer.end)
    assert ids == whole


def test_dolly_rows() -> None:
    row = {"instruction": "Who?", "context": " \n", "response": "Me."}
    dataset = DATASETS["dolly"]
    assert dataset.conversation(row)[0]["content"] == "Who?"
    assert dataset.protocol_text(row) == "Instruction: Who? Response: Me."
    row["context"] = "A party."
    assert dataset.conversation(row)[0]["content"] == "Who?\n\nA party."
    assert dataset.protocol_text(row) == "Instruction: Who? Context: A party. Response: Me."
    assert dataset.vocabulary_text(row) == "Who? A party. Me."


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "'instruction' is missing"),
        ({"instruction": 3, "response": "x"}, "'instruction' is int"),
        ({"instruction": "x", "response": "  "}, "'response' is empty"),
        ({"instruction": "x", "response": None}, "'response' is missing; the row has instruction"),
        ({"instruction": "x", "context": [], "response": "y"}, "'context' is list"),
    ],
)
def test_malformed_rows_say_why(row: dict[str, object], complaint: str) -> None:
    for read in (DATASETS["dolly"].conversation, DATASETS["dolly"].protocol_text):
        with pytest.raises(ValueError, match=complaint):
            read(row)


def test_protocol_rows_are_cut_with_bos_and_eos_counted() -> None:
    dataset = DATASETS["dolly"]
    rows = [{"instruction": "a", "response": " ".join("b" * n)} for n in (1, 4, 5, 6)]
    renderer = ProtocolRenderer(Word1000.train(["a b"]), dataset, length=9)
    short, fits, cut_eos, cut_word = render_rows(renderer, dataset, rows)
    assert short.ids == [2, 1, 4, 1, 5, 3]  # the labels are unknown words
    assert (fits.ids[-1], len(fits.ids), fits.cut_tokens) == (3, 9, 0)
    assert (cut_eos.ids[-1], len(cut_eos.ids), cut_eos.cut_tokens) == (5, 9, 1)
    assert (len(cut_word.ids), cut_word.cut_tokens) == (9, 2)


@pytest.mark.parametrize("plain", [True, False])
def test_prompts_without_roles_are_whole_conversations_too(plain: bool) -> None:
    """At once, or turn by turn with the answers and their ends in between: the same ids."""
    if plain:
        renderer = ChatRenderer(BPE.train(["some words"], 300), plain_text=True)
    else:
        words = Word1000.train(["Instruction: some words Response: other words"])
        renderer = ProtocolRenderer(words, DATASETS["dolly"], 128)
    tokenizer = renderer.tokenizer
    first: Conversation = [{"role": "user", "content": "some words"}]
    second: Conversation = [{"role": "user", "content": "more words"}]
    ids = renderer.prompt(first)
    assert ids[0] == tokenizer.bos
    ids += [*tokenizer.encode_batch(["other words"])[0], tokenizer.end]
    ids += renderer.prompt(second, start=False)
    said: Conversation = [{"role": "assistant", "content": "other words"}]
    assert renderer.prompt([*first, *said, *second]) == ids
