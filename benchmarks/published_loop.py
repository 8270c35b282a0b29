"""The time loop of the first published implementation, kept as it was: the yardstick of speed.

Everything happens at every step: the token's embedding and the context are concatenated, the output
layer runs, logits are collected and stacked. `newllm.model.baselines.original` computes the same
numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data.loader import IGNORED
from newllm.model.baselines.original import OriginalLM


class PublishedLoop(OriginalLM):
    """`OriginalLM`'s weights, run the published way."""

    def all_logits(self, ids: Tensor) -> Tensor:
        """Logits of every next token, [B, T] -> [B, T, V]; each row is a text of its own."""
        tokens = self.embedding(ids)
        context = tokens.new_zeros(len(ids), self.settings.context_dim)
        logits = []
        for t in range(ids.shape[1]):
            h = self.dropout(F.relu(self.in_proj(torch.cat([tokens[:, t], context], dim=-1))))
            for layer in self.hidden_layers:
                h = self.dropout(F.relu(layer(h)))
            logits.append(self.output(h))
            forget, write = torch.sigmoid(self.forget(h)), torch.sigmoid(self.write(h))
            context = self.context_norm(forget * context + write * self.delta(h))
            context = torch.clamp(context, min=-10.0, max=10.0)
        return torch.stack(logits, dim=1)

    def mean_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Nats per scored token."""
        logits = self.all_logits(ids)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
