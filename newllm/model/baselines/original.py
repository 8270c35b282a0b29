"""The first published architecture, exactly: the yardstick (`--architecture original`).

One context vector for the whole network; `num_layers` counts the feed-forward layers inside the
time step. The recurrence is dense and nonlinear, so time is a loop.

::

    h   = dropout(relu(W_in [embed(x_t); c_{t-1}]))      # then num_layers - 1 times:
    h   = dropout(relu(W h))
    f, i, delta = sigmoid(W_f h), sigmoid(W_i h), W_d h
    c_t = clamp(LayerNorm(f * c_{t-1} + i * delta), -10, 10)
    logits = W_out h
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.baselines.original_loop import Loop, fused, reference
from newllm.model.kernels import Noise, active_kernel
from newllm.model.loss import sum_of_nats

_INIT_STD = 0.02


class OriginalLM(nn.Module):
    """Same interface as `ContextLM`; the state is {"context": [1, B, C]}."""

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.settings, self.vocab_size = settings, vocab_size
        width, context_dim, hidden = settings.embed_dim, settings.context_dim, settings.hidden_dim
        self.embedding = nn.Embedding(vocab_size, width)
        self.in_proj = nn.Linear(width + context_dim, hidden)
        self.hidden_layers = nn.ModuleList(
            nn.Linear(hidden, hidden) for _ in range(settings.num_layers - 1)
        )
        self.forget = nn.Linear(hidden, context_dim)
        self.write = nn.Linear(hidden, context_dim)
        self.delta = nn.Linear(hidden, context_dim)
        self.context_norm = nn.LayerNorm(context_dim)
        self.output = nn.Linear(hidden, vocab_size)
        self.dropout = nn.Dropout(settings.dropout)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """State before the first token: {"context": [1, B, C]}, zeros, fp32."""
        shape = (1, batch_size, self.settings.context_dim)
        return {"context": self.output.weight.new_zeros(shape, dtype=torch.float32)}

    def forward(
        self,
        ids: Tensor,
        state: dict[str, Tensor] | None = None,
        reset: Tensor | None = None,
        valid: Tensor | None = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read tokens; arguments and results as :meth:`ContextLM.forward`.

        `noise` is ignored: dropout here is torch's own, as published.
        """
        context = (state or self.initial_state(ids.shape[0]))["context"][0]  # [B, C]
        width = self.settings.embed_dim
        # The embedding's half of W_in needs no context: one product for all time steps.
        read_token, read_context = self.in_proj.weight.split([width, context.shape[1]], dim=1)
        tokens = F.linear(self.embedding(ids), read_token, self.in_proj.bias)  # [B, T, H]
        gates = self.forget, self.write, self.delta
        loop = Loop(reset, valid, self.dropout.p if self.training else 0.0)
        fast = torch.is_grad_enabled() and active_kernel(ids.device) != "reference"
        read = fused if fast else reference
        hidden, context = read(
            loop,
            tokens,
            context,
            read_context,
            [(layer.weight, layer.bias) for layer in self._hidden()],
            [(gate.weight, gate.bias) for gate in gates],
            (self.context_norm.weight, self.context_norm.bias),
        )
        return hidden, {"context": context[None]}

    def _hidden(self) -> Iterator[nn.Linear]:
        for layer in self.hidden_layers:
            assert isinstance(layer, nn.Linear)
            yield layer

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, [..., H] -> [..., V]."""
        return self.output(hidden)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Sum of nats over the scored targets; see :func:`newllm.model.loss.sum_of_nats`."""
        return sum_of_nats(hidden, self.output.weight, self.output.bias, targets)
