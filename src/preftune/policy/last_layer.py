"""The last layer of a decoder, spared the tokens from which nothing is read.

What the last layer makes of a prompt's tokens is used by its own attention alone: past that, only the tokens that
predict a response's are read. So its MLP, most of a layer's work, runs on those only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

# Types that visit a layer again, so that no layer is the last. That all others on prompt trees are exact is tested.
REVISIT = frozenset({"hrm_text"})


def spare_prompts(model: PreTrainedModel) -> None:
    """Let the last layer's MLP compute the tokens `tree.read_T` alone, in forwards that are given a `tree`. The others
    come out as zeros. Does nothing to a model whose last layer has no `mlp`."""
    if model.config.get_text_config().model_type in REVISIT:
        return
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mlp: Any = getattr(layers[-1], "mlp", None) if layers else None
    if not isinstance(mlp, nn.Module) or hasattr(mlp, "read_T"):  # once, however often the model is wrapped
        return
    # dropout on fewer tokens would draw other numbers than the same model does with checkpointing
    if not any(isinstance(module, nn.Dropout) and module.p for module in mlp.modules()):
        mlp.read_T = None  # type: ignore[assignment]
        layers[-1].register_forward_pre_hook(_note, with_kwargs=True)
        mlp.register_forward_pre_hook(_pick)
        mlp.register_forward_hook(_place)


# Functions and no closures: a copied layer must look at its own MLP.
def _note(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tree = kwargs.get("tree")
    # a checkpointed layer is computed again without its hooks, when another tree may have been noted
    layer.mlp.read_T = None if tree is None or layer.gradient_checkpointing else tree.read_T


def _pick(mlp: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if mlp.read_T is None:
        return None
    mlp.shape = args[0].shape
    return (args[0].index_select(1, mlp.read_T), *args[1:])


def _place(mlp: Any, args: tuple[Any, ...], output: Any) -> Any:
    if mlp.read_T is None:
        return output
    found: Tensor = output[0] if isinstance(output, tuple) else output
    whole = found.new_zeros(*mlp.shape[:2], *found.shape[2:]).index_copy(1, mlp.read_T, found)
    return (whole, *output[1:]) if isinstance(output, tuple) else whole
