"""A scalar head in place of a language model's output layer: what reward models are trained as.

The model is transformers' own sequence classifier with one label, so that a trained one saves and loads as usual.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from preftune.errors import PreftuneError


def with_reward_head(lm: nn.Module, pad_id: int | None) -> PreTrainedModel:
    """The model's decoder under a new scalar head, whose weights are zero: all responses start alike.

    Args:
        lm: a causal LM of transformers; its decoder is used, not copied. A classifier of one label is given back as it
            is.
        pad_id: token that pads rows, kept in the config for those who load the model.

    Raises:
        PreftuneError: if transformers has no sequence classifier of this type, or it is one of several labels.
    """
    if isinstance(lm, PreTrainedModel) and is_reward_model(lm):
        return lm
    if type(lm).__name__.endswith("ForSequenceClassification"):
        raise PreftuneError(
            f"a reward model has one label, and {getattr(lm, 'name_or_path', '') or type(lm).__name__} is a classifier "
            f"of {getattr(getattr(lm, 'config', None), 'num_labels', 'other')} labels: name one with num_labels=1, or "
            "the language model that it was made from"
        )
    config: Any = copy.deepcopy(getattr(lm, "config", None))
    classes: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not isinstance(lm, PreTrainedModel) or type(config) not in classes:
        raise PreftuneError(
            f"a reward model needs a sequence classifier, and transformers has none for {type(lm).__name__}: "
            "take another model"
        )
    config.num_labels = 1
    config.pad_token_id = pad_id if config.pad_token_id is None else config.pad_token_id
    with torch.device("meta"):
        model: Any = classes[type(config)](config)
    decoder = lm.get_decoder()
    setattr(model, model.base_model_prefix, decoder)
    like = next(decoder.parameters())
    model.score.to_empty(device=like.device).to(like.dtype)
    for parameter in model.score.parameters():
        nn.init.zeros_(parameter)
    for buffer in model.buffers():
        if buffer.is_meta:
            raise PreftuneError(f"{type(model).__name__} has parts that its language model lacks: take another model")
    return model.train(lm.training)


def is_reward_model(model: PreTrainedModel) -> bool:
    """True for a sequence classifier of one label."""
    named = type(model).__name__.endswith("ForSequenceClassification")
    return named and getattr(model.config, "num_labels", None) == 1
