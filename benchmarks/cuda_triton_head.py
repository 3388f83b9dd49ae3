"""A head in Triton, to be measured beside preftune's own: it is used nowhere until it has won on a GPU.

Tiles of rows as in preftune's head, with two differences. The product leaves the matrix units as float32, where torch
can say so (not rounded to bf16 on the way to the softmax), and one kernel reads each tile once for maximum, sum and
target, where separate operations read it five times. The backward computes the tiles again.

Tensor names carry their shape: K targets, N targets of one tile, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from preftune.policy.tiled_head import HeadRecipe

BLOCK = 2048


@triton.jit
def _capped(z, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    z = z * scale
    if HAS_SOFTCAP:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)  # tanh
    return z


@triton.jit
def _statistics(
    product_ptr, target_ptr, logp_ptr, norm_ptr, vocabulary, scale, softcap,
    HAS_SOFTCAP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One program for each row: its log-normaliser, and the log-prob of its target."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = product_ptr + row * vocabulary
    top = -float("inf")
    total = 0.0
    for start in range(0, vocabulary, SIZE):
        at = start + tl.arange(0, SIZE)
        z = tl.load(row_ptr + at, mask=at < vocabulary, other=0.0).to(tl.float32)
        z = tl.where(at < vocabulary, _capped(z, scale, softcap, HAS_SOFTCAP), -float("inf"))
        higher = tl.maximum(top, tl.max(z, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), axis=0)
        top = higher
    picked = _capped(tl.load(row_ptr + tl.load(target_ptr + row)).to(tl.float32), scale, softcap, HAS_SOFTCAP)
    tl.store(norm_ptr + row, top + tl.log(total))
    tl.store(logp_ptr + row, picked - top - tl.log(total))


@triton.jit
def _gradient(
    product_ptr, target_ptr, norm_ptr, given_ptr, gradient_ptr, vocabulary, scale, softcap,
    HAS_SOFTCAP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One program for each block of a row: the gradient of the product, in the precision of the next product."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    z = tl.load(product_ptr + row * vocabulary + at, mask=at < vocabulary, other=0.0).to(tl.float32)
    z = _capped(z, scale, softcap, HAS_SOFTCAP)
    own = (at == tl.load(target_ptr + row)).to(tl.float32)
    gradient = tl.load(given_ptr + row) * (own - tl.exp(z - tl.load(norm_ptr + row))) * scale
    if HAS_SOFTCAP:
        gradient = gradient * (1 - (z / softcap) * (z / softcap))
    place = gradient_ptr + row * vocabulary + at
    tl.store(place, gradient.to(gradient_ptr.dtype.element_ty), mask=at < vocabulary)


class TritonHead(torch.autograd.Function):
    """Log-probs of targets: `TritonHead.apply(hidden_KH, weight_VH, bias_V, target_K, recipe, tile_bytes)`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_K: Tensor,
        recipe: HeadRecipe,
        tile_bytes: int,
    ) -> Tensor:
        """Log-probs, shape K, float32."""
        device = hidden_KH.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype
        hidden_KH, weight_VH = hidden_KH.to(compute), weight_VH.to(compute)
        ctx.rows = max(1, min(len(target_K), tile_bytes // (4 * len(weight_VH))))
        ctx.cap = (recipe.scale, recipe.softcap or 1.0, recipe.softcap is not None, BLOCK)
        logps_K = hidden_KH.new_empty(len(target_K), dtype=torch.float32)
        norm_K = torch.empty_like(logps_K)
        buffer = hidden_KH.new_empty(ctx.rows, len(weight_VH), dtype=torch.float32)
        for at in _tiles(len(target_K), ctx.rows):
            product_NV = _product(hidden_KH[at], weight_VH, bias_V, buffer)
            _statistics[(len(product_NV),)](
                product_NV, target_K[at], logps_K[at], norm_K[at], len(weight_VH), *ctx.cap
            )  # fmt: skip
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, target_K, norm_K)
        return logps_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias."""
        hidden_KH, weight_VH, bias_V, target_K, norm_K = ctx.saved_tensors
        given_K = gradients[0].float().contiguous()
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden_KH) if to_hidden else None
        weight_grad = torch.zeros_like(weight_VH, dtype=torch.float32) if to_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=torch.float32) if to_bias else None
        vocabulary = len(weight_VH)
        buffer = hidden_KH.new_empty(ctx.rows, vocabulary, dtype=torch.float32)
        gradient = hidden_KH.new_empty(ctx.rows, vocabulary)
        for at in _tiles(len(target_K), ctx.rows):
            product_NV = _product(hidden_KH[at], weight_VH, bias_V, buffer)
            gradient_NV = gradient[: len(product_NV)]
            _gradient[(len(product_NV), triton.cdiv(vocabulary, BLOCK))](
                product_NV, target_K[at], norm_K[at], given_K[at], gradient_NV, vocabulary, *ctx.cap
            )  # fmt: skip
            if bias_grad is not None:
                bias_grad += gradient_NV.sum(0, dtype=torch.float32)
            if hidden_grad is not None:
                torch.mm(gradient_NV, weight_VH, out=hidden_grad[at])
            if weight_grad is not None:
                _add_product(weight_grad, gradient_NV.t(), hidden_KH[at])
        return hidden_grad, weight_grad, bias_grad, None, None, None


def _tiles(targets: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, targets)) for start in range(0, targets, rows)]


def _product(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, buffer: Tensor) -> Tensor:
    """The head's product in float32."""
    out = buffer[: len(hidden_NH)]
    if hidden_NH.is_cuda and hidden_NH.dtype != torch.float32:
        torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32, out=out)
    else:
        torch.mm(hidden_NH.float(), weight_VH.t().float(), out=out)
    return out if bias_V is None else out.add_(bias_V)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, all sums in float32."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())
