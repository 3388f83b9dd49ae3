"""What a model given as a module must be, found out by one forward."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from preftune.errors import PreftuneError
from preftune.policy.policy import base_model
from preftune.policy.reasons import reason
from preftune.policy.reward_head import is_reward_model
from preftune.policy.weights import check_finite


def check_given(lm: nn.Module, adapted: bool, reward: bool) -> None:
    """Refuse a given module that could not be trained.

    Args:
        lm: a causal LM of transformers, PEFT around one, or any module whose `forward(input_ids)` returns `.logits`.
        adapted: True if adapters are put into it before training.
        reward: True if a reward model is trained, so that no logits are needed.

    Raises:
        PreftuneError: names the module's type and what it lacks.
    """
    kind, base = type(lm).__name__, base_model(lm)
    if isinstance(base, PreTrainedModel):
        if not reward and is_reward_model(base):
            raise PreftuneError(f"{type(base).__name__} gives rewards and no log-probs: give a causal language model")
        if getattr(base.config, "is_encoder_decoder", False):
            raise PreftuneError(f"{type(base).__name__} is an encoder-decoder: give a causal language model")
    if not adapted and not any(p.requires_grad for p in lm.parameters()):
        raise PreftuneError(f"{kind} has no parameter that trains: call requires_grad_() on it")
    check_finite(lm, f"the given {kind}")
    if not reward:
        _check_forward(lm)


def _check_forward(lm: nn.Module) -> None:
    """Refuse a module that gives no logits for one row of two tokens."""
    kind, training = type(lm).__name__, lm.training
    first = next(lm.parameters(), None)
    ids = torch.zeros(1, 2, dtype=torch.long, device=None if first is None else first.device)
    lm.eval()
    try:
        with torch.no_grad():
            logits = getattr(lm(ids), "logits", None)
    except Exception as error:  # whatever a user's own module raises
        raise PreftuneError(
            f"{kind}.forward(input_ids) fails on 1 row of 2 tokens ({type(error).__name__}: {reason(error)}): "
            "give a causal language model, or any module that takes token ids and returns an object with .logits"
        ) from error
    finally:
        lm.train(training)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[:2] != (1, 2):
        found = "none" if not isinstance(logits, torch.Tensor) else f"shape {tuple(logits.shape)}"
        raise PreftuneError(
            f"{kind}.forward(input_ids) must return an object with .logits of shape (rows, tokens, vocabulary), "
            f"got {found} for 1 row of 2 tokens"
        )
