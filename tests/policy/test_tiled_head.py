from __future__ import annotations

import pytest
import torch
from torch import Tensor

from preftune.policy import tiled_head
from preftune.policy.tiled_head import HeadRecipe, TiledHead

TARGETS, HIDDEN, VOCABULARY = 12, 6, 40


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three slices of rows, five of columns."""
    monkeypatch.setattr(tiled_head, "_free", [])
    monkeypatch.setattr(tiled_head, "TILE_ROWS", 4)
    monkeypatch.setattr(tiled_head, "TILE_BYTES", 4 * 4 * 8)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_KH = torch.randn(TARGETS, HIDDEN, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    target_K = torch.randint(VOCABULARY, (TARGETS,), generator=generator)
    return hidden_KH.to(dtype), weight_VH.to(dtype), torch.zeros(VOCABULARY, dtype=dtype), target_K


def both(hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor, target_K: Tensor) -> list[list[Tensor]]:
    """Values and gradients of the tiled head, and of the whole matrix in float64."""
    found = []
    for tiled in (True, False):
        leaves = [x.clone() if tiled else x.double().clone() for x in (hidden_KH, weight_VH, bias_V)]
        for leaf in leaves:
            leaf.requires_grad_()
        if tiled:
            logps_K = TiledHead.apply(*leaves, target_K, HeadRecipe(), True)
        else:
            logits_KV = leaves[0] @ leaves[1].t() + leaves[2]
            logps_K = torch.log_softmax(logits_KV, 1).gather(1, target_K[:, None]).squeeze(1)
        (logps_K * torch.linspace(-1, 2, TARGETS)).sum().backward()
        found.append([logps_K.detach(), *(leaf.grad for leaf in leaves)])
    return found


@pytest.mark.parametrize("offset", [-300.0, -30.0, 0.0, 30.0, 300.0])
@pytest.mark.parametrize("kept", [0, 2**20], ids=["computed anew", "kept"])
@pytest.mark.parametrize("where", ["all", "first columns", "last columns", "rows"])
def test_logits_far_from_zero_are_as_exact_as_others(offset, kept, where, monkeypatch):
    """Whichever tile shows that exp needs a shift: what was computed without one must leave no trace."""
    monkeypatch.setattr(tiled_head, "KEPT_BYTES", kept)
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    if where == "rows":
        hidden_KH[5] += offset / 10
    else:
        at = {"all": slice(None), "first columns": slice(3), "last columns": slice(-3, None)}[where]
        bias_V[at] = offset
    found, expected = both(hidden_KH, weight_VH, bias_V, target_K)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [-20.0, 0.0, 20.0, 60.0])
def test_float32_loses_no_more_than_the_logits_themselves(offset):
    hidden_KH, weight_VH, bias_V, target_K = inputs(torch.float32)
    bias_V += offset
    found, expected = both(hidden_KH, weight_VH, bias_V, target_K)
    rounding = torch.finfo(torch.float32).eps * (abs(offset) + 10)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=0, atol=2 * rounding)


def test_the_gradient_of_a_sure_token_keeps_its_digits():
    """p - 1 of a target with p near 1 is a small difference of large values."""
    hidden_KH, weight_VH, bias_V, target_K = inputs(torch.float32)
    target_K[:] = 7
    bias_V[7] = 18.0
    found, expected = both(hidden_KH, weight_VH, bias_V, target_K)
    assert -1e-4 < float(expected[0].mean()) < 0
    torch.testing.assert_close(found[2].double(), expected[2], rtol=0, atol=4e-7)


def test_the_next_step_finds_the_buffer_of_the_last():
    tensors = inputs(torch.float32)
    both(*tensors)
    (buffer,) = tiled_head._free
    both(*tensors)
    assert tiled_head._free[0] is buffer


def test_two_graphs_at_once_share_no_tile():
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    expected = both(hidden_KH, weight_VH, bias_V, target_K)[1]
    leaves = [[x.clone().requires_grad_() for x in (hidden_KH, weight_VH, bias_V)] for _ in range(2)]
    values = [TiledHead.apply(*each, target_K, HeadRecipe(), True) for each in leaves]
    for logps_K in values:
        (logps_K * torch.linspace(-1, 2, TARGETS)).sum().backward()
    for each in leaves:
        for leaf, wanted in zip(each, expected[1:], strict=True):
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-12, atol=1e-12)


def test_nothing_is_kept_where_no_backward_follows():
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    TiledHead.apply(hidden_KH.requires_grad_(), weight_VH, bias_V, target_K, HeadRecipe(), False)
    assert not tiled_head._free


def test_a_device_that_must_not_wait_shifts_always(monkeypatch):
    """The way of other devices, on this one: the sums carry a shift, and nothing is read back."""
    monkeypatch.setattr(tiled_head, "_SHIFTLESS_DEVICES", ())
    tensors = inputs()
    for mine, wanted in zip(*both(*tensors), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
