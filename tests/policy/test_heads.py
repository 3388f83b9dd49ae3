from __future__ import annotations

from typing import Any

import miniatures
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from preftune.data.packing import pack, pad
from preftune.policy import logprobs
from preftune.policy.heads import find_head
from preftune.policy.layout import TREE_SAFE
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.tiled_head import HeadRecipe

RECIPES = [
    ("gemma2", {"final_logit_softcapping": 3.0}, HeadRecipe(softcap=3.0)),
    ("gemma4_text", {"final_logit_softcapping": 5.0}, HeadRecipe(softcap=5.0)),
    ("nanochat", {"final_logit_softcapping": 2.0}, HeadRecipe(softcap=2.0)),
    ("cohere", {"logit_scale": 0.4}, HeadRecipe(scale=0.4)),
    ("cohere2", {"logit_scale": 2.0}, HeadRecipe(scale=2.0)),
    ("granite", {"logits_scaling": 4.0}, HeadRecipe(scale=0.25)),
    ("granitemoe", {"logits_scaling": 0.5}, HeadRecipe(scale=2.0)),
    ("falcon_h1", {"lm_head_multiplier": 3.0}, HeadRecipe(scale=3.0)),
    ("phi", {}, HeadRecipe()),  # with a bias
    ("gptj", {}, HeadRecipe()),  # with a bias
    ("llama", {}, HeadRecipe()),
]
BIASED = ("phi", "gptj")
# heads with layers before the product, or a bias that is added behind it
UNKNOWN = ("modernbert-decoder", "electra", "roberta", "inkling_text")


@pytest.mark.parametrize(("model_type", "overrides", "recipe"), RECIPES, ids=[case[0] for case in RECIPES])
def test_the_recipe_gives_the_models_own_logits(model_type, overrides, recipe):
    lm = miniatures.build(model_type, **overrides)
    head = find_head(lm)
    assert head is not None
    assert head.recipe == recipe
    assert head.exact
    assert (getattr(head.output, "bias", None) is not None) == (model_type in BIASED)
    found = miniatures.gap(lm, "padded", miniatures.plain(lm, miniatures.pairs()), miniatures.pairs())
    assert max(found.values, found.gradients) <= 2 * miniatures.EXACT


@pytest.mark.parametrize("model_type", sorted(TREE_SAFE))
def test_no_type_in_the_table_needs_the_whole_matrix_of_logits_but_one(model_type):
    head = find_head(miniatures.build(model_type))
    assert head is not None
    assert head.exact == (model_type != "modernbert-decoder")


@pytest.mark.parametrize("model_type", UNKNOWN)
def test_a_head_that_does_something_unknown_falls_back_to_the_models_own_forward(model_type):
    lm = miniatures.build(model_type)
    head = find_head(lm)
    assert head is not None
    assert not head.exact
    found = miniatures.gap(lm, "padded", miniatures.plain(lm, miniatures.pairs()), miniatures.pairs())
    assert max(found.values, found.gradients) <= miniatures.EXACT


class Squashed(nn.Module):
    """What no recipe knows."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.asinh(self.inner(hidden))


def squashed_behind_the_head(lm: PreTrainedModel) -> None:
    """Change the logits outside the output layer, as a model with code of its own may."""
    forward = lm.forward

    def squash(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = torch.asinh(output.logits)
        return output

    lm.forward = squash


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_unknown_mathematics_behind_the_head_is_noticed_and_kept(layout):
    lm = miniatures.build("llama")
    squashed_behind_the_head(lm)
    head = find_head(lm)
    assert head is not None
    assert not head.exact
    found = miniatures.gap(lm, layout, miniatures.plain(lm, miniatures.pairs()), miniatures.pairs())
    assert max(found.values, found.gradients) <= miniatures.EXACT


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_unknown_mathematics_inside_the_head_is_called(layout):
    lm = miniatures.build("llama")
    lm.lm_head = Squashed(lm.lm_head)
    lm.get_output_embeddings = lambda: lm.lm_head  # its weight is found inside
    lm.lm_head.weight = lm.lm_head.inner.weight
    head = find_head(lm)
    assert head is not None
    assert head.exact
    found = miniatures.gap(lm, layout, miniatures.plain(lm, miniatures.pairs()), miniatures.pairs())
    assert max(found.values, found.gradients) <= miniatures.EXACT


def test_the_check_leaves_the_mode_as_it_was():
    lm = miniatures.build("llama")
    for training in (True, False):
        lm.train(training)
        find_head(lm)
        assert lm.training == training


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_tied_and_untied_heads_get_their_gradients(tied, layout):
    lm = miniatures.build("qwen3", tie_word_embeddings=tied)
    assert (lm.lm_head.weight is lm.model.embed_tokens.weight) == tied
    found = miniatures.gap(lm, layout, miniatures.plain(lm, miniatures.pairs()), miniatures.pairs())
    assert max(found.values, found.gradients) <= miniatures.EXACT


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_an_adapter_on_the_head_has_its_say(layout, monkeypatch):
    monkeypatch.setattr(logprobs, "CALL_BYTES", 3 * 4 * miniatures.VOCABULARY)  # several tiles
    lora = LoraConfig(r=4, alpha=8, targets=["q_proj", "v_proj", "lm_head"])
    lm: Any = adapt(miniatures.build("llama"), ModelConfig(lora=lora), seed=0)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    lm.eval()
    expected = miniatures.plain(lm, miniatures.pairs())
    assert any("lm_head.lora_A" in name and gradient.any() for name, gradient in expected.gradients.items())
    found = miniatures.gap(lm, layout, expected, miniatures.pairs())
    assert max(found.values, found.gradients) <= miniatures.EXACT
    with lm.disable_adapter(), torch.no_grad():
        without_K = miniatures.separate(lm, miniatures.pairs())
    assert (without_K - expected.logps_K).abs().max() > 0.1, "the adapter changes nothing"


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "modernbert-decoder"])
def test_float64_stays_float64(model_type):
    lm = miniatures.build(model_type).double()
    policy = PolicyModule(lm, "tree")
    with torch.no_grad():
        assert logps(policy, pack(miniatures.pairs())).logps_K.dtype == torch.float64


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "cohere", "phi", "modernbert-decoder", "llama4_text"])
@pytest.mark.parametrize("rows", [1, 3, 10_000])
def test_further_values_come_from_the_models_own_logits(model_type, rows, monkeypatch):
    monkeypatch.setattr(logprobs, "CALL_BYTES", rows * 4 * miniatures.VOCABULARY)
    lm = miniatures.build(model_type)
    batch = pad(miniatures.pairs())
    with torch.no_grad():
        shape = (-1, batch.row_length)
        logits = lm(input_ids=batch.ids_T.view(shape), attention_mask=batch.attended_T.view(shape).long()).logits
        exact_KV = torch.log_softmax(logits.reshape(len(batch.ids_T), -1)[batch.source_K].double(), dim=1)
        found = logps(PolicyModule(lm, "padded"), batch, frozenset({"entropy_K", "log_sum_p2_K"}))
    expected = {
        "logps_K": exact_KV.gather(1, batch.target_K[:, None]).squeeze(1),
        "entropy_K": -(exact_KV.exp() * exact_KV).sum(1),
        "log_sum_p2_K": (2 * exact_KV).logsumexp(1),
    }
    for name, values_K in expected.items():
        torch.testing.assert_close(getattr(found, name).double(), values_K, rtol=0, atol=miniatures.EXACT)
