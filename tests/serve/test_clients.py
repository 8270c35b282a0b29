"""What clients of other servers expect: several answers, tokens, likelihoods, the newer forms."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openai
import pytest

from newllm.export.lm_eval import NewLLM
from newllm.inference.sampling import Sampling
from newllm.serve.app import make_app
from newllm.serve.openapi import document
from tests.serve.serving import NAME, Running, Start, tiny_model
from tests.serve.test_openai import HELLO, alone, ask
from tests.untrained import save_model

CHAT = "/v1/chat/completions"


def test_values_that_ask_for_nothing(server: Running) -> None:
    nothing: dict[str, Any] = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {},
        "store": False, "parallel_tool_calls": True, "modalities": ["text"], "n": None,
        "frequency_penalty": None, "stop": None, "stream": None, "stream_options": None,
        "user": "me", "safety_identifier": "me", "prompt_cache_key": "k", "metadata": None,
        "reasoning_effort": None, "service_tier": "auto", "logprobs": False, "top_logprobs": 0,
    }  # fmt: skip
    body = {"model": NAME, "messages": HELLO, "temperature": 0, "max_tokens": 12}
    with server.http() as http:
        for given in (nothing, *({name: value} for name, value in nothing.items())):
            answer = http.post(CHAT, json={**body, **given})
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == alone("hello")
        for name in ("tools", "functions", "response_format", "logit_bias"):
            refused = http.post(CHAT, json={**body, name: [1]})
            assert refused.json()["error"]["param"] == name


def test_a_value_of_no_kind_is_told_all_kinds(server: Running) -> None:
    """Of a prompt that may be a text or a list, `expected a text` alone misled."""
    with server.http() as http:
        for wrong in ([], 5, {"a": 1}):
            refused = http.post("/v1/completions", json={"model": NAME, "prompt": wrong})
            error = refused.json()["error"]
            assert error["param"] == "prompt"
            assert "valid string; or: " in error["message"]
            assert any(word in error["message"] for word in ("valid array", "List should"))
        for start, what in ((b"\xef\xbb\xbf", "byte order mark"), (b"\x1f\x8b", "compressed")):
            refused = http.post(CHAT, content=start + b"{}")
            assert what in refused.json()["error"]["message"]


def test_a_clients_own_message_comes_back(server: Running) -> None:
    client = server.openai()
    said = ask(client).choices[0].message
    dumped = {**said.model_dump(), "tool_calls": [], "provider_specific_fields": {"refusal": None}}
    for message in (said, dumped, {"role": "assistant", "content": None}):
        assert ask(client, [*HELLO, message, {"role": "user", "content": "and?"}]).choices


def test_the_limit_cuts(start: Start) -> None:
    client = start(answer_tokens=5).openai()
    for most in (10**6, 2**63, 5.0):
        answer = ask(client, max_tokens=most, extra_body={"min_tokens": 5})
        assert answer.usage.completion_tokens == 5


def test_several_answers(server: Running) -> None:
    client = server.openai()
    options: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 20}
    answer = ask(client, n=3, **options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts == [alone("hello", 20, 7 + number, 1.0) for number in range(3)]
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens, "counted once"
    streamed, ends = [""] * 3, 0
    usage = {"include_usage": True}
    for chunk in ask(client, n=3, stream=True, stream_options=usage, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends += choice.finish_reason is not None
    assert (streamed, ends) == (texts, 3)
    prompts = client.completions.create(
        model=NAME, prompt=["he", "wor"], n=2, temperature=0, max_tokens=6
    )
    one = [client.completions.create(model=NAME, prompt=p, temperature=0, max_tokens=6)
           for p in ("he", "wor")]  # fmt: skip
    wanted = [one[0].choices[0].text] * 2 + [one[1].choices[0].text] * 2
    assert [choice.text for choice in prompts.choices] == wanted


def test_how_tokens_are_drawn(server: Running) -> None:
    """What the parameters mean is tested of the sampler; here, that they reach it."""
    client = server.openai()
    for given in ({"top_k": 1}, {"min_p": 1.0}):
        answer = ask(client, temperature=2.0, extra_body={**given, "repetition_penalty": 1})
        plain = tiny_model().chat(Sampling(0, repetition_penalty=1)).say("hello", 12)
        assert answer.choices[0].message.content == plain
    penalties: tuple[dict[str, Any], ...] = (
        {"frequency_penalty": 2.0}, {"presence_penalty": -2.0},
    )  # fmt: skip
    for given in penalties:
        said = ask(client, max_tokens=40, **given).choices[0].message.content
        sampling = Sampling(0, **given)
        assert said == tiny_model().chat(sampling).say("hello", 40) != alone("hello", 40)


def test_an_answer_that_is_begun_goes_on(server: Running) -> None:
    client = server.openai()
    begun = [*HELLO, {"role": "assistant", "content": "It is"}]
    answer = ask(client, begun)
    model = tiny_model()
    ids = model.renderer.prompt(HELLO) + model.tokenizer.encode_batch(["It is"])[0]
    assert answer.usage.prompt_tokens == len(ids)
    more = [*HELLO, {"role": "assistant", "content": "It is" + answer.choices[0].message.content}]
    told = ask(client, [*more, {"role": "user", "content": "and?"}])
    assert told.usage.prompt_tokens_details.cached_tokens > len(ids), "its state is kept"


def test_how_likely_a_text_is(server: Running, tmp_path) -> None:
    """As lm-eval's `local-completions` asks; and as our own model for lm-eval answers."""
    model, context, said = tiny_model(), "What comes", " after 3? After 3 comes 4."
    lm: Any = NewLLM  # its decorator hides what it is
    ours = lm(save_model(model, tmp_path / "tiny.pt"), device="cpu")
    before, after = ours.tok_encode(context)[1:], ours.tok_encode(said)[1:]
    (nats, greedy), = ours._score([([model.tokenizer.bos, *before], after)])  # fmt: skip
    client = server.openai()
    for prompt in (before + after, [model.tokenizer.bos, *before, *after]):
        choice = client.completions.create(
            model=NAME, prompt=[prompt], max_tokens=1, temperature=0, logprobs=1, echo=True
        ).choices[0]
        told: Any = choice.logprobs
        assert len(told.tokens) == len(prompt) + 1 == len(told.top_logprobs)
        scored = slice(len(prompt) - len(after), -1)
        assert sum(told.token_logprobs[scored]) == pytest.approx(nats, abs=1e-4)
        likeliest = [max(top, key=top.get) for top in told.top_logprobs[scored]]
        assert (likeliest == told.tokens[scored]) == greedy
        assert choice.text.startswith(context + said)
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    alone_ = client.completions.create(
        model=NAME, prompt=context + said, max_tokens=0, logprobs=0, echo=True
    ).choices[0]
    assert alone_.text == context + said
    assert alone_.finish_reason == "length"
    for wrong in ([10**6], [], [[]], [-1], ["a", 1]):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=NAME, prompt=wrong)
        assert str(refused.value.param).startswith("prompt")


def test_a_long_text_is_as_likely_in_parts(start: Start) -> None:
    """Prompts are read 256 tokens at a time; the first of a part is scored by the one before."""
    model = tiny_model()
    ids = [model.tokenizer.bos, *np.random.default_rng(0).integers(6, 270, 600).tolist()]
    choice = start().openai().completions.create(
        model=NAME, prompt=ids, max_tokens=0, logprobs=0, echo=True
    ).choices[0]  # fmt: skip
    told: Any = choice.logprobs
    hidden, _ = model.model(_tensor([ids[:-1]]), model.model.initial_state(1))
    logits = model.model.logits(hidden[0])
    wanted = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    assert told.token_logprobs[1:] == pytest.approx(wanted.tolist(), abs=1e-4)


def _tensor(ids: Any) -> Any:
    import torch

    return torch.tensor(ids)


def test_responses(server: Running) -> None:
    client = server.openai()
    wanted = ask(client, max_tokens=12).choices[0].message.content
    options: dict[str, Any] = {"model": NAME, "temperature": 0, "max_output_tokens": 12}
    response = client.responses.create(input="hello", **options)
    assert response.output_text == wanted
    assert (response.status, response.usage and response.usage.output_tokens) == ("incomplete", 12)
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    events = list(client.responses.create(input=items, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last: Any = events[-1]
    assert text == wanted == last.response.output_text
    told = client.responses.create(input=[*items, *response.output, *items], **options)
    assert told.usage
    assert told.usage.input_tokens_details.cached_tokens > 0
    briefly = client.responses.create(input="hello", instructions="Be brief.", **options)
    system = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert briefly.output_text == ask(client, system).choices[0].message.content
    for wrong, param in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**{"input": "hello", **options, **wrong})
        assert refused.value.param == param


def test_tokens(server: Running) -> None:
    model = tiny_model()
    with server.http() as http:
        ids = model.tokenizer.encode_batch(["After 3 é"])[0]
        for name in ("content", "prompt"):
            told = http.post("/tokenize", json={name: "After 3 é"}).json()
            assert told == {"tokens": ids, "count": len(ids)}
        special = http.post("/tokenize", json={"content": "", "add_special": True}).json()
        assert special["tokens"] == [model.tokenizer.bos]
        chat = http.post("/tokenize", json={"messages": HELLO}).json()
        assert chat["tokens"] == model.renderer.prompt(HELLO)
        assert http.post("/detokenize", json={"tokens": ids}).json()["content"] == "After 3 é"
        for path, wrong in (
            ("/tokenize", {}), ("/tokenize", {"content": "a", "prompt": "b"}),
            ("/tokenize", {"messages": [{"role": "assistant", "content": "x"}]}),
            ("/detokenize", {"tokens": [10**6]}), ("/detokenize", {"tokens": [-1]}),
        ):  # fmt: skip
            assert http.post(path, json=wrong).status_code == 400


def test_paths_and_methods(server: Running) -> None:
    with server.http() as http:
        for path in ("/chat/completions", "/models", "/completions"):
            refused = http.post(path, json={})
            assert refused.status_code == 404
            assert f"did you mean /v1{path}?" in refused.json()["error"]["message"]
        assert http.post("/v1/embeddings", json={}).status_code == 404
        for path in ("/v1/completions/", f"{CHAT}/", "/health/"):
            message = http.post(path, json={}).json()["error"]["message"]
            assert f"did you mean {path[:-1]}, without the slash" in message
        for method, path, allowed in (
            ("GET", CHAT, "POST"), ("POST", "/v1/models", "GET"), ("PUT", "/v1/sessions", "POST"),
            ("DELETE", "/", "GET"),
        ):  # fmt: skip
            refused = http.request(method, path)
            assert refused.status_code == 405, path
            assert allowed in refused.headers["Allow"]
            assert refused.json()["error"]["code"] == "method_not_allowed"


def test_what_there_is_is_documented(server: Running) -> None:
    with server.http() as http:
        told = http.get("/openapi.json").json()
        assert http.get("/docs").headers["content-type"].startswith("text/html")
        assert told == document(guarded=False)
    routes: Any = make_app(server.service).routes
    there = {(m.lower(), r.path.replace("{name:path}", "{id}"))
             for r in routes for m in r.methods or ()
             if not r.path.endswith((".js", ".css", ".svg", ".html"))}  # fmt: skip
    there -= {(m, p) for m, p in there if m == "head" or p in ("/", "/docs", "/openapi.json")}
    assert {(m, p) for p, methods in told["paths"].items() for m in methods} == there
    sampling = told["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"top_k", "min_p", "temperature", "messages"} <= sampling.keys()


def test_several_models_and_other_names(start: Start) -> None:
    models = {"one": tiny_model(), "two": tiny_model(seed=5)}
    server = start(model=models, aliases={"gpt-4o": "two"})
    client = server.openai()
    assert [m.id for m in client.models.list().data] == ["one", "two", "gpt-4o"]
    wanted = {name: model.chat(Sampling(0)).say("hello", 12) for name, model in models.items()}
    assert wanted["one"] != wanted["two"]
    for name, meant in (("one", "one"), ("two", "two"), ("gpt-4o", "two")):
        answer = client.chat.completions.create(
            model=name, messages=HELLO, temperature=0, max_tokens=12
        )
        assert (answer.model, answer.choices[0].message.content) == (name, wanted[meant])
    with server.http() as http:
        turn = {"content": "hello", "max_tokens": 12}
        for asked, meant in (({}, "one"), ({"model": "gpt-4o"}, "two")):
            session = http.post("/v1/sessions", json={"temperature": 0, **asked}).json()
            assert session["model"] == meant
            said = http.post(f"/v1/sessions/{session['id']}/turns", json=turn).json()
            assert said["choices"][0]["message"]["content"] == wanted[meant]
            file = http.get(f"/v1/sessions/{session['id']}/file").content
            assert http.post("/v1/sessions/file", content=file).json()["model"] == meant
        assert http.post("/v1/sessions", json={"model": "three"}).status_code == 404


def test_an_echoed_answer_that_a_stop_string_ends(server: Running) -> None:
    """As many likelihoods as tokens, though the answer is read once more up to the string."""
    body = {"model": NAME, "prompt": "hello", "max_tokens": 40, "logprobs": 1, "echo": True,
            "temperature": 0}  # fmt: skip
    with server.http() as http:
        whole = http.post("/v1/completions", json=body).json()["choices"][0]
        said = whole["text"].removeprefix("hello")
        stopped = http.post("/v1/completions", json={**body, "stop": said[3:5]}).json()["choices"]
    (choice,) = stopped
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == "hello" + said[: said.index(said[3:5])]
    logprobs = choice["logprobs"]
    count = len(logprobs["tokens"])
    for name, values in logprobs.items():
        assert len(values) == count, name
        assert values == whole["logprobs"][name][:count], name


def test_models_find_their_sessions_again(start: Start, tmp_path) -> None:
    models = {"one": tiny_model(), "two": tiny_model(seed=5)}
    server = start(model=models, sessions_dir=tmp_path)
    with server.http() as http:
        names = {n: http.post("/v1/sessions", json={"model": n}).json()["id"] for n in models}
    server.stop()
    with start(model=dict(reversed(models.items())), sessions_dir=tmp_path).http() as http:
        for name, session in names.items():
            assert http.get(f"/v1/sessions/{session}").json()["model"] == name


def test_a_stream_is_json_and_ends(server: Running) -> None:
    """Each event of a stream with likelihoods, alone and of several prompts."""
    body = {"model": NAME, "prompt": ["he", "wor"], "max_tokens": 3, "logprobs": 1, "echo": True,
            "stream": True, "temperature": 0}  # fmt: skip
    with server.http() as http:
        lines = http.post("/v1/completions", json=body).text.split("\n\n")
        whole = http.post("/v1/completions", json={**body, "stream": False}).json()["choices"]
    assert lines[-2:] == ["data: [DONE]", ""]
    texts = ["", ""]
    for line in lines[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole]
