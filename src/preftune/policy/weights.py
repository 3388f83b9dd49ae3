"""Weights that cannot be trained: those that hold no numbers, and those too coarse for the optimiser."""

from __future__ import annotations

import torch
from torch import nn

from preftune.errors import PreftuneError


@torch.no_grad()
def check_finite(lm: nn.Module, model: str) -> None:
    """Refuse weights that hold nan or infinity; quantised ones are not looked at.

    Args:
        lm: the model.
        model: what to call it.

    Raises:
        PreftuneError: names the first such parameter.
    """
    for name, parameter in lm.named_parameters():
        packed = not parameter.is_floating_point() or parameter.itemsize == 1 or hasattr(parameter, "quant_state")
        if packed or parameter.is_meta or torch.isfinite(parameter.sum()):
            continue
        wrong = int((~torch.isfinite(parameter)).sum())  # 0 if it was the sum that left the range of the type
        if wrong:
            raise PreftuneError(
                f"{model} holds nan or infinity in {name} ({wrong} of {parameter.numel()} numbers): take another copy "
                "of it, or a checkpoint from before it broke"
            )


def check_precision(lm: nn.Module) -> None:
    """Refuse weights that would train in fp16, where AdamW divides by 0 and small steps vanish.

    Args:
        lm: the model with its adapters, as it is to be trained.

    Raises:
        PreftuneError: names the first such parameter.
    """
    for name, parameter in lm.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise PreftuneError(
                f"{name} would train in fp16, in which AdamW's eps of 1e-8 is 0: load the model with model.dtype=fp32 "
                "(a given one: call float() on it); train.precision=fp16 computes in fp16 all the same"
            )
