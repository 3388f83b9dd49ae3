"""Compiled decoder layers: what lies between the matrix products becomes a few loops over the data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import PreftuneError
from preftune.policy.policy import PolicyModule
from preftune.policy.reasons import reason
from preftune.policy.tree_attention import NAME, tree_attention

# Variants of one layer: with and without gradient, training and evaluation, kinds of layers that alternate.
VARIANTS = 64


def check_compiles(policy: PolicyModule) -> None:
    """Refuse what cannot be compiled, before anything else is done.

    Raises:
        PreftuneError: if the model has no layers to compile, or nothing can be compiled here.
    """
    if not _layers(policy):
        raise PreftuneError(
            f"train.compile=true: {type(policy.base).__name__} has no layers to compile; set it to false"
        )
    device = next(policy.parameters()).device
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            torch.compile(_try)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler that is missing or broken fails in as many ways as there are compilers
        raise PreftuneError(
            f"train.compile=true needs a working compiler for {device.type} ({reason(error)}): install one (g++ or "
            "clang for CPU, triton for CUDA), or set it to false"
        ) from error


@contextmanager
def compiled(policies: Sequence[PolicyModule]) -> Iterator[None]:
    """Meanwhile, each decoder layer runs compiled, for any number of tokens; its parameters keep their names.

    The layers of a model share what is compiled. The attention stays as it is, between two compiled parts.
    """
    layers = [layer for policy in policies for layer in _layers(policy)]
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, VARIANTS)
    AttentionInterface.register(NAME, torch.compiler.disable(tree_attention))
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not a leaf Tensor is being accessed")  # the compiler's own
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # what nn.Module.compile sets
        AttentionInterface.register(NAME, tree_attention)
        torch._dynamo.config.recompile_limit = limit


@contextmanager
def uncompiled(policy: PolicyModule) -> Iterator[None]:
    """Meanwhile, layers run as they are: those that write token by token would be compiled again and again."""
    kept = [(layer, layer._compiled_call_impl) for layer in _layers(policy)]
    for layer, _ in kept:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, implementation in kept:
            layer._compiled_call_impl = implementation


def _layers(policy: PolicyModule) -> list[GradientCheckpointingLayer]:
    return [module for module in policy.base.modules() if isinstance(module, GradientCheckpointingLayer)]


def _try(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + 1
