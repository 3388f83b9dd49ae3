"""Log-probs under a plain linear head: an online log-sum-exp over tiles of the product, and its backward.

Tensor names carry their shape: K targets, N targets of one tile, H hidden size, V vocabulary, C columns (tokens of the
vocabulary) of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A tile that stays in a processor's cache between the product and the passes over it. Elsewhere a launch is dearer.
TILE_BYTES = 24 * 2**20
DEVICE_TILE_BYTES = 256 * 2**20
TILE_ROWS = 2048
# Tiles kept for the backward, instead of being computed again: a quarter less work in the head for this much memory.
KEPT_BYTES = 2**30
# Where |log sum exp| stays below this, exp needs no shift by the row's maximum: float32 ends at 87, and rounds these no
# worse than the logits themselves.
SHIFTLESS = 24.0
# Whether they are must be looked at, for which other devices would have to stand still: there, everything is shifted.
_SHIFTLESS_DEVICES: tuple[str, ...] = ("cpu",)

_free: list[Tensor] = []  # the buffer of the last step, which the next one takes: fresh memory is dear


@dataclass(frozen=True)
class HeadRecipe:
    """What a model does to the head's product: logits = softcap * tanh(scale * product / softcap).

    Attributes:
        scale: factor on the product (Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`).
        softcap: bound on the logits (Gemma 2); None if there is none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits_NV: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits as the model would give them, from the head's product; scaled into `out`, if that is given."""
        if self.scale != 1.0:
            logits_NV = torch.mul(logits_NV, self.scale, out=out)
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def backward_(self, gradient_NV: Tensor, logits_NV: Tensor | None) -> Tensor:
        """Gradient of the product from that of the logits, in place; soft caps need what `apply` gave."""
        if self.softcap is not None:
            assert logits_NV is not None
            gradient_NV.mul_(1 - (logits_NV / self.softcap) ** 2)
        if self.scale != 1.0:
            gradient_NV.mul_(self.scale)
        return gradient_NV


def release() -> None:
    """Let go of the memory that the next step would have used again."""
    _free.clear()


class TiledHead(torch.autograd.Function):
    """Log-probs of the targets: `TiledHead.apply(hidden_KH, weight_VH, bias_V, target_K, recipe, differentiable)`.

    The forward keeps exp(logits) of as many tiles as a memory budget allows: the backward turns it into the gradient in
    place. It computes the other tiles anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_K: Tensor,
        recipe: HeadRecipe,
        differentiable: bool,
    ) -> Tensor:
        """`differentiable`: whether a backward may follow, which autograd does not tell."""
        device = hidden_KH.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.compute = torch.get_autocast_dtype(device) if autocast else weight_VH.dtype
        ctx.recipe = recipe
        hidden_KH, weight_VH = hidden_KH.to(ctx.compute), weight_VH.to(ctx.compute)
        tiles = Tiles(hidden_KH, weight_VH, bias_V, target_K, recipe)
        # a soft cap's slope needs the logits themselves, and reduced precision a second buffer: nothing to keep there
        keeps = recipe.softcap is None and ctx.compute == tiles.exact
        ctx.kept = Kept(tiles, KEPT_BYTES if keeps and differentiable and any(ctx.needs_input_grad) else 0)
        logps_K, ctx.sums = tiles.logps(ctx.kept)
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, target_K)
        return logps_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of hidden states, weight and bias, as far as they are wanted."""
        hidden_KH, weight_VH, bias_V, target_K = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        tiles = Tiles(hidden_KH, weight_VH, bias_V, target_K, ctx.recipe)
        hidden_grad = torch.empty_like(hidden_KH, dtype=tiles.exact) if to_hidden else None
        weight_grad = torch.empty_like(weight_VH, dtype=tiles.exact) if to_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=tiles.exact) if to_bias else None
        # of the gradient's two factors for each target and for each token, the first scales the smaller operands
        scales = tiles.exact == ctx.compute
        for rows, sums in zip(tiles.rows, ctx.sums, strict=True):
            factor_N = -gradients[0][rows] / sums.total_N
            right_NH = hidden_KH[rows] * factor_N[:, None] if scales and to_weight else hidden_KH[rows]
            for columns in tiles.columns:
                slope_NC = tiles.slope(rows, columns, sums, ctx.kept)
                if bias_grad is not None:
                    bias_grad[columns] += factor_N @ slope_NC
                if not scales:
                    slope_NC = slope_NC.mul_(factor_N[:, None]).to(ctx.compute)
                if hidden_grad is not None:
                    _add_product(hidden_grad[rows], slope_NC, weight_VH[columns], first=columns.start == 0)
                if weight_grad is not None:
                    _add_product(weight_grad[columns], slope_NC.t(), right_NH, first=rows.start == 0)
            if scales and hidden_grad is not None:
                hidden_grad[rows] *= factor_N[:, None]
        ctx.kept.give_back()
        # autograd casts what leaves here to each input's own dtype
        return hidden_grad, weight_grad, bias_grad, None, None, None


class Tiles:
    """The product of hidden states and head, tile by tile: slices of `rows` by slices of `columns`."""

    def __init__(
        self, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, recipe: HeadRecipe
    ) -> None:
        self.hidden_KH, self.weight_VH, self.bias_V = hidden_KH, weight_VH, bias_V
        self.target_K, self.recipe = target_K, recipe
        self.exact = torch.float64 if hidden_KH.dtype == torch.float64 else torch.float32
        self.device = hidden_KH.device
        budget = TILE_BYTES if self.device.type == "cpu" else DEVICE_TILE_BYTES
        rows = max(1, min(len(hidden_KH), TILE_ROWS, budget // 4))
        columns = budget // (4 * rows)
        columns = columns // 64 * 64 or max(1, columns)  # whole cache lines, where there is a choice
        self.rows, self.columns = _slices(len(hidden_KH), rows), _slices(len(weight_VH), columns)
        self.buffer = hidden_KH.new_empty(rows * min(columns, len(weight_VH)))

    def logps(self, kept: Kept) -> tuple[Tensor, list[Sums]]:
        """Log-probs of all targets, and the sums of each slice of rows."""
        logps, sums = [], []
        shifts = self.device.type not in _SHIFTLESS_DEVICES
        for rows in self.rows:
            found = None if shifts else self._sum(rows, kept, shifts)
            if found is None:
                shifts = True
                found = self._sum(rows, kept, shifts)
            assert found is not None  # with a shift there is nothing to give up for
            picked_N, total = found
            sums.append(total)
            logps.append((picked_N if total.top_N is None else picked_N - total.top_N) - total.total_N.log())
        return torch.cat(logps), sums

    def slope(self, rows: slice, columns: slice, sums: Sums, kept: Kept) -> Tensor:
        """One tile of the negative log-probs' gradient with respect to the product, times the sum of its row."""
        logits_NC = None
        if (rows.start, columns.start) in kept.tiles:
            powers_NC, shift_N = kept.tiles[rows.start, columns.start]
            if shift_N is not None and sums.top_N is not None:  # both or neither
                powers_NC.mul_(torch.exp(shift_N - sums.top_N)[:, None])
        else:
            logits_NC = self._logits(rows, columns)
            shifted_NC = logits_NC if sums.top_N is None else logits_NC - sums.top_N[:, None]
            # a soft cap needs the logits once more
            powers_NC = shifted_NC.exp() if self.recipe.softcap is not None else shifted_NC.exp_()
        at_N, inside_N = self._targets(rows, columns)
        powers_NC.scatter_add_(1, at_N[:, None], torch.where(inside_N, -sums.total_N, 0)[:, None])
        return self.recipe.backward_(powers_NC, logits_NC)

    def _sum(self, rows: slice, kept: Kept, shifts: bool) -> tuple[Tensor, Sums] | None:
        """Logits of the targets and sums of exp(logits) of some rows; None if those need a shift."""
        picked_N = torch.zeros(rows.stop - rows.start, dtype=self.exact, device=self.device)
        total_N, top_N = torch.zeros_like(picked_N), None
        for columns in self.columns:
            room_NC = kept.room(rows, columns)
            logits_NC = self._logits(rows, columns, room_NC)
            at_N, inside_N = self._targets(rows, columns)
            picked_N = torch.where(inside_N, logits_NC.gather(1, at_N[:, None]).squeeze(1), picked_N)
            if shifts:
                peak_N = logits_NC.amax(1)
                if top_N is not None:
                    peak_N = torch.maximum(peak_N, top_N)
                    total_N *= torch.exp(top_N - peak_N)
                top_N = peak_N
                logits_NC -= top_N[:, None]
            total_N += logits_NC.exp_().sum(1)
            if room_NC is not None:
                kept.tiles[rows.start, columns.start] = (logits_NC, top_N)
            # after the first tile, so that little is computed for nothing, and after the last, which decides
            tells = columns.start == 0 or columns.stop == len(self.weight_VH)
            if not shifts and tells and not bool((total_N.log().abs() < SHIFTLESS).all()):
                return None
        return picked_N, Sums(total_N, top_N)

    def _logits(self, rows: slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """Logits of one tile, in `out` or the shared buffer; the caller may write on them."""
        if out is None:
            size = rows.stop - rows.start, columns.stop - columns.start
            out = self.buffer[: size[0] * size[1]].view(size)
        product = torch.mm(self.hidden_KH[rows], self.weight_VH[columns].t(), out=out)
        if self.bias_V is not None:
            product += self.bias_V[columns]
        logits_NC = product.to(self.exact)
        return self.recipe.apply(logits_NC, out=logits_NC)  # in its place, which may be kept

    def _targets(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Of each row, the column of its target, and whether that is in the tile (else the column is any)."""
        at_N, width = self.target_K[rows] - columns.start, columns.stop - columns.start
        return at_N.clamp(0, width - 1), (at_N >= 0) & (at_N < width)


@dataclass(frozen=True)
class Sums:
    """Sums of some rows: the sum over the vocabulary of exp(logits - top). Without `top_N`, nothing is subtracted."""

    total_N: Tensor
    top_N: Tensor | None


class Kept:
    """Tiles of exp(logits - shift) by their first row and column, in one buffer which the next step uses again.

    Args:
        tiles: of which some are kept.
        budget: most bytes.
    """

    def __init__(self, tiles: Tiles, budget: int) -> None:
        size = min(budget // tiles.exact.itemsize, len(tiles.hidden_KH) * len(tiles.weight_VH))
        self.tiles: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
        self.rooms: dict[tuple[int, int], Tensor] = {}
        self.buffer, self.used = tiles.buffer.new_empty(0), 0
        if size:
            if _free and not (
                len(_free[0]) >= size and _free[0].dtype == tiles.exact and _free[0].device == tiles.device
            ):
                _free.clear()  # before the new one is made, or both would be there for a moment
            self.buffer = _free.pop() if _free else tiles.buffer.new_empty(size)

    def room(self, rows: slice, columns: slice) -> Tensor | None:
        """Room for a tile, if there is any left; the same again for the same tile."""
        at, height, width = (rows.start, columns.start), rows.stop - rows.start, columns.stop - columns.start
        if at not in self.rooms:
            if self.used + height * width > len(self.buffer):
                return None
            self.rooms[at] = self.buffer[self.used : self.used + height * width].view(height, width)
            self.used += height * width
        return self.rooms[at]

    def give_back(self) -> None:
        """The tiles are written over: a second backward computes them anew."""
        if len(self.buffer) and not _free:
            _free.append(self.buffer)
        self.buffer = self.buffer.new_empty(0)
        self.tiles, self.rooms = {}, {}


def _add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total (+)= left @ right, in place; the first product replaces what is there."""
    if total.dtype != left.dtype:
        product = left @ right
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, length)) for at in range(0, length, step)]
