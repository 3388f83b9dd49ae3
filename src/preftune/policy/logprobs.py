"""Hidden states -> log-probs of the target tokens, without the T x V matrix of logits.

Only the rows that predict a target are multiplied with the head, a tile of rows at a time. Softmax and sums are in
float32 whatever the model computes in.

Tensor names carry their shape: K targets, N targets of one tile, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from preftune.policy.tiled_head import HeadRecipe, TiledHead

# The logits, exact and without gradient, of a slice of a batch's targets.
Logits = Callable[[slice], Tensor]

# Rows of a tile where the head is called as the module it is: logits of this many bytes.
CALL_BYTES = 16 * 2**20


def token_logps(
    hidden_KH: Tensor,
    head: nn.Module,
    target_K: Tensor,
    recipe: HeadRecipe,
    needs: frozenset[str] = frozenset(),
    other: Logits | None = None,
) -> dict[str, Tensor]:
    """Log-probs of the targets.

    Args:
        hidden_KH: last hidden states of the rows that predict the targets.
        head: the output layer, hidden size -> vocabulary.
        target_K: token ids.
        recipe: what the model does to the head's product.
        needs: further values to give: "log_sum_p2_K", "entropy_K", without gradient; "kl_K", with gradient.
        other: gives the logits of another model, for "kl_K".

    Returns:
        "logps_K" in nats and what `needs` names, each of shape K, float32 (float64 if the hidden states are).
    """
    # exactly nn.Linear: a LoRA layer, a quantised one or a hook must be called to have its say
    plain = type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
    if plain and not needs:
        assert isinstance(head, nn.Linear)
        logps_K = TiledHead.apply(hidden_KH, head.weight, head.bias, target_K, recipe, torch.is_grad_enabled())
        return {"logps_K": logps_K}
    return _called_in_tiles(hidden_KH, head, target_K, recipe, needs, other)


def _called_in_tiles(
    hidden_KH: Tensor,
    head: nn.Module,
    target_K: Tensor,
    recipe: HeadRecipe,
    needs: frozenset[str],
    other: Logits | None,
) -> dict[str, Tensor]:
    """Log-probs under any head, called on tiles of rows; each tile is computed anew in backward."""

    def tile(at: slice) -> tuple[Tensor, ...]:
        logits_NV = recipe.apply(exact(head(hidden_KH[at])))
        return score(logits_NV, target_K[at], needs, None if other is None else other(at))

    vocabulary = getattr(head, "out_features", None) or getattr(head, "num_embeddings", None) or 2**15
    step = max(1, CALL_BYTES // (4 * vocabulary))
    tiles = [slice(at, min(at + step, len(target_K))) for at in range(0, len(target_K), step)]
    pieces: list[tuple[Tensor, ...]] = [checkpoint(tile, at, use_reentrant=False) for at in tiles]
    return {
        name: torch.cat(values)
        for name, values in zip(("logps_K", *sorted(needs)), zip(*pieces, strict=True), strict=True)
    }


def exact(logits: Tensor) -> Tensor:
    """The same values in float32, or float64 if they are: what softmax and sums are computed in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def score(
    logits_NV: Tensor, target_N: Tensor, needs: frozenset[str], other_NV: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Log-probs of the targets from exact logits, then what `needs` names, in sorted order."""
    norm_N = torch.logsumexp(logits_NV, dim=1)
    values = [logits_NV.gather(1, target_N[:, None]).squeeze(1) - norm_N]
    for name in sorted(needs):
        if name == "kl_K":
            if other_NV is None:
                raise ValueError("kl_K compares with another model's logits: give them")
            values.append(_divergence(other_NV, logits_NV - norm_N[:, None]))
            continue
        with torch.no_grad():
            if name == "entropy_K":
                # not norm - mean logit: little of a small value is left of the difference of two large ones
                values.append(torch.special.entr(torch.exp(logits_NV - norm_N[:, None])).sum(1))
            elif name == "log_sum_p2_K":
                values.append(torch.logsumexp(2 * (logits_NV - norm_N[:, None]), dim=1))
            else:
                raise ValueError(f"no log-prob field {name!r}")
    return tuple(values)


def _divergence(other_NV: Tensor, logps_NV: Tensor) -> Tensor:
    """KL(other || policy) of each row, in nats. A token that the other never gives adds nothing."""
    other_NV = torch.log_softmax(other_NV, dim=1)
    gap_NV = torch.where(other_NV == -torch.inf, 0.0, other_NV - logps_NV)
    return (torch.exp(other_NV) * gap_NV).sum(1)
