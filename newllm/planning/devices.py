"""Devices that a training can be planned for.

Peaks are those of the makers' data sheets (dense, 16-bit), prices what renting one costs about;
neither was measured here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from newllm.errors import UserError

UTILISATION = 0.4
"""Share of the peaks that is assumed to be reached, unless said."""

PASSES = 6
"""Times that each kept byte is assumed to go through a GPU's memory: written, read and summed up
forward, and the same for its gradient."""


@dataclass(frozen=True)
class Device:
    """One device, and how its neighbours in one machine are reached."""

    title: str
    flops: float
    """Arithmetic at its peak, FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes."""
    link: float
    """Bytes/s between neighbours."""
    price: float
    """Dollars an hour."""


DEVICES = {
    "t4": Device("T4", 65e12, 320e9, 16e9, 10e9, 0.40),
    "l4": Device("L4", 121e12, 300e9, 24e9, 12e9, 0.80),
    "rtx4090": Device("RTX 4090", 165e12, 1008e9, 24e9, 12e9, 0.50),
    "a100": Device("A100 40 GB", 312e12, 1555e9, 40e9, 200e9, 1.50),
    "a100-80gb": Device("A100 80 GB", 312e12, 2039e9, 80e9, 200e9, 2.00),
    "h100": Device("H100", 989e12, 3350e9, 80e9, 350e9, 3.00),
    "h200": Device("H200", 989e12, 4800e9, 141e9, 350e9, 4.00),
}
HERE = "here"


def parse_device(text: str) -> tuple[str, int]:
    """`l4x8` -> ("l4", 8); `here` is the machine that plans.

    Raises:
        UserError: unknown device.
    """
    known = sorted((HERE, *DEVICES), key=len, reverse=True)
    found = re.fullmatch(rf"({'|'.join(known)})(?:x([1-9]\d{{0,3}}))?", text.lower())
    if found is None or (found[1] == HERE and found[2] is not None):
        raise UserError(
            f"--device {text}: expected here, or one of {', '.join(DEVICES)}, "
            "with the number of them: l4x8"
        )
    return found[1], int(found[2] or 1)
