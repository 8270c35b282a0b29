"""A minGRU (Feng et al. 2024, arXiv:2410.01201) in plain torch, as a block of one's own.

newllm train dolly --data sample --architecture examples/own_block/min_gru.py:PlainMinGru
"""

import torch
from torch import nn

from newllm.model import Block, projection


class PlainMinGru(Block):
    """h_t = (1 - z_t) h_{t-1} + z_t n_t, with z_t = sigmoid(W_z x_t + b) and n_t = W_n x_t."""

    def __init__(self, embed_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__(embed_dim, hidden_dim)
        self.context_dim = context_dim
        self.in_proj = projection(embed_dim, 2 * context_dim)
        self.gate_bias = nn.Parameter(-torch.linspace(0.0, 5.0, context_dim))
        self.out_proj = projection(context_dim, embed_dim, zero=True)

    def carries(self):
        return {"hidden": (self.context_dim,)}

    def mix(self, normed, carried, boundaries):
        gate, new = self.in_proj(normed).float().chunk(2, dim=-1)
        z = torch.sigmoid(gate + self.gate_bias)
        starts, counts = boundaries.starts()[:, :, None], boundaries.counts()[:, :, None]
        keep = torch.where(counts, (1 - z) * ~starts, 1.0)  # padding keeps h, a start forgets it
        write = torch.where(counts, z * new, 0.0)
        (h,), read = carried, []
        for k, w in zip(keep.unbind(1), write.unbind(1), strict=True):
            h = k * h + w
            read.append(h)
        return self.out_proj(torch.stack(read, 1).to(normed.dtype)), [h]

    def mixing_matrices(self):  # which Muon trains; in_proj is two matrices, one above the other
        yield self.in_proj.weight, 2
        yield self.out_proj.weight, 1
