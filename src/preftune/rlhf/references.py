"""What the policy is compared with in each round: its start, itself as it was, or what is drawn towards it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference

PREFIX = "reference."


class MovingReference:
    """A frozen copy that is drawn towards the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656, soft update).

    Args:
        frozen: the copy; it is changed in place.
        policy: what trains, of the same weights by name.
        mix: share of the policy in the new reference.
    """

    def __init__(self, frozen: FrozenReference, policy: PolicyModule, mix: float) -> None:
        self.frozen, self.mix = frozen, mix
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        own = dict(frozen.module.named_parameters())
        self.couples: dict[str, tuple[nn.Parameter, nn.Parameter]] = {n: (own[n], p) for n, p in trained.items()}

    @torch.no_grad()
    def move(self) -> None:
        """reference <- (1 - mix) * reference + mix * policy"""
        for own, policy in self.couples.values():
            own.lerp_(policy.detach().to(own), self.mix)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {f"{PREFIX}{name}": own for name, (own, _) in self.couples.items()}

    def restore(self, tensors: Any) -> None:
        """Put back what `tensors` gave; `tensors` are a checkpoint's."""
        for name, (own, _) in self.couples.items():
            tensors.read_into(f"{PREFIX}{name}", own)
