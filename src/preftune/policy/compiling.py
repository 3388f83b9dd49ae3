"""Compiled decoder layers: what lies between the matrix products becomes a few loops over the data."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import PreftuneError
from preftune.policy.policy import base_model
from preftune.policy.reasons import reason
from preftune.policy.tree_attention import NAME, tree_attention

# Variants of one layer: with and without gradient, training and evaluation, kinds of layers that alternate.
VARIANTS = 64


def compile_layers(lm: nn.Module) -> None:
    """Compile each decoder layer in place, for any number of tokens; its parameters keep their names.

    The layers of a model share what is compiled. The attention stays as it is, between two compiled parts.

    Raises:
        PreftuneError: if the model has no such layers, or nothing can be compiled here.
    """
    layers = [module for module in base_model(lm).modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PreftuneError(
            f"train.compile=true: {type(base_model(lm)).__name__} has no layers to compile: set it to false"
        )
    device = next(lm.parameters()).device
    try:
        torch.compile(_try)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler that is missing or broken fails in as many ways as there are compilers
        raise PreftuneError(
            f"train.compile=true needs a working compiler for {device.type} ({reason(error)}): install one (g++ or "
            "clang for CPU, triton for CUDA), or set it to false"
        ) from error
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    AttentionInterface.register(NAME, torch.compiler.disable(tree_attention))
    for layer in layers:
        layer.compile(dynamic=True)


def _try(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + 1
