"""Our models in lm-eval (the extra `eval`), under the name `newllm`.

How text becomes tokens:

- A context is `<bos>` and its tokens; an empty one is `<bos>` alone. A continuation is what its
  tokens add to those of the context.
- A rolling log-likelihood is that of `<bos> text <end>`, `<bos>` not scored: exactly what
  `newllm eval` scores for a row `{"text": ..}`, so that lm-eval's `bits_per_byte` is its `bpb`.
- With `--apply_chat_template` a context is the conversation as training saw it. The special tokens
  are in it by names that no text has (see `hf_tokenizer.py`); the end of an answer is only scored
  where a task writes its name.

The state is carried through texts of any length; nothing is ever cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from newllm.data.tokenizers import never_written
from newllm.export.hf_tokenizer import MARK, SPECIAL, require_bpe, to_fast
from newllm.inference.decoder import Stream, read_chunks, write_tokens
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.trained import TrainedModel

READ_TOKENS = 256
"""Positions of each text read at a time; the state is carried."""

Scored = tuple[list[int], list[int]]
"""Tokens that are read, and those after them that are scored."""


@register_model("newllm")
class NewLLM(TemplateLM):
    """A checkpoint of ours: `--model newllm --model_args pretrained=FILE`."""

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 32,
        max_gen_toks: int = 256,
        **_: Any,
    ) -> None:
        """Load the checkpoint.

        Args:
            pretrained: the file.
            device: auto, cpu, cuda or cuda:N.
            batch_size: texts read side by side; no result depends on it.
            max_gen_toks: tokens of an answer at most, where the task does not say.

        Raises:
            UserError: no checkpoint, or one of the word-1000 protocol.
        """
        super().__init__()
        self._trained = TrainedModel.load(pretrained, device or "auto")
        self._bpe = require_bpe(self._trained.tokenizer, pretrained)
        self._fast = to_fast(self._bpe)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else 32
        self._max_gen_toks = max_gen_toks
        self._device = self._trained.device

    @property
    def eot_token_id(self) -> int:
        return self._bpe.end

    @property
    def prefix_token_id(self) -> int:
        return self._bpe.bos

    @property
    def tokenizer_name(self) -> str:
        """Goes into the key of lm-eval's request cache."""
        return f"newllm-{self._trained.data['fingerprint']}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids; begins with `<bos>` unless the string does, or is not to."""
        ids = self._fast.encode(string, add_special_tokens=False).ids
        if add_special_tokens is False or ids[:1] == [self._bpe.bos]:
            return ids
        return [self._bpe.bos, *ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as a text with the names of the special tokens."""
        end = SPECIAL[self._bpe.end]
        text = SPECIAL[self._bpe.bos]
        for number, message in enumerate(chat_history, start=1):
            said = message["content"].replace(MARK, "\ufffd")
            open_end = number == len(chat_history) and not add_generation_prompt
            text += SPECIAL[self._bpe.roles[message["role"]]] + said + ("" if open_end else end)
        return text + (SPECIAL[self._bpe.roles["assistant"]] if add_generation_prompt else "")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "newllm"

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        results = self._score([(context, continuation) for _, context, continuation in requests])
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        texts = [request.args[0] for request in requests]
        bos, end = self._bpe.bos, self._bpe.end
        scored = [([bos], [*self.tok_encode(text)[1:], end]) for text in texts]
        sums = [nats for nats, _ in self._score(scored)]
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            context, options = cast("tuple[str, dict[str, Any]]", request.args)
            answer = self._write(self.tok_encode(context), options)
            self.cache_hook.add_partial("generate_until", (context, options), answer)
            answers.append(answer)
        return answers

    def _write(self, ids: list[int], options: dict[str, Any]) -> str:
        """The answer up to the first of the strings that end it, which is left out."""
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else [text for text in until if text]
        temperature = float(options.get("temperature") or 0) if options.get("do_sample") else 0.0
        sampling = Sampling(temperature, float(options.get("top_p") or 1), seed=0)
        limit = int(options.get("max_gen_toks") or self._max_gen_toks)
        stream = Stream(self._trained.decoder)
        stream.read(ids)
        sampler = Sampler(sampling, never_written(self._bpe))
        said = bytearray()
        for token in write_tokens(stream, sampler, self._bpe.end, limit):
            said += self._bpe.piece(token)
            found = [start for start in (said.find(text.encode()) for text in until) if start >= 0]
            if found:
                return said[: min(found)].decode(errors="replace")
        return said.decode(errors="replace")

    def _score(self, texts: Sequence[Scored]) -> list[tuple[float, bool]]:
        """ln p of what is scored, and whether each of its tokens was the likeliest."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            scored = self._score_together([texts[i] for i in chosen])
            for index, result in zip(chosen, scored, strict=True):
                results[index] = result
        return results

    @torch.inference_mode()
    def _score_together(self, texts: Sequence[Scored]) -> Iterator[tuple[float, bool]]:
        model = self._trained.model
        rows = [[*read, *scored] for read, scored in texts]
        length = max(map(len, rows)) - 1
        targets = torch.zeros(len(rows), length, dtype=torch.long)
        counts = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, (row, (read, _)) in enumerate(zip(rows, texts, strict=True)):
            targets[number, : len(row) - 1] = torch.tensor(row[1:])
            counts[number, len(read) - 1 : len(row) - 1] = True
        total = torch.zeros(len(rows), dtype=torch.float64)
        greedy = torch.ones(len(rows), dtype=torch.bool)
        state = model.initial_state(len(rows))
        chunks = read_chunks(model, [row[:-1] for row in rows], state, READ_TOKENS)
        for part, hidden, _ in chunks:
            here = counts[:, part]
            numbers, wanted = here.nonzero()[:, 0], targets[:, part][here]
            logits = model.logits(hidden[here.to(self._device)]).float().cpu()
            nats = F.cross_entropy(logits, wanted, reduction="none").double()
            total.index_add_(0, numbers, -nats)
            greedy[numbers[logits.argmax(dim=-1) != wanted]] = False
        yield from zip(total.tolist(), greedy.tolist(), strict=True)


if __name__ == "__main__":  # lm-eval's command line, with our models in it
    from lm_eval.__main__ import cli_evaluate

    from newllm.errors import UserError

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"newllm: {error}")
