"""Fixed prompts answered after every epoch, so that a person sees what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.chat.session import ChatSession
from newllm.data.render import Renderer
from newllm.inference.sampling import Sampling
from newllm.model import LanguageModel
from newllm.results.records import Answers, PromptAnswer

_ANSWER_TOKENS = 48
_REPEATED_WORDS = 3


def answer_prompts(model: LanguageModel, renderer: Renderer, prompts: Sequence[str]) -> Answers:
    """Greedy answers (no random number is drawn) and how repetitive they are."""
    was_training = model.training
    model.eval()
    answers: list[PromptAnswer] = []
    repeated = total = 0
    for prompt in prompts:
        session = ChatSession(model, renderer, Sampling(temperature=0))
        answer = session.say(prompt, max_new_tokens=_ANSWER_TOKENS)
        answers.append({"prompt": prompt, "answer": answer})
        again, runs = count_repetitions(answer)
        repeated, total = repeated + again, total + runs
    model.train(was_training)
    return {"answers": answers, "repetition_rate": repeated / total if total else 0.0}


def count_repetitions(text: str) -> tuple[int, int]:
    """(three-word runs that occurred before in the text, all three-word runs)."""
    words = text.split()
    runs = [tuple(words[i : i + _REPEATED_WORDS]) for i in range(len(words) - _REPEATED_WORDS + 1)]
    return len(runs) - len(set(runs)), len(runs)
