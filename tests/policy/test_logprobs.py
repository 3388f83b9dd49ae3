from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from preftune.policy import logprobs, tiled_head
from preftune.policy.logprobs import token_logps
from preftune.policy.tiled_head import HeadRecipe, TiledHead

TARGETS, HIDDEN, VOCABULARY = 13, 6, 11
RECIPES = [HeadRecipe(), HeadRecipe(scale=0.3), HeadRecipe(softcap=2.0), HeadRecipe(scale=1.7, softcap=3.0)]
NEEDS = frozenset({"entropy_K", "log_sum_p2_K"})


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_KH = 2 * torch.randn(TARGETS, HIDDEN, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    target_K = torch.randint(VOCABULARY, (TARGETS,), generator=generator)
    return hidden_KH.to(dtype), weight_VH.to(dtype), bias_V.to(dtype), target_K


def layer(weight_VH: Tensor, bias_V: Tensor | None) -> nn.Linear:
    head = nn.Linear(weight_VH.shape[1], weight_VH.shape[0], bias=bias_V is not None, dtype=weight_VH.dtype)
    with torch.no_grad():
        head.weight.copy_(weight_VH)
        if bias_V is not None:
            head.bias.copy_(bias_V)
    return head


def logits_by_hand(hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, recipe: HeadRecipe) -> Tensor:
    logits_KV = linear(hidden_KH, weight_VH, bias_V) * recipe.scale
    return logits_KV if recipe.softcap is None else recipe.softcap * torch.tanh(logits_KV / recipe.softcap)


def by_hand(
    hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, recipe: HeadRecipe
) -> Tensor:
    logits_KV = logits_by_hand(hidden_KH, weight_VH, bias_V, recipe)
    return torch.log_softmax(logits_KV, dim=1).gather(1, target_K[:, None]).squeeze(1)


def with_gradients(function, *tensors: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    values_K = function(*leaves)
    (values_K * torch.linspace(-1, 2, len(values_K), dtype=values_K.dtype)).sum().backward()
    return values_K.detach(), [leaf.grad for leaf in leaves if leaf is not None]


@pytest.fixture(params=["one tile", "kept tiles", "tiles computed anew", "some kept", "kept and shifted", "shifted"])
def tiles(request, monkeypatch) -> str:
    """Every way in which the product may be cut and remembered."""
    monkeypatch.setattr(tiled_head, "_free", [])
    if request.param != "one tile":
        monkeypatch.setattr(tiled_head, "TILE_ROWS", 5)
        monkeypatch.setattr(tiled_head, "TILE_BYTES", 4 * 5 * 4)
        monkeypatch.setattr(logprobs, "CALL_BYTES", 4 * 3 * VOCABULARY)
    kept = {"tiles computed anew": 0, "shifted": 0, "some kept": 8 * 5 * 4 * 4}.get(request.param)
    if kept is not None:
        monkeypatch.setattr(tiled_head, "KEPT_BYTES", kept)
    if "shifted" in request.param:
        monkeypatch.setattr(tiled_head, "SHIFTLESS", -1.0)
    return request.param


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_the_tiled_head_agrees_with_the_whole_matrix_in_values_and_gradients(tiles, recipe, bias):
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    given_V = bias_V if bias else None

    def ours(hidden: Tensor, weight: Tensor, bias_V: Tensor | None) -> Tensor:
        return TiledHead.apply(hidden, weight, bias_V, target_K, recipe, True)

    def theirs(hidden: Tensor, weight: Tensor, bias_V: Tensor | None) -> Tensor:
        return by_hand(hidden, weight, bias_V, target_K, recipe)

    values_K, gradients = with_gradients(ours, hidden_KH, weight_VH, given_V)
    expected_K, expected = with_gradients(theirs, hidden_KH, weight_VH, given_V)
    torch.testing.assert_close(values_K, expected_K, rtol=0, atol=1e-12)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_the_tiled_head_passes_gradcheck(tiles, recipe):
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    leaves = [t.clone().requires_grad_() for t in (hidden_KH, weight_VH, bias_V)]
    # kept tiles are used up by the first backward; what is computed anew differs in the last bit
    assert torch.autograd.gradcheck(lambda *t: TiledHead.apply(*t, target_K, recipe, True), leaves, nondet_tol=1e-12)


def test_a_second_backward_gives_the_same_gradient(tiles):
    hidden_KH, weight_VH, _, target_K = inputs()
    hidden_KH.requires_grad_()
    values_K = token_logps(hidden_KH, layer(weight_VH, None), target_K, HeadRecipe())["logps_K"]
    first = torch.autograd.grad(values_K.sum(), hidden_KH, retain_graph=True)[0]
    second = torch.autograd.grad(values_K.sum(), hidden_KH)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen):
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    head = layer(weight_VH, bias_V)
    hidden_KH.requires_grad_(frozen != "hidden")
    head.requires_grad_(frozen != "head")
    token_logps(hidden_KH, head, target_K, HeadRecipe())["logps_K"].sum().backward()
    leaf = weight_VH.clone().requires_grad_() if frozen == "hidden" else hidden_KH.detach().clone().requires_grad_()
    arguments = (hidden_KH.detach(), leaf) if frozen == "hidden" else (leaf, weight_VH)
    by_hand(*arguments, bias_V, target_K, HeadRecipe()).sum().backward()
    found = head.weight.grad if frozen == "hidden" else hidden_KH.grad
    assert (hidden_KH.grad is None) == (frozen == "hidden")
    assert (head.weight.grad is None) == (frozen == "head")
    torch.testing.assert_close(found, leaf.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_entropy_and_collision_agree_with_their_definitions(tiles, recipe):
    hidden_KH, weight_VH, bias_V, target_K = inputs()
    found = token_logps(hidden_KH, layer(weight_VH, bias_V), target_K, recipe, NEEDS)
    p_KV = torch.softmax(logits_by_hand(hidden_KH, weight_VH, bias_V, recipe), dim=1)
    expected = {
        "logps_K": by_hand(hidden_KH, weight_VH, bias_V, target_K, recipe),
        "entropy_K": -(p_KV * p_KV.log()).sum(1),
        "log_sum_p2_K": (p_KV**2).sum(1).log(),
    }
    assert found.keys() == expected.keys()
    for name, values_K in expected.items():
        torch.testing.assert_close(found[name], values_K, rtol=0, atol=1e-12)
    assert not found["entropy_K"].requires_grad
    assert not found["log_sum_p2_K"].requires_grad


def test_one_further_value_alone_is_given_under_its_own_name():
    hidden_KH, weight_VH, _, target_K = inputs()
    both = token_logps(hidden_KH, layer(weight_VH, None), target_K, HeadRecipe(), NEEDS)
    for name in NEEDS:
        alone = token_logps(hidden_KH, layer(weight_VH, None), target_K, HeadRecipe(), frozenset({name}))
        assert alone.keys() == {"logps_K", name}
        assert torch.equal(alone[name], both[name])


def test_values_worked_by_hand():
    """Two tokens with logits 0 and log 3: p = 1/4 and 3/4."""
    head = layer(torch.tensor([[0.0], [math.log(3)]]), None)
    found = token_logps(torch.ones(2, 1), head, torch.tensor([0, 1]), HeadRecipe(), NEEDS)
    assert found["logps_K"].tolist() == pytest.approx([math.log(0.25), math.log(0.75)], abs=1e-6)
    assert found["entropy_K"][0].item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-6)
    assert found["log_sum_p2_K"][0].item() == pytest.approx(math.log(10 / 16), abs=1e-6)


def test_an_unknown_value_is_refused_by_name():
    hidden_KH, weight_VH, _, target_K = inputs()
    with pytest.raises(ValueError, match="kl_K"):
        token_logps(hidden_KH, layer(weight_VH, None), target_K, HeadRecipe(), frozenset({"kl_K"}))


class Doubled(nn.Linear):
    """A layer that does more than its weight says, as adapters do."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_head_that_is_more_than_a_linear_layer_is_called(tiles):
    hidden_KH, weight_VH, _, target_K = inputs()
    head = Doubled(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(weight_VH)
    values_K = token_logps(hidden_KH, head, target_K, HeadRecipe())["logps_K"]
    values_K.sum().backward()
    leaf = weight_VH.clone().requires_grad_()
    expected_K = by_hand(hidden_KH, 2 * leaf, None, target_K, HeadRecipe())
    expected_K.sum().backward()
    torch.testing.assert_close(values_K, expected_K, rtol=0, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, leaf.grad, rtol=0, atol=1e-12)


def test_a_hook_on_the_head_has_its_say():
    hidden_KH, weight_VH, _, target_K = inputs()
    head = layer(weight_VH, None)
    head.register_forward_hook(lambda module, arguments, output: 2 * output)
    values_K = token_logps(hidden_KH, head, target_K, HeadRecipe())["logps_K"]
    torch.testing.assert_close(values_K, by_hand(hidden_KH, 2 * weight_VH, None, target_K, HeadRecipe()))


@pytest.mark.parametrize("called", [False, True], ids=["tiled", "called"])
@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 weights", "autocast"])
def test_promise_08_log_softmax_of_bf16_logits_is_within_1e_5_of_float64(recipe, autocast, called):
    generator = torch.Generator().manual_seed(1)
    hidden_KH = 3 * torch.randn(64, 32, generator=generator)
    weight_VH = torch.randn(500, 32, generator=generator)
    target_K = torch.randint(500, (64,), generator=generator)
    dtype = torch.float32 if autocast else torch.bfloat16
    needs = NEEDS if called else frozenset()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = token_logps(hidden_KH.to(dtype), layer(weight_VH.to(dtype), None), target_K, recipe, needs)
    product_KV = torch.mm(hidden_KH.bfloat16(), weight_VH.bfloat16().t())
    logits_KV = recipe.apply(product_KV.double())
    exact_KV = torch.log_softmax(logits_KV, dim=1)
    exact_K = exact_KV.gather(1, target_K[:, None]).squeeze(1)
    assert found["logps_K"].dtype == torch.float32
    torch.testing.assert_close(found["logps_K"].double(), exact_K, rtol=1e-5, atol=1e-6)
    if called:
        entropy_K, collision_K = -(exact_KV.exp() * exact_KV).sum(1), (2 * exact_KV).logsumexp(1)
        torch.testing.assert_close(found["entropy_K"].double(), entropy_K, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["log_sum_p2_K"].double(), collision_K, rtol=1e-5, atol=1e-5)
    careless_K = torch.log_softmax(logits_KV.bfloat16(), dim=1).gather(1, target_K[:, None]).squeeze(1).double()
    assert ((careless_K - exact_K) / exact_K).abs().max() > 1e-4, "the test would not see a log-softmax in bf16"


def test_promise_08_gradients_under_autocast_reach_float32_weights():
    hidden_KH, weight_VH, bias_V, target_K = inputs(torch.float32)
    head = layer(weight_VH, bias_V)
    hidden_KH.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values_K = token_logps(hidden_KH, head, target_K, HeadRecipe())["logps_K"]
    values_K.sum().backward()
    leaf = weight_VH.clone().requires_grad_()
    by_hand(hidden_KH.detach(), leaf, bias_V, target_K, HeadRecipe()).sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == hidden_KH.grad.dtype == torch.float32
    assert (head.weight.grad - leaf.grad).abs().max() < 0.02 * leaf.grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_any_size_stay_finite(tiles, dtype):
    hidden_KH, weight_VH, bias_V, target_K = inputs(dtype)
    hidden_KH = (1e4 * hidden_KH).requires_grad_()
    values_K = token_logps(hidden_KH, layer(weight_VH, bias_V), target_K, HeadRecipe())["logps_K"]
    values_K.sum().backward()
    assert values_K.dtype == dtype
    assert values_K.isfinite().all()
    assert hidden_KH.grad.isfinite().all()
