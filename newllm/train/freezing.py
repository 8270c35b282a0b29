"""Training only what growing added: the old numbers of a grown model stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from newllm.config import ModelSettings
from newllm.model.growth import old_entries


class Frozen:
    """The entries of a model's parameters that do not train."""

    def __init__(self, model: nn.Module, before: ModelSettings) -> None:
        """Wholly old parameters stop asking for gradients.

        Args:
            model: the grown model.
            before: its shape before it grew.
        """
        self._partly: list[tuple[Tensor, Tensor]] = []  # parameter, where it is old
        self._held: list[Tensor] = []
        for name, parameter in model.named_parameters():
            old = old_entries(name, parameter.detach(), before)
            if bool(old.all()):
                parameter.requires_grad_(False)
            elif bool(old.any()):
                self._partly.append((parameter, old))

    @torch.no_grad()
    def hold(self) -> None:
        """From now on the old entries are what they are at this moment."""
        self._held = [parameter[old].clone() for parameter, old in self._partly]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Before clipping and stepping: no part of the step is spent on the old entries."""
        for parameter, old in self._partly:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(old, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """After a step: undo what momentum and weight decay did to the old entries."""
        for (parameter, old), held in zip(self._partly, self._held, strict=True):
            parameter[old] = held
