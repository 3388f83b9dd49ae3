from __future__ import annotations

import copy
import pickle

import miniatures
import pytest
import torch

from preftune.data.packing import pack
from preftune.policy.loading import ModelConfig, adapt
from preftune.policy.policy import PolicyModule, logps

PAIRS = miniatures.pairs()


def rows_of_each_mlp(lm, run) -> list[int]:
    """How many tokens each layer's MLP was given."""
    seen: list[int] = []
    handles = [layer.mlp.register_forward_hook(lambda m, a, o: seen.append(a[0].shape[1])) for layer in lm.model.layers]
    run()
    for handle in handles:
        handle.remove()
    return seen


def test_the_last_mlp_computes_what_is_read_and_the_others_all():
    lm = miniatures.build("llama")
    policy, batch = PolicyModule(lm, "tree"), pack(PAIRS)
    read = sum(len(r.ids) for e in PAIRS for r in e.responses) + len(PAIRS) - 18  # of which one beginning is shared
    assert len(batch.tree.read_T) == read < batch.tokens
    found = rows_of_each_mlp(lm, lambda: logps(policy, batch))
    assert found == [batch.tokens] * (len(lm.model.layers) - 1) + [read]


def test_forwards_without_a_tree_compute_all():
    lm = miniatures.build("llama")
    policy = PolicyModule(lm, "tree")
    logps(policy, pack(PAIRS))
    policy.use_layout("padded")
    ids = torch.arange(6)[None]
    assert rows_of_each_mlp(lm, lambda: lm(input_ids=ids)) == [6] * len(lm.model.layers)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lm: pickle.loads(pickle.dumps(lm))], ids=["copy", "pickle"])
def test_a_copy_spares_its_own_layer_once(copied):
    lm = miniatures.build("llama")
    PolicyModule(lm, "tree")
    other = copied(lm)
    expected_K = logps(PolicyModule(lm, "tree"), pack(PAIRS)).logps_K
    assert torch.equal(logps(PolicyModule(other, "tree"), pack(PAIRS)).logps_K, expected_K)
    assert other.model.layers[-1].mlp.read_T is not None
    lm.model.layers[-1].mlp.read_T = None
    assert len(other.model.layers[-1].mlp._forward_hooks) == 1


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        lm = miniatures.build("llama")
        if checkpointed:
            adapt(lm, ModelConfig(gradient_checkpointing=True), seed=0)
        policy = PolicyModule(lm, "tree").train()
        first, second = (logps(policy, pack(examples)).logps_K for examples in (PAIRS, PAIRS[1:]))
        (first.sum() + second.square().sum()).backward()  # two graphs at once, of different trees
        gradients.append(miniatures.gradients(lm))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=miniatures.EXACT)


def test_a_type_that_visits_its_layers_again_is_left_alone():
    lm = miniatures.build("hrm_text")
    PolicyModule(lm, "tree")
    assert not any(hasattr(module, "read_T") for module in lm.modules())
