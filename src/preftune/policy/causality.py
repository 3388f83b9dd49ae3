"""Whether a policy predicts tokens without having seen them.

Encoders and bidirectional models load and train like causal ones, without a word: the loss falls, because the answer is
in the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.policy.policy import PolicyModule

LONGEST, EXAMPLES = 16, 64
# Largest change before the changed tokens, as a share of the change after them. Without a look ahead it is 0, but for
# mixtures of experts and 8-bit layers, whose sums depend on the other tokens of a forward.
SHARE = {torch.float64: 1e-4, torch.float32: 1e-4}
COARSE_SHARE = 0.1
# The fields of transformers' configs that let a causal model look ahead, and what they must be.
CAUSAL_WHEN = {"is_decoder": True, "causal": True, "use_bidirectional_attention": False}


def check_causal(policy: PolicyModule, examples: Sequence[Example]) -> None:
    """Refuse a policy that looks ahead: other tokens in the second half of a row must not move what it says in the
    first half.

    Two forwards of one row of up to 16 of the data's tokens, in evaluation mode. Data of one and the same token cannot
    be checked.

    Args:
        policy: on its device; its layout and mode are left as they were.
        examples: what it is to be trained on.

    Raises:
        PreftuneError: if it does look ahead.
    """
    rows = _rows(examples)
    if rows is None:
        return
    device = next(policy.parameters()).device
    with policy.generating() as lm:
        ours_TX, theirs_TX = (_said(policy, lm, torch.as_tensor(row, device=device)) for row in rows)
    moved_T = (ours_TX - theirs_TX).abs().amax(dim=1)
    kept = len(rows[0]) // 2
    before, after = float(moved_T[:kept].max()), float(moved_T[kept:].max())
    if before > _share(lm) * after:
        what = "hidden states" if policy.scores else "log-probs"
        raise PreftuneError(
            f"{type(policy.base).__name__} looks ahead: other tokens at the end of a row move its {what} before them "
            f"by up to {before:.2g}, so it would see what it is to predict: {_advice(policy.base)}"
        )


def _rows(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray] | None:
    """A row of the data and the same with other tokens in its second half; None if there are no other tokens."""
    if not examples:
        return None
    every = [np.concatenate([one.prompt, response.ids]) for one in examples[:EXAMPLES] for response in one.responses]
    row = max(every, key=len)[:LONGEST].astype(np.int64)
    known = np.unique(np.concatenate(every))
    if len(row) < 2 or len(known) < 2:
        return None
    other = row.copy()
    half = slice(len(row) // 2, None)
    other[half] = known[(np.searchsorted(known, row[half]) + 1) % len(known)]
    return row, other


def _said(policy: PolicyModule, lm: nn.Module, ids_T: Tensor) -> Tensor:
    """What the policy says at each token, shape (T, X): log-probs of the next one, or a reward model's hidden state."""
    if policy.scores or policy.head is not None:
        module = getattr(policy.base, str(policy.base.base_model_prefix)) if policy.scores else lm
        output = module(input_ids=ids_T[None], attention_mask=torch.ones_like(ids_T)[None], use_cache=False)
    else:
        output = lm(ids_T[None])
    if policy.scores:
        states_TX: Tensor = output.last_hidden_state[0].float()
        return states_TX
    return torch.log_softmax(output.logits[0].float(), dim=-1)


def _share(lm: nn.Module) -> float:
    """The share of the change that the model's precision explains: that of its coarsest weights."""
    return max((SHARE.get(dtype, COARSE_SHARE) for dtype in {p.dtype for p in lm.parameters()}), default=COARSE_SHARE)


def _advice(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    for name, wanted in CAUSAL_WHEN.items():
        if getattr(config, name, None) not in (None, wanted):
            return f"set {name} to {str(wanted).lower()} in its config, or take a causal language model"
    return "take a causal language model"
