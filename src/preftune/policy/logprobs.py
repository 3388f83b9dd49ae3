"""Hidden states -> log-probs of the target tokens, without the T x V matrix of logits.

Only the rows that predict a target are multiplied with the head, a tile of rows at a time. Softmax and sums are in
float32 whatever the model computes in.

Tensor names carry their shape: K targets, N targets of one tile, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# The logits, exact and without gradient, of a slice of a batch's targets.
Logits = Callable[[slice], Tensor]

# A tile of logits that stays near the cache: fresh large buffers cost more than the arithmetic on them.
TILE_BYTES = 16 * 2**20
# Tiles kept for the backward, instead of being computed again: a third less work in the head for this much memory.
KEPT_BYTES = 512 * 2**20


@dataclass(frozen=True)
class HeadRecipe:
    """What a model does to the head's product: logits = softcap * tanh(scale * product / softcap).

    Attributes:
        scale: factor on the product (Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`).
        softcap: bound on the logits (Gemma 2); None if there is none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits_NV: Tensor) -> Tensor:
        """Logits as the model would give them, from the head's product."""
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def backward_(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """Gradient of the product from that of the logits, in place; `logits_NV` as `apply` gave them."""
        if self.softcap is not None:
            gradient_NV.mul_(1 - (logits_NV / self.softcap) ** 2)
        if self.scale != 1.0:
            gradient_NV.mul_(self.scale)
        return gradient_NV


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
        logps_K = _TiledHead.apply(hidden_KH, head.weight, head.bias, target_K, recipe)
        return {"logps_K": logps_K}
    return _called_in_tiles(hidden_KH, head, target_K, recipe, needs, other)


def _tile_rows(vocabulary: int) -> int:
    return max(1, TILE_BYTES // (4 * vocabulary))


class _TiledHead(torch.autograd.Function):
    """Log-probs under a plain linear head.

    The forward keeps exp(logits - row maximum) of as many tiles as a memory budget allows: the backward turns it into
    the gradient in place. It computes the other tiles anew.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, recipe: HeadRecipe
    ) -> Tensor:
        device = hidden_KH.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.compute = torch.get_autocast_dtype(device) if autocast else weight_VH.dtype
        ctx.recipe = recipe
        hidden_KH, weight_VH = hidden_KH.to(ctx.compute), weight_VH.to(ctx.compute)
        tiles = _Tiles(hidden_KH, weight_VH, bias_V, target_K, recipe)
        # a soft cap's slope needs the logits themselves, and reduced precision a second buffer: nothing to keep there
        keeps = recipe.softcap is None and tiles.buffer.dtype == tiles.exact and any(ctx.needs_input_grad)
        logps_K = torch.empty(len(target_K), dtype=tiles.exact, device=hidden_KH.device)
        ctx.norm_K = torch.empty_like(logps_K)
        ctx.kept = {}
        budget = KEPT_BYTES
        for at in tiles.rows():
            size = (at.stop - at.start) * tiles.bytes_per_row
            own = keeps and size <= budget
            if own:
                budget -= size
            logits_NV = tiles.logits(at, fresh=own)
            picked_N = logits_NV.gather(1, target_K[at, None]).squeeze(1)
            top_N = logits_NV.amax(1)
            powers_NV = torch.exp(logits_NV.sub_(top_N[:, None]), out=logits_NV)
            sum_N = powers_NV.sum(1)
            ctx.norm_K[at] = top_N + sum_N.log()
            logps_K[at] = picked_N - top_N - sum_N.log()
            if own:
                ctx.kept[at.start] = (powers_NV, sum_N)
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, target_K)
        return logps_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KH, weight_VH, bias_V, target_K = ctx.saved_tensors
        gradient_K = gradients[0]
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        tiles = _Tiles(hidden_KH, weight_VH, bias_V, target_K, ctx.recipe)
        hidden_grad = torch.empty_like(hidden_KH) if to_hidden else None
        weight_grad = torch.zeros_like(weight_VH, dtype=tiles.exact) if to_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=tiles.exact) if to_bias else None
        for at in tiles.rows():
            if at.start in ctx.kept:  # once: the gradient is written over it; a second backward computes anew
                powers_NV, sum_N = ctx.kept.pop(at.start)
                gradient_NV = powers_NV.mul_((-gradient_K[at] / sum_N)[:, None])
                gradient_NV.scatter_add_(1, target_K[at, None], gradient_K[at, None])
                if ctx.recipe.scale != 1.0:
                    gradient_NV.mul_(ctx.recipe.scale)
            else:
                gradient_NV = tiles.gradient(at, ctx.norm_K[at], gradient_K[at])
            if bias_grad is not None:
                bias_grad += gradient_NV.sum(0)
            gradient_NV = gradient_NV.to(ctx.compute)
            if hidden_grad is not None:
                torch.mm(gradient_NV, weight_VH, out=hidden_grad[at])
            if weight_grad is not None and weight_grad.dtype == gradient_NV.dtype:
                weight_grad.addmm_(gradient_NV.t(), hidden_KH[at])
            elif weight_grad is not None:
                weight_grad += gradient_NV.t() @ hidden_KH[at]
        # autograd casts what leaves here to each input's own dtype
        return hidden_grad, weight_grad, bias_grad, None, None


class _Tiles:
    """Tiles of rows of one product; those that are not kept share one buffer."""

    def __init__(
        self, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, recipe: HeadRecipe
    ) -> None:
        self.hidden_KH, self.weight_VH, self.bias_V = hidden_KH, weight_VH, bias_V
        self.target_K, self.recipe = target_K, recipe
        self.exact = torch.float64 if hidden_KH.dtype == torch.float64 else torch.float32
        self.bytes_per_row = self.exact.itemsize * len(weight_VH)
        self.step = min(len(hidden_KH), _tile_rows(len(weight_VH)))
        self.buffer = hidden_KH.new_empty(self.step, len(weight_VH))

    def rows(self) -> list[slice]:
        """The tiles, in order."""
        return [slice(at, min(at + self.step, len(self.hidden_KH))) for at in range(0, len(self.hidden_KH), self.step)]

    def logits(self, at: slice, fresh: bool = False) -> Tensor:
        """Logits of one tile, in a buffer of its own or in the shared one; the caller may write on them."""
        rows = at.stop - at.start
        out = self.buffer.new_empty(rows, self.buffer.shape[1]) if fresh else self.buffer[:rows]
        product = torch.mm(self.hidden_KH[at], self.weight_VH.t(), out=out)
        if self.bias_V is not None:
            product += self.bias_V
        return self.recipe.apply(product.to(self.exact))

    def gradient(self, at: slice, norm_N: Tensor, gradient_N: Tensor) -> Tensor:
        """Gradient of one tile's product, from that of its log-probs; the logits are computed anew."""
        logits_NV = self.logits(at)
        gradient_NV = torch.exp(logits_NV - norm_N[:, None]).mul_(-gradient_N[:, None])
        gradient_NV.scatter_add_(1, self.target_K[at, None], gradient_N[:, None])
        return self.recipe.backward_(gradient_NV, logits_NV)


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
    step = _tile_rows(vocabulary)
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
