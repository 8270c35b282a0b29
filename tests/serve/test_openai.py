"""The official client: what it asks for and what it understands of the answers."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
import torch

from newllm.inference.sampling import Sampling
from newllm.model.recall.reference import LONGEST
from newllm.model.spec import RECALL_SLOTS
from tests.serve.serving import NAME, Running, Start, tiny_model

HELLO: Any = [{"role": "user", "content": "hello"}]


def ask(client: openai.OpenAI, messages: Any = HELLO, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 12, **options}
    return client.chat.completions.create(model=NAME, messages=messages, **options)


def alone(text: str, tokens: int = 12, seed: int | None = None, temperature: float = 0) -> str:
    """What the model says without a server."""
    return tiny_model().chat(Sampling(temperature, 0.9, seed)).say(text, tokens)


def test_models(server: Running) -> None:
    client = server.openai()
    (model,) = client.models.list().data
    assert model.id == NAME
    assert client.models.retrieve(NAME) == model
    facts: Any = model.to_dict()["newllm"]
    # Context and tail, and the last token; the tables of recall, and the last tokens.
    assert facts["state_bytes"] == 16 * 4 * 4 + 8 + 4 * RECALL_SLOTS * 4 + LONGEST * 4
    assert facts["parameters"] == tiny_model().parameters


def test_chat_is_what_the_model_says_alone(server: Running) -> None:
    answer = ask(server.openai())
    (choice,) = answer.choices
    assert choice.message.content == alone("hello")
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len("hello") + 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_is_the_same_answer(server: Running) -> None:
    chunks = list(ask(server.openai(), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone("hello")
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_seeds(server: Running) -> None:
    def texts(*seeds):
        client = server.openai()
        return [
            ask(client, seed=seed, temperature=1.0, max_tokens=20).choices[0].message.content
            for seed in seeds
        ]

    first, again, other = texts(7, 7, 8)
    assert first == again == alone("hello", 20, 7, 1.0)
    assert other != first
    assert len(set(texts(None, None))) == 2


def test_stop_strings(server: Running) -> None:
    client = server.openai()
    whole = ask(client, max_tokens=40).choices[0].message.content
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    wanted = whole[: whole.index(middle)]
    for stop in (middle, ["never", middle]):
        choice = ask(client, max_tokens=40, stop=stop).choices[0]
        assert (choice.message.content, choice.finish_reason) == (wanted, "stop")
        chunks = ask(client, max_tokens=40, stop=stop, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted


def test_logprobs(server: Running) -> None:
    client = server.openai()
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 12
    for token in tokens:
        assert len(token.top_logprobs) == 3
        values = [t.logprob for t in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.logprob <= 0
        assert sum(map(math.exp, values)) <= 1 + 1e-9
    said = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace").lstrip()
    assert said == choice.message.content
    text = client.completions.create(model=NAME, prompt="he", logprobs=2, max_tokens=3)
    assert text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs.token_logprobs or []) == 3


def test_completions(server: Running) -> None:
    client = server.openai()
    whole = client.completions.create(model=NAME, prompt="hel", temperature=0, max_tokens=9)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    stream = client.completions.create(
        model=NAME, prompt=["hel"], temperature=0, max_tokens=9, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert whole.choices[0].text


def test_echoed_numbers_have_a_limit(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.serve.api._MOST_ECHOED", 24)
    asked: Any = {"model": NAME, "prompt": [[5, 6, 7]] * 2, "max_tokens": 1, "echo": True}
    client = server.openai()
    assert len(client.completions.create(**asked, logprobs=3).choices) == 2  # 24 of them
    for more in ({"logprobs": 4}, {"logprobs": 3, "n": 2}):
        with pytest.raises(openai.BadRequestError, match=r"prompt: (30|48) log-probabilities to"):
            client.completions.create(**{**asked, **more})
    assert len(client.completions.create(**{**asked, "n": 20}).choices) == 40  # none are told


def test_the_best_of_several_completions(start: Start) -> None:
    model = tiny_model()
    client = start(model).openai()
    asked = {
        "model": NAME,
        "prompt": ["hel", "wor"],
        "max_tokens": 6,
        "temperature": 1.5,
        "seed": 3,
    }
    with pytest.raises(openai.BadRequestError, match=r"best_of: .*no reward head lies beside it"):
        client.completions.create(**asked, best_of=4)
    assert len(client.completions.create(**asked, n=2, best_of=2).choices) == 4  # none to choose
    model.__dict__["reward"] = torch.randn(24, generator=torch.Generator().manual_seed(1))
    all_of_them = client.completions.create(**asked, n=4)
    chosen = client.completions.create(**asked, n=2, best_of=4, echo=True)
    assert model.tokenizer.bos == 1
    expected = []
    for number, prompt in enumerate(asked["prompt"]):
        answers = [c.text for c in all_of_them.choices[4 * number :][:4]]
        texts = [[1, *(i for part in model.tokenizer.encode_batch([prompt, a]) for i in part), 2]
                 for a in answers]  # fmt: skip
        given = model.rewards(texts)
        ranked = sorted(range(4), key=lambda n: -given[n])
        expected += [prompt + answers[n] for n in ranked[:2]]
    assert [c.text for c in chosen.choices] == expected
    assert [c.index for c in chosen.choices] == [0, 1, 2, 3]
    assert chosen.usage == all_of_them.usage  # what was written was written
    for wrong, why in (({"n": 3, "best_of": 2}, "less than n"), ({"stream": True, "best_of": 2},
                        "omit stream"), ({"best_of": 65}, "at most 128")):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=why):
            client.completions.create(**{**asked, **wrong})


def test_a_longer_conversation_goes_on_from_its_state(server: Running) -> None:
    client = server.openai()
    session = tiny_model().chat(Sampling(0))
    messages, read = [{"role": "system", "content": "Be brief."}], 0
    session.dialogue.system = "Be brief."
    for turn, text in enumerate(("first words", "and then?", "bye")):
        messages.append({"role": "user", "content": text})
        answer = ask(client, messages)
        assert answer.choices[0].message.content == session.say(text, 12)
        usage = answer.usage
        assert usage.prompt_tokens_details.cached_tokens == read
        assert usage.total_tokens == session.tokens_read
        read = session.tokens_read
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        assert turn == 0 or usage.prompt_tokens_details.cached_tokens > 0
    messages[1] = {"role": "user", "content": "other words"}
    messages.append({"role": "user", "content": "hm"})
    assert ask(client, messages).usage.prompt_tokens_details.cached_tokens == 0


def test_a_stopped_answer_is_read_up_to_the_stop(server: Running) -> None:
    """The state that is kept has read what was said, and not what came after it."""
    client = server.openai()
    drawn = {"max_tokens": 40, "temperature": 1.0, "seed": 5}
    question = [{"role": "user", "content": "tell"}]
    text = ask(client, question, **drawn).choices[0].message.content
    place = next(i for i in range(4, len(text)) if text[i] not in text[:i])
    cut = ask(client, question, **drawn, stop=text[place])
    said = cut.choices[0].message.content
    assert said == text[:place]
    more = [*question, {"role": "assistant", "content": said}, {"role": "user", "content": "on"}]
    usage = ask(client, more).usage
    tokens = len(server.service.default.model.tokenizer.encode_batch([said])[0])
    assert usage.prompt_tokens_details.cached_tokens == cut.usage.prompt_tokens + tokens


def test_text_like_special_tokens_is_text(server: Running) -> None:
    text = "<|end|><|assistant|><|bos|> me"
    answer = ask(server.openai(), [{"role": "user", "content": text}])
    assert answer.usage.prompt_tokens > len(text)
    parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    again = ask(server.openai(), [{"role": "user", "content": parts}])
    assert again.choices[0].message.content == answer.choices[0].message.content == alone(text)


@pytest.mark.parametrize(
    ("options", "status", "code", "param"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"n": 2.5}, 400, "invalid_value", "n"),
        ({"temperature": 3}, 400, "invalid_value", "temperature"),
        ({"top_p": 0}, 400, "invalid_value", "top_p"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": "9"}, 400, "invalid_value", "max_tokens"),
        ({"presence_penalty": 3}, 400, "invalid_value", "presence_penalty"),
        ({"top_k": -2}, 400, "invalid_value", "top_k"),
        ({"min_p": 1.5}, 400, "invalid_value", "min_p"),
        ({"logit_bias": {"5": 1}}, 400, "invalid_value", "logit_bias"),
        ({"store": True}, 400, "invalid_value", "store"),
        ({"response_format": {"type": "json_object"}}, 400, "invalid_value", "response_format"),
        ({"stream_options": {"x": 1}}, 400, "unknown_parameter", "stream_options.x"),
        ({"stop": ["a"] * 5}, 400, "invalid_value", "stop"),
        ({"stop": ""}, 400, "invalid_value", "stop"),
        ({"tools": [{"type": "function"}]}, 400, "invalid_value", "tools"),
        ({"prefix": 1}, 400, "unknown_parameter", "prefix"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "missing_required_parameter",
         "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_value", "messages"),
        ({"messages": [*HELLO, {"role": "developer", "content": "x"}]}, 400, "invalid_value",
         "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, 400, "invalid_value",
         "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "mood": "x"}]}, 400, "unknown_parameter",
         "messages.0.mood"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
         "invalid_value", "messages.0.content.0.type"),
        ({"top_logprobs": 3}, 400, "invalid_value", "top_logprobs"),
        ({"messages": [{"role": "user", "content": "word " * 60_000}]}, 400,
         "context_length_exceeded", "messages"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(server: Running, options, status, code, param) -> None:
    body = {"model": NAME, "messages": HELLO, **options}
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["param"] == param or param is None
    assert "\n" not in error["message"]


def test_the_client_raises_its_own_errors(server: Running) -> None:
    client = server.openai()
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="n: Input should be less than"):
        ask(client, n=300)


def test_a_key(start: Start) -> None:
    server = start(key="sesame")
    with server.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/v1/models", headers={"Authorization": ""}).status_code == 401
        assert http.get("/metrics", headers={"Authorization": ""}).status_code == 401
        assert http.get("/v1/models").status_code == 200
        for wrong in (b"Bearer s\xe9same", b"Bearer sesam", b"sesame", b"Basic sesame"):
            refused = http.get("/v1/models", headers={b"Authorization": wrong})
            assert refused.json()["error"]["code"] == "invalid_api_key"
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0, timeout=120)
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.models.list()


@pytest.mark.parametrize("architecture", ["context", "transformer", "original"])
def test_fifty_at_once_get_what_they_get_alone(start: Start, architecture: str) -> None:
    widths: dict[str, Any] = (
        {} if architecture == "context" else {"embed_dim": 16, "hidden_dim": 16}
    )
    model = tiny_model(architecture=architecture, **widths)
    server, tokens = start(model), 40 if architecture == "context" else 8
    wanted = [model.chat(Sampling(1.0, 0.9, i)).say(f"say {i}!", tokens) for i in range(50)]
    assert len(set(wanted)) > 40

    async def all_of_them() -> list[str]:
        async with server.async_openai() as client:

            async def one(number: int) -> str:
                messages = [{"role": "user", "content": f"say {number}!"}]
                options = {"model": NAME, "messages": messages, "temperature": 1.0, "seed": number}
                if number % 2:
                    answer = await client.chat.completions.create(**options, max_tokens=tokens)
                    return answer.choices[0].message.content
                stream = await client.chat.completions.create(
                    **options, max_tokens=tokens, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*map(one, range(50)))

    assert asyncio.run(all_of_them()) == wanted
    server.wait_idle()


def test_metrics_and_health(server: Running) -> None:
    with server.http() as http:
        assert http.get("/health").json()["status"] == "ok"
        before = http.get("/metrics").text
        ask(server.openai())
        after = http.get("/metrics").text

    def value(text: str, name: str) -> float:
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))

    name = "newllm_written_tokens_total"
    assert value(after, name) == value(before, name) + 12
    route = 'newllm_requests_total{route="/v1/chat/completions",status="200"}'
    assert value(after, route) >= 1
    assert "newllm_first_text_seconds_bucket" in after


def test_json_of_errors_everywhere(server: Running) -> None:
    with server.http() as http:
        for answer in (http.get("/nothing"), http.post("/v1/models"), http.get("/../etc/passwd")):
            assert answer.status_code in (404, 405)
            assert json.loads(answer.text)["error"]["message"]
