"""Every data set: rows in the original forms, the built-in sample, subsets, malformed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from newllm.data.located import Located
from newllm.data.prepare import Encoding, prepare_training
from newllm.data.render import make_renderer, render_rows
from newllm.data.sources import open_source
from newllm.data.tokenizers import BPE, Word1000
from newllm.datasets import DATASETS
from newllm.datasets.conversations import LeftOut
from newllm.datasets.hh_rlhf import hh_rlhf_conversation
from newllm.errors import UserError
from newllm.settings import resolve
from tools.samples import SAMPLES

GOOD: dict[str, list[dict[str, Any]]] = {
    "hh_rlhf": [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: ok\n\nAssistant: Bye."}],
    "ultrachat": [
        {"id": "1", "data": ["q1", "a1", "q2", "a2"]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
    "code_alpaca": [
        {"instruction": "Add.", "input": "a, b", "output": "def add(a, b):\n\treturn  a + b\n"},
        {"instruction": "Add.", "input": "", "output": "A + B", "checks": []},
    ],
    "math": [{"problem": "$1+1$?", "type": "Algebra", "solution": "$\\boxed{2}$"}],
    "wikitext2": [{"text": " = Title = \n"}, {"text": "One two three four five ."}],
    "chat": [
        {"text": "Just text.\n  Indented."},
        {"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ]},
    ],
}  # fmt: skip

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("hh_rlhf", {"chosen": "Hello"}, "does not begin with a Human turn"),
    ("hh_rlhf", {"chosen": "\n\nAssistant: Hi"}, "does not begin with a Human turn"),
    ("hh_rlhf", {"chosen": "\n\nHuman: Hi"}, "does not end with an Assistant turn"),
    ("hh_rlhf", {"chosen": "\n\nHuman: Hi\n\nAssistant: "}, "turn 2 is empty"),
    ("hh_rlhf", {"rejected": "x"}, "'chosen' is missing"),
    ("ultrachat", {"prompt": "x"}, "neither field 'messages' nor field 'data'"),
    ("ultrachat", {"data": ["only a question"]}, "no answer"),
    ("ultrachat", {"data": ["q", 7]}, "turn 2 has no text"),
    ("ultrachat", {"messages": [{"role": "user", "content": "q"}]}, "no assistant message"),
    ("ultrachat", {"messages": ["q", "a"]}, "message 1: a str, expected an object"),
    ("ultrachat", {"messages": [{"role": "narrator", "content": "q"}]}, "role 'narrator'"),
    ("code_alpaca", {"instruction": "x", "input": ""}, "'output' is missing"),
    ("code_alpaca", {"instruction": "x", "input": 4, "output": "y"}, "'input' is int"),
    ("math", {"problem": "x", "solution": " "}, "'solution' is empty"),
    ("wikitext2", {"line": "x"}, "'text' is missing"),
    ("wikitext2", {"text": 5}, "'text' is int"),
    ("chat", {"content": "x"}, "no messages, no question with an answer, no text: it has content"),
    ("chat", {"messages": []}, "no assistant message"),
    ("chat", {"messages": "[" * 100_000}, "'messages' is no valid JSON"),
    ("chat", {"question": "q", "answer": "a", "history": 5}, "'history' is int, expected a list"),
    ("chat", {"messages": [{"role": "user", "content": None}]}, "message 1: has no text"),
    ("chat", {"messages": "[{'role': 'user', 'content': 'q'}]"}, "written by Python"),
    ("chat", {"question": "q", "answer": ["a"]}, "'answer' is list, expected text"),
    ("chat", {"text": "q", "answer": "a"}, "--columns question=text answer=answer reads both"),
    ("chat", {"role": "user", "content": "q"}, "one message of a conversation"),
    ("chat", {"role": "prompter", "text": "q", "parent_id": None}, "one message of a conversation"),
]


@pytest.mark.parametrize("dataset", GOOD)
def test_rows_render_and_decode_back(dataset: str) -> None:
    """Lossless in BPE: every content is found again, character for character."""
    found = DATASETS[dataset]
    tokenizer = BPE.train(["some text to learn from"], 280)
    renderer = make_renderer(tokenizer, found, 99)
    for row in GOOD[dataset]:
        (document,) = render_rows(renderer, found, [row])
        assert_decodes_back(tokenizer, found.conversation(row), document)


def assert_decodes_back(tokenizer: BPE, conversation: Any, document: Any) -> None:
    turns: list[tuple[str, list[int]]] = []
    roles = {token: role for role, token in tokenizer.roles.items()}
    assert document.ids[0] == tokenizer.bos
    role, content = "text", []
    for token, answers in zip(document.ids[1:], document.assistant[1:], strict=True):
        if token in roles:
            role = roles[token]
            assert not answers
            continue
        assert answers == (role == "assistant")
        if token == tokenizer.end:
            turns.append((role, content))
            role, content = "text", []
        else:
            content.append(token)
    assert [(r, tokenizer.decode(c)) for r, c in turns] == [
        (message["role"], message["content"]) for message in conversation
    ]


@pytest.mark.parametrize("dataset", SAMPLES)
def test_every_built_in_row_is_good_on_both_roads(dataset: str) -> None:
    found = DATASETS[dataset]
    source = open_source(found, "sample")
    rows = [item.row for item in source.splits["validation"]() if isinstance(item, Located)]
    tokenizer = BPE.train((m["content"] for r in rows for m in found.conversation(r)), 600)
    renderer = make_renderer(tokenizer, found, 99)
    for row, document in zip(rows, render_rows(renderer, found, rows), strict=True):
        assert_decodes_back(tokenizer, found.conversation(row), document)
    if found.word1000_refusal is not None:
        return
    words = Word1000.train(found.vocabulary_text(row) for row in rows)
    protocol = make_renderer(words, found, found.protocol_length)
    for row in rows:
        try:
            documents = render_rows(protocol, found, [row])
        except LeftOut:
            assert dataset == "wikitext2"
            continue
        assert documents
        assert all(2 <= len(d.ids) <= found.protocol_length for d in documents)


@pytest.mark.parametrize(("dataset", "row", "complaint"), BAD)
def test_malformed_rows_say_why(dataset: str, row: dict[str, Any], complaint: str) -> None:
    for read in (DATASETS[dataset].conversation, DATASETS[dataset].protocol_text):
        with pytest.raises(ValueError, match=complaint) as error:
            read(row)
        assert not isinstance(error.value, LeftOut)


@pytest.mark.parametrize("tokenizer", ["bpe", "word1000"])
@pytest.mark.parametrize("dataset", GOOD)
def test_malformed_rows_are_counted_not_fatal(tmp_path: Path, dataset: str, tokenizer: str) -> None:
    bad = [row for name, row, _ in BAD if name == dataset]
    lines = [json.dumps(row) for row in [*GOOD[dataset] * 20, *bad]]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    source = open_source(DATASETS[dataset], str(tmp_path))
    counts = prepare_training(source, Encoding(dataset, tokenizer, 300, 64)).accounting["train"]
    assert counts.malformed == len(bad)
    assert counts.rows == len(lines)
    assert counts.documents == counts.rows - counts.malformed - counts.left_out


def test_hh_rlhf_turns_lose_only_the_space_around_them() -> None:
    row = {"chosen": "\n\nHuman:  a\n\nb \n\nAssistant: c  d\n\n e\n"}
    assert hh_rlhf_conversation(row) == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c  d\n\n e"},
    ]


def test_protocol_texts() -> None:
    texts = {name: DATASETS[name].protocol_text(rows[0]) for name, rows in GOOD.items()
             if name != "wikitext2"}  # fmt: skip
    assert texts["hh_rlhf"] == "Human: Hi Assistant: Hello! Human: ok Assistant: Bye."
    assert texts["ultrachat"] == "q1 a1 q2 a2"
    assert texts["code_alpaca"].split() == (
        "Instruction: Add. Input: a, b Output: def add(a, b): return a + b".split()
    )
    assert texts["math"] == "Problem: $1+1$? Solution: $\\boxed{2}$"
    assert DATASETS["code_alpaca"].protocol_text(GOOD["code_alpaca"][1]) == (
        "Instruction: Add. Output: A + B"
    )


def test_wikitext_windows() -> None:
    """Rows of five words and more; longer than 64 tokens: whole windows of 64, 32 apart."""
    found = DATASETS["wikitext2"]
    with pytest.raises(LeftOut):
        found.protocol_text({"text": "one two three four"})
    renderer = make_renderer(Word1000.train(["w"]), found, found.protocol_length)
    for words, windows, cut in ((5, 1, 0), (62, 1, 0), (63, 1, 1), (94, 2, 0), (130, 3, 4)):
        documents = renderer.documents([" ".join("w" * words)])  # type: ignore[list-item]
        assert len(documents) == windows
        assert sum(d.cut_tokens for d in documents) == cut
        assert all(len(d.ids) == min(64, words + 2) for d in documents)
        assert documents[0].ids[0] == 2
        if windows > 1:
            assert documents[1].ids[:32] == documents[0].ids[32:]


def test_subsets_by_folder_and_by_field(tmp_path: Path) -> None:
    for part in ("helpful-base", "harmless-base", "helpful-online"):
        for name in ("train", "test"):
            (tmp_path / part).mkdir(exist_ok=True)
            row = {"chosen": f"\n\nHuman: {part}\n\nAssistant: {name}"}
            (tmp_path / part / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    level = DATASETS["hh_rlhf"]

    def texts(subset: str) -> list[str]:
        rows = open_source(level, str(tmp_path), subset).training_splits()[0]()
        return sorted(item.row["chosen"].split()[1] for item in rows if isinstance(item, Located))

    assert texts("helpful") == ["helpful-base"]
    assert texts("harmless") == ["harmless-base"]
    assert texts("all") == ["harmless-base", "helpful-base"], "only the parts that the level names"
    fingerprints = {open_source(level, str(tmp_path), s).fingerprint for s in ("all", "helpful")}
    assert len(fingerprints) == 2
    for subset in ("helpful", "harmless"):
        train, validation = open_source(level, "sample", subset).training_splits()
        for rows in (train, validation):
            parts = {item.row["subset"] for item in rows() if isinstance(item, Located)}
            assert parts == {f"{subset}-base"}


def test_subset_that_rows_do_not_tell_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD["hh_rlhf"][0]) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl:1 does not say which part"):
        list(open_source(DATASETS["hh_rlhf"], str(file), "helpful").training_splits()[0]())
    with pytest.raises(UserError, match="dolly has no such part"):
        open_source(DATASETS["dolly"], "sample", "helpful")
    assert resolve("hh_rlhf", {"subset": "harmless"}).run_name.startswith(
        "new_llm_hh_rlhf_harmless_layers1"
    )


def test_math_in_its_original_folders(tmp_path: Path) -> None:
    """One JSON file a problem, in train/SUBJECT and test/SUBJECT."""
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            file = tmp_path / "MATH" / split / "algebra" / f"{number}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(GOOD["math"][0], indent=4))
    train, validation = open_source(DATASETS["math"], str(tmp_path / "MATH")).training_splits()
    assert [sum(isinstance(i, Located) for i in rows()) for rows in (train, validation)] == [4, 2]


def test_own_rows_need_a_path() -> None:
    with pytest.raises(UserError, match="--data PATH"):
        open_source(DATASETS["chat"], "hub")
    with pytest.raises(UserError, match="no built-in sample"):
        open_source(DATASETS["chat"], "sample")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_page_says_what_a_model_was_trained_on(dataset: str) -> None:
    """In both languages: else the welcome shows the name alone."""
    words = Path(__file__).parents[2] / "newllm" / "serve" / "page" / "words.js"
    assert words.read_text(encoding="utf-8").count(f"\n  data_{dataset}: ") == 2
