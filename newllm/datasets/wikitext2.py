"""WikiText-2, beside the levels: one line of plain text a row, in `text`."""

from __future__ import annotations

from newllm.datasets.base import Dataset, HubRepository
from newllm.datasets.conversations import LeftOut, Row, text_field

_LEAST_WORDS = 5
"""Words of a line that the protocol uses."""


def _line(row: Row) -> str:
    if row.get("text") is not None and not str(row["text"]).strip():
        raise LeftOut("blank line")
    return text_field(row, "text").strip()


def _protocol_text(row: Row) -> str:
    text = _line(row)
    if len(text.split()) < _LEAST_WORDS:
        raise LeftOut(f"fewer than {_LEAST_WORDS} words")
    return text


DATASET = Dataset(
    name="wikitext2",
    title="WikiText-2: natural text, for comparing depths",
    title_ja="WikiText-2: 自然な文章。層数の比較用",
    licence="CC BY-SA 3.0 and GFDL",
    hub=(HubRepository("Salesforce/wikitext", configurations=("wikitext-2-raw-v1",)),),
    fields=("text",),
    conversation=lambda row: [{"role": "text", "content": _line(row)}],
    plain_text=True,
    protocol_text=_protocol_text,
    vocabulary_text=_line,
    protocol_prompt=lambda text: text,
    protocol_length=64,
    windows=True,
    settings={"num_layers": 1, "context_dim": 256, "max_seq_length": 64},
    epochs={"original": 150, "context": 6},
    prompts=("The river", "In 1990 , the", "The town of"),
)
