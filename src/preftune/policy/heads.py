"""Where a model's hidden states become logits: its decoder, its output layer, and what it does to the product.

A bare product with the output weight is wrong for many models (scales, soft caps), so the recipe is checked against
the model's own logits when the model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from preftune.policy.tiled_head import HeadRecipe


@dataclass(frozen=True)
class Head:
    """How to get from a model's decoder to its logits.

    Attributes:
        decoder: gives `.last_hidden_state`.
        output: the output layer.
        recipe: what the model does to the output layer's product.
        exact: False if no recipe gives the model's own logits; then its own forward must be asked for them.
    """

    decoder: nn.Module
    output: nn.Module
    recipe: HeadRecipe
    exact: bool


def find_head(model: PreTrainedModel) -> Head | None:
    """The head of a causal LM, checked on three tokens; None if the model has no separate decoder or output layer."""
    decoder, output = model.get_decoder(), model.get_output_embeddings()
    if decoder is None or output is None or decoder is model:
        return None
    recipe = recipe_of(model.config.get_text_config())
    return Head(decoder, output, recipe, _agrees(model, decoder, output, recipe))


def recipe_of(config: Any) -> HeadRecipe:
    """What models do to the product, read from their config."""
    scale, softcap = 1.0, getattr(config, "final_logit_softcapping", None)
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        scale = float(config.logit_scale)
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        scale = 1 / float(config.logits_scaling)
    if getattr(config, "lm_head_multiplier", None) is not None:  # Falcon-H1
        scale = float(config.lm_head_multiplier)
    return HeadRecipe(scale, None if softcap is None else float(softcap))


def _agrees(model: PreTrainedModel, decoder: nn.Module, output: nn.Module, recipe: HeadRecipe) -> bool:
    """True if decoder, output layer and recipe give the logits of the model's own forward."""
    weight: Any = output.weight
    training, device = model.training, weight.device
    ids = torch.arange(3, device=device)[None] % model.config.get_text_config().vocab_size
    model.eval()
    try:
        with torch.no_grad():
            own = model(input_ids=ids, use_cache=False).logits.float()
            ours = recipe.apply(output(decoder(input_ids=ids, use_cache=False).last_hidden_state).float())
    except (AttributeError, RuntimeError, TypeError):  # what is named decoder and output layer are no such pair
        return False
    finally:
        model.train(training)
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    return own.shape == ours.shape and bool((own - ours).abs().max() <= tolerance * own.abs().max())
