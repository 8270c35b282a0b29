"""The one place where text becomes training tokens; the chat prompt is made by the same code.

BPE:       <bos> <user> content <end> <assistant> content <end> ..   (plain text has no role token)
word1000:  BOS words EOS, cut at the protocol's length, or windows of that length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from newllm.data.tokenizers import BPE, Tokenizer, Word1000, replace_surrogates
from newllm.datasets.base import Dataset
from newllm.datasets.conversations import Conversation


@dataclass(frozen=True)
class Document:
    """One rendered row, ready to be stored."""

    ids: list[int]
    assistant: list[bool]
    """True for the tokens an assistant has to produce: its content and the end of its turn."""
    content_bytes: int
    """UTF-8 bytes of the contents that are scored, special tokens not counted."""
    assistant_bytes: int
    cut_tokens: int = 0
    masked: tuple[slice, ...] = ()
    """Tokens that are read but not scored: answers with weight 0, and the end of their turns."""
    replaced_surrogates: int = 0


class ChatRenderer:
    """Conversations with role tokens, whole, for the BPE tokenizer.

    With `plain_text` a prompt is the beginning of a text that is to go on, not a question.
    """

    def __init__(self, tokenizer: BPE, plain_text: bool = False) -> None:
        self.tokenizer, self.plain_text = tokenizer, plain_text

    def documents(self, rows: Sequence[Conversation]) -> list[Document]:
        """Render whole conversations; nothing is cut."""
        texts, replaced = [], []
        for conversation in rows:
            clean = [replace_surrogates(message["content"]) for message in conversation]
            texts += [text for text, _ in clean]
            replaced.append(sum(count for _, count in clean))
        encoded = iter(zip(texts, self.tokenizer.encode_clean(texts), strict=True))
        documents = []
        for conversation, surrogates in zip(rows, replaced, strict=True):
            ids, assistant, content_bytes, assistant_bytes = [self.tokenizer.bos], [False], 0, 0
            masked = []
            for message in conversation:
                text, content = next(encoded)
                learnt = message.get("weight") != 0
                answers = learnt and message["role"] == "assistant"
                role = self.tokenizer.roles.get(message["role"])
                ids += [*([] if role is None else [role]), *content, self.tokenizer.end]
                assistant += [*([] if role is None else [False]), *[answers] * (len(content) + 1)]
                if not learnt:
                    masked.append(slice(len(ids) - len(content) - 1, len(ids)))
                size = len(text.encode()) * learnt
                content_bytes += size
                assistant_bytes += size * answers
            documents.append(
                Document(
                    ids,
                    assistant,
                    content_bytes,
                    assistant_bytes,
                    masked=tuple(masked),
                    replaced_surrogates=surrogates,
                )
            )
        return documents

    def prompt(self, messages: Conversation, start: bool = True) -> list[int]:
        """Ids up to where the assistant's answer begins, as training saw them, id for id.

        With `start=False` the messages go on in a conversation whose last turn is closed.
        """
        if self.plain_text:
            texts = [(message["content"], message["role"] == "assistant") for message in messages]
            return _flat_prompt(self.tokenizer, texts, start)
        ids = self.documents([messages])[0].ids[0 if start else 1 :]
        return [*ids, self.tokenizer.roles["assistant"]]


class ProtocolRenderer:
    """Flat texts of the word-1000 protocol, cut at its length, or in windows."""

    def __init__(self, tokenizer: Word1000, dataset: Dataset, length: int) -> None:
        self.tokenizer, self.dataset, self.length = tokenizer, dataset, length

    def documents(self, rows: Sequence[str]) -> list[Document]:
        """BOS words EOS of each text; a cut row has no EOS. Windows: several documents a row."""
        documents = []
        for text, words in zip(rows, self.tokenizer.encode_batch(rows), strict=True):
            ids = [self.tokenizer.bos, *words, self.tokenizer.end]
            stride = self.length // 2 if self.dataset.windows else len(ids)
            starts = range(0, max(1, len(ids) - self.length + 1), stride)
            cut = len(ids) - min(len(ids), starts[-1] + self.length)
            size = len(text.encode("utf-8", errors="replace"))
            for start in starts:
                window = ids[start : start + self.length]
                documents.append(Document(window, [False] * len(window), size, 0, cut))
                size = cut = 0  # counted once a row
        return documents

    def prompt(self, messages: Conversation, start: bool = True) -> list[int]:
        """The words before the answer to the last message, as the protocol writes them."""
        texts = [
            (message["content"], True)
            if message["role"] == "assistant"
            else (self.dataset.protocol_prompt(message["content"]), False)
            for message in messages
        ]
        return _flat_prompt(self.tokenizer, texts, start)


def _flat_prompt(tokenizer: Tokenizer, texts: Sequence[tuple[str, bool]], start: bool) -> list[int]:
    """Ids of texts without roles, each with whether it is an answer, which its end closes."""
    ids = [tokenizer.bos] if start else []
    encoded = tokenizer.encode_batch([text for text, _ in texts])
    for words, (_, answered) in zip(encoded, texts, strict=True):
        ids += [*words, tokenizer.end] if answered else words
    return ids


Renderer = ChatRenderer | ProtocolRenderer


def make_renderer(tokenizer: Tokenizer, dataset: Dataset, length: int | None = None) -> Renderer:
    """The renderer that goes with a tokenizer, for the rows or prompts of a data set.

    `length` is where word-1000 rows are cut, in tokens (default: the protocol's length).
    """
    if isinstance(tokenizer, BPE):
        return ChatRenderer(tokenizer, dataset.plain_text)
    assert isinstance(tokenizer, Word1000)
    return ProtocolRenderer(tokenizer, dataset, length or dataset.protocol_length)


def render_rows(
    renderer: Renderer, dataset: Dataset, rows: Sequence[Mapping[str, Any]]
) -> list[Document]:
    """Render raw rows in the form that the renderer takes. Rows must be well-formed."""
    if isinstance(renderer, ChatRenderer):
        return renderer.documents([dataset.conversation(row) for row in rows])
    return renderer.documents([dataset.protocol_text(row) for row in rows])
