"""What a run goes on from, as tensors and numbers; and a run put back to where these were taken."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from preftune.errors import PreftuneError
from preftune.training.checkpoint import Fragment, Tensors, local
from preftune.training.zero import ZeroOptimizer

Numbers = dict[str, Any]


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        pending: True if what is due after that step (a line of metrics, an evaluation) has not been written yet.
        examples: that were trained on.
        seconds: that the steps took, evaluation and saving apart.
        wall: seconds that the run took, in all processes so far.
        before: the look at the policy before training.
        best: metric, value and step of the best evaluation so far; empty if none is kept.
        notes: warnings on the way.
    """

    step: int = 0
    pending: bool = False
    examples: int = 0
    seconds: float = 0.0
    wall: float = 0.0
    before: Numbers = field(default_factory=dict)
    best: Numbers = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def weights(policy: nn.Module) -> dict[str, Tensor]:
    """What training changes of a policy, as prepared: what trains, and buffers that are saved with a model."""
    found = {f"weights.{name}": p for name, p in parameters(policy) if p.requires_grad}
    return found | {f"buffers.{name}": b for name, b in _buffers(policy)}


@torch.no_grad()
def are_finite(policy: nn.Module) -> bool:
    """True if all weights that train, as far as this process holds them, are numbers."""
    return all(bool(torch.isfinite(local(p)).all()) for _, p in parameters(policy) if p.requires_grad)


def moments(policy: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor | Fragment], Numbers]:
    """What an optimiser keeps of each parameter: tensors, and by parameter what is none."""
    tensors, numbers = dict[str, Tensor | Fragment](), Numbers()
    if isinstance(optimizer, ZeroOptimizer):
        return tensors | optimizer.moments(parameters(policy)), numbers
    state = _inner(optimizer).state
    for name, parameter in parameters(policy):
        for key, value in state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"moments.{name}/{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


@torch.no_grad()
def restore(policy: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """Put weights and moments back, bit by bit.

    Args:
        policy: as prepared.
        optimizer: over its parameters; it has not taken a step.
        tensors: of a checkpoint.
        numbers: what `moments` gave beside its tensors.

    Raises:
        PreftuneError: if the checkpoint is of another model.
    """
    wanted = weights(policy)
    there = {f"{kind}.{name}" for kind in ("weights", "buffers") for name in tensors.under(f"{kind}.")}
    if strange := sorted(there - wanted.keys()):
        raise PreftuneError(
            f"the checkpoint holds {strange[0]}, which does not train here: resume with the model and adapters that "
            "the run began with"
        )
    for name, tensor in wanted.items():
        tensors.read_into(name, tensor)
    keys: dict[str, list[str]] = {}
    for entry in tensors.under("moments."):
        name, _, key = entry.rpartition("/")
        keys.setdefault(name, []).append(key)
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.restore(parameters(policy), tensors, keys)
        return
    inner = _inner(optimizer)
    places = {p: (g, i) for g, group in enumerate(inner.param_groups) for i, p in enumerate(group["params"])}
    for name, parameter in parameters(policy):
        if parameter not in places or name not in keys:
            continue
        if hasattr(inner, "init_state"):  # bitsandbytes makes its own, in memory of its own kind
            group, index = places[parameter]
            inner.init_state(inner.param_groups[group], parameter, group, index)
            for key in keys[name]:
                tensors.read_into(f"moments.{name}/{key}", inner.state[parameter][key])
        else:
            found = {key: _like(parameter, tensors, f"moments.{name}/{key}") for key in keys[name]}
            inner.state[parameter] = found
        inner.state[parameter].update(numbers.get(name, {}))


def _like(parameter: Tensor, tensors: Tensors, name: str) -> Tensor:
    """A moment on its parameter's device; one of the parameter's shape is distributed as that is."""
    if tensors.shape(name) != list(parameter.shape) or parameter.ndim == 0:
        return tensors.whole(name).to(parameter.device)
    made = torch.empty_like(parameter, dtype=tensors.dtype(name), requires_grad=False)
    tensors.read_into(name, made)
    return made


def random_state() -> Numbers:
    """The generators that a user's own module may draw from; what preftune draws follows from the step alone."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Put the generators back."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))


def _inner(optimizer: Any) -> Any:
    """The optimiser that Accelerate wraps."""
    return getattr(optimizer, "optimizer", optimizer)


def parameters(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under the names that they have in the policy itself, whatever wraps it."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a forward without a backward, some are whole, as copies
    return ((_plain(name), parameter) for name, parameter in policy.named_parameters())


def _buffers(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in policy.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield _plain(f"{path}.{name}"), buffer


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("module.").removeprefix(".")
