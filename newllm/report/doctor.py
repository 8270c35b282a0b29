"""`newllm doctor`: what this machine has, what is active, and how fast it is."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE

import newllm
from newllm.device import fast_bf16, pick_device, pick_precision, product_speed
from newllm.errors import how_to_install
from newllm.files import cache_folder
from newllm.model.kernels import KERNEL_VARIABLE, active_kernel, triton_is_installed

_PACKAGES = ("torch", "numpy", "numba", "tokenizers", "datasets")


def check_machine() -> dict[str, Any]:
    """Versions, device, active kernel, speed of matrix products, free disk."""
    device = pick_device("auto")
    cache = cache_folder()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    facts: dict[str, Any] = {
        "newllm": newllm.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: metadata.version(name) for name in _PACKAGES},
        "device": str(device),
        "cpu threads": torch.get_num_threads(),
        "recurrence kernel": active_kernel(device),
        "precision (auto)": pick_precision("auto", device),
        "fast bf16": fast_bf16(device),
        "matrix products fp32": f"{product_speed(device, torch.float32) / 1e9:,.0f} GFLOP/s",
        "matrix products bf16": f"{product_speed(device, torch.bfloat16) / 1e9:,.0f} GFLOP/s",
        "Hub": "offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "used when --data hub",
        "cache": f"{cache} ({shutil.disk_usage(existing).free / 1e9:,.1f} GB free)",
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        if active_kernel(device) == "reference":
            facts["note"] = how_to_get_triton()
    return facts


def how_to_get_triton() -> str:
    """What to do where the recurrence runs as a plain loop on a GPU."""
    remedy = f"unset {KERNEL_VARIABLE}"
    if not triton_is_installed():
        remedy = f"for the CUDA kernel install Triton: {how_to_install('gpu')} (Linux)"
    return f"the recurrence runs as a plain loop, which is slow on a GPU; {remedy}"
