"""Plain text before the levels: books, notes, code; a document a row, in `text`."""

from __future__ import annotations

from newllm.datasets.base import Dataset
from newllm.datasets.conversations import LeftOut, Row, text_field

_FIELDS = ("text", "content", "code", "document", "body", "article", "story")
"""Fields that published sets have their documents in; the first that is there is taken."""


def _document(row: Row) -> str:
    field = next((name for name in _FIELDS if row.get(name) is not None), "text")
    if isinstance(row.get(field), str) and not row[field].strip():
        raise LeftOut("blank document")
    return text_field(row, field)


DATASET = Dataset(
    name="text",
    number=0,
    title="plain text: books, notes, code, before the levels",
    title_ja="平文: 本、メモ、コード。レベルの前に",
    licence="unknown here: these are texts of your own",
    fields=_FIELDS,
    documents=True,
    conversation=lambda row: [{"role": "text", "content": _document(row)}],
    plain_text=True,
    protocol_text=_document,
    vocabulary_text=_document,
    protocol_prompt=lambda text: text,
    windows=True,
    settings={"num_layers": 4, "context_dim": 256, "max_seq_length": 128},
    epochs={"original": 20, "context": 3},
    prompts=("The", "In the beginning", "def "),
)
