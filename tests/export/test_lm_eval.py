"""lm-eval's numbers are ours: on a task of our own, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from newllm.trained import TrainedModel

ROWS = [
    "The river is long.",
    "After 3 comes 4, and after 4 comes 5.\n\nThen 6.",
    "日本語 <|end|>",
    "The sea is deep. " * 60,  # longer than what is read at a time
    "a",
]
TASKS = {
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": 0,
        "doc_to_choice": [" river", " sea", " a"],
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks as YAML, and their rows."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ROWS)
    (folder / "validation.jsonl").write_text(rows, encoding="utf-8")
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(folder / "validation.jsonl")}}
        head = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**head, **task}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(trained: TrainedModel, place: Path, tmp_path_factory: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import newllm.export.lm_eval  # noqa: F401  (registers the model)

    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        evaluate: Any = lm_eval.simple_evaluate
        return evaluate(
            model="newllm",
            model_args=f"pretrained={trained.path},device=cpu",
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(place), include_defaults=False),
            batch_size=2,
            log_samples=True,
            bootstrap_iters=0,
        )


def adapter(trained: TrainedModel) -> Any:
    from newllm.export import lm_eval

    model: Any = lm_eval.NewLLM
    return model(str(trained.path), "cpu")


def test_bits_per_byte_are_those_of_eval(
    results: dict[str, Any], trained: TrainedModel, place: Path
) -> None:
    ours = trained.evaluate(str(place / "validation.jsonl"), dataset="chat")
    assert ours["rows"] == len(ROWS)
    theirs = results["results"]["rolling"]["bits_per_byte,none"]
    assert theirs == pytest.approx(ours["bpb"], rel=1e-6)


def test_likelihoods_are_those_of_the_module(
    results: dict[str, Any], trained: TrainedModel
) -> None:
    tokenizer, model = trained.tokenizer, trained.model
    for sample in results["samples"]["choice"]:
        text = sample["doc"]["text"]
        said, greedy = sample["filtered_resps"][0]
        # lm-eval moves blanks at the end into the continuation
        context, whole = tokenizer.encode_batch([text.rstrip(), text + " river"])
        ids = torch.tensor([[tokenizer.bos, *whole]])
        hidden, _ = model(ids[:, :-1])
        log_p = model.logits(hidden).log_softmax(-1)[0]
        scored = range(len(context), len(whole))
        expected = sum(float(log_p[i, whole[i]]) for i in scored)
        assert float(said) == pytest.approx(expected, abs=1e-3)
        assert bool(greedy) == all(int(log_p[i].argmax()) == whole[i] for i in scored)


def test_answers_are_greedy_and_end_where_the_task_says(
    results: dict[str, Any], trained: TrainedModel
) -> None:
    lm = adapter(trained)
    for sample in results["samples"]["answer"]:
        (answer,) = sample["filtered_resps"]
        free = lm._write(lm.tok_encode(sample["doc"]["text"]), {"max_gen_toks": 12})
        assert answer == free.split("e")[0]
    for row in ROWS:
        ids = lm.tok_encode(row)
        free = lm._write(ids, {"max_gen_toks": 12})
        for letter in {*free} - {"\ufffd"}:  # which stands for bytes that are no character
            stopped = lm._write(ids, {"max_gen_toks": 12, "until": letter})
            assert stopped == free.split(letter)[0]
    ids = lm.tok_encode(ROWS[0])
    free = lm._write(ids, {"max_gen_toks": 12})
    sampled = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    assert lm._write(ids, sampled) == lm._write(ids, sampled) != free


def test_conversations_are_rendered_as_in_training(trained: TrainedModel) -> None:
    lm = adapter(trained)
    messages: Any = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": " <|end|> 3?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "a\ufdd0b"},
    ]
    cleaned = [*messages[:3], {"role": "user", "content": "a\ufffdb"}]
    prompt = lm.apply_chat_template(messages)
    assert lm.tok_encode(prompt) == trained.renderer.prompt(cleaned)
    begun = lm.apply_chat_template(messages[:3], add_generation_prompt=False)
    (document,) = trained.renderer.documents([messages[:3]])
    assert [*lm.tok_encode(begun), lm.eot_token_id] == document.ids


def test_an_answer_with_its_end_costs_what_eval_counts(
    trained: TrainedModel, dolly_folder: Path
) -> None:
    from lm_eval.api.instance import Instance

    from newllm.export.hf_tokenizer import SPECIAL

    lm = adapter(trained)
    rows = (dolly_folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    nats, size = 0.0, 0
    requests = []
    for row in map(json.loads, rows):
        asked = row["instruction"] + (f"\n\n{row['context']}" if row["context"] else "")
        context = lm.apply_chat_template([{"role": "user", "content": asked}])
        pair = (context, row["response"] + SPECIAL[lm.eot_token_id])
        requests.append(Instance("loglikelihood", row, pair, 0))
        size += len(row["response"].encode())
    nats = -sum(said for said, _ in lm.loglikelihood(requests, disable_tqdm=True))
    ours = trained.evaluate(str(dolly_folder))["bpb_assistant"]
    assert nats / size / torch.log(torch.tensor(2.0)).item() == pytest.approx(ours, rel=1e-6)
