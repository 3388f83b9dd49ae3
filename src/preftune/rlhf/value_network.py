"""What a value network begins as: a reward model, or the policy under a new head."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import PreftuneError
from preftune.evaluation.models import find, load_policy
from preftune.policy.layout import choose_layout
from preftune.policy.loading import vocabulary
from preftune.policy.policy import PolicyModule
from preftune.policy.reward_head import is_reward_model, with_reward_head


def first_weights(
    value: str | None, judge: str | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[nn.Module | None, str | None]:
    """The reward model that a value network begins as, if there is one, and what to say about it.

    Args:
        value: a run of a reward model, or a folder or hub id of a sequence classifier with one label; a user names it.
        judge: the same, of the reward model that judges; it serves if it reads the policy's tokens.
        tokenizer: of the policy.

    Raises:
        PreftuneError: if what the user names is no reward model, or reads other tokens.
    """
    path = value or judge
    if path is None:
        return None, None
    named = find(path)
    if not named.is_reward_model:
        raise PreftuneError(
            f"a value network cannot begin as {path}, which is no reward model: name a run of bradley_terry, or leave "
            "online.value out"
        )
    loaded = load_policy(named)
    if loaded.tokenizer.get_vocab() == tokenizer.get_vocab():
        return loaded.lm, None
    if value is None:
        return None, f"the value network begins as the policy: {path}, which judges, has another tokenizer"
    raise PreftuneError(
        f"a value network reads the policy's tokens, and {path} has another tokenizer: name a reward model with the "
        "same one (online.value)"
    )


def value_network(policy: PolicyModule, start: nn.Module | None, pad_id: int | None) -> PolicyModule:
    """A value network for a policy, in its layout.

    Args:
        policy: not yet wrapped.
        start: a reward model to begin as, of the policy's tokens; it is used, not copied. None: a copy of the policy's
            decoder under a new head, whose weights are zero.
        pad_id: token that pads rows.

    Raises:
        PreftuneError: if there can be none.
    """
    if start is None:
        start = _from_policy(policy, pad_id)
    elif not isinstance(start, PreTrainedModel) or not is_reward_model(start) or not hasattr(start, "score"):
        raise PreftuneError(
            f"a value network cannot begin as {type(start).__name__}: name a reward model (a sequence classifier of "
            "one label on a causal model), or leave online.value out"
        )
    ours, theirs = vocabulary(policy.lm), vocabulary(start)
    if ours is not None and theirs is not None and theirs < ours:
        raise PreftuneError(
            f"a value network must read the policy's {ours} tokens, and the reward model knows {theirs}: name one with "
            "the same tokenizer, or leave online.value out"
        )
    if policy.layout == "tree" and choose_layout(start)[0] != "tree":
        raise PreftuneError(
            f"the policy is trained on prompt trees, on which the value network is not exact ({choose_layout(start)[1]}"
            "): set model.layout to padded"
        )
    start.to(next(policy.parameters()).device)
    return PolicyModule(start.train().requires_grad_(True), policy.layout)


def _from_policy(policy: PolicyModule, pad_id: int | None) -> nn.Module:
    if getattr(policy.base, "is_quantized", False):
        raise PreftuneError(
            "a value network cannot begin as a copy of a quantised policy, which does not train: set model.quantize to "
            "none, or name a reward model (online.value)"
        )
    with policy.generating() as lm:  # with the attention that it was loaded with
        whole_lm: Any = copy.deepcopy(lm)
    if hasattr(whole_lm, "peft_config"):
        whole_lm = whole_lm.unload()  # without its adapters
    try:
        return with_reward_head(whole_lm, pad_id)
    except PreftuneError as error:
        raise PreftuneError(
            f"there can be no value network ({error}); or take an objective without one (rloo, grpo)"
        ) from None
