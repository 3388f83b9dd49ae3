"""The optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.objectives.registry import Term

# Where a default learning rate stands: models of this many parameters. Larger ones take smaller steps, by this power
# (it joins 1e-3 for our 0.1M base, 5e-5 for a 7M scratch model and the published 2e-7 to 7e-7 for 7B and 8B models).
DEFAULT_AT_PARAMETERS, DEFAULT_POWER, DEFAULT_LIMIT = 1e9, 0.75, 1e-3
DEFAULT_WARMUP = 0.1
# Beyond this, AdamW moves every weight by more than weights usually measure, in each step.
UNUSUAL_RATE = 0.1
# bitsandbytes keeps the moments of smaller tensors in 32 bits, and pages those of larger ones (its own defaults).
LEAST_8BIT, LEAST_PAGED, BLOCK = 4096, 100_000, 256

Name = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


class OptimConfig(BaseModel):
    """AdamW and its learning rate."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(
        "adamw",
        description="8bit: moments in a quarter of the memory; paged: in memory that CUDA shares with the host "
        "(both by bitsandbytes)",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="peak; none: a default for the objective, the model's size, and full or LoRA"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="after warmup, down to 0 at the end"
    )
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="share of all steps in which the rate rises from 0; none: 0.1"
    )
    warmup_steps: int | None = Field(None, ge=0, description="steps of warmup, instead of warmup_ratio")
    weight_decay: float = Field(0.0, ge=0, description="on matrices; norms and biases never decay")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are clipped to this norm; none: not clipped")

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimConfig:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("warmup_steps and warmup_ratio both say how long the warmup is: give one of them")
        if self.warmup_steps is None and self.warmup_ratio is None:
            self.warmup_ratio = DEFAULT_WARMUP
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {list(self.betas)}")
        return self


def default_learning_rate(terms: Iterable[Term], parameters: int, lora: bool) -> float:
    """The learning rate where the user names none: the first term's, for this size of model.

    Args:
        terms: the objective.
        parameters: of the whole model.
        lora: True if only adapters train.
    """
    objective = next(iter(terms)).objective
    full = objective.learning_rate * (DEFAULT_AT_PARAMETERS / max(parameters, 1)) ** DEFAULT_POWER
    full = min(full, DEFAULT_LIMIT)
    return max(full, objective.lora_learning_rate) if lora else full


def check_optimizer(config: OptimConfig, device: str) -> None:
    """Refuse an optimiser that this machine has not.

    Args:
        config: names it.
        device: type of the policy's device, or "auto".

    Raises:
        PreftuneError: if its package or its device is missing.
    """
    if config.name == "adamw":
        return
    if config.name.startswith("paged") and (device not in ("auto", "cuda") or not torch.cuda.is_available()):
        raise PreftuneError(
            f"optim.name={config.name} pages moments between a CUDA device and the host, and "
            + (f"train.device is {device}" if torch.cuda.is_available() else "this machine has no CUDA device")
            + f": set it to {config.name.removeprefix('paged_')}"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PreftuneError(
            f"optim.name={config.name} needs bitsandbytes: pip install 'preftune[quant]', or set optim.name=adamw"
        )


def optimizer(model: nn.Module, config: OptimConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over everything that trains, fused where there is a fused kernel.

    Raises:
        PreftuneError: if its package or its device is missing.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": config.betas, "eps": config.eps}
    check_optimizer(config, next((p.device.type for p in trained), "auto"))
    if config.name != "adamw":
        from preftune.policy.loading import bitsandbytes

        bits, paged = _form(config)
        made: torch.optim.Optimizer = bitsandbytes().optim.AdamW(groups, optim_bits=bits, is_paged=paged, **settings)
        return made
    fused = all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in trained)
    return torch.optim.AdamW(groups, fused=fused, **settings)


def _form(config: OptimConfig) -> tuple[int, bool]:
    """Bits of a moment, and whether moments are paged."""
    return 8 if config.name.endswith("8bit") else 32, config.name.startswith("paged")


def state_bytes(config: OptimConfig, trained: Iterable[Tensor]) -> int:
    """What the moments of these tensors take on their device, in bytes."""
    (bits, paged), total = _form(config), 0
    for tensor in trained:
        count = tensor.numel()
        if config.name == "adamw":
            total += 2 * count * tensor.element_size()
        elif bits == 8 and count >= LEAST_8BIT:
            total += 2 * math.ceil(count / BLOCK) * 4 + (0 if paged and count >= LEAST_PAGED else 2 * count)
        else:
            total += 0 if paged and count >= LEAST_PAGED else 8 * count
    return total


def step_bytes(config: OptimConfig, trained: Sequence[Tensor]) -> int:
    """What the optimiser's step needs for a while, in bytes: fused kernels nothing; on CPUs, bitsandbytes computes with
    five tensors in float32 where moments are in 8 bits."""
    on_cpu = [tensor.numel() for tensor in trained if tensor.device.type == "cpu"]
    return 5 * 4 * max(on_cpu, default=0) if config.name != "adamw" and _form(config)[0] == 8 else 0


def rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate in optimiser step `step` (from 0) of `steps`."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil((config.warmup_ratio or 0) * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
