"""How a process without a GPU becomes one that runs Triton's kernels in its interpreter."""

from __future__ import annotations

import os

import torch


def enter_interpreter(cache: str) -> None:
    """Called in a fresh process, before anything imports Triton."""
    os.environ["TRITON_INTERPRET"], os.environ["NEWLLM_CACHE"] = "1", cache
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # memory that was never written is NaN
