"""The first published architecture, exactly: the yardstick (`--architecture original`).

One context vector for the whole network; `num_layers` counts the feed-forward layers inside the
time step. The recurrence is dense and nonlinear, so time is a loop.

::

    h   = dropout(relu(W_in [embed(x_t); c_{t-1}]))      # then num_layers - 1 times:
    h   = dropout(relu(W h))
    f, i, delta = sigmoid(W_f h), sigmoid(W_i h), W_d h
    c_t = clamp(LayerNorm(f * c_{t-1} + i * delta), -10, 10)
    logits = W_out h

`read_loop` is that loop in plain torch. Autograd's backward of it adds to the gradient of every
weight at every time step: small products, a pass over all weights each, and in bfloat16 a rounding
each. `read_loop_fused` keeps what enters those products, and one product over all time steps
follows it. Shapes: B sequences, T time steps, C size of the context, H width of the hidden layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.kernels import Noise, active_kernel
from newllm.model.loss import sum_of_nats
from newllm.model.sampled_softmax import SampledVocabulary
from newllm.model.trunk import TokenScores

_INIT_STD = 0.02

CLAMP = 10.0
"""Largest number in a context."""

EPSILON = 1e-5
"""Added to the variance by the norm of the context: torch's default, as published."""


class OriginalLM(nn.Module):
    """Same interface as `ContextLM`; the state is {"context": [1, B, C]}."""

    TOKENS_ON_CPU: ClassVar[bool] = False
    """Whether tokens may be on the CPU while the weights are on a GPU."""

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

    def set_dropout(self, p: float) -> None:
        """Drop hidden numbers with this probability from now on, in training mode."""
        self.dropout.p = p

    def late_decaying(self) -> Iterator[nn.Parameter]:
        """Parameters that decay once rows are read again: none."""
        yield from ()

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
        read = read_loop_fused if fast else read_loop
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

    def token_scores(self, hidden: Tensor, targets: Tensor) -> TokenScores:
        """How N positions [N, H] predict their targets [N]."""
        logits = self.logits(hidden).float()
        nats = F.cross_entropy(logits, targets, reduction="none")
        return TokenScores(nats, logits.argmax(dim=1) == targets, None)

    def loss(
        self, hidden: Tensor, targets: Tensor, sample: SampledVocabulary | None = None
    ) -> Tensor:
        """Sum of nats over the scored targets; see :func:`newllm.model.loss.sum_of_nats`."""
        return sum_of_nats(hidden, self.output.weight, self.output.bias, targets, sample)


@dataclass(frozen=True)
class Loop:
    """What a loop runs on besides what it is differentiated by.

    Attributes:
        reset: True where a document starts and the context before it is forgotten, [B, T].
        valid: False where a token is padding and leaves the context as it is, [B, T].
        dropout: probability with which a hidden number becomes zero.
    """

    reset: Tensor | None
    valid: Tensor | None
    dropout: float


def read_loop(
    loop: Loop,
    tokens: Tensor,
    context: Tensor,
    read_context: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    gates: Sequence[tuple[Tensor, Tensor]],
    norm: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Read tokens one after the other.

    Args:
        loop: resets, padding, dropout.
        tokens: what the first layer reads of the tokens, bias included, [B, T, H].
        context: before the first token, [B, C].
        read_context: what it reads of the context, [H, C].
        layers: weight [H, H] and bias [H] of each further layer.
        gates: weight [C, H] and bias [C] of forget gate, write gate and delta.
        norm: weight and bias of the context's norm, [C] each.

    Returns:
        hidden [B, T, H], zero at padding, and the last context [B, C].
    """
    outputs = []
    for t in range(tokens.shape[1]):
        if loop.reset is not None:
            context = context * ~loop.reset[:, t, None]
        h = F.relu(tokens[:, t] + F.linear(context, read_context))
        h = F.dropout(h, loop.dropout)
        for weight, bias in layers:
            h = F.dropout(F.relu(F.linear(h, weight, bias)), loop.dropout)
        forget, write, delta = (F.linear(h, *gate) for gate in gates)
        new = torch.sigmoid(forget) * context + torch.sigmoid(write) * delta
        new = F.layer_norm(new.to(context.dtype), norm[0].shape, *norm, eps=EPSILON)
        new = new.clamp(-CLAMP, CLAMP)
        if loop.valid is not None:
            new = torch.where(loop.valid[:, t, None], new, context)
            h = h * loop.valid[:, t, None]
        context = new
        outputs.append(h)
    return torch.stack(outputs, dim=1) if outputs else tokens, context


def read_loop_fused(
    loop: Loop,
    tokens: Tensor,
    context: Tensor,
    read_context: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    gates: Sequence[tuple[Tensor, Tensor]],
    norm: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The same as :func:`read_loop`, for training: it keeps all that its backward reads.

    Products are in the type of `tokens`; the three gates are one.
    """
    weights, biases = zip(*gates, strict=True)
    parts = [part for layer in layers for part in layer]
    stacked = torch.cat(weights), torch.cat(biases)
    return _TimeLoop.apply(loop, tokens, context, read_context, *stacked, *norm, *parts)


class _TimeLoop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loop: Loop,
        tokens: Tensor,
        context: Tensor,
        read_context: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dtype = tokens.dtype
        steps = tokens.transpose(0, 1).contiguous()  # [T, B, H]
        read, gate_w, gate_b = (x.to(dtype) for x in (read_context, gate_weight, gate_bias))
        inner = [layer.to(dtype) for layer in layers]
        (length, batch, width), size = steps.shape, context.shape[1]
        hidden = steps.new_empty(1 + len(inner) // 2, length, batch, width)
        gates = steps.new_empty(length, batch, 3 * size)
        before, raw = (context.new_empty(length, batch, size) for _ in range(2))
        moments = []
        keep = None if loop.reset is None else ~loop.reset.t()[:, :, None]  # [T, B, 1]
        valid = None if loop.valid is None else loop.valid.t()[:, :, None]
        with torch.autocast(tokens.device.type, enabled=False):
            for t in range(length):
                if keep is not None:
                    context = context * keep[t]
                before[t] = context
                h = torch.addmm(steps[t], context.to(dtype), read.t()).relu_()
                hidden[0, t] = h = F.dropout(h, loop.dropout)
                for layer, (weight, bias) in enumerate(zip(inner[::2], inner[1::2], strict=True)):
                    h = F.linear(h, weight, bias).relu_()
                    hidden[layer + 1, t] = h = F.dropout(h, loop.dropout)
                gate = torch.addmm(gate_b, h, gate_w.t(), out=gates[t])
                gate[:, : 2 * size].sigmoid_()
                forget, write, delta = gate.split(size, dim=1)
                new = torch.mul(context, forget, out=raw[t]).add_((write * delta).to(context.dtype))
                new, *moment = torch.native_layer_norm(new, [size], norm_weight, norm_bias, EPSILON)
                moments.append(moment)
                new = new.clamp_(-CLAMP, CLAMP)
                context = new if valid is None else torch.where(valid[t], new, context)
        ctx.loop, ctx.moments, ctx.inner = loop, moments, (read, gate_w, inner)
        ctx.save_for_backward(hidden, gates, before, raw, norm_weight, norm_bias)
        output = hidden[-1] if valid is None else hidden[-1] * valid
        return output.transpose(0, 1), context

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gates, before, raw, norm_weight, norm_bias = ctx.saved_tensors
        loop, (read, gate_w, inner) = ctx.loop, ctx.inner
        (length, batch, _), dtype = gates.shape, gates.dtype
        size, width = before.shape[2], hidden.shape[3]
        d_output, d_context = grads[0].transpose(0, 1), grads[1].to(before.dtype, copy=True)
        d_hidden, d_gates = torch.empty_like(hidden), torch.empty_like(gates)
        d_norm = torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)
        keep = None if loop.reset is None else ~loop.reset.t()[:, :, None]
        valid = None if loop.valid is None else loop.valid.t()[:, :, None]
        scale = 1 / (1 - loop.dropout)
        with torch.autocast(gates.device.type, enabled=False):
            for t in reversed(range(length)):
                past = None
                d_h = d_output[t]
                if valid is not None:
                    past, d_context = d_context * ~valid[t], d_context * valid[t]
                    d_h = d_h * valid[t]
                forget, write, delta = gates[t].to(before.dtype).split(size, dim=1)
                # What the clamp cut has no gradient; only there is the norm at its bounds.
                normed = torch.native_layer_norm(raw[t], [size], norm_weight, norm_bias, EPSILON)[0]
                d_normed = d_context.masked_fill_(normed.abs() > CLAMP, 0)
                d_new, *d_affine = torch.ops.aten.native_layer_norm_backward(
                    d_normed, raw[t], [size], *ctx.moments[t],
                    norm_weight, norm_bias, [True, True, True],
                )  # fmt: skip
                for total, part in zip(d_norm, d_affine, strict=True):
                    total += part
                d_gate = d_gates[t]
                d_gate[:, :size] = d_new * before[t] * (forget * (1 - forget))
                d_gate[:, size : 2 * size] = d_new * delta * (write * (1 - write))
                d_gate[:, 2 * size :] = d_new * write
                d_h = torch.addmm(d_h, d_gate, gate_w)
                for layer in reversed(range(hidden.shape[0])):
                    # A hidden number is zero where relu or dropout made it so.
                    d_h = torch.mul(d_h, hidden[layer, t] > 0, out=d_hidden[layer, t]).mul_(scale)
                    if layer:
                        d_h = d_h @ inner[2 * layer - 2]
                d_context = torch.addcmul((d_h @ read).to(before.dtype), d_new, forget)
                if past is not None:
                    d_context = d_context + past
                if keep is not None:
                    d_context = d_context * keep[t]
            rows = length * batch
            flat_gates, flat_hidden = d_gates.view(rows, -1), d_hidden.view(-1, rows, width)
            entered = hidden.view(-1, rows, width)
            wide = norm_weight.dtype
            d_read = (flat_hidden[0].t() @ before.view(rows, size).to(dtype)).to(wide)
            d_layers: list[Tensor] = []
            for layer in range(1, hidden.shape[0]):
                d_layers.append((flat_hidden[layer].t() @ entered[layer - 1]).to(wide))
                d_layers.append(flat_hidden[layer].sum(dim=0).to(wide))
            d_gate_weight = (flat_gates.t() @ entered[-1]).to(wide)
            d_gate_bias = flat_gates.sum(dim=0).to(wide)
        return (
            None, d_hidden[0].transpose(0, 1), d_context, d_read,
            d_gate_weight, d_gate_bias, *d_norm, *d_layers,
        )  # fmt: skip
