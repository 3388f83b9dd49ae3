"""What a step saw of an optimiser batch: on the device where it was computed, until somebody asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.objectives.base import State
from preftune.training.metrics import Seen, columns

States = tuple[State, ...]
# What to do about a first step that is not finite: no learning rate has had a say in it.
UNTRAINED = "look at the objective's settings and at the weights of its rows"


@dataclass(frozen=True)
class Scored:
    """An optimiser batch as the objective sees it. Its tensors are where they were computed: each question for a value
    makes a device finish its work first, and `fetch` asks for those of many batches at once.

    Of several processes, each has its own part, until `Step.whole` puts the parts together.

    Attributes:
        losses: of each forward: the loss is their sum.
        seen: values of each example, in one or more pieces.
        states: objective states after the batch.
        norm: of the gradient, before clipping; None in evaluation.
        step: number of the optimiser step, from 0.
        rows: of the examples.
        scaled: True if a loss scaler decides which steps are taken (fp16): it skips those that are not finite.
        tokens: that were read.
        computed: the same with padding and stand-ins.
    """

    losses: tuple[Tensor, ...]
    seen: tuple[Seen, ...]
    states: States
    norm: Tensor | None = None
    step: int = 0
    rows: tuple[int, ...] = ()
    scaled: bool = False
    tokens: int = 0
    computed: int = 0

    @cached_property
    def loss(self) -> float:
        """The weighted mean of each term over the whole batch, summed over terms."""
        return sum((float(value) for value in self.losses), 0.0)

    @cached_property
    def columns(self) -> list[dict[str, Tensor]]:
        """Values of each example, on the host, in one or more pieces (see `metrics`)."""
        return [columns(piece) for piece in fetch([self])[0].seen]

    @property
    def gradient_norm(self) -> float | None:
        """Before clipping; None in evaluation."""
        return None if self.norm is None else float(self.norm)

    def with_parts(self, parts: Sequence[Scored]) -> Scored:
        """The whole batch, of which each process had a part."""
        return replace(
            self,
            losses=tuple(loss for part in parts for loss in part.losses),
            seen=tuple(piece for part in parts for piece in part.seen),
            rows=tuple(row for part in parts for row in part.rows),
            tokens=sum(part.tokens for part in parts),
            computed=sum(part.computed for part in parts),
        )

    def require_finite(self) -> None:
        """Say so if the gradient was not finite.

        Raises:
            PreftuneError: if it was not; the weights are as they were before the step.
        """
        if self.scaled or self.gradient_norm is None or math.isfinite(self.gradient_norm):
            return
        advice = "it was not taken; lower optim.learning_rate, or look at these rows"
        raise PreftuneError(
            f"the gradient of step {self.step + 1} is not finite (loss {self.loss:.4g}, "
            f"rows {sorted(set(self.rows))[:8]}): "
            + (advice if self.step else f"nothing was trained yet, so {UNTRAINED}")
        )


def fetch(many: Sequence[Scored]) -> list[Scored]:
    """The same on the host, brought there in one transfer for each type of number."""
    tensors = [tensor for one in many for tensor in (*one.losses, *_some(one.norm), *_seen_tensors(one))]
    found = iter(_to_host(tensors))
    return [
        replace(
            one,
            losses=tuple(next(found) for _ in one.losses),
            norm=None if one.norm is None else next(found),
            seen=tuple(
                replace(
                    piece,
                    values_R={name: next(found) for name in piece.values_R},
                    extras_E={name: next(found) for name in piece.extras_E},
                )
                for piece in one.seen
            ),
        )
        for one in many
    ]


def _some(value: Tensor | None) -> tuple[Tensor, ...]:
    return () if value is None else (value,)


def _seen_tensors(one: Scored) -> Iterator[Tensor]:
    for piece in one.seen:
        yield from piece.values_R.values()
        yield from piece.extras_E.values()


def _to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the host, those of one type and device joined on the way."""
    found = list(tensors)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            kinds.setdefault((tensor.device, tensor.dtype), []).append(index)
    for indices in kinds.values():
        joined = torch.cat([tensors[i].reshape(-1) for i in indices]).cpu()
        pieces = joined.split([tensors[i].numel() for i in indices])
        for i, piece in zip(indices, pieces, strict=True):
            found[i] = piece.reshape(tensors[i].shape)
    return found
