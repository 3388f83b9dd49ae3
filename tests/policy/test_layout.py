from __future__ import annotations

import copy
import math
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from torch import nn

from preftune.data.packing import pack, pad
from preftune.policy.layout import TOLERANCE, choose_layout, original_context, tree_error
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule, logps
from preftune.training.batches import BatchConfig, micro_batches

SHORT = 16  # context that the miniatures below are made for
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "factor": 4.0,
    "original_max_position_embeddings": SHORT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def longrope(model_type: str = "llama") -> Any:
    return miniatures.build(model_type, rope_parameters=copy.deepcopy(LONGROPE))  # transformers writes on it


def dynamic() -> Any:
    return miniatures.build("llama", rope_parameters=dict(DYNAMIC), max_position_embeddings=SHORT)


def dynamic_in_some_layers() -> Any:
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    rope = {"sliding_attention": plain, "full_attention": dict(DYNAMIC)}
    return miniatures.build("gemma3_text", rope_parameters=rope, max_position_embeddings=SHORT)


def test_the_reason_names_the_type():
    assert choose_layout(miniatures.build("llama")) == ("tree", "model type llama is exact on prompt trees")
    layout, reason = choose_layout(miniatures.build("bloom"))
    assert (layout, reason) == ("padded", "model type bloom is not in the table of those exact on prompt trees")
    assert choose_layout(nn.Linear(2, 2)) == ("padded", "Linear is no transformers model")


def test_an_adapter_does_not_hide_the_architecture():
    lm = adapt(miniatures.build("qwen3"), ModelConfig(lora=LoraConfig()), seed=0)
    assert choose_layout(lm)[0] == "tree"
    assert tree_error(PolicyModule(lm, "tree")) <= TOLERANCE


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_comparison_leaves_layout_and_mode_as_they_were(layout, training):
    lm: Any = miniatures.build("llama").train(training)
    policy = PolicyModule(lm, layout).train(training)
    attention = lm.config._attn_implementation
    assert tree_error(policy) <= TOLERANCE
    assert (policy.layout, policy.training, lm.training) == (layout, training, training)
    assert lm.config._attn_implementation == attention


def test_the_comparison_crosses_the_window():
    """Phi-3.5-MoE never tells its attention of the window: as long as that reaches over everything, trees are right."""
    assert tree_error(PolicyModule(miniatures.build("phimoe", sliding_window=None), "tree")) <= TOLERANCE
    assert tree_error(PolicyModule(miniatures.build("phimoe", sliding_window=100), "tree")) > 100 * TOLERANCE
    assert tree_error(PolicyModule(miniatures.build("mistral", sliding_window=100), "tree")) <= TOLERANCE


def test_the_comparison_fits_a_short_context():
    assert tree_error(PolicyModule(miniatures.build("gpt2", max_position_embeddings=12), "tree")) <= TOLERANCE


def test_a_tree_that_gives_no_number_is_no_agreement():
    lm: Any = miniatures.build("llama")
    with torch.no_grad():
        lm.lm_head.weight.fill_(math.nan)
    assert not tree_error(PolicyModule(lm, "tree")) <= TOLERANCE


def test_length_dependent_rope_is_known_by_its_context():
    assert original_context(longrope()) == SHORT
    assert original_context(dynamic()) == SHORT
    assert original_context(longrope("phi3")) == 4096  # its own field goes before
    assert original_context(adapt(longrope(), ModelConfig(lora=LoraConfig()), seed=0)) == SHORT


def test_other_rope_and_other_models_have_no_such_context():
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    assert original_context(miniatures.build("llama", rope_parameters=linear)) is None
    assert original_context(miniatures.build("llama")) is None
    assert original_context(miniatures.build("gpt2")) is None
    assert original_context(nn.Linear(2, 2)) is None


def test_rope_of_one_layer_type_counts_too():
    assert original_context(dynamic_in_some_layers()) == SHORT
    assert original_context(miniatures.build("gemma3_text")) is None


@pytest.mark.parametrize("build", [longrope, dynamic, dynamic_in_some_layers])
def test_long_examples_run_alone_and_all_are_exact(build):
    examples = [miniatures.pair(5, 6, 4, 0), miniatures.pair(20, 9, 9, 2), miniatures.pair(3, 5, 8, 1)]
    lm = build()
    cut = micro_batches(range(3), [example.tokens for example in examples], BatchConfig(), original_context(lm))
    assert cut == [[0, 2], [1]]
    policy = PolicyModule(lm, "tree")
    with torch.no_grad():
        expected = [miniatures.separate(build(), [example]) for example in examples]
        together_K = logps(policy, pack(examples)).logps_K
        assert (together_K - torch.cat(expected)).abs().max() > 0.01, "one forward for all would be as good"
        for micro in cut:
            for layout, make in (("tree", pack), ("padded", pad)):
                policy.use_layout(layout)
                found_K = logps(policy, make([examples[i] for i in micro])).logps_K.double()
                expected_K = torch.cat([expected[i] for i in micro])
                torch.testing.assert_close(found_K, expected_K, rtol=0, atol=miniatures.EXACT)


@pytest.mark.parametrize("build", [longrope, dynamic, dynamic_in_some_layers])
def test_log_probs_do_not_depend_on_what_was_read_before(build):
    policy = PolicyModule(build(), "tree")
    batches = [pack([miniatures.pair(prompt, 6, 6, 0)]) for prompt in (4, SHORT - 6, 20, 40)]
    with torch.no_grad():
        rising = [logps(policy, batch).logps_K for batch in batches]
        falling = [logps(policy, batch).logps_K for batch in batches[::-1]][::-1]
    for before_K, after_K in zip(rising, falling, strict=True):
        assert torch.equal(before_K, after_K)


def test_examples_up_to_the_original_context_share_a_forward():
    tokens = [SHORT, SHORT - 3, SHORT + 1, 4]
    cut = micro_batches([3, 2, 0, 1], tokens, BatchConfig(), SHORT)
    assert cut == [[3, 0, 1], [2]]
    assert micro_batches([3, 2, 0, 1], tokens, BatchConfig(), None) == [[3, 2, 0, 1]]
    assert np.concatenate(cut).tolist() == [3, 0, 1, 2]
