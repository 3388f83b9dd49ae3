"""What training takes on each of several devices that share weights, gradients and moments (FSDP2), without them.

Sharded weights cannot be rehearsed with: a forward would gather them. So what is rehearsed is a copy without contents,
made before they were sharded; to that comes what a device holds of them, and what is whole for a while: the embedding,
the head and whatever else is in no layer, always; of the layers two, the one that computes and the one that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preftune.policy.policy import PolicyModule
from preftune.policy.reference import AdapterOffReference, FrozenReference, LiveReference, blank_copy
from preftune.training.memory import Estimate, Rehearsal, rehearse
from preftune.training.optim import OptimConfig, state_bytes, step_bytes
from preftune.training.step import Micro

LAYERS_WHOLE = 2  # one computes, the next is on its way


@dataclass(frozen=True)
class Blueprint:
    """A policy and its reference, on the meta device.

    Attributes:
        policy: a copy without contents.
        reference: what computes the reference's log-probs in each step, if anything does.
        computed: type of the computation; None: that of the weights.
    """

    policy: PolicyModule
    reference: LiveReference | None
    computed: torch.dtype | None

    @classmethod
    def of(
        cls, policy: PolicyModule, frozen: FrozenReference | None, live: bool, computed: torch.dtype | None
    ) -> Blueprint:
        """Draw it, before anything is sharded.

        Args:
            policy: to be trained.
            frozen: its reference, if that is a model of its own.
            live: True if the reference computes in each step, with the policy's own base if `frozen` is None.
            computed: type of the computation; None: that of the weights.
        """
        drawn = blank_copy(policy, "meta")
        reference: LiveReference | None = None
        if live:
            reference = (
                AdapterOffReference(drawn, drawn)
                if frozen is None
                else FrozenReference(blank_copy(frozen.module, "meta"))
            )
        return cls(drawn, reference, computed)

    def estimate(
        self,
        needs: frozenset[str],
        optim: OptimConfig,
        micros: Sequence[Micro],
        evaluated: Sequence[Micro],
        again: bool,
        processes: int,
    ) -> Estimate:
        """The most memory that training holds at once on one device.

        Args:
            needs: fields of `LogProbs` that the objective reads.
            optim: which optimiser.
            micros: the heaviest forwards of training.
            evaluated: the heaviest forwards of evaluation.
            again: True if an optimiser step has several forwards.
            processes: that weights, gradients and moments are shared out over.

        Raises:
            UnknownError: if a forward cannot be followed without computing it.
        """
        rehearsal = Rehearsal(self.policy, self.reference, needs)
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        kept = [self._master(parameter) for parameter in trained]
        whole = self._bytes(trained)  # all gradients, as the rehearsal has them
        peaks = [rehearse(rehearsal, micro, True, again, self.computed)[0] - whole for micro in micros]
        peaks = [peak + self._gradients() for peak in peaks]
        peaks += [rehearse(rehearsal, micro, False, False, self.computed)[0] for micro in evaluated]
        other = self.reference.module if isinstance(self.reference, FrozenReference) else None
        gathered = sum(self._whole(module) for module in (self.policy, other) if module is not None)
        frozen = [parameter for parameter in self.policy.parameters() if not parameter.requires_grad]
        return Estimate(
            weights=(_size(kept) + _size(frozen)) // processes + _size(self.policy.buffers()),
            reference=0 if other is None else _size(other.parameters()) // processes,
            optimizer=state_bytes(optim, kept) // processes,
            gradients=_size(kept) // processes,
            activations=gathered + max([*peaks, step_bytes(optim, kept)]),
        )

    def _master(self, parameter: Tensor) -> Tensor:
        """What trains is kept in float32, where the computation is in less."""
        return parameter if self.computed is None else parameter.float()

    def _bytes(self, tensors: Iterable[Tensor]) -> int:
        """Size of tensors in the type of the computation."""
        return sum(t.numel() * (t.element_size() if self.computed is None else self.computed.itemsize) for t in tensors)

    def _whole(self, module: PolicyModule) -> int:
        """What is gathered at once."""
        rest, largest = units(module)
        return self._bytes(rest) + LAYERS_WHOLE * self._bytes(largest)

    def _gradients(self) -> int:
        """Gradients that are whole at once, of what is in no layer and of a layer; and the same once more, laid out
        to be added up over the processes."""
        rest, largest = units(self.policy)
        trained = [parameter for parameter in (*rest, *largest) if parameter.requires_grad]
        return self._bytes(trained) + _size(map(self._master, trained))


def units(module: PolicyModule) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters in no layer, and those of the largest layer: FSDP2 gathers each layer as one."""
    layers = [part for part in module.modules() if type(part).__name__ in module._no_split_modules]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in inside]
    return rest, max((list(layer.parameters()) for layer in layers), key=_size, default=[])


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
